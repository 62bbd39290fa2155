# SPDX-License-Identifier: Apache-2.0
"""The Container Network Interface: the relay on the host, and what its frames mean.

Belongs here: `shim.c` (the executable that runtimes start), the frame between it and the agent,
parsing and checking of requests and network configurations, results and errors of every spec
version, and the spool of removals that came while no agent ran.

Never belongs here: sockets, threads, clocks (`agent/rpc/cni_server.py` has them), addresses,
devices, policy, or anything that decides what a request does. Only `spool` touches files; all
other modules are pure.
"""
