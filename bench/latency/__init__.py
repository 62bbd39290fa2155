# SPDX-License-Identifier: Apache-2.0
"""Latency of ways between two processes of one node, measured side by side in one run.

What belongs here: the matrix (as data), the places and proxies, the rounds, their statistics, what
is claimed, and how it is shown. What never does: anything that the agent imports, and a way that
gets another load generator than the others.
"""
