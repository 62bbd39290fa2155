# SPDX-License-Identifier: Apache-2.0
"""Benchmarks: both sides in one run, interleaved, medians, claims against bars.

What belongs here: drivers, references to compare with, results. What never does: anything that the
agent imports.
"""
