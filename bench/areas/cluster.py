# SPDX-License-Identifier: Apache-2.0
"""Several nodes: round trip and throughput between their pods, facts from an API server
(`cluster_control`), outages under load (`cluster_outage`).

In each routing mode, a real agent on each of two nodes with a policy in force in both directions,
beside the same namespaces without any BPF: routed by the kernel, or through its own VXLAN devices
with routes. Measured in turn on the same CPUs. Where every packet names its own tunnel, as it must
to carry an identity, the kernel's tunnel itself is slower: that is measured beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from bench import report
from bench.areas import cluster_control, cluster_outage
from bench.areas.measure import median, ratio
from bench.areas.ways import IN_FORCE, POLICY, SIZE, Way, round_trips, throughput
from bench.lab import manifests
from bench.lab.cluster import Cluster, Shape
from bench.lab.plain import PlainNodes
from bench.report import Claim

STREAM_ROUNDS = 31
_BASELINE = {"tunnel": "the kernel's own VXLAN with routes", "native": "routing by the kernel"}
_METADATA = "the same in collect-metadata mode"


def run() -> list[Claim]:
    """All claims of the area. Takes about ten minutes."""
    claims = [claim for mode in ("tunnel", "native") for claim in _mode(mode)]
    return claims + cluster_control.run() + cluster_outage.run()


def _mode(mode: str) -> list[Claim]:
    with ExitStack() as stack:
        report.say(f"{mode}: two nodes with an agent and a pod each, and the same without agents")
        cluster = stack.enter_context(Cluster(Shape(nodes=2, mode=mode)))
        plain = stack.enter_context(PlainNodes(overlay=mode == "tunnel"))
        cluster.set_namespaces({"bench": {}})
        pods = [
            cluster.add_pod(f"node-{number}", "bench", name, {"app": "bench"})
            for number, name in ((1, "client"), (2, "server"))
        ]
        cluster.set_policies([manifests.policy("bench", "bench", POLICY)])
        places = [pods, [plain.add_pod(number) for number in (1, 2)]]
        if mode == "tunnel":
            metadata = stack.enter_context(PlainNodes(overlay=True, metadata=True))
            places.append([metadata.add_pod(number) for number in (1, 2)])
        claims = []
        for family in (4, 6):
            ours, *others = (
                Way(stack, client, server, server.address(family)) for client, server in places
            )
            named = dict(zip((_BASELINE[mode], _METADATA), others, strict=False))
            claims += _round_trips(ours, named, mode, family)
            claims += _streams(ours, named, mode, family)
        return claims


def _round_trips(ours: Way, others: Mapping[str, Way], mode: str, family: int) -> list[Claim]:
    report.say(f"{mode}: round trips of {SIZE} bytes, IPv{family}")
    times, _ = round_trips((ours, *others.values()))
    measured, raw = ratio(times[0], times[1])
    return [
        Claim(f"{mode}: TCP round trip over {_BASELINE[mode]}, IPv{family}", measured, 1.0, "ratio",
              raw={"unit": "ns", **raw}),
        Claim(IN_FORCE, median(times[0]) / 1000, None, "µs"),
        *(Claim(f"  {what}", median(values) / 1000, None, "µs")
          for what, values in zip(others, times[1:], strict=True)),
    ]  # fmt: skip


def _streams(ours: Way, others: Mapping[str, Way], mode: str, family: int) -> list[Claim]:
    return throughput(
        ours,
        others,
        STREAM_ROUNDS,
        lambda where: f"{mode}: TCP throughput over {_BASELINE[mode]}, {where}, IPv{family}",
    )
