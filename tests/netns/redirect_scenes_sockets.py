# SPDX-License-Identifier: Apache-2.0
"""Scenes about what a socket can be asked, whose it is, and calls that block."""

from __future__ import annotations

import array
import ctypes
import fcntl
import mmap
import socket
import struct
import termios
import time
from typing import Any, Final

from tests.netns.redirect_scene import abort, read_with_signal, reads, scene
from tests.netns.redirect_world import (
    LOOK,
    PATIENCE,
    Seen,
    in_child,
    meanwhile,
    outcome,
    pattern,
    receive,
    receive_end,
    send_all,
    wait_for,
)

_SIOCOUTQ: Final = 0x5411
_SO_TIMESTAMPNS: Final = 35
_SO_TIMESTAMPING: Final = 37
_STAMP_ACKNOWLEDGED: Final = 1 << 9 | 1 << 4 | 1 << 7 | 1 << 11
"""TX_ACK, SOFTWARE, OPT_ID, OPT_TSONLY (include/uapi/linux/net_tstamp.h)."""
_TCP_INQ: Final = 36
_TCP_ZEROCOPY_RECEIVE: Final = 35


# ---- what can be asked ---------------------------------------------------------------------------


@scene("FIONREAD (SIOCINQ)", "bytes that wait to be read")
def waiting_bytes(a: socket.socket, b: socket.socket) -> Seen:
    send_all(a, pattern(5000))
    wait_for(b)
    return {"waiting": ask(b, termios.FIONREAD), "read": receive(b, 5000)}


@scene(
    "TCP_INQ",
    "recvmsg says how many bytes are left",
    on="recvmsg says nothing of it",
    stack_is={"left": [5]},
    differs={"left": []},
)
def inq(a: socket.socket, b: socket.socket) -> Seen:
    b.setsockopt(socket.IPPROTO_TCP, _TCP_INQ, 1)
    send_all(a, b"1234567890")
    wait_for(b)
    data, ancillary, _, _ = b.recvmsg(5, 256)
    left = [
        struct.unpack("i", value)[0]
        for level, kind, value in ancillary
        if (level, kind) == (socket.IPPROTO_TCP, _TCP_INQ)
    ]
    return {"data": data, "left": left, "rest": b.recv(64)}


@scene(
    "SO_TIMESTAMPNS",
    "recvmsg says when data arrived",
    on="recvmsg says nothing of it",
    stack_is={"stamps": 1},
    differs={"stamps": 0},
)
def timestamps(a: socket.socket, b: socket.socket) -> Seen:
    b.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    stamps = 0
    for _ in range(10):  # the kernel begins to take times a little later
        send_all(a, b"now")
        wait_for(b)
        _, ancillary, _, _ = b.recvmsg(64, 256)
        stamps += sum(1 for _, kind, _ in ancillary if kind == _SO_TIMESTAMPNS)
        if stamps:
            break
        time.sleep(LOOK / 2)
    return {"stamps": stamps}


@scene(
    "SO_TIMESTAMPING of what is sent",
    "in the error queue, once it is acknowledged",
    on="**none comes**",
    stack_is={"stamps": 1},
    differs={"stamps": 0},
)
def sending_timestamps(a: socket.socket, b: socket.socket) -> Seen:
    a.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPING, _STAMP_ACKNOWLEDGED)
    send_all(a, b"now")
    got = receive(b, 3)
    wait_for(a, 0, 4 * LOOK)
    stamp = outcome(a.recvmsg, 64, 256, socket.MSG_ERRQUEUE)
    found = [] if isinstance(stamp, str) else stamp[1]
    return {"got": got, "stamps": sum(1 for _, kind, _ in found if kind == _SO_TIMESTAMPING)}


@scene(
    "TCP_ZEROCOPY_RECEIVE",
    "maps, or says how much recv has to read",
    on="says that nothing waits; recv reads it",
    stack_is={"known": True},
    differs={"known": False},
)
def mapped_reading(a: socket.socket, b: socket.socket) -> Seen:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    window = libc.mmap(None, 8192, mmap.PROT_READ, mmap.MAP_SHARED, b.fileno(), ctypes.c_long(0))
    try:
        send_all(a, pattern(8192))
        wait_for(b)
        # struct tcp_zerocopy_receive (include/uapi/linux/tcp.h), as far as it is needed.
        asked = ctypes.create_string_buffer(struct.pack("=QIIIi", window, 8192, 0, 0, 0), 24)
        error = libc.getsockopt(b.fileno(), socket.IPPROTO_TCP, _TCP_ZEROCOPY_RECEIVE, asked,
                                ctypes.byref(ctypes.c_uint32(24)))  # fmt: skip
        _, mapped, to_read, _, _ = struct.unpack("=QIIIi", asked.raw)
        rest = receive(b, 8192 - mapped)
        return {"error": error, "known": mapped + to_read > 0, "whole": mapped + len(rest)}
    finally:
        libc.munmap(ctypes.c_void_p(window), ctypes.c_size_t(8192))


