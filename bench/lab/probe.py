# SPDX-License-Identifier: Apache-2.0
"""Who can reach whom, measured with real packets: every cell of a matrix at the same time.

A cell is reached when the answer came back to the sender, so a cell also says that replies flow:

* TCP: connected, and the greeting of the right listener was read; or refused, on a closed port;
* UDP: the datagram was echoed; or, on a closed port, its ICMP error came back (RFC 1122, 4.1.3.1);
* SCTP: an INIT was answered by an INIT ACK (RFC 9260, section 5.1). Both are made here and sent by
  raw sockets, because many kernels have no SCTP;
* ICMP: an echo request was answered (RFC 792, RFC 4443), by the station's own kernel.

UDP, SCTP and ICMP sockets live as long as the prober, so from one measurement to the next they
are connections that the datapath knows already; every TCP connection is a new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from bench.lab import sctp
from bench.lab.station import Station

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
IP_RECVERR, IPV6_RECVERR, MSG_ERRQUEUE = 11, 25, 0x2000
SO_RCVBUFFORCE, SO_SNDBUFFORCE = 33, 32
BUFFER = 4 << 20
_TAG = struct.Struct("!4sII")  # "brst", number of the measurement, number of the cell
_LINGER_RESET = struct.pack("ii", 1, 0)


class Cell(NamedTuple):
    """One question: may this come through? Stations by name; family 4 or 6; ICMP has port 0."""

    source: str
    destination: str
    family: int
    protocol: int
    port: int

    def __str__(self) -> str:
        name = {TCP: "tcp", UDP: "udp", SCTP: "sctp", ICMP: "icmp"}[self.protocol]
        port = f"/{self.port}" if self.port else ""
        return f"{self.source} -> {self.destination} {name}{port} ipv{self.family}"


@dataclass(frozen=True, slots=True)
class Ports:
    """What every station listens on, and what it does not."""

    tcp: tuple[int, ...] = (80, 81, 8080)
    udp: tuple[int, ...] = (80, 81, 8080)
    sctp: tuple[int, ...] = (80, 81, 8080)
    closed: tuple[int, ...] = (82,)
    """Of TCP and UDP; asked all the same: the error that comes back is the answer."""

    def questions(self) -> Iterator[tuple[int, int]]:
        """Every (protocol, port) to ask."""
        yield from ((TCP, port) for port in (*self.tcp, *self.closed))
        yield from ((UDP, port) for port in (*self.udp, *self.closed))
        yield from ((SCTP, port) for port in self.sctp)
        yield ICMP, 0


class _Sockets:
    """The lasting sockets of one station and family, all opened in its namespace."""

    def __init__(self, station: Station, family: int, ports: Ports) -> None:
        self.address = station.address(family)
        self.inet = socket.AF_INET if family == 4 else socket.AF_INET6
        self.listeners: dict[socket.socket, bytes] = {}
        self.echoes: list[socket.socket] = []
        for port in ports.tcp:
            listener = self._open(socket.SOCK_STREAM, 0, port)
            listener.listen(2048)
            self.listeners[listener] = f"{station.name} {port}\n".encode()
        self.echoes = [self._open(socket.SOCK_DGRAM, 0, port) for port in ports.udp]
        self.udp = self._open(socket.SOCK_DGRAM, 0, 0)
        level, option = (0, IP_RECVERR) if family == 4 else (41, IPV6_RECVERR)
        self.udp.setsockopt(level, option, 1)
        self.ping = self._open(socket.SOCK_DGRAM, ICMP if family == 4 else ICMPV6, 0)
        self.sctp = self._open(socket.SOCK_RAW, SCTP, 0)

    def _open(self, kind: int, protocol: int, port: int) -> socket.socket:
        made = socket.socket(self.inet, kind | socket.SOCK_NONBLOCK, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.inet == socket.AF_INET6 and kind != socket.SOCK_RAW:
            made.setsockopt(41, socket.IPV6_V6ONLY, 1)
        for option in (SO_RCVBUFFORCE, SO_SNDBUFFORCE):
            made.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        made.bind((self.address, port))
        return made

    def all(self) -> list[socket.socket]:
        return [*self.listeners, *self.echoes, self.udp, self.ping, self.sctp]


class Prober:
    """A context manager over stations. Measurements are made one at a time, by one thread.

    minimum: seconds that an unanswered cell is waited for at least; answers to others that still
        come in prolong it, so a slow machine does not turn into denied cells.
    """

    def __init__(
        self, stations: Sequence[Station], ports: Ports | None = None, minimum: float = 0.25
    ) -> None:
        self.ports = ports or Ports()
        self.minimum = minimum
        self._stations = {station.name: station for station in stations}
        self._sockets: dict[tuple[str, int], _Sockets] = {}
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._connecting: dict[int, tuple[int, socket.socket]] = {}
        self._run = 0
        self._cells: list[Cell] = []
        self._reached: set[int] = set()
        self._last = 0.0
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        for station in stations:
            self._add(station)

    def __enter__(self) -> Prober:
        return self

    def __exit__(self, *_: object) -> None:
        for sockets in self._sockets.values():
            for each in sockets.all():
                each.close()
        self._sockets.clear()
        self._poll.close()

    def _add(self, station: Station) -> None:
        for family in (4, 6):
            if not station.address(family):
                continue
            made = station.namespace.run(partial(_Sockets, station, family, self.ports))
            self._sockets[station.name, family] = made
            for listener, greeting in made.listeners.items():
                self._watch(listener, partial(_accept, listener, greeting))
            for echo in made.echoes:
                self._watch(echo, partial(_echo, echo))
            self._watch(made.udp, partial(self._read_udp, made))
            self._watch(made.ping, partial(self._read_ping, made))
            self._watch(made.sctp, partial(self._read_sctp, made))

    def _watch(self, what: socket.socket, handler: Callable[[int], None]) -> None:
        self._handlers[what.fileno()] = handler
        self._poll.register(what.fileno(), select.EPOLLIN)

    # ---- measuring ---------------------------------------------------------------------------

    def cells(
        self,
        sources: Iterable[str],
        destinations: Iterable[str],
        families: tuple[int, ...] = (4, 6),
    ) -> list[Cell]:
        """Every cell between two groups; none from a station to its own namespace."""
        there = list(destinations)
        return [
            Cell(source, destination, family, protocol, port)
            for source in sources
            for destination in there
            if self._stations[source].namespace is not self._stations[destination].namespace
            for family in families
            if (source, family) in self._sockets and (destination, family) in self._sockets
            for protocol, port in self.ports.questions()
        ]

    def measure(self, cells: Sequence[Cell], size: int = 0) -> dict[Cell, bool]:
        """Asks all cells at once: cell -> reached. size: bytes of UDP and ICMP payload, at least;
        beyond the MTU they travel as fragments, and so do the answers."""
        self._run += 1
        self._cells = list(cells)
        self._reached = set()
        self._last = started = time.monotonic()
        try:
            by_source: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
            for index, cell in enumerate(cells):
                if cell.protocol == TCP:
                    by_source[cell.source, cell.family].append(index)
                else:
                    self._ask(index, cell, size)
                    if index % 64 == 0:
                        self._turn(0)  # keeps the receive buffers short
            for (name, family), indexes in by_source.items():
                self._stations[name].namespace.run(partial(self._connect, name, family, indexes))
                self._turn(0)
            while len(self._reached) < len(cells):
                now = time.monotonic()
                left = max(started + self.minimum, self._last + self.minimum / 2) - now
                # Time is up only when nothing has arrived either: the wait may have been ours.
                if self._turn(max(left, 0)) == 0 and left <= 0:
                    break
        finally:
            for _, unfinished in self._connecting.values():
                _reset(unfinished)
            self._connecting.clear()
        return {cell: index in self._reached for index, cell in enumerate(cells)}

    def _turn(self, seconds: float) -> int:
        """Handles what comes within a time; how many sockets that were."""
        ready = self._poll.poll(seconds, 512)
        for fd, events in ready:
            if handler := self._handlers.get(fd):
                handler(events)
            elif fd in self._connecting:
                self._connected(fd)
        return len(ready)

    def _got(self, run: int, index: int, destination: str) -> None:
        """An answer came from this address."""
        if run != self._run or index >= len(self._cells):
            return
        cell = self._cells[index]
        if self._stations[cell.destination].address(cell.family) == destination:
            self._reached.add(index)
            self._last = time.monotonic()

    # ---- asking ------------------------------------------------------------------------------

    def _ask(self, index: int, cell: Cell, size: int) -> None:
        sockets = self._sockets[cell.source, cell.family]
        there = self._stations[cell.destination].address(cell.family)
        tag = _TAG.pack(b"brst", self._run, index)
        if cell.protocol == UDP:
            _send(sockets.udp, tag.ljust(size, b"."), (there, cell.port))
        elif cell.protocol == SCTP:
            # The initiate tag comes back as the verification tag; it must not be 0.
            number = (self._run & 0xFFF) << 20 | index
            init = sctp.init(50000, cell.port, number + 1)
            _send(sockets.sctp, init, (there, 0))
        else:
            kind = 8 if cell.family == 4 else 128
            request = struct.pack("!BBHHH", kind, 0, 0, 0, index & 0xFFFF)
            _send(sockets.ping, request + tag.ljust(size, b"."), (there, 0))

    def _connect(self, name: str, family: int, indexes: list[int]) -> None:
        source = self._stations[name].address(family)
        for index in indexes:
            cell = self._cells[index]
            there = self._stations[cell.destination].address(family)
            made = socket.socket(
                self._sockets[name, family].inet, socket.SOCK_STREAM | socket.SOCK_NONBLOCK
            )
            # Without this, binding takes a port that no other connection has, not even elsewhere.
            made.setsockopt(0, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
            made.bind((source, 0))
            code = made.connect_ex((there, cell.port))
            if code not in (0, errno.EINPROGRESS):
                made.close()
                continue
            self._connecting[made.fileno()] = index, made
            self._poll.register(made.fileno(), select.EPOLLIN)

    # ---- answers -----------------------------------------------------------------------------

    def _connected(self, fd: int) -> None:
        index, made = self._connecting.pop(fd)
        cell = self._cells[index]
        expected = f"{cell.destination} {cell.port}\n".encode()
        try:
            good = made.recv(256) == expected and cell.port in self.ports.tcp
        except ConnectionRefusedError:
            good = cell.port in self.ports.closed
        except OSError:
            good = False
        if good:
            self._got(self._run, index, self._stations[cell.destination].address(cell.family))
        _reset(made)

    def _read_udp(self, sockets: _Sockets, events: int) -> None:
        if events & select.EPOLLERR:
            with contextlib.suppress(BlockingIOError):
                while True:
                    quoted, extra, _, about = sockets.udp.recvmsg(512, 512, MSG_ERRQUEUE)
                    # struct sock_extended_err: errno, then origin (2 ICMP, 3 ICMPv6).
                    if any(len(data) > 4 and data[4] in (2, 3) for _, _, data in extra):
                        self._tagged(quoted, about[0], closed=True)
        for data, address in _received(sockets.udp):
            self._tagged(data, address[0], closed=False)

    def _tagged(self, data: bytes, address: str, closed: bool) -> None:
        if len(data) < _TAG.size:
            return
        magic, run, index = _TAG.unpack_from(data)
        if magic != b"brst" or run != self._run or index >= len(self._cells):
            return
        if (self._cells[index].port in self.ports.closed) == closed:
            self._got(run, index, address)

    def _read_ping(self, sockets: _Sockets, _: int) -> None:
        for data, address in _received(sockets.ping):
            if data[:1] in (b"\x00", b"\x81"):  # an echo reply
                self._tagged(data[8:], address[0], closed=False)

    def _read_sctp(self, sockets: _Sockets, _: int) -> None:
        for data, address in _received(sockets.sctp):
            packet = data[(data[0] & 15) * 4 :] if sockets.inet == socket.AF_INET else data
            chunk = sctp.parse(packet)
            if chunk is None:
                continue
            if chunk.kind == sctp.INIT and chunk.destination in self.ports.sctp:
                _send(sockets.sctp, sctp.init_ack(chunk), (address[0], 0))
            elif chunk.kind == sctp.INIT_ACK and chunk.destination == 50000:
                number = chunk.verification - 1
                if number >> 20 == self._run & 0xFFF:
                    self._got(self._run, number & 0xFFFFF, address[0])


def _accept(listener: socket.socket, greeting: bytes, _: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            accepted = listener.accept()[0]
            with contextlib.suppress(OSError):
                accepted.send(greeting)
            accepted.close()


def _echo(server: socket.socket, _: int) -> None:
    for data, address in _received(server):
        _send(server, data, address)


def _received(from_: socket.socket) -> Iterator[tuple[bytes, tuple[str, int]]]:
    """What can be read at once. Pending errors are of single destinations: skipped."""
    while True:
        try:
            data, address = from_.recvfrom(65536)
        except BlockingIOError:
            return
        except OSError:
            continue
        yield data, (address[0].partition("%")[0], address[1])


def _send(by: socket.socket, data: bytes, to: tuple[str, int]) -> None:
    """Sends; what the socket complains of is an earlier packet, so it is tried again once."""
    for _ in range(2):
        try:
            by.sendto(data, to)
            return
        except OSError as error:
            if error.errno not in (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EACCES):
                raise RuntimeError(
                    f"cannot send to {to}: {os.strerror(error.errno or 0)}"
                ) from error


def _reset(what: socket.socket) -> None:
    """Closes without TIME_WAIT: thousands of connections are made."""
    with contextlib.suppress(OSError):
        what.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
    what.close()
