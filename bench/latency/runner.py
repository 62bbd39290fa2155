# SPDX-License-Identifier: Apache-2.0
"""Runs a group: starts every row, takes turns round by round, computes the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from bench import report
from bench.lab.netns import LabError
from bench.latency.claims import pairs
from bench.latency.generator import Client, GeneratorError, Nanoseconds, Seat, Server
from bench.latency.idle import awake
from bench.latency.matrix import SEQUENCE, WAYS, Cores, Group, Load, Side, Turn, Way, What
from bench.latency.proxies import Address, Proxy, find
from bench.latency.results import PERCENTILES, Outcome, Row
from bench.latency.sites import FIRST_PORT, Site, Sites
from bench.latency.statistics import Counts, Figure, Pool, draws, paired, percentile, quotient

T = TypeVar("T")
_LOCAL = {4: "127.0.0.1", 6: "::1"}
_PRIME = Turn(50, 50)
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Cpus:
    """Which CPUs: that of the client, and another one; the same where there is but one."""

    first: int
    second: int

    def of(self, side: Side, cores: Cores) -> int:
        """Where one side's processes run."""
        return self.first if side is Side.CLIENT or cores is Cores.SAME else self.second


@dataclass(slots=True)
class Tally:
    """What a row's turns gave so far, one entry per round."""

    samples: list[Nanoseconds] = field(default_factory=list)
    cpu_ns: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    wall_ns: list[int] = field(default_factory=list)


