# SPDX-License-Identifier: Apache-2.0
"""Scenes about the stream itself: its end, splice, reading (see redirect_scenes.py)."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from typing import Final

from tests.netns.redirect_scene import abort, scene, signals
from tests.netns.redirect_world import (
    LOOK,
    PATIENCE,
    Seen,
    fill,
    meanwhile,
    names_of,
    outcome,
    pattern,
    receive,
    receive_end,
    send_all,
    wait_for,
)

_SO_PEEK_OFF: Final = 42


# ---- the end of a connection ---------------------------------------------------------------------


@scene("half close", "data before it comes first; the other half goes on until its own end")
def half_close(a: socket.socket, b: socket.socket) -> Seen:
    send_all(a, pattern(200_000))
    a.shutdown(socket.SHUT_WR)
    seen: Seen = {"forth": receive_end(b), "again": outcome(b.recv, 1)}
    for n in range(20):
        b.send(b"%5d" % n)
        seen[f"back {n}"] = receive(a, 5)
    b.shutdown(socket.SHUT_WR)
    seen["end"] = receive_end(a)
    seen["told"] = names_of(wait_for(a, select.POLLIN | select.POLLRDHUP | select.POLLHUP))
    return seen


@scene(
    "sending after one's own half close",
    "EPIPE and SIGPIPE",
    stack_is={"send": ["EPIPE"] * 3, "signals": 3},
)
def send_after_end(a: socket.socket, b: socket.socket) -> Seen:
    send_all(a, pattern(200_000))
    a.shutdown(socket.SHUT_WR)
    seen: Seen = {"end": receive_end(b)}
    with signals(signal.SIGPIPE) as came:
        seen["send"] = [outcome(a.send, b"x") for _ in range(3)]
    send_all(b, b"back")
    return seen | {"signals": len(came), "back": receive(a, 4)}


@scene("close, and sending to what is closed", "one message is taken, then EPIPE and SIGPIPE")
def send_to_closed(a: socket.socket, b: socket.socket) -> Seen:
    b.close()
    seen: Seen = {"end": receive_end(a)}
    with signals(signal.SIGPIPE) as came:
        seen["first"] = outcome(a.send, b"1")
        seen["told"] = names_of(wait_for(a, 0))
        seen["second"] = outcome(a.send, b"2")
        seen["quiet"] = outcome(a.send, b"3", socket.MSG_NOSIGNAL)
    return seen | {
        "signals": len(came),
        "error": a.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR),
    }


@scene("reset (SO_LINGER 0)", "ECONNRESET once, then the end; POLLERR, POLLHUP")
def reset(a: socket.socket, b: socket.socket) -> Seen:
    abort(a)
    return {
        "told": names_of(wait_for(b, select.POLLIN | select.POLLOUT | select.POLLRDHUP)),
        "read": outcome(b.recv, 1),
        "again": outcome(b.recv, 1),
        "send": outcome(b.send, b"x"),
    }


@scene("reset, seen by SO_ERROR", "ECONNRESET, and it is taken by that")
def reset_by_option(a: socket.socket, b: socket.socket) -> Seen:
    abort(a)
    seen: Seen = {"told": names_of(wait_for(b, 0))}
    for turn in ("first", "second"):
        seen[turn] = b.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return seen | {"read": outcome(b.recv, 1)}


@scene("reset behind data", "the data, then ECONNRESET")
def reset_behind_data(a: socket.socket, b: socket.socket) -> Seen:
    send_all(a, b"last words")
    abort(a)
    return {"told": names_of(wait_for(b, 0)), "read": outcome(b.recv, 64), "end": receive_end(b)}


@scene(
    "close with unread data",
    "the sender gets ECONNRESET",
    on="the sender gets the end, as after any close",
    stack_is={"end": (b"", "ECONNRESET"), "send": "EPIPE"},
    differs={"end": (b"", "end"), "send": 1},
)
def close_unread(a: socket.socket, b: socket.socket) -> Seen:
    send_all(a, b"never read")
    wait_for(b)
    b.close()
    return {"end": receive_end(a), "send": outcome(a.send, b"x")}


@scene("close while the other end waits for room", "it is woken and gets ECONNRESET")
def close_full(a: socket.socket, b: socket.socket) -> Seen:
    fill(a)
    woken: list[int] = []
    with meanwhile(lambda: woken.append(wait_for(a, select.POLLOUT))):
        time.sleep(LOOK)
        b.close()
    return {"told": names_of(woken[0]), "send": outcome(a.send, b"x")}


@scene("shutdown(SHUT_RD)", "what is there and what still comes can be read, then the end at once")
def shut_read(a: socket.socket, b: socket.socket) -> Seen:
    send_all(a, b"before")
    wait_for(b)
    b.shutdown(socket.SHUT_RD)
    seen: Seen = {"told": names_of(wait_for(b, select.POLLIN | select.POLLRDHUP))}
    seen["before"] = outcome(b.recv, 64)
    seen["empty"] = outcome(b.recv, 64)
    seen["send"] = outcome(a.send, b"after")
    deadline = time.monotonic() + PATIENCE
    while not (after := b.recv(64)) and time.monotonic() < deadline:
        time.sleep(0.002)
    seen["after"] = after
    b.send(b"back")
    return seen | {"back": receive(a, 4)}


# ---- splice, sendfile ----------------------------------------------------------------------------


@scene(
    "splice from a socket", "gets the data", on="the same: such a socket is given all by the stack"
)
def splice_first(a: socket.socket, b: socket.socket) -> Seen:
    with _pipe() as (reader, writer):
        seen: Seen = {"empty": outcome(_splice, b.fileno(), writer)}
        for n in range(50):
            send_all(a, b"%5d" % n)
            seen[f"told {n}"] = names_of(wait_for(b))
            seen[f"got {n}"] = outcome(_splice, b.fileno(), writer)
            seen[f"data {n}"] = outcome(os.read, reader, 64)
    return seen


@scene(
    "splice from a socket in which data waits already, its first time",
    "gets the data",
    on="EAGAIN though poll says POLLIN; recv gets the data, and from then on splice does",
    stack_is={"splice": 5, "recv": "EAGAIN"},
    differs={"splice": "EAGAIN", "recv": b"early"},
)
def splice_later(a: socket.socket, b: socket.socket) -> Seen:
    send_all(a, b"early")
    with _pipe() as (reader, writer):
        seen: Seen = {"told": names_of(wait_for(b)), "splice": outcome(_splice, b.fileno(), writer)}
        seen["recv"] = outcome(b.recv, 64)
        if seen["splice"] == 5:
            outcome(os.read, reader, 64)
        for n in range(20):
            send_all(a, b"%5d" % n)
            wait_for(b)
            seen[f"got {n}"] = outcome(_splice, b.fileno(), writer)
            seen[f"data {n}"] = outcome(os.read, reader, 64)
    return seen


@scene("splice into a socket, vmsplice", "as sent")
def splice_into(a: socket.socket, b: socket.socket) -> Seen:
    whole = pattern(50_000)
    with _pipe() as (reader, writer):
        os.write(writer, whole)
        got = bytearray()
        left = len(whole)
        while left:
            left -= os.splice(reader, a.fileno(), left, flags=os.SPLICE_F_NONBLOCK)
            got += receive(b, len(whole) - left - len(got))
    return {"same": bytes(got) == whole, "more": outcome(b.recv, 1)}


@scene("sendfile", "as sent")
def sendfile(a: socket.socket, b: socket.socket) -> Seen:
    whole, got = pattern(700_001), bytearray()
    with tempfile.TemporaryFile() as file:
        file.write(whole)
        file.flush()
        at = 0
        with meanwhile(lambda: got.extend(receive(b, len(whole)))):
            while at < len(whole):
                wait_for(a, select.POLLOUT)
                with contextlib.suppress(BlockingIOError):
                    at += os.sendfile(a.fileno(), file.fileno(), at, len(whole) - at)
    return {"same": bytes(got) == whole, "more": outcome(b.recv, 1)}


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


def _splice(source: int, target: int) -> int:
    return os.splice(source, target, 4096, flags=os.SPLICE_F_NONBLOCK)


# ---- reading -------------------------------------------------------------------------------------


@scene("MSG_PEEK", "shows, and leaves")
def peek(a: socket.socket, b: socket.socket) -> Seen:
    for piece in (b"abc", b"def", b"ghi"):
        send_all(a, piece)
    deadline = time.monotonic() + PATIENCE
    while outcome(b.recv, 9, socket.MSG_PEEK) != b"abcdefghi" and time.monotonic() < deadline:
        time.sleep(0.002)
    seen: Seen = {f"peek {n}": outcome(b.recv, n, socket.MSG_PEEK) for n in (1, 3, 5, 9, 64)}
    return seen | {"read": b.recv(4), "peek": b.recv(64, socket.MSG_PEEK), "rest": b.recv(64)}


@scene(
    "MSG_PEEK with SO_PEEK_OFF",
    "goes on where the last peek ended (since Linux 6.9)",
    on="shows the beginning again",
    stack_is={"second": b"cd"},
    differs={"second": b"ab"},
)
def peek_offset(a: socket.socket, b: socket.socket) -> Seen:
    b.setsockopt(socket.SOL_SOCKET, _SO_PEEK_OFF, 0)
    send_all(a, b"abcdef")
    wait_for(b)
    seen: Seen = {turn: outcome(b.recv, 2, socket.MSG_PEEK) for turn in ("first", "second")}
    return seen | {"all": b.recv(64)}


@scene(
    "MSG_TRUNC (read and forget)",
    "so many bytes are gone, nothing is copied",
    on="so many bytes are gone, and were copied",
    stack_is={"buffer": bytes(16)},
    differs={"buffer": b"forgotten" + bytes(7)},
)
def forget(a: socket.socket, b: socket.socket) -> Seen:
    send_all(a, b"forgotten, kept")
    wait_for(b)
    buffer = bytearray(16)
    gone = outcome(b.recv_into, buffer, 9, socket.MSG_TRUNC)
    return {"gone": gone, "buffer": bytes(buffer), "rest": b.recv(64)}


@scene("many pieces in one call (sendmsg, recvmsg)", "as sent")
def pieces(a: socket.socket, b: socket.socket) -> Seen:
    whole = pattern(1024 * 7)
    sent = a.sendmsg([whole[n : n + 7] for n in range(0, len(whole), 7)])
    send_all(a, whole[sent:])
    wait_for(b)
    buffers = [bytearray(3) for _ in range(1000)]
    count, _, flags, _ = b.recvmsg_into(buffers)
    got = b"".join(bytes(one) for one in buffers)[:count]
    got += receive(b, len(whole) - count)
    return {"sent": sent, "flags": flags, "same": got == whole}


@scene("messages of no bytes", "0, and the reader is not told")
def nothing(a: socket.socket, b: socket.socket) -> Seen:
    seen: Seen = {"sent": outcome(a.send, b""), "told": wait_for(b, seconds=LOOK)}
    seen["empty"] = outcome(b.recv, 0)
    send_all(a, b"x")
    wait_for(b)
    return seen | {"zero": outcome(b.recv, 0), "read": outcome(b.recv, 64)}


@scene("very long messages", "as sent")
def long_messages(a: socket.socket, b: socket.socket) -> Seen:
    whole, got = pattern(9_000_001), bytearray()
    with meanwhile(lambda: got.extend(receive(b, len(whole)))):
        send_all(a, whole)
    return {"same": bytes(got) == whole, "more": outcome(b.recv, 1)}
