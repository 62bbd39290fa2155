# SPDX-License-Identifier: Apache-2.0
"""Round trip and throughput between two pods, and what the programs cost.

Three wirings side by side, measured in turn on the same CPUs: two pods of a real agent, with a
policy in force in both directions; the same two pairs routed by the kernel without any BPF; one
pair straight between two namespaces, which no CNI can wire and which is shown for honesty.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from agent.kernel import bpf
from bench import report
from bench.areas import program_cost
from bench.areas.measure import Helper, last_cpu, median, ratio, run_statistics
from bench.areas.ways import (
    EXCHANGES,
    IN_FORCE,
    POLICY,
    ROUND_TRIP_PORT,
    ROUNDS,
    SIZE,
    Way,
    round_trips,
    throughput,
)
from bench.lab import manifests
from bench.lab.netns import LabError
from bench.lab.node import Lab
from bench.lab.station import Station, wire_direct
from bench.report import Claim

STREAM_ROUNDS = 61


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
        ours = Way(stack, pods[0], pods[1], pods[1].ipv4)
        theirs = Way(stack, others[0], others[1], others[1].ipv4)
        direct = Way(stack, others[0], others[1], ends[1])
        claims = _round_trips(ours, theirs, direct)
        ours.serve(ROUND_TRIP_PORT, last_cpu())
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


def _round_trips(ours: Way, theirs: Way, direct: Way) -> list[Claim]:
    report.say(f"round trips of {SIZE} bytes, {ROUNDS} rounds of {EXCHANGES} on each side")
    times, tails = round_trips((ours, theirs, direct))
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
        Claim(IN_FORCE, median(times[0]) / 1000, None, "µs"),
        Claim("  routed by the kernel", median(times[1]) / 1000, None, "µs"),
        Claim("  one direct pair", median(times[2]) / 1000, None, "µs"),
    ]  # fmt: skip


def _streams(ours: Way, theirs: Way) -> list[Claim]:
    return throughput(
        ours,
        {"routed by the kernel": theirs},
        STREAM_ROUNDS,
        lambda where: f"TCP throughput over routed, {where}",
    )


def _real_traffic(ours: Way, pins: Path, empty_ns: float) -> list[Claim]:
    """What the programs cost while two pods exchange packets, as the kernel counts it."""
    report.say("cost under real traffic")
    client = ours.connect("roundtrip", ROUND_TRIP_PORT, last_cpu(), SIZE)
    programs = {pin.name.partition("-")[0]: bpf.object_get(pin) for pin in pins.iterdir()}
    spent: list[float] = []
    runs = 0
    try:
        with run_statistics():
            for _ in range(ROUNDS):
                before = bpf.program_info(programs["from_pod"])
                client.ask(EXCHANGES)
                after = bpf.program_info(programs["from_pod"])
                count = after.run_count - before.run_count
                runs += count
                spent.append((after.run_nanoseconds - before.run_nanoseconds) / count - empty_ns)
    finally:
        for fd in programs.values():
            os.close(fd)
    raw = {"rounds": spent, "runs": runs, "empty": empty_ns}
    return [Claim("from_pod under real traffic, established", median(spent), None, "ns", raw=raw)]
