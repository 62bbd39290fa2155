# SPDX-License-Identifier: Apache-2.0
"""The datapath: C programs, one per hook, what they share with user space, and the maps' shapes.

Belongs here: ``<program>.c`` (one function of that name), ``lib/<feature>.h``, ``lib/layout.h`` as
the only source of shared structures, ``layouts.py`` generated from it by
``tools/generate_layouts.py``, ``maps.py`` with the table of maps, ``include/`` with the header
shim that the programs compile against.

Never belongs here: system calls, descriptors, decisions about what to write. This package is data
and pure functions; ``agent.kernel`` puts it into the kernel.
"""
