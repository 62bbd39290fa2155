# SPDX-License-Identifier: Apache-2.0
"""Scenes about being told, urgent data, sending (see redirect_scenes.py)."""

from __future__ import annotations

import array
import contextlib
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import time
from typing import Any, Final

from tests.netns.redirect_scene import scene, signals
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

_MSG_ZEROCOPY: Final = 0x4000000
_SIOCATMARK: Final = 0x8905
_SO_ZEROCOPY: Final = 60


# ---- being told ----------------------------------------------------------------------------------


@scene("level-triggered epoll", "EPOLLIN until all is read; EPOLLRDHUP with the end")
def level_epoll(a: socket.socket, b: socket.socket) -> Seen:
    with contextlib.closing(select.epoll()) as poll:
        poll.register(b, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLPRI)
        seen: list[Any] = [told(poll)]
        send_all(a, b"abcd")
        seen += [told(poll), b.recv(2), told(poll), b.recv(2), told(poll)]
        a.shutdown(socket.SHUT_WR)
        wait_for(b, select.POLLRDHUP)
        seen += [told(poll), b.recv(2), told(poll)]
        b.shutdown(socket.SHUT_WR)
        wait_for(b, 0)
        seen += [told(poll)]
    return {"seen": seen}


@scene("edge-triggered epoll, EPOLLIN and EPOLLRDHUP", "once for each arrival, once for the end")
def edges_in(a: socket.socket, b: socket.socket) -> Seen:
    with contextlib.closing(select.epoll()) as poll:
        poll.register(b, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        seen: list[Any] = [told(poll)]
        for n in range(20):
            send_all(a, b"%3d" % n)
            seen += [told(poll, PATIENCE), told(poll)]  # the second: unread is no new edge
            if n % 3:
                seen.append(len(b.recv(3 * (n % 3 + 1))))
        a.shutdown(socket.SHUT_WR)
        seen += [told(poll, PATIENCE), told(poll), receive_end(b), told(poll)]
    return {"seen": seen}


@scene("edge-triggered epoll, EPOLLOUT", "when there is room again")
def edges_out(a: socket.socket, b: socket.socket) -> Seen:
    with contextlib.closing(select.epoll()) as poll:
        poll.register(a, select.EPOLLOUT | select.EPOLLET)
        seen: list[Any] = [told(poll), told(poll)]
        for _ in range(3):
            sent = fill(a)
            # A probe of the closed window may make room once more: who is told so fills it, too.
            while told(poll):
                sent += fill(a)
            got = receive(b, sent)
            seen += [told(poll, PATIENCE), len(got) == sent]
            while told(poll, LOOK):
                pass
    return {"seen": seen}


@scene("EPOLLONESHOT, EPOLLEXCLUSIVE", "told once until armed again; told")
def one_shot(a: socket.socket, b: socket.socket) -> Seen:
    seen: Seen = {}
    for name, flag in (("one", select.EPOLLONESHOT), ("exclusive", select.EPOLLEXCLUSIVE)):
        with contextlib.closing(select.epoll()) as poll:
            poll.register(b, select.EPOLLIN | flag)
            send_all(a, b"x")
            seen[name] = [told(poll, PATIENCE), told(poll), b.recv(8)]
            if flag == select.EPOLLONESHOT:
                send_all(a, b"y")
                seen["disarmed"] = told(poll)
                poll.modify(b, select.EPOLLIN | flag)
                seen["armed"] = [told(poll, PATIENCE), b.recv(8)]
    return seen


@scene("poll, select", "as the data is")
def poll_and_select(a: socket.socket, b: socket.socket) -> Seen:
    def both() -> tuple[list[str], tuple[int, ...]]:
        every = select.POLLIN | select.POLLOUT | select.POLLPRI | select.POLLRDHUP
        chosen = select.select([b], [b], [b], 0)
        return names_of(wait_for(b, every, 0)), tuple(len(one) for one in chosen)

    seen = [both()]
    send_all(a, b"ab")
    wait_for(b)
    seen.append(both())
    b.recv(1)
    seen.append(both())
    b.recv(1)
    seen.append(both())
    sent = fill(b)
    seen.append((["full"], (sent > 0,)))
    seen.append(both())
    # Not left full: a probe of the closed window makes room now and then.
    seen.append((["read"], (len(receive(a, sent)) == sent,)))
    wait_for(b, select.POLLOUT)
    a.shutdown(socket.SHUT_WR)
    wait_for(b, select.POLLRDHUP)
    return {"seen": [*seen, both()]}


@scene("SIGIO (O_ASYNC)", "for each arrival")
def signal_driven(a: socket.socket, b: socket.socket) -> Seen:
    flags = fcntl.fcntl(b, fcntl.F_GETFL)
    with signals(signal.SIGIO) as came:
        fcntl.fcntl(b, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(b, fcntl.F_SETFL, flags | os.O_ASYNC)
        counts = []
        for _ in range(5):
            before = len(came)
            send_all(a, b"x")
            wait_for(b)
            b.recv(8)
            deadline = time.monotonic() + PATIENCE
            while len(came) == before and time.monotonic() < deadline:
                time.sleep(0.001)
            counts.append(len(came) > before)
        fcntl.fcntl(b, fcntl.F_SETFL, flags)
    return {"told": counts}


@scene(
    "SO_RCVLOWAT",
    "readable from so many bytes on",
    on="readable from the first byte on",
    stack_is={"few": []},
    differs={"few": ["IN"]},
)
def low_water(a: socket.socket, b: socket.socket) -> Seen:
    b.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 10)
    send_all(a, b"12345")
    seen: Seen = {"few": names_of(wait_for(b, seconds=LOOK))}
    send_all(a, b"67890")
    return seen | {"enough": names_of(wait_for(b)), "read": b.recv(64)}


def told(poll: select.epoll, seconds: float = 0) -> list[str]:
    found = poll.poll(seconds)
    return names_of(found[0][1], "EPOLL") if found else []


# ---- urgent data ---------------------------------------------------------------------------------


@scene(
    "urgent data (MSG_OOB)",
    "POLLPRI, SIGURG, read by MSG_OOB, left out of the stream",
    on="**an ordinary byte** of the stream: no POLLPRI, no SIGURG, and recv(MSG_OOB) reads what"
    " comes next",
    stack_is={"told": ["IN", "PRI"], "urgent": b"!", "signals": 1, "stream": b"ab"},
    differs={"told": ["IN"], "urgent": b"a", "signals": 0, "stream": b"!b"},
)
def urgent(a: socket.socket, b: socket.socket) -> Seen:
    with signals(signal.SIGURG) as came:
        fcntl.fcntl(b, fcntl.F_SETOWN, os.getpid())
        send_all(a, b"a")
        a.send(b"!", socket.MSG_OOB)
        wait_for(b, select.POLLPRI, LOOK)
        seen: Seen = {"told": names_of(wait_for(b, select.POLLIN | select.POLLPRI))}
        seen["urgent"] = outcome(b.recv, 1, socket.MSG_OOB)
    send_all(a, b"b")
    a.shutdown(socket.SHUT_WR)
    return seen | {"signals": len(came), "stream": receive_end(b)[0]}


@scene(
    "SO_OOBINLINE, SIOCATMARK",
    "in the stream, and the mark is where it was sent",
    on="in the stream, without the mark",
    stack_is={"marks": [False, True, False]},
    differs={"marks": [False, False, False]},
)
def urgent_inline(a: socket.socket, b: socket.socket) -> Seen:
    b.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    send_all(a, b"a")
    a.send(b"!", socket.MSG_OOB)
    send_all(a, b"b")
    marks, data = [], []
    for _ in range(3):
        mark = array.array("i", [0])
        fcntl.ioctl(b, _SIOCATMARK, mark, True)
        marks.append(bool(mark[0]))
        data.append(receive(b, 1))
    return {"marks": marks, "data": data}


# ---- sending -------------------------------------------------------------------------------------


@scene(
    "TCP_CORK, MSG_MORE",
    "held back until more comes, or 200 ms",
    on="sent at once",
    differs={"corked": ["IN"], "more": ["IN"]},
)
def cork(a: socket.socket, b: socket.socket) -> Seen:
    a.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    send_all(a, b"12345")
    seen: Seen = {"corked": names_of(wait_for(b, seconds=0))}
    a.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    seen["first"] = receive(b, 5)
    a.send(b"67", socket.MSG_MORE)
    seen["more"] = names_of(wait_for(b, seconds=0))
    a.send(b"890")
    return seen | {"second": receive(b, 5)}


@scene("TCP_NODELAY", "as sent")
def no_delay(a: socket.socket, b: socket.socket) -> Seen:
    seen: Seen = {}
    for on in (1, 0):
        a.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, on)
        for n in range(20):
            send_all(a, b"%3d" % n)
        seen[f"read {on}"] = receive(b, 60)
    return seen | {"more": outcome(b.recv, 1)}


