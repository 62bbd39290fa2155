# SPDX-License-Identifier: Apache-2.0
"""Traffic that goes on while something changes, and what became of every packet of it.

One thread sends and receives for all flows. Times are `time.monotonic()`; the moment before a
datagram is handed to the kernel is its time, so what was sent after a change was in force is known
exactly.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Iterable
from functools import partial

from bench.lab.station import Station

INTERVAL = 0.002
"""Seconds between two datagrams of a flow and way."""
_NUMBER = struct.Struct("!Q")
_BUFFER = 8 << 20
_PATIENCE = 10.0
"""Seconds within which something has to come that takes microseconds."""
SO_RCVBUFFORCE = 33


class _Way:
    """Numbered datagrams in one direction."""

    def __init__(self, sender: socket.socket, receiver: socket.socket) -> None:
        self.sender = sender
        self.receiver = receiver
        self.sent: list[float] = []
        self.received = bytearray()

    def send(self) -> None:
        number = len(self.sent)
        self.received.append(0)
        self.sent.append(time.monotonic())
        with contextlib.suppress(OSError):
            self.sender.send(_NUMBER.pack(number))

    def read(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                (number,) = _NUMBER.unpack(self.receiver.recv(64))
                self.received[number] += 1

    def between(self, since: float, until: float) -> list[bool]:
        """Whether each datagram sent in this time arrived."""
        return [
            self.received[n] > 0 for n, sent in enumerate(list(self.sent)) if since < sent < until
        ]


class UdpFlow:
    """Datagrams from source to destination and, once `answering`, back again unasked.

    Without `answering` only the opener sends: what the other side sends first would open a
    connection of its own, which policy may allow.

    translated: the destination sees another address than the source's own, and learns it from a
    first datagram, which must arrive. Raises OSError.
    """

    def __init__(
        self,
        source: Station,
        destination: Station,
        family: int,
        port: int = 9000,
        translated: bool = False,
    ) -> None:
        self.name = f"udp {source.name} -> {destination.name} ipv{family}"
        inet = socket.AF_INET if family == 4 else socket.AF_INET6
        there, here = destination.address(family), source.address(family)
        server = destination.namespace.run(partial(_bound, inet, there, port))
        client = source.namespace.run(partial(_bound, inet, here, 0))
        client.connect((there, port))
        if translated:
            client.send(b"")
            if not select.select([server], [], [], _PATIENCE)[0]:
                raise OSError(f"{self.name}: the first datagram does not arrive")
            server.connect(server.recvfrom(16)[1])
        else:
            server.connect((here, client.getsockname()[1]))
        self.forward = _Way(client, server)
        self.backward = _Way(server, client)
        self.answering = False

    def sockets(self) -> list[socket.socket]:
        return [self.forward.sender, self.backward.sender]

    def step(self) -> None:
        self.forward.send()
        if self.answering:
            self.backward.send()

    def read(self) -> None:
        self.forward.read()
        self.backward.read()

    def lost(self, since: float, until: float) -> int:
        """Datagrams sent in this time that did not arrive, both ways."""
        return sum(
            not got for w in (self.forward, self.backward) for got in w.between(since, until)
        )

    def admitted(self, since: float, until: float) -> int:
        """Datagrams sent in this time that arrived, both ways."""
        return sum(got for w in (self.forward, self.backward) for got in w.between(since, until))

    def duplicated(self) -> int:
        """Datagrams that arrived more than once."""
        return sum(n > 1 for w in (self.forward, self.backward) for n in w.received)


class TcpFlow:
    """One connection on which both sides keep writing. Connects at once: raises OSError.

    through: an address that the node translates to the destination's; through_port: its port, 0
    for the same.
    """

    def __init__(
        self,
        source: Station,
        destination: Station,
        family: int,
        port: int = 9001,
        through: str = "",
        through_port: int = 0,
    ) -> None:
        self.name = f"tcp {source.name} -> {destination.name} ipv{family}"
        inet = socket.AF_INET if family == 4 else socket.AF_INET6
        there, here = destination.address(family), source.address(family)
        with destination.namespace.run(partial(_listening, inet, there, port)) as listener:
            target = through or there
            to_port = through_port or port
            self.client = source.namespace.run(partial(_connected, inet, here, target, to_port))
            self.server, _ = listener.accept()
        for end in (self.client, self.server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.bytes = {self.client: 0, self.server: 0}
        """Received so far, by the end that received them."""
        self.broken = ""

    def sockets(self) -> list[socket.socket]:
        return [self.client, self.server]

    def step(self) -> None:
        for end in (self.client, self.server):
            try:
                end.send(b"." * 32)
            except BlockingIOError:
                pass
            except OSError as error:
                self.broken = str(error)

    def read(self) -> None:
        for end in (self.client, self.server):
            try:
                while data := end.recv(65536):
                    self.bytes[end] += len(data)
            except BlockingIOError:
                pass
            except OSError as error:
                self.broken = str(error)

    def received(self) -> tuple[int, int]:
        """Bytes that client and server have received so far."""
        return self.bytes[self.client], self.bytes[self.server]


class Traffic:
    """A context manager that keeps flows going. Leaving it waits for what is on its way."""

    def __init__(self, flows: Iterable[UdpFlow | TcpFlow]) -> None:
        self.flows = list(flows)
        self._poll = select.epoll()
        self._owner = {s.fileno(): flow for flow in self.flows for s in flow.sockets()}
        for fd in self._owner:
            self._poll.register(fd, select.EPOLLIN)
        self._sending = True
        self._stopping = False
        self._passes = 0
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sending = False
        self.drain()
        self._stopping = True
        self._thread.join()
        for flow in self.flows:
            for each in flow.sockets():
                each.close()
        self._poll.close()

    def drain(self) -> float:
        """Returns once everything that had arrived when called has been read; the time then."""
        until = self._passes + 2
        while self._passes < until and self._thread.is_alive():
            time.sleep(INTERVAL / 2)
        if self._failure is not None:
            raise self._failure
        return time.monotonic()

    def run_for(self, seconds: float) -> tuple[float, float]:
        """Lets traffic go on; begin and end of a time in which every packet has been read."""
        begin = time.monotonic()
        time.sleep(seconds)
        end = time.monotonic()
        self.drain()
        return begin, end

    def _run(self) -> None:
        try:
            due = time.monotonic()
            while not self._stopping:
                if self._sending:
                    for flow in self.flows:
                        flow.step()
                due = max(due + INTERVAL, time.monotonic())
                while True:
                    events = self._poll.poll(max(due - time.monotonic(), 0), 256)
                    for fd, _ in events:
                        self._owner[fd].read()
                    if time.monotonic() >= due:
                        break
                self._passes += 1
        except BaseException as error:
            self._failure = error


def _bound(inet: int, address: str, port: int) -> socket.socket:
    made = socket.socket(inet, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, _BUFFER)
    if port:  # several flows may have one destination; each socket is connected to its client
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    return made


def _listening(inet: int, address: str, port: int) -> socket.socket:
    made = socket.socket(inet, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    made.listen()
    made.settimeout(2)
    return made


def _connected(inet: int, source: str, address: str, port: int) -> socket.socket:
    made = socket.socket(inet, socket.SOCK_STREAM)
    made.settimeout(2)
    made.bind((source, 0))
    made.connect((address, port))
    return made
