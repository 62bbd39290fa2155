# SPDX-License-Identifier: Apache-2.0
"""What a scene is, see redirect_scenes.py, and what scenes share."""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.netns.redirect_world import (
    LOOK,
    Program,
    Seen,
    meanwhile,
    outcome,
    send_all,
)

SAME: Final = "the same"


@dataclass(frozen=True, slots=True)
class Scene:
    """One row of the table.

    stack, on, all: its words for each way. blocking: the sockets block. stack_is: part of what is
    seen on the stack. differs: what is seen otherwise where redirected: whatever is not here must
    be as on the stack. may_differ: what is seen so now and then, as things come to pass.
    """

    title: str
    program: Program
    stack: str
    on: str = SAME
    all: str = SAME
    blocking: bool = False
    stack_is: Mapping[str, Any] = field(default_factory=dict)
    differs: Mapping[str, Any] = field(default_factory=dict)
    may_differ: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For test ids."""
        return self.program.__name__


_SCENES: Final[list[Scene]] = []


def scenes_of(module: str) -> list[Scene]:
    """Those of a module, as they stand there."""
    return [one for one in _SCENES if one.program.__module__ == module]


def scene(title: str, stack: str, **rest: Any) -> Callable[[Program], Program]:
    """Makes a program a scene. `on` alone stands for `all`, too."""
    if "on" in rest and not rest.get("blocking"):
        rest.setdefault("all", rest["on"])
    if rest.get("blocking"):
        rest.setdefault("on", "goes by the stack")

    def keep(program: Program) -> Program:
        _SCENES.append(Scene(title, program, stack, **rest))
        return program

    return keep


@contextlib.contextmanager
def signals(number: signal.Signals) -> Iterator[list[int]]:
    """Those that came meanwhile."""
    came: list[int] = []
    former = signal.signal(number, lambda got, _: came.append(got))
    try:
        yield came
    finally:
        signal.signal(number, former)


def abort(one: socket.socket) -> None:
    """Resets the connection."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()


def read_with_signal(a: socket.socket, b: socket.socket) -> Any:
    """What a blocking read gives during which a signal is handled, and after which data comes."""
    with signals(signal.SIGUSR1):
        signal.siginterrupt(signal.SIGUSR1, False)
        return reads(b, None, lambda: send_all(a, b"late"))["read"]


def reads(
    reader: socket.socket, happens: Callable[[], object] | None, comes: Callable[[], object]
) -> Seen:
    """What a blocking read gives, meanwhile something happens (None: a signal) and data comes."""
    found: list[Any] = []
    with meanwhile(lambda: found.append(outcome(reader.recv, 16))) as thread:
        time.sleep(LOOK)
        if happens is None:
            signal.pthread_kill(thread.ident or 0, signal.SIGUSR1)
        else:
            happens()
        time.sleep(LOOK)
        comes()
    return {"read": found[0]}
