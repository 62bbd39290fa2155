# SPDX-License-Identifier: Apache-2.0
"""The agent's facts and decisions, free of side effects.

Here belong: the frozen facts and events that sources deliver, the store of facts, the desired
state of the kernel's maps, the difference between desired and actual state, address allocation,
and object status. Everything is a plain value or a function of plain values.

Here never belong: sockets, threads, clocks, locks, logging, files, kernel or Kubernetes clients.
Whoever needs the time passes it in.
"""
