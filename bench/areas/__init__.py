# SPDX-License-Identifier: Apache-2.0
"""One module for each area of benchmarks; `run` of each gives its claims.

What belongs here: what is measured, against what, and the worlds that it needs. What never does:
expectations about correctness, which are the tests'.
"""
