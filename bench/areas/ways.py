# SPDX-License-Identifier: Apache-2.0
"""Round trip and throughput over several ways between two places, measured in turn on the same
CPUs: what the areas about packets have in common.

In several sittings, each with new processes and connections: where a process's memory lies, and how
a connection began, makes some per cent, which one sitting takes for the thing itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from bench import report
from bench.areas.measure import Helper, last_cpu, median, ratio, rounds
from bench.lab.station import Station
from bench.report import Claim

ROUND_TRIP_PORT, SAME_CORE_PORT, TWO_CORES_PORT = 5001, 5002, 5003
SIZE = 64
EXCHANGES = 2_000
ROUNDS = 35
SITTINGS = 5
CHUNK = 128 * 1024
STREAM_MS = 100
Once = Callable[[], float]
"""Measures one side once."""
IN_FORCE = "  two pods, policy in force"

_BENCH = [{"podSelector": {"matchLabels": {"app": "bench"}}}]
_PORTS = [
    {"protocol": "TCP", "port": port} for port in (ROUND_TRIP_PORT, SAME_CORE_PORT, TWO_CORES_PORT)
]
POLICY = {
    "podSelector": {"matchLabels": {"app": "bench"}},
    "policyTypes": ["Ingress", "Egress"],
    "ingress": [{"from": _BENCH, "ports": _PORTS}],
    "egress": [{"to": _BENCH, "ports": _PORTS}],
}
"""In force in both directions, for pods with the label app=bench."""


@dataclass(frozen=True, slots=True)
class Way:
    """From a client's place to an address in a server's place."""

    stack: ExitStack
    client: Station
    server: Station
    address: str

    def at(self, sitting: ExitStack) -> Way:
        """The same for one sitting, whose end ends what is started."""
        return replace(self, stack=sitting)

    def serve(self, port: int, cpu: int) -> None:
        """Starts a server."""
        helper = Helper("traffic", ["serve", self.address, port, cpu], self.server.namespace)
        self.stack.enter_context(helper)

    def connect(self, mode: str, port: int, cpu: int, size: int) -> Helper:
        """Starts a client, which connects at once."""
        helper = Helper("traffic", [mode, self.address, port, cpu, size], self.client.namespace)
        return self.stack.enter_context(helper)


def sittings(
    count: int, ways: Sequence[Way], side: Callable[[int, Way], Once]
) -> list[list[float]]:
    """Values of each way in about `count` rounds. side: starts one (its number, for this sitting),
    and gives what measures it once."""
    values: list[list[float]] = [[] for _ in ways]
    for _ in range(SITTINGS):
        with ExitStack() as sitting:
            sides = [side(number, way.at(sitting)) for number, way in enumerate(ways)]
            for all_values, some in zip(values, rounds(-(-count // SITTINGS), *sides), strict=True):
                all_values += some
    return values


def round_trips(ways: Sequence[Way]) -> tuple[list[list[float]], list[list[float]]]:
    """Of each way the median and the 99th percentile of every round, in ns."""
    cpu = last_cpu()
    tails: list[list[float]] = [[] for _ in ways]

    def side(number: int, way: Way) -> Once:
        way.serve(ROUND_TRIP_PORT, cpu)
        client = way.connect("roundtrip", ROUND_TRIP_PORT, cpu, SIZE)

        def once() -> float:
            client.ask(EXCHANGES // 10)
            middle, p99, _ = client.ask(EXCHANGES)
            tails[number].append(p99)
            return middle

        return once

    return sittings(ROUNDS, ways, side), tails


def throughput(
    ours: Way, others: Mapping[str, Way], count: int, claim: Callable[[str], str]
) -> list[Claim]:
    """Streams to a receiver on the sender's core and on another one, about `count` rounds of each.

    claim: its name, made from where the receiver is. others: what ours is compared with, by what
    they are; the claim is about the first, for the rest there is a ratio without a bar.
    """
    first, last = min(os.sched_getaffinity(0)), last_cpu()
    claims = []
    for where, port, receiver in (
        ("same core", SAME_CORE_PORT, last),
        ("two cores", TWO_CORES_PORT, first),
    ):
        name = claim(where)
        report.say(name)

        def side(
            _: int, way: Way, port: int = port, receiver: int = receiver
        ) -> Callable[[], float]:
            way.serve(port, receiver)
            client = way.connect("stream", port, last, CHUNK)

            def once() -> float:
                client.ask(STREAM_MS // 10)
                sent, ns = client.ask(STREAM_MS)
                return sent * 8 / ns

            return once

        rates = sittings(count, (ours, *others.values()), side)
        measured, raw = ratio(rates[0], rates[1])
        claims += [
            Claim(name, measured, 0.95, "ratio", True, {"unit": "Gbit/s", **raw}),
            Claim(IN_FORCE, median(rates[0]), None, "Gbit/s"),
        ]
        for number, (what, values) in enumerate(zip(others, rates[1:], strict=True)):
            claims.append(Claim(f"  {what}", median(values), None, "Gbit/s"))
            if number:
                over, raw = ratio(rates[0], values)
                claims.append(Claim("    ours over that", over, None, "ratio", raw=raw))
    return claims
