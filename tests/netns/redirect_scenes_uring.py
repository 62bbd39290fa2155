# SPDX-License-Identifier: Apache-2.0
"""Scenes about io_uring (see redirect_scenes.py): requests that wait in the kernel for a socket."""

from __future__ import annotations

import ctypes
import errno
import select
import socket
from typing import Any

from tests.needs import lacking
from tests.netns.redirect_scene import abort, scene
from tests.netns.redirect_world import (
    LOOK,
    PATIENCE,
    Seen,
    fill,
    pattern,
    receive,
    send_all,
    wait_for,
)
from tests.netns.uring import (
    POLL_MULTISHOT,
    RECV_MULTISHOT,
    CqeFlag,
    Op,
    Ring,
    SqeFlag,
    Unavailable,
)


def ring() -> Ring:
    """Where there is none the test is skipped, or fails where kernel tests must run."""
    try:
        return Ring()
    except Unavailable as error:
        lacking(f"no io_uring: {error}")


def result(one: Ring, seconds: float = PATIENCE) -> Any:
    """Of the next completion: how many bytes, or the name of the errno; None for none."""
    told = one.told(seconds)
    if told is None:
        return None
    return told.result if told.result >= 0 else errno.errorcode[-told.result]


@scene("io_uring: receive, asked for before there is anything", "waits, and gets it")
def uring_receive(a: socket.socket, b: socket.socket) -> Seen:
    buffer = ctypes.create_string_buffer(64)
    seen: list[Any] = []
    with ring() as one:
        for n in range(20):
            one.ask(Op.RECV, b.fileno(), n, buffer)
            seen.append(result(one, LOOK / 10))
            send_all(a, b"message %2d" % n)
            seen += [result(one), buffer.raw[:10]]
        # What waits already is given at once.
        send_all(a, b"abcd")
        wait_for(b)
        for size in (3, 64):
            one.ask(Op.RECV, b.fileno(), 0, buffer, size)
            seen += [result(one), buffer.raw[:3]]
    return {"seen": seen}


@scene("io_uring: receive when the other end closes or resets", "the end; ECONNRESET")
def uring_end(a: socket.socket, b: socket.socket) -> Seen:
    buffer = ctypes.create_string_buffer(64)
    seen: list[Any] = []
    with ring() as one:
        one.ask(Op.RECV, b.fileno(), 1, buffer)
        seen.append(result(one, LOOK))
        a.shutdown(socket.SHUT_WR)
        seen.append(result(one))
        # The other half goes on.
        one.ask(Op.RECV, a.fileno(), 2, buffer)
        seen.append(result(one, LOOK))
        send_all(b, b"late")
        seen.append(result(one))
        one.ask(Op.RECV, a.fileno(), 3, buffer)
        abort(b)
        seen.append(result(one))
    return {"seen": seen}


@scene("io_uring: multishot receive into provided buffers", "a completion for each arrival")
def uring_multishot(a: socket.socket, b: socket.socket) -> Seen:
    count, size, group = 32, 16, 7
    memory = ctypes.create_string_buffer(count * size)
    seen: list[Any] = []
    with ring() as one:
        # How many is in the field of the descriptor.
        one.ask(Op.PROVIDE_BUFFERS, count, 1, memory, size, group=group)
        seen.append(result(one))
        one.ask(Op.RECV, b.fileno(), 2, 0, 0, ioprio=RECV_MULTISHOT, flags=SqeFlag.BUFFER_SELECT,
                group=group)  # fmt: skip
        seen.append(result(one, LOOK))
        for n in range(20):
            send_all(a, b"%3d" % n)
            told = one.told(PATIENCE)
            assert told is not None
            at = told.buffer * size
            seen.append((told.result, told.flags, memory.raw[at : at + 3]))
        a.shutdown(socket.SHUT_WR)
        told = one.told(PATIENCE)
        seen.append(told and (told.result, CqeFlag.MORE in told.flags))
    return {"seen": seen}


