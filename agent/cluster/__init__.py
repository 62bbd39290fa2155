# SPDX-License-Identifier: Apache-2.0
"""This node's part in a cluster: what it writes to the API server.

What belongs here: threads that compare what the loop wants told with what is told already, and
write the difference through `agent.kube`. What never does: watching (that is a source, in
`agent.kube`), decisions about policy, and the kernel. Nothing here is waited for by a packet: with
the API server away, everything that is in force stays so.
"""