@scene(
    "SIOCOUTQ",
    "bytes not acknowledged yet, 0 once they are",
    on="0: what is redirected is in the receiver at once",
)
def sent_bytes(a: socket.socket, b: socket.socket) -> Seen:
    send_all(a, pattern(5000))
    got = receive(b, 5000)
    deadline = time.monotonic() + PATIENCE
    while ask(a, _SIOCOUTQ) and time.monotonic() < deadline:
        time.sleep(0.002)
    return {"read": got, "left": ask(a, _SIOCOUTQ)}


@scene(
    "TCP_INFO",
    "state, options, counts of segments and bytes",
    on="state and options the same; segments and bytes that were redirected are not counted",
    stack_is={"sent": 5000, "received": 5000},
    differs={"sent": 0, "received": 0},
)
def info(a: socket.socket, b: socket.socket) -> Seen:
    before = _info(a), _info(b)
    send_all(a, pattern(5000))
    seen: Seen = {"read": receive(b, 5000)}
    after = _info(a), _info(b)
    seen["sent"] = after[0]["bytes_sent"] - before[0]["bytes_sent"]
    seen["received"] = after[1]["bytes_received"] - before[1]["bytes_received"]
    for key in ("state", "options", "mss"):
        seen[key] = [one[key] for one in after]
    return seen


@scene("addresses and options (getsockname, SO_ERROR, SO_TYPE, SO_DOMAIN)", "of the connection")
def names(a: socket.socket, b: socket.socket) -> Seen:
    options = (socket.SO_ERROR, socket.SO_TYPE, socket.SO_DOMAIN, socket.SO_PROTOCOL)
    return {
        "match": a.getsockname()[:2] == b.getpeername()[:2]
        and b.getsockname()[:2] == a.getpeername()[:2],
        "options": [a.getsockopt(socket.SOL_SOCKET, one) for one in options],
    }


def ask(one: socket.socket, request: int) -> int:
    value = array.array("i", [-1])
    fcntl.ioctl(one, request, value, True)
    return value[0]


def _info(one: socket.socket) -> dict[str, int]:
    raw = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return {
        "state": raw[0],
        "options": raw[5],
        "mss": struct.unpack_from("I", raw, 16)[0],
        "bytes_received": struct.unpack_from("Q", raw, 128)[0],
        "bytes_sent": struct.unpack_from("Q", raw, 200)[0],
    }


# ---- files and processes -------------------------------------------------------------------------


@scene("dup, and closing one of both", "the connection goes on until the last is closed")
def duplicate(a: socket.socket, b: socket.socket) -> Seen:
    other = a.dup()
    a.close()
    send_all(other, b"forth")
    seen: Seen = {"forth": receive(b, 5)}
    send_all(b, b"back")
    seen["back"] = receive(other, 4)
    other.close()
    return seen | {"end": receive_end(b)}


@scene("inherited by fork", "both processes have it")
def inherited(a: socket.socket, b: socket.socket) -> Seen:
    def child() -> None:
        send_all(a, b"from the child")
        assert receive(a, 6) == b"answer"

    got: list[bytes] = []

    def answer() -> None:
        got.append(receive(b, 14))
        send_all(b, b"answer")

    with meanwhile(answer):
        status = in_child(child)
    send_all(a, b"from the parent")
    return {"status": status, "child": got, "parent": receive(b, 15)}


@scene("passed to another process (SCM_RIGHTS)", "works there")
def passed(a: socket.socket, b: socket.socket) -> Seen:
    ours, theirs = socket.socketpair()

    def child() -> None:
        _, numbers, _, _ = socket.recv_fds(theirs, 1, 1)
        got = socket.socket(fileno=numbers[0])
        send_all(got, receive(got, 4)[::-1])

    with ours, theirs:
        socket.send_fds(ours, [b"x"], [a.fileno()])
        a.close()
        send_all(b, b"1234")
        status = in_child(child)
    return {"status": status, "answer": receive(b, 4)}


@scene(
    "made to block after it was connected",
    "blocks",
    on="nothing more is redirected to it, but calls that block are as in mode `all`: **EAGAIN**"
    " when a signal is handled",
    stack_is={"signal": b"late"},
    differs={"signal": "EAGAIN"},
)
def toggled(a: socket.socket, b: socket.socket) -> Seen:
    b.setblocking(True)
    b.settimeout(None)
    seen: Seen = {}
    for n in range(200):
        with meanwhile(lambda: seen.update({f"got {n}": b.recv(16)})):  # noqa: B023
            send_all(a, b"%5d" % n)
    seen["signal"] = read_with_signal(a, b)
    b.setblocking(False)
    if seen["signal"] == "EAGAIN":
        receive(b, 4)
    return seen | {"more": outcome(b.recv, 1)}


# ---- sockets that block in a call ----------------------------------------------------------------


@scene("blocking: recv while data comes", "gets it", blocking=True)
def blocking_read(a: socket.socket, b: socket.socket) -> Seen:
    return reads(b, lambda: None, lambda: send_all(a, b"late"))


