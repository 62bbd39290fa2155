# SPDX-License-Identifier: Apache-2.0
"""Ending one TCP socket of another network namespace (linux/sock_diag.h, linux/inet_diag.h).

Both are named by cookies, which the kernel never gives twice until the next boot: what is ended is
the socket that was meant, or none.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.kernel.netns import own_cookie, run_in

_NETLINK_SOCK_DIAG: Final = 4
_BY_FAMILY, _DESTROY = 20, 21
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_HEADER: Final = struct.Struct("=IHHII")
_QUERY: Final = struct.Struct("=BBBBI")  # struct inet_diag_req_v2, before the id
_FOUND: Final = struct.Struct("=BBBB")  # struct inet_diag_msg, before the id
_ID: Final = 48
_COOKIE: Final = struct.Struct("=40xII")  # within the id
_ALL_STATES: Final = 0xFFF


class SocketNotFound(Exception):
    """There is no such namespace, as far as this process can see, or no such socket in it."""


def destroy(netns: int, cookie: int) -> None:
    """End the socket with this cookie, in the namespace with that one: calls on it fail with
    ECONNABORTED, and its peer is sent a reset. Raises SocketNotFound, OSError.
    """
    for path in _namespaces():
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # its process has just ended
        try:
            if _cookie_of(fd) == netns:
                run_in(fd, lambda: _destroy(cookie))
                return
        finally:
            os.close(fd)
    raise SocketNotFound(f"no process is in the network namespace with cookie {netns}")


def _namespaces() -> Iterator[Path]:
    """One path to each network namespace that has a name or a process."""
    seen = set()
    for folder, pattern in (("/run/netns", "*"), ("/proc", "[0-9]*/ns/net")):
        for path in Path(folder).glob(pattern):
            try:
                status = path.stat()
            except OSError:
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                yield path


def _cookie_of(fd: int) -> int:
    try:
        return run_in(fd, own_cookie)
    except OSError:
        return 0  # a file that is no namespace


def _destroy(cookie: int) -> None:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG) as diag:
        for family in (socket.AF_INET, socket.AF_INET6):
            # The whole answer first: one socket has one request at a time.
            for of, one in list(_sockets(diag, family)):
                low, high = _COOKIE.unpack(one)
                if low | high << 32 == cookie:
                    _send(diag, _DESTROY, _REQUEST | _ACK, of, one)
                    for number, payload in _messages(diag):
                        if number == _ERROR:
                            _check(payload)
                    return
    raise SocketNotFound(f"no TCP socket has the cookie {cookie}")


def _sockets(diag: socket.socket, family: int) -> Iterator[tuple[int, bytes]]:
    """Family and id of every TCP socket."""
    _send(diag, _BY_FAMILY, _REQUEST | _DUMP, family, bytes(_ID))
    for number, payload in _messages(diag):
        if number == _ERROR:
            _check(payload)
        elif number == _BY_FAMILY:
            of, _, _, _ = _FOUND.unpack_from(payload)
            yield of, payload[_FOUND.size : _FOUND.size + _ID]


def _send(diag: socket.socket, number: int, flags: int, family: int, one: bytes) -> None:
    query = _QUERY.pack(family, socket.IPPROTO_TCP, 0, 0, _ALL_STATES) + one
    diag.send(_HEADER.pack(_HEADER.size + len(query), number, flags, 1, 0) + query)


def _messages(diag: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Up to the one that ends the answer, without it unless it is an error."""
    while True:
        data = diag.recv(1 << 17)
        at = 0
        while at + _HEADER.size <= len(data):
            length, number, _, _, _ = _HEADER.unpack_from(data, at)
            if number == _DONE:
                return
            yield number, data[at + _HEADER.size : at + length]
            if number == _ERROR:
                return
            at += max(length + 3 & ~3, _HEADER.size)


def _check(payload: bytes) -> None:
    (code,) = struct.unpack_from("=i", payload)
    if code:
        raise OSError(-code, f"socket diagnosis: {os.strerror(-code)}")
