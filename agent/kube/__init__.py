# SPDX-License-Identifier: Apache-2.0
"""Kubernetes objects: where facts come from, and what is written to an API server.

Here belong: the translation of raw objects to facts (pure), the sources that deliver events (a
watched folder of manifests, `manifests`; an API server, `cluster`), the way to an API server
(`access`), and typed operations on what the agent writes there (`resources`, `node`, `notices`,
`lease`). A source only calls `emit`; a write is one request, made when somebody calls.

Here never belong: decisions about policy, identities or the kernel, what is to be written and
when, and anything that changes the store. Nothing below this package knows which source an event
came from, but for its name.

From an API server's bytes to events: access, wire, translate_wire, following, reflector, cluster.
What was last good is kept over a restart: last_good (the file); memory, keeper (of an API server).
"""
