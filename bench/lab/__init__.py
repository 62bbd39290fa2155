# SPDX-License-Identifier: Apache-2.0
"""A node on one machine: real agent, real CNI calls, network namespaces as node and pods.

What belongs here: what tests, demo and benchmarks share to build such a node, to send packets
through it, to ask its agent, and to read policy cases. What never does: assertions (they are the
tests') and anything that touches the machine's own network namespace.
"""
