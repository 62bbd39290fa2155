# SPDX-License-Identifier: Apache-2.0
"""Everything that talks to the kernel: bpf(2), programs, maps, links, devices, probes.

Belongs here: system calls and netlink, and the checks that make them safe to repeat. Every
function is idempotent, names the object it failed on, and takes descriptors, paths and clocks
as arguments.

Never belongs here: what *should* be in a map (``agent.core``), when to write it (``agent.loop``),
the meaning of an event (``agent.telemetry``). Only ``loader_child``, which runs in a process of
its own, may import bcc.
"""
