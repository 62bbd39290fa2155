# SPDX-License-Identifier: Apache-2.0
"""Pins of objects that the agent holds by a descriptor: is the pin still there, and still of this
object? If not, it is put back, in one step for whoever looks for it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from agent.kernel import bpf
from agent.kernel.syscall import BpfError

_SPARE: Final = "repin-"
"""Before a name while it is being put back; no name of ours begins so, whatever the version."""


def pin_state(fd: int, path: Path) -> str:
    """What is wrong with the pin of the map or program ``fd``, empty where nothing is.

    Raises BpfError where the descriptor itself is none of these.
    """
    try:
        pinned = bpf.object_get(path)
    except BpfError as error:
        return f"nothing to be opened ({os.strerror(error.errno or 0)})"
    try:
        return "" if _identity(pinned) == _identity(fd) else f"another {bpf.object_kind(pinned)}"
    finally:
        os.close(pinned)


def pin_again(fd: int, path: Path) -> None:
    """Pin the object at ``path``, in place of whatever file is there. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    spare = path.with_name(f"{_SPARE}{path.name}")
    spare.unlink(missing_ok=True)
    bpf.object_pin(fd, spare)
    os.rename(spare, path)


def _identity(fd: int) -> tuple[str, int]:
    kind = bpf.object_kind(fd)
    match kind:
        case "map":
            return kind, bpf.map_info(fd).id
        case "prog":
            return kind, bpf.program_info(fd).id
        case _:
            return kind, 0
