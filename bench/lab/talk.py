# SPDX-License-Identifier: Apache-2.0
"""Plain requests and a server that answers them with the address that it saw."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Sequence
from functools import partial

from bench.lab.netns import Namespace

TIMEOUT = 0.5


class Server:
    """A context manager: answers TCP and UDP on ports of every address of a namespace, in both
    families. The answer is the sender's address and port: "10.0.0.1 40000"."""

    def __init__(self, namespace: Namespace, ports: Sequence[int] = (80,)) -> None:
        self._namespace = namespace
        self._ports = ports
        self._sockets: dict[int, socket.socket] = {}
        self._poll = select.epoll()
        self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="server", daemon=True)

    def __enter__(self) -> Server:
        self._namespace.run(self._open)
        self._poll.register(self._wake[0].fileno(), select.EPOLLIN)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._wake[1].send(b".")
        self._thread.join()
        for each in (*self._sockets.values(), *self._wake):
            each.close()
        self._poll.close()

    def _open(self) -> None:
        for port in self._ports:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                # One socket for both families, so that IPv4 is served as mapped addresses.
                made = socket.socket(socket.AF_INET6, kind | socket.SOCK_NONBLOCK)
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                # The answer comes from the address that was asked, also on a node with many.
                made.bind(("::", port))
                if kind == socket.SOCK_STREAM:
                    made.listen(128)
                self._sockets[made.fileno()] = made
                self._poll.register(made.fileno(), select.EPOLLIN)

    def _serve(self) -> None:
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._wake[0].fileno():
                    return
                with contextlib.suppress(OSError):
                    self._answer(self._sockets[fd])

    def _answer(self, from_: socket.socket) -> None:
        if from_.type & socket.SOCK_STREAM == socket.SOCK_STREAM:
            accepted, address = from_.accept()
            with accepted:
                accepted.send(_text(address))
        else:
            _, address = from_.recvfrom(65536)
            from_.sendto(_text(address), address)


def _text(address: tuple[str, int]) -> bytes:
    return f"{address[0].removeprefix('::ffff:')} {address[1]}".encode()


def ask_udp(
    namespace: Namespace,
    address: str,
    port: int = 80,
    *,
    source: str = "",
    size: int = 8,
    source_port: int = 0,
) -> str | None:
    """What a server answers to one datagram; None if nothing comes, or an error.

    source_port: 0 for any; the kernel may choose the same for two questions.
    """
    return namespace.run(
        partial(_ask, socket.SOCK_DGRAM, address, port, source, b"." * size, source_port)
    )


def ask_tcp(namespace: Namespace, address: str, port: int = 80, *, source: str = "") -> str | None:
    """What a server says to a new connection; None if it does not come about."""
    return namespace.run(partial(_ask, socket.SOCK_STREAM, address, port, source, b""))


def _ask(
    kind: int, address: str, port: int, source: str, data: bytes, source_port: int = 0
) -> str | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as client:
        client.settimeout(TIMEOUT)
        try:
            if source or source_port:
                client.bind((source, source_port))
            client.connect((address, port))
            if data:
                client.send(data)
            answer = client.recv(4096)
        except OSError:
            return None
    return answer.decode().partition(" ")[0] or None


def eventually_udp(namespace: Namespace, address: str, port: int = 80, seconds: float = 5) -> bool:
    """Whether an answer comes within a time in which requests are repeated."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if ask_udp(namespace, address, port):
            return True
    return False
