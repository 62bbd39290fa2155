# SPDX-License-Identifier: Apache-2.0
"""What is measured, as data: ways, loads, and which of them in a run of which size."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class How(StrEnum):
    """How client and server use their sockets."""

    BLOCKING = "blocking"
    EPOLL = "epoll"


class What(StrEnum):
    """EXCHANGE: a request and an answer of the same size. STREAM: one way."""

    EXCHANGE = "exchange"
    STREAM = "stream"


class Cores(StrEnum):
    """Where server (and its sidecar) run: on the client's core, or on another one.

    TWO: idle cores are kept awake, so that what is measured is the way and not the waking up
    (bench/latency/idle.py). ASLEEP: they are left to the machine.
    """

    SAME = "same core"
    TWO = "two cores"
    ASLEEP = "two cores, idle ones asleep"


class Place(StrEnum):
    """Between which namespaces, and wired by whom."""

    UNIX = "unix"
    LOOPBACK = "loopback"
    DIRECT = "direct"
    ROUTED = "routed"
    POLICY = "policy"
    BESIDE = "beside"
    REDIRECTED = "redirected"


class Side(StrEnum):
    """Whose pod a proxy runs in."""

    CLIENT = "client"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class Way:
    """One row of every table. proxies: of one kind, in the order in which bytes meet them."""

    name: str
    label: str
    place: Place
    proxy: str = ""
    sides: tuple[Side, ...] = ()


_ONE, _TWO = (Side.CLIENT,), (Side.CLIENT, Side.SERVER)

WAYS = {
    way.name: way
    for way in (
        Way("unix", "UNIX socket (floor)", Place.UNIX),
        Way("loopback", "TCP on loopback", Place.LOOPBACK),
        Way("direct", "one direct veth pair (no CNI)", Place.DIRECT),
        Way("routed", "routed pod–host–pod by the kernel", Place.ROUTED),
        Way("bristle", "bristle, policy in force", Place.POLICY),
        Way("beside", "bristle, redirect on, pods without it", Place.BESIDE),
        Way("redirected", "bristle, redirected", Place.REDIRECTED),
        Way("envoy-1", "one Envoy", Place.POLICY, "envoy", _ONE),
        Way("envoy-2", "two Envoy sidecars", Place.POLICY, "envoy", _TWO),
        Way("nginx-1", "NGINX", Place.POLICY, "nginx", _ONE),
        Way("haproxy-1", "HAProxy", Place.POLICY, "haproxy", _ONE),
        Way("envoy-1-redirected", "one Envoy, legs redirected", Place.REDIRECTED, "envoy", _ONE),
        Way("envoy-2-redirected", "two Envoy sidecars, legs redirected", Place.REDIRECTED,
            "envoy", _TWO),
    )
}  # fmt: skip
"""In the order of the tables."""

SEQUENCE = (
    "loopback", "routed", "direct", "redirected", "unix", "bristle", "beside",
    "nginx-1", "haproxy-1", "envoy-1", "envoy-1-redirected", "envoy-2-redirected", "envoy-2",
)  # fmt: skip
"""In which ways take their turns: what is compared stands side by side, so that as little time as
possible lies between."""

PLAIN = tuple(way.name for way in WAYS.values() if not way.proxy)
OVER_IP = tuple(name for name in PLAIN if name not in ("unix", "direct"))
"""The ways that have IPv6 as well as IPv4."""


@dataclass(frozen=True, slots=True)
class Load:
    """What client and server do. size: bytes of a request, or of a stream's chunk."""

    how: How
    what: What
    size: int
    connections: int
    cores: Cores
    family: int = 4

    def __post_init__(self) -> None:
        if not (1 <= self.size <= 1 << 20 and 1 <= self.connections <= 1024):
            raise ValueError(f"the load generator cannot do {self}")
        if self.family not in (4, 6):
            raise ValueError(f"no IPv{self.family}")

    @property
    def key(self) -> str:
        """For file names and JSON."""
        cores = self.cores.name.lower()
        return (
            f"{self.how}-{self.what}-{self.size}x{self.connections}-{cores}"
            f"{'-ipv6' if self.family == 6 else ''}"
        )

    @property
    def text(self) -> str:
        """For people."""
        size = f"{self.size} B" if self.size < 1024 else f"{self.size // 1024} KiB"
        many = "1 connection" if self.connections == 1 else f"{self.connections} connections"
        what = "round trip" if self.what is What.EXCHANGE else "stream"
        v6 = ", IPv6" if self.family == 6 else ""
        return f"{what}, {size}, {many}, {self.how}, {self.cores}{v6}"