@scene("io_uring: poll, once and multishot", "told of what comes, and of the end")
def uring_poll(a: socket.socket, b: socket.socket) -> Seen:
    seen: list[Any] = []
    every = select.POLLIN | select.POLLRDHUP
    with ring() as one:
        one.ask(Op.POLL_ADD, b.fileno(), 1, op_flags=every)
        seen.append(result(one, LOOK))
        send_all(a, b"x")
        seen += [result(one), b.recv(8)]
        one.ask(Op.POLL_ADD, b.fileno(), 2, 0, POLL_MULTISHOT, op_flags=every)
        seen.append(result(one, LOOK))
        for _ in range(10):
            send_all(a, b"y")
            seen += [result(one), b.recv(8), result(one, LOOK / 10)]
        a.shutdown(socket.SHUT_WR)
        seen.append(result(one))
    return {"seen": seen}


@scene("io_uring: send", "as sent")
def uring_send(a: socket.socket, b: socket.socket) -> Seen:
    data = pattern(50_000)
    with ring() as one:
        one.ask(Op.SEND, a.fileno(), 1, data)
        return {"sent": result(one), "whole": receive(b, len(data)) == data}


@scene(
    "io_uring: send without copying (SEND_ZC)",
    "as sent; told when the memory may be used again",
    # The kernel withdraws its promise from a socket whose operations are replaced, which one that
    # is being accepted is too early for.
    on="the end that opened the connection: **EOPNOTSUPP**, as from protocols that have no such"
    " send; the other end: the same",
    stack_is={"seen": [50_000, CqeFlag.MORE, CqeFlag.NOTIF], "whole": True},
    may_differ={
        "seen": [-errno.EOPNOTSUPP, CqeFlag.MORE, CqeFlag.NOTIF],
        "whole": None,
    },
)
def uring_send_zero_copy(a: socket.socket, b: socket.socket) -> Seen:
    data = pattern(50_000)
    with ring() as one:
        one.ask(Op.SEND_ZC, a.fileno(), 1, data)
        told, last = one.told(PATIENCE), one.told(PATIENCE)
        assert told is not None and last is not None
        whole = receive(b, len(data)) == data if told.result > 0 else None
    return {"seen": [told.result, told.flags, last.flags], "whole": whole}


@scene("io_uring: send without room, then room", "waits for it")
def uring_room(a: socket.socket, b: socket.socket) -> Seen:
    data = pattern(1000)
    with ring() as one:
        sent = fill(a)
        one.ask(Op.SEND, a.fileno(), 1, data)
        early = one.told(LOOK)
        while early is not None:  # a probe of the closed window made room
            sent += early.result
            one.ask(Op.SEND, a.fileno(), 1, data)
            early = one.told(LOOK)
        receive(b, sent)
        got = one.told(PATIENCE)
        assert got is not None
        return {"sent": got.result, "whole": receive(b, got.result) == data[: got.result]}


@scene("io_uring: a receive that is cancelled", "ECANCELED, and nothing is lost")
def uring_cancel(a: socket.socket, b: socket.socket) -> Seen:
    buffer = ctypes.create_string_buffer(64)
    with ring() as one:
        one.ask(Op.RECV, b.fileno(), 5, buffer)
        early = result(one, LOOK)
        one.ask(Op.ASYNC_CANCEL, -1, 6, 5)
        ends = sorted((t.what, t.result) for _ in range(2) if (t := one.told(PATIENCE)))
        send_all(a, b"kept")
        return {"early": early, "ends": ends, "read": receive(b, 4)}


@scene(
    "blocking: io_uring: receive, asked for before there is anything", "waits, and gets it",
    blocking=True,
)  # fmt: skip
def uring_receive_blocking(a: socket.socket, b: socket.socket) -> Seen:
    return uring_receive(a, b)


@scene(
    "blocking: io_uring: receive when the other end closes or resets", "the end; ECONNRESET",
    blocking=True,
)  # fmt: skip
def uring_end_blocking(a: socket.socket, b: socket.socket) -> Seen:
    return uring_end(a, b)
