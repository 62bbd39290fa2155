# SPDX-License-Identifier: Apache-2.0
"""About sockets that never block in a call: they decide whether redirect is on at all."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from typing import Final

from agent.selftest.check import (
    ANSWERED,
    OPENED,
    Check,
    exchange,
    expect,
    familiar,
    receive,
    send_all,
    wait,
)
from agent.selftest.stage import PATIENCE, Stage, in_thread
from bpf.layouts import RedirectState

_PIECE: Final = 1 << 16
_PATTERN: Final = bytes(range(251)) * 1024
_MANY: Final = 6000


def _passes_the_stack(stage: Stage) -> None:
    """The first connection to a port shows how its sockets are used; the second is redirected."""
    with stage.listener() as listener:
        with stage.connection(listener) as (client, server):
            exchange(client, server)
        with stage.connection(listener) as (client, server):
            exchange(client, server)
            state, _ = stage.state(client, OPENED)
            expect(state.state == RedirectState.REDIRECT_DIRECT, "messages go by the stack")
            expect(state.messages == 2, f"{state.messages} messages are counted instead of 2")
            expect(state.bytes == 8, f"{state.bytes} bytes are counted instead of 8")


def _waiting_bytes_are_seen(stage: Stage) -> None:
    """What is in the receiver bounds what is sent to it."""
    with stage.listener() as listener, familiar(stage, listener) as (client, server):
        client.sendall(b"x" * 5000)
        _, unread = stage.state(server, ANSWERED)
        expect(unread >= 5000, f"{unread} bytes are seen to wait instead of 5000")
        expect(receive(server, 5000) == b"x" * 5000, "they are not what was sent")


def _bounded_and_in_order(stage: Stage) -> None:
    """A reader that does not read stops its sender, as on the stack; then every byte comes, in
    order, and the connection leaves the stack again."""
    with stage.listener() as listener, familiar(stage, listener) as (client, server):
        sent = bytearray()
        with contextlib.suppress(BlockingIOError):
            while len(sent) < 1 << 26:
                piece = _PATTERN[len(sent) % 251 :][:_PIECE]
                sent += piece[: client.send(piece)]
        expect(len(sent) < 1 << 26, "a sender is never stopped")
        state, _ = stage.state(client, OPENED)
        expect(state.bytes < 1 << 21, f"{state.bytes} bytes wait in a receiver")
        expect(receive(server, len(sent)) == sent, "bytes are lost, doubled or out of order")
        expect(wait(client, select.POLLOUT), "a sender is not told that there is room again")
        deadline = time.monotonic() + PATIENCE
        while stage.state(client, OPENED)[0].state != RedirectState.REDIRECT_DIRECT:
            expect(time.monotonic() < deadline, "the connection stays on the stack")
            exchange(client, server)


def _end_after_data(stage: Stage) -> None:
    """What was sent before the end is there before the end."""
    with stage.listener() as listener, familiar(stage, listener) as (client, server):
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        expect(receive(server, 10) == b"last words", "data before the end is lost")
        expect(wait(server, select.POLLIN), "the end does not come")
        expect(server.recv(1) == b"", "there is something after the end")
        # The other direction lives on.
        server.sendall(b"answer")
        expect(receive(client, 6) == b"answer", "the half that is open takes nothing")


def _edges(stage: Stage) -> None:
    """Edge-triggered epoll tells each arrival."""
    with (
        stage.listener() as listener,
        familiar(stage, listener) as (client, server),
        contextlib.closing(select.epoll()) as poll,
    ):
        poll.register(server, select.EPOLLIN | select.EPOLLET)
        poll.poll(0)
        for n in range(100):
            client.sendall(b"%3d" % n)
            expect(bool(poll.poll(PATIENCE)), "an arrival is not told")
            expect(server.recv(3) == b"%3d" % n, "not the message that was sent")


def _peek(stage: Stage) -> None:
    """MSG_PEEK leaves what it shows."""
    with stage.listener() as listener, familiar(stage, listener) as (client, server):
        client.sendall(b"abcdef")
        expect(server.recv(3, socket.MSG_PEEK) == b"abc", "MSG_PEEK shows something else")
        expect(server.recv(6) == b"abcdef", "MSG_PEEK takes away")


def _splice(stage: Stage) -> None:
    """Who uses splice gets what was sent: by the stack, from the first call on."""
    with stage.listener() as listener, familiar(stage, listener) as (client, server):
        reader, writer = os.pipe()
        try:
            with contextlib.suppress(BlockingIOError):
                _splice_into(server, writer)
            client.sendall(b"spliced")
            expect(wait(server, select.POLLIN), "it is not told")
            expect(_splice_into(server, writer) == 7, "splice gets nothing")
            expect(os.read(reader, 16) == b"spliced", "splice gets something else")
        finally:
            os.close(reader)
            os.close(writer)


def _splice_into(source: socket.socket, pipe: int) -> int:
    return os.splice(source.fileno(), pipe, 4096, flags=os.SPLICE_F_NONBLOCK)


def _large_messages(stage: Stage) -> None:
    """A message of any size, and many pieces in one call, come as sent."""
    with stage.listener() as listener, familiar(stage, listener) as (client, server):
        whole = _PATTERN[:200_000]
        received = bytearray()
        sender = in_thread(lambda: send_all(client, whole))
        received += receive(server, len(whole))
        sender.join(PATIENCE)
        expect(bytes(received) == whole, "a long message is not what was sent")
        before, _ = stage.state(client, OPENED)
        exchange(client, server)  # two messages
        after, _ = stage.state(client, OPENED)
        asked = [one.messages + one.stack_messages for one in (before, after)]
        expect(asked[1] == asked[0] + 2, "what follows a long message is not judged")
        pieces = [whole[n : n + 7] for n in range(0, 700, 7)]
        client.sendmsg(pieces)
        expect(receive(server, 700) == whole[:700], "a message of many pieces is not as sent")


def _short_messages(stage: Stage) -> None:
    """Messages that wait are bounded, too: each costs more than its bytes."""
    with stage.listener() as listener, familiar(stage, listener) as (client, server):
        for _ in range(_MANY):
            client.send(b"x")
        state, _ = stage.state(client, OPENED)
        expect(state.messages < _MANY, f"{state.messages} messages wait in a receiver")
        expect(receive(server, _MANY) == b"x" * _MANY, "they are not what was sent")


def _part_is_read(stage: Stage) -> None:
    """What is left of a message is told again."""
    with stage.listener() as listener, familiar(stage, listener) as (client, server):
        client.sendall(b"abcd")
        for piece in (b"ab", b"cd"):
            expect(wait(server, select.POLLIN), "what is left of a message is not told")
            expect(server.recv(2) == piece, "not what was sent")
        poll = select.poll()
        poll.register(server, select.POLLIN)
        expect(not poll.poll(0), "what is read is told again")


def _switched(stage: Stage) -> None:
    """Switched off while data waits, and on again: every byte, in order."""
    with stage.listener() as listener, familiar(stage, listener) as (client, server):
        client.sendall(b"1")
        stage.switch(False)
        try:
            client.sendall(b"2")
            before = stage.state(client, OPENED)[0].messages
        finally:
            stage.switch(True)
        client.sendall(b"3")
        expect(stage.state(client, OPENED)[0].messages == before, "one message overtakes another")
        expect(receive(server, 3) == b"123", "bytes are lost, doubled or out of order")
        exchange(client, server)


def _after_the_end(stage: Stage) -> None:
    """Who has ended its half, or whose other end is gone, cannot send."""
    with stage.listener() as listener, familiar(stage, listener) as (client, server):
        client.shutdown(socket.SHUT_WR)
        expect(_fails(client), "what is sent after the end is taken")
        client.close()
        deadline = time.monotonic() + PATIENCE
        while not _fails(server):
            expect(time.monotonic() < deadline, "what is sent to a closed socket is taken")


def _fails(one: socket.socket) -> bool:
    try:
        one.send(b"x")
    except BlockingIOError:
        return False
    except OSError:
        return True
    return False


CHECKS: Final = (
    Check("past the stack", False, _passes_the_stack),
    Check("waiting bytes", False, _waiting_bytes_are_seen),
    Check("bounded, in order", False, _bounded_and_in_order),
    Check("end after data", False, _end_after_data),
    Check("edge-triggered epoll", False, _edges),
    Check("MSG_PEEK", False, _peek),
    Check("splice", False, _splice),
    Check("long messages", False, _large_messages),
    Check("short messages", False, _short_messages),
    Check("a part is read", False, _part_is_read),
    Check("switched off and on", False, _switched),
    Check("after the end", False, _after_the_end),
)