@dataclass(frozen=True, slots=True)
class Turn:
    """One row's part of a round: so many exchanges, but no longer than so many ms."""

    count: int
    milliseconds: int


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that are compared: one load over several ways, taken in turn, round by round.

    rounds: of all sittings together. sittings: how often all processes are started anew.
    """

    load: Load
    ways: tuple[str, ...]
    rounds: int
    turn: Turn
    sittings: int = 1

    def __post_init__(self) -> None:
        if self.rounds % self.sittings:
            raise ValueError(f"{self.rounds} rounds do not make {self.sittings} sittings")

    def seconds(self) -> float:
        """An estimate of what it takes: the turns with their warm-up, and starting everything."""
        turns = self.rounds * len(self.ways) * self.turn.milliseconds * 1.25e-3
        return turns + self.sittings * (1 + 0.4 * len(self.ways))


class Scale(StrEnum):
    """How much of the matrix a run takes."""

    QUICK = "quick"
    DEFAULT = "default"
    FULL = "full"


SIZES = (64, 1024, 16384, 65536)
CONNECTIONS = (1, 16, 64)
CHUNK = 65536

_PLACED = (Cores.SAME, Cores.TWO)
# Short turns and many rounds: what disturbs a machine for a while meets all rows of a round.
_SHORT, _LONG = Turn(1000, 12), Turn(1500, 16)
_QUICK_ROUNDS, _ROUNDS, _FULL_ROUNDS = 62, 126, 63
_QUICK_SITTINGS, _SITTINGS = 2, 6
_ALL = tuple(WAYS)
_FEW = ("unix", "direct", "routed", "bristle", "redirected")


def headline(how: How, cores: Cores) -> Load:
    """64 bytes on one connection: what is claimed."""
    return Load(how, What.EXCHANGE, 64, 1, cores)


def _headlines(hows: tuple[How, ...], rounds: int, turn: Turn, sittings: int) -> list[Group]:
    return [
        Group(headline(how, cores), _ALL, rounds, turn, sittings)
        for how in hows
        for cores in _PLACED
    ]


def _loads(hows: tuple[How, ...]) -> list[Load]:
    """Every size, number of connections and direction, beside the headlines."""
    return [
        load
        for how in hows
        for cores in _PLACED
        for load in (
            *(Load(how, What.EXCHANGE, s, n, cores) for s in SIZES for n in CONNECTIONS),
            *(Load(how, What.STREAM, CHUNK, n, cores) for n in CONNECTIONS),
        )
        if load != headline(how, cores)
    ]


def _default_extra() -> list[Group]:
    """A cross through the matrix: one thing differs from the headline at a time."""
    how = How.EPOLL
    loads = [
        headline(how, Cores.ASLEEP),
        Load(how, What.EXCHANGE, 16384, 1, Cores.SAME),
        Load(how, What.EXCHANGE, 65536, 1, Cores.TWO),
        Load(how, What.EXCHANGE, 64, 16, Cores.SAME),
        Load(how, What.EXCHANGE, 64, 64, Cores.TWO),
        Load(how, What.STREAM, CHUNK, 1, Cores.SAME),
        Load(how, What.STREAM, CHUNK, 1, Cores.TWO),
    ]
    return [Group(load, _FEW, _FULL_ROUNDS, _LONG) for load in loads]


def plan(scale: Scale) -> tuple[Group, ...]:
    """All groups of a run. About 1, 6 and 30 minutes."""
    if scale is Scale.QUICK:
        return tuple(_headlines((How.EPOLL,), _QUICK_ROUNDS, _SHORT, _QUICK_SITTINGS))
    groups = _headlines((How.EPOLL, How.BLOCKING), _ROUNDS, _LONG, _SITTINGS)
    if scale is Scale.DEFAULT:
        return tuple(groups + _default_extra())
    hows = (How.EPOLL, How.BLOCKING)
    groups += [Group(load, _ALL, _FULL_ROUNDS, _LONG) for load in _loads(hows)]
    groups += [
        Group(Load(how, What.EXCHANGE, 64, 1, cores, 6), OVER_IP, _FULL_ROUNDS, _LONG)
        for how in hows
        for cores in _PLACED
    ]
    groups.append(Group(headline(How.EPOLL, Cores.ASLEEP), _ALL, _FULL_ROUNDS, _LONG))
    return tuple(groups)