class Measured:
    """One way under one load, with all its processes running. Close it by the stack."""

    def __init__(
        self, stack: ExitStack, way: Way, load: Load, site: Site, cpus: Cpus, port: int,
        folder: Path, tally: Tally,
    ) -> None:  # fmt: skip
        self.way = way
        self.tally = tally
        server_cpu = cpus.of(Side.SERVER, load.cores)
        client_cpu = cpus.of(Side.CLIENT, load.cores)
        if site.folder is not None:
            path = site.folder / f"{load.key}.sock"
            path.unlink(missing_ok=True)
            at = f"unix:{path}"
        else:
            at = f"tcp:{_target(way, site, load, port)}"
        self._server = stack.enter_context(Server(site.server, at, load, server_cpu))
        self._proxies: list[Proxy] = []
        # From the server's side on, each leads to the one after it.
        for number, side in reversed(list(enumerate(way.sides))):
            listen = _listen(way, site, load, port, number)
            target = _target(way, site, load, port)
            if number + 1 < len(way.sides):
                target = _listen(way, site, load, port, number + 1)
            seat = _seat(site, side)
            proxy = Proxy(way.proxy, seat, cpus.of(side, load.cores), listen, target, folder)
            self._proxies.append(stack.enter_context(proxy))
            at = f"tcp:{listen}"
        # The first connection to a listener is not like the others for whoever watches sockets.
        with Client(site.client, at, load, client_cpu) as prime:
            prime.run(_PRIME)
        self._client = stack.enter_context(Client(site.client, at, load, client_cpu))

    def take(self, turn: Turn) -> None:
        """A turn: an eighth of it to warm up, then what counts. Raises LabError."""
        try:
            self._take(turn)
        except GeneratorError as error:
            raise GeneratorError(f"{error}{self._server.last_word()}") from error

    def _take(self, turn: Turn) -> None:
        self._client.run(Turn(max(1, turn.count // 8), max(2, turn.milliseconds // 8)))
        before = self._others_cpu_ns()
        taken = self._client.run(turn)
        self.tally.samples.append(taken.samples)
        self.tally.cpu_ns.append(taken.cpu_ns + self._others_cpu_ns() - before)
        self.tally.bytes.append(taken.bytes)
        self.tally.wall_ns.append(taken.wall_ns)

    def _others_cpu_ns(self) -> int:
        return self._server.cpu_ns() + sum(proxy.cpu_ns() for proxy in self._proxies)


def _seat(site: Site, side: Side) -> Seat:
    return site.client if side is Side.CLIENT else site.server


def _listen(way: Way, site: Site, load: Load, port: int, number: int) -> Address:
    """Where a proxy listens: one in the client's pod on its loopback, one in the server's pod on
    the pod's address. Ports follow the server's."""
    side = way.sides[number]
    host = _LOCAL[load.family] if side is Side.CLIENT else site.host(load.family)
    return Address(host, port + 1 + number)


def _target(way: Way, site: Site, load: Load, port: int) -> Address:
    """Where the server listens: on loopback behind a sidecar of its own."""
    local = Side.SERVER in way.sides
    return Address(_LOCAL[load.family] if local else site.host(load.family), port)


@dataclass(slots=True)
class Progress:
    """What a group gave so far. missing: why there is no more of a row; failed: of those, the ones
    that did not work."""

    tallies: dict[str, Tally]
    missing: dict[str, str] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)


def measure(group: Group, sites: Sites, cpus: Cpus) -> Outcome:
    """All rows of a group. What cannot be measured is in `missing`, with the reason."""
    if group.load.cores is not Cores.SAME and cpus.first == cpus.second:
        return Outcome(group, {}, dict.fromkeys(group.ways, "this process may use one CPU only"))
    so_far = Progress({name: Tally() for name in group.ways})
    each = group.rounds // group.sittings
    with ExitStack() as stack:
        if group.load.cores is Cores.TWO:
            stack.enter_context(awake())
        for sitting in range(group.sittings):
            with ExitStack() as processes:
                rows = _sit_down(processes, group, sites, cpus, sitting, so_far)
                for turn in range(sitting * each, (sitting + 1) * each):
                    _take_turns(turns(rows, turn), group.turn, so_far)
    missing, failed = so_far.missing, frozenset(so_far.failed)
    whole = {name: tally for name, tally in so_far.tallies.items() if name not in missing}
    return replace(compute(group, whole), missing=missing, failed=failed)


def _sit_down(
    processes: ExitStack, group: Group, sites: Sites, cpus: Cpus, sitting: int, so_far: Progress
) -> list[Measured]:
    """Starts what is not missing, and says of what cannot be started why."""
    rows: list[Measured] = []
    for number, name in enumerate(group.ways):
        if name in so_far.missing:
            continue
        way = WAYS[name]
        try:
            if way.proxy:
                find(way.proxy)
            site = sites.site(way.place, group.load.how)
            # Each sitting has ports of its own: the last one's may not be free yet.
            port = FIRST_PORT + 10 * (sitting * len(group.ways) + number)
            rows.append(
                Measured(processes, way, group.load, site, cpus, port, sites.scope.root,
                         so_far.tallies[name])
            )  # fmt: skip
        except LabError as error:
            so_far.missing[name] = str(error)
            if isinstance(error, GeneratorError):
                so_far.failed.add(name)
    rows.sort(key=lambda row: SEQUENCE.index(row.way.name))
    return rows


def _take_turns(rows: Sequence[Measured], turn: Turn, so_far: Progress) -> None:
    """A round: each row's turn."""
    for row in rows:
        name = row.way.name
        if name in so_far.missing:
            continue
        try:
            row.take(turn)
        except LabError as error:
            so_far.missing[name] = f"FAILED in round {len(row.tally.samples) + 1}: {error}"
            so_far.failed.add(name)
            report.say(f"{row.way.label}: {so_far.missing[name]}")


def turns(rows: Sequence[T], turn: int) -> list[T]:
    """The order of a round: it begins with another row each time, and every other one goes
    backwards, so that no row has always the same one before it."""
    start = turn % len(rows) if rows else 0
    ordered = [*rows[start:], *rows[:start]]
    return ordered[::-1] if turn % 2 else ordered


def compute(group: Group, tallies: Mapping[str, Tally]) -> Outcome:
    """The figures of rows that have a turn in every round. Raises ValueError if one has not."""
    drawn = draws(group.rounds, group.sittings)
    stream = group.load.what is What.STREAM
    pools = {name: Pool(tally.samples) for name, tally in tallies.items()}
    rows: dict[str, Row] = {}
    for name, tally in tallies.items():
        pool = pools[name]
        requests: Sequence[float] = (
            [n / _MIB for n in tally.bytes] if stream else [len(one) for one in tally.samples]
        )
        rows[name] = Row(
            way=name,
            count=len(pool.samples),
            minimum=float(pool.samples.min()) / 1e3,
            mean=float(pool.samples.mean()) / 1e3,
            percentiles={} if stream else {
                share: pool.figure(share, drawn) for share in PERCENTILES
            },
            cpu_us=quotient([ns / 1e3 for ns in tally.cpu_ns], requests, drawn),
            gbit=quotient([8 * n for n in tally.bytes], tally.wall_ns, drawn),
            by_round=() if stream else [
                [percentile(one, share) / 1e3 for share in PERCENTILES] for one in tally.samples
            ],
        )  # fmt: skip
    ratios = {} if stream else {
        (ours, theirs, share): _ratio(pools[ours], pools[theirs], share, drawn)
        for ours, theirs, share in pairs(list(tallies))
    }  # fmt: skip
    ordered = {name: rows[name] for name in group.ways if name in rows}
    return Outcome(group, ordered, {}, ratios)


def _ratio(ours: Pool, theirs: Pool, share: int, drawn: Counts) -> Figure:
    return paired(ours, theirs, share, drawn) if share == 50 else ours.over(theirs, share, drawn)