@scene(
    "MSG_ZEROCOPY",
    "completions in the error queue",
    on="where SO_ZEROCOPY was set before connect or on the listener: the same, for it is left"
    " alone; set later: the data is copied and sent, **no completion comes** on this connection,"
    " and the next ones to the port are left alone",
    stack_is={"completions": 3},
    differs={"completions": 0},
)
def zero_copy(a: socket.socket, b: socket.socket) -> Seen:
    a.setsockopt(socket.SOL_SOCKET, _SO_ZEROCOPY, 1)
    page = mmap.mmap(-1, 1 << 14)
    page.write(pattern(1 << 14))
    seen: Seen = {"got": []}
    completions = 0
    for _ in range(3):
        sent = a.send(page, _MSG_ZEROCOPY)
        seen["got"].append((sent, receive(b, sent) == pattern(1 << 14)[:sent]))
    deadline = time.monotonic() + 4 * LOOK
    while completions < 3 and time.monotonic() < deadline:
        found = outcome(a.recvmsg, 0, 256, socket.MSG_ERRQUEUE)
        if isinstance(found, str):
            wait_for(a, 0, LOOK)
            continue
        for _, _, data in found[1]:
            first, last = struct.unpack_from("II", data, 8)
            completions += last - first + 1
    return seen | {"completions": completions}


@scene("two threads sending on one socket", "each message whole, each thread's in order")
def two_senders(a: socket.socket, b: socket.socket) -> Seen:
    got = bytearray()

    def send(mark: bytes) -> None:
        for n in range(500):
            send_all(a, mark + b"%07d" % n)

    with (
        meanwhile(lambda: send(b"A")),
        meanwhile(lambda: send(b"B")),
        meanwhile(lambda: got.extend(receive(b, 8000))),
    ):
        pass
    messages = [bytes(got[n : n + 8]) for n in range(0, 8000, 8)]
    return {mark: [m for m in messages if m[:1] == mark] for mark in (b"A", b"B")}  # type: ignore[misc]
