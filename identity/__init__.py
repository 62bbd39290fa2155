# SPDX-License-Identifier: Apache-2.0
"""Who a packet's peer is: labels, selectors, identity numbers and the address table.

Belongs here: label sets and their filter, label selectors, number allocation, and the pure
computation of which prefix belongs to which peer class. Never here: rules and verdicts (`policy`),
Kubernetes objects (`agent.kube`), kernel maps, files, sockets, threads or clocks (time is passed
in).
"""
