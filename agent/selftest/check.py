# SPDX-License-Identifier: Apache-2.0
"""What a check is, and what checks are made of."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from agent.selftest import Outcome
from agent.selftest.stage import PATIENCE, CheckFailed, Stage
from bpf.layouts import RedirectMode, RedirectState, SocketSide

OPENED, ANSWERED = SocketSide.SIDE_OPENED, SocketSide.SIDE_ANSWERED
SHORT: Final = 0.05
"""Seconds for what must not happen, or has to be under way."""


@dataclass(frozen=True, slots=True)
class Check:
    """`work` raises CheckFailed, or anything that sockets raise."""

    name: str
    blocking: bool
    work: Callable[[Stage], None]

    def run(self, stage: Stage) -> Outcome:
        """Its outcome; never raises for what it is about."""
        stage.set_mode(RedirectMode.REDIRECT_ALL if self.blocking else RedirectMode.REDIRECT_ON)
        try:
            self.work(stage)
        except CheckFailed as error:
            return Outcome(self.name, self.blocking, str(error))
        except OSError as error:
            return Outcome(self.name, self.blocking, f"unexpected: {error}")
        return Outcome(self.name, self.blocking)


@contextlib.contextmanager
def familiar(
    stage: Stage, listener: socket.socket
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection to a port whose use is known by then, so that it is redirected."""
    with stage.connection(listener) as (client, server):
        exchange(client, server)
    with stage.connection(listener) as (client, server):
        exchange(client, server)
        state, _ = stage.state(client, OPENED)
        expect(state.state == RedirectState.REDIRECT_DIRECT, "messages go by the stack")
        yield client, server


def exchange(client: socket.socket, server: socket.socket) -> None:
    """Two messages of four bytes there, one back."""
    for text in (b"ping", b"pong"):
        client.sendall(text)
        expect(receive(server, 4) == text, "a message is not what was sent")
    server.sendall(b"done")
    expect(receive(client, 4) == b"done", "an answer is not what was sent")


def send_all(one: socket.socket, data: bytes) -> None:
    """All of it, or as much as there is room for in good time."""
    view = memoryview(data)
    while view:
        try:
            view = view[one.send(view) :]
        except BlockingIOError:
            if not wait(one, select.POLLOUT):
                return


def receive(one: socket.socket, size: int) -> bytes:
    """Exactly so many bytes. Raises CheckFailed."""
    found = bytearray()
    while len(found) < size:
        try:
            piece = one.recv(size - len(found))
        except BlockingIOError:
            if not wait(one, select.POLLIN):
                raise CheckFailed(f"{len(found)} of {size} bytes come") from None
            continue
        if not piece:
            raise CheckFailed(f"the stream ends after {len(found)} of {size} bytes")
        found += piece
    return bytes(found)


def wait(one: socket.socket, events: int) -> bool:
    """Whether one of the events of poll comes in good time."""
    poll = select.poll()
    poll.register(one, events)
    return bool(poll.poll(PATIENCE * 1000))


def expect(holds: bool, otherwise: str) -> None:
    """Raises CheckFailed with these words, unless it holds."""
    if not holds:
        raise CheckFailed(otherwise)