@scene(
    "blocking: recv while a signal is handled (SA_RESTART)",
    "goes on",
    blocking=True,
    all="**EAGAIN**",
    stack_is={"read": b"late"},
    differs={"read": "EAGAIN"},
)
def blocking_signal(a: socket.socket, b: socket.socket) -> Seen:
    return {"read": read_with_signal(a, b)}


@scene(
    "blocking: recv while another thread ends the own half",
    "goes on",
    blocking=True,
    all="**EAGAIN**",
    stack_is={"read": b"late"},
    differs={"read": "EAGAIN"},
)
def blocking_half_close(a: socket.socket, b: socket.socket) -> Seen:
    return reads(b, lambda: b.shutdown(socket.SHUT_WR), lambda: send_all(a, b"late"))


@scene(
    "blocking: recv after half close, slow answer",
    "waits for it",
    blocking=True,
    all="now and then **EAGAIN**",
    stack_is={"read": b"late"},
    may_differ={"read": "EAGAIN"},
)
def blocking_after_half_close(a: socket.socket, b: socket.socket) -> Seen:
    b.shutdown(socket.SHUT_WR)
    return reads(b, lambda: None, lambda: send_all(a, b"late"))


@scene("blocking: recv while another thread sends on it", "waits", blocking=True)
def blocking_other_thread(a: socket.socket, b: socket.socket) -> Seen:
    seen = reads(b, lambda: send_all(b, b"other"), lambda: send_all(a, b"late"))
    return seen | {"other": receive(a, 5)}


@scene(
    "blocking: recv while another thread sends on it more than is redirected",
    "waits",
    blocking=True,
    all="now and then **EAGAIN**",
    stack_is={"read": b"late"},
    may_differ={"read": "EAGAIN"},
)
def blocking_other_sends_much(a: socket.socket, b: socket.socket) -> Seen:
    whole = pattern(180_000)
    seen = reads(b, lambda: send_all(b, whole), lambda: send_all(a, b"late"))
    return seen | {"other": receive(a, len(whole)) == whole}


@scene(
    "blocking: MSG_WAITALL",
    "waits for all of it",
    blocking=True,
    all="**gives what is there**",
    stack_is={"read": b"12345678"},
    differs={"read": b"1234"},
)
def wait_all(a: socket.socket, b: socket.socket) -> Seen:
    found: list[Any] = []
    with meanwhile(lambda: found.append(outcome(b.recv, 8, socket.MSG_WAITALL))):
        time.sleep(LOOK)
        send_all(a, b"1234")
        time.sleep(LOOK)
        send_all(a, b"5678")
    return {"read": found[0]}


@scene("blocking: SO_RCVTIMEO", "EAGAIN after that time, data before it", blocking=True)
def read_timeout(a: socket.socket, b: socket.socket) -> Seen:
    b.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50_000))
    began = time.monotonic()
    seen: Seen = {"nothing": outcome(b.recv, 8), "waited": time.monotonic() - began >= 0.045}
    send_all(a, b"data")
    return seen | {"data": outcome(b.recv, 8)}


@scene(
    "blocking: recv while the other end resets",
    "ECONNRESET",
    blocking=True,
    all="**EAGAIN**, and ECONNRESET with the next call",
    stack_is={"read": "ECONNRESET", "again": b""},
    differs={"read": "EAGAIN", "again": "ECONNRESET"},
)
def blocking_reset(a: socket.socket, b: socket.socket) -> Seen:
    seen = reads(b, lambda: abort(a), lambda: None)
    return seen | {"again": outcome(b.recv, 1), "third": outcome(b.recv, 1)}


@scene("blocking: recv while the other end closes", "the end", blocking=True)
def blocking_ends(a: socket.socket, b: socket.socket) -> Seen:
    half = reads(b, lambda: None, lambda: a.shutdown(socket.SHUT_WR))
    return {"end": half["read"], "again": outcome(b.recv, 1)}


@scene("blocking: send without room, then room", "waits for it", blocking=True)
def blocking_send(a: socket.socket, b: socket.socket) -> Seen:
    whole, got = pattern(12_000_000), bytearray()
    with meanwhile(lambda: a.sendall(whole)):
        time.sleep(LOOK)
        got += receive(b, len(whole))
    return {"same": bytes(got) == whole}


@scene("blocking: SO_RCVLOWAT", "recv waits for so many bytes", blocking=True,
       all="recv gives the first byte that comes", stack_is={"read": b"12345678"},
       differs={"read": b"1234"})  # fmt: skip
def blocking_low_water(a: socket.socket, b: socket.socket) -> Seen:
    b.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 8)
    found: list[Any] = []
    with meanwhile(lambda: found.append(outcome(b.recv, 64))):
        time.sleep(LOOK)
        send_all(a, b"1234")
        time.sleep(LOOK)
        send_all(a, b"5678")
    return {"read": found[0]}
