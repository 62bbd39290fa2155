# SPDX-License-Identifier: Apache-2.0
"""Round trip and throughput between two pods, and what the programs cost.

Three wirings side by side, measured in turn on the same CPUs: two pods of a real agent, with a
policy in force in both directions; the same two pairs routed by the kernel without any BPF; one
pair straight between two namespaces, which no CNI can wire and which is shown for honesty.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from agent.kernel import bpf
from agent.kernel.syscall import Command, call
from bench import report
from bench.areas import program_cost
from bench.areas.measure import Helper, last_cpu, median, ratio, rounds
from bench.lab import manifests
from bench.lab.netns import LabError
from bench.lab.node import Lab
from bench.lab.station import Station, wire_direct
from bench.report import Claim

ROUND_TRIP_PORT, SAME_CORE_PORT, TWO_CORES_PORT = 5001, 5002, 5003
SIZE = 64
EXCHANGES = 2_000
ROUNDS = 31
CHUNK = 128 * 1024
STREAM_MS = 100
STREAM_ROUNDS = 61

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


@dataclass(frozen=True, slots=True)
class _Way:
    """From a client's place to an address in a server's place."""

    stack: ExitStack
    client: Station
    server: Station
    address: str

    def serve(self, port: int, cpu: int) -> None:
        """Starts a server."""
        helper = Helper("traffic", ["serve", self.address, port, cpu], self.server.namespace)
        self.stack.enter_context(helper)

    def connect(self, mode: str, port: int, cpu: int, size: int) -> Helper:
        """Starts a client, which connects at once."""
        helper = Helper("traffic", [mode, self.address, port, cpu, size], self.client.namespace)
        return self.stack.enter_context(helper)


def run() -> list[Claim]:
    """All claims of the area. Takes about a minute."""
    costs = program_cost.run()
    empty_ns = next(one.measured for one in costs if one.claim == program_cost.EMPTY)
    with ExitStack() as stack:
        report.say("starting an agent with two pods, and the same without one")
        lab = stack.enter_context(Lab())
        routed = stack.enter_context(Lab(routed=True))
        lab.manifests.put("namespaces", [manifests.namespace("bench")])
        pods = [lab.add_pod("bench", name, {"app": "bench"}) for name in ("client", "server")]
        stranger = lab.add_pod("bench", "stranger", {"app": "other"})
        others = [routed.add_pod("bench", name) for name in ("client", "server")]
        lab.set_policies([manifests.policy("bench", "bench", POLICY)])
        ends = wire_direct(others[0].namespace, others[1].namespace)
        ours = _Way(stack, pods[0], pods[1], pods[1].ipv4)
        theirs = _Way(stack, others[0], others[1], others[1].ipv4)
        direct = _Way(stack, others[0], others[1], ends[1])
        claims = _round_trips(ours, theirs, direct)
        _check_enforced(stranger, pods[1])
        claims += _streams(ours, theirs)
        return claims + costs + _real_traffic(ours, lab.scope.bpffs / "programs", empty_ns)


def _check_enforced(stranger: Station, server: Station) -> None:
    """The policy is no decoration: whom it does not name cannot connect."""
    try:
        arguments = ["roundtrip", server.ipv4, ROUND_TRIP_PORT, last_cpu(), 1]
        Helper("traffic", arguments, stranger.namespace).close()
    except LabError:
        return
    raise LabError("the policy is not in force: a pod that it does not name could connect")


def _round_trips(ours: _Way, theirs: _Way, direct: _Way) -> list[Claim]:
    report.say(f"round trips of {SIZE} bytes, {ROUNDS} rounds of {EXCHANGES} on each side")
    cpu = last_cpu()
    tails: list[list[float]] = [[], [], []]

    def side(way: _Way, tail: list[float]) -> Callable[[], float]:
        way.serve(ROUND_TRIP_PORT, cpu)
        client = way.connect("roundtrip", ROUND_TRIP_PORT, cpu, SIZE)

        def once() -> float:
            client.ask(EXCHANGES // 10)
            middle, p99, _ = client.ask(EXCHANGES)
            tail.append(p99)
            return middle

        return once

    times = rounds(ROUNDS, *(side(*one) for one in zip((ours, theirs, direct), tails, strict=True)))
    over_routed, raw_routed = ratio(times[0], times[1])
    over_direct, raw_direct = ratio(times[0], times[2])
    tail_ratio, raw_tail = ratio(tails[0], tails[1])
    ns = {"unit": "ns"}
    return [
        Claim("TCP round trip over routed pod–host–pod, same core", over_routed, 1.0, "ratio",
              raw=ns | raw_routed),
        Claim("TCP round trip over one direct pair, same core", over_direct, 1.12, "ratio",
              raw=ns | raw_direct),
        Claim("  99th percentile over routed", tail_ratio, None, "ratio", raw=ns | raw_tail),
        Claim("  two pods, policy in force", median(times[0]) / 1000, None, "µs"),
        Claim("  routed by the kernel", median(times[1]) / 1000, None, "µs"),
        Claim("  one direct pair", median(times[2]) / 1000, None, "µs"),
    ]  # fmt: skip


def _streams(ours: _Way, theirs: _Way) -> list[Claim]:
    first, last = min(os.sched_getaffinity(0)), last_cpu()
    claims = []
    for name, port, receiver in (
        ("same core", SAME_CORE_PORT, last),
        ("two cores", TWO_CORES_PORT, first),
    ):
        report.say(f"streams, {name}")

        def side(way: _Way, port: int = port, receiver: int = receiver) -> Callable[[], float]:
            way.serve(port, receiver)
            client = way.connect("stream", port, last, CHUNK)

            def once() -> float:
                client.ask(STREAM_MS // 10)
                sent, ns = client.ask(STREAM_MS)
                return sent * 8 / ns

            return once

        rates = rounds(STREAM_ROUNDS, side(ours), side(theirs))
        measured, raw = ratio(rates[0], rates[1])
        claims += [
            Claim(f"TCP throughput over routed, {name}", measured, 0.95, "ratio", True,
                  {"unit": "Gbit/s", **raw}),
            Claim("  two pods, policy in force", median(rates[0]), None, "Gbit/s"),
            Claim("  routed by the kernel", median(rates[1]), None, "Gbit/s"),
        ]  # fmt: skip
    return claims


def _real_traffic(ours: _Way, pins: Path, empty_ns: float) -> list[Claim]:
    """What the programs cost while two pods exchange packets, as the kernel counts it."""
    report.say("cost under real traffic")
    client = ours.connect("roundtrip", ROUND_TRIP_PORT, last_cpu(), SIZE)
    programs = {pin.name.partition("-")[0]: bpf.object_get(pin) for pin in pins.iterdir()}
    spent: list[float] = []
    runs = 0
    try:
        statistics = call(Command.ENABLE_STATS, struct.pack("=I", 0), "run statistics")
        try:
            for _ in range(ROUNDS):
                before = bpf.program_info(programs["from_pod"])
                client.ask(EXCHANGES)
                after = bpf.program_info(programs["from_pod"])
                count = after.run_count - before.run_count
                runs += count
                spent.append((after.run_nanoseconds - before.run_nanoseconds) / count - empty_ns)
        finally:
            os.close(statistics)
    finally:
        for fd in programs.values():
            os.close(fd)
    raw = {"rounds": spent, "runs": runs, "empty": empty_ns}
    return [Claim("from_pod under real traffic, established", median(spent), None, "ns", raw=raw)]
