# SPDX-License-Identifier: Apache-2.0
"""Traffic between three nodes while agents are killed, and while the API server is away: what is
allowed loses no packet, what is denied never arrives. Part of the area `cluster`."""

from __future__ import annotations

import time
from contextlib import ExitStack

from bench import report
from bench.areas.restart import POLICY, Load, claims_of
from bench.lab import manifests
from bench.lab.api_source import ApiSource
from bench.lab.cluster import Cluster, Shape
from bench.report import Claim

KILLS = 10
AWAY_SECONDS = 60.0


def run() -> list[Claim]:
    """All claims of this part, in both routing modes. Takes about four minutes."""
    return [claim for mode in ("tunnel", "native") for claim in _mode(mode)]


def _mode(mode: str) -> list[Claim]:
    shape = Shape(nodes=3, mode=mode)
    with Cluster(shape, source=ApiSource, start=False) as cluster, ExitStack() as stack:
        assert isinstance(cluster.source, ApiSource)
        api = stack.enter_context(cluster.source.served(cluster.outside))
        cluster.set_namespaces({"bench": {}})
        cluster.start()
        client, server, stranger = (
            cluster.add_pod(f"node-{number}", "bench", name, {"app": name})
            for number, name in ((1, "client"), (2, "server"), (3, "stranger"))
        )
        cluster.set_policies([manifests.policy("bench", "bench", POLICY)])
        report.say(f"{mode}: {KILLS} kills of the agents of sender and receiver by turns")
        with ExitStack() as running:
            load = Load(running, client, server, stranger)
            for number in range(KILLS):
                cluster.restart(f"node-{1 + number % 2}")
            counts = load.end()
        claims = claims_of(counts, f"{mode}, {KILLS} kills across nodes")
        report.say(f"{mode}: API server away for {AWAY_SECONDS:.0f} s")
        with ExitStack() as running:
            load = Load(running, client, server, stranger)
            api.stop(reset=True)
            time.sleep(AWAY_SECONDS)
            api.start()
            cluster.wait(
                lambda: (
                    not any(
                        one.what.startswith("source")
                        for node in cluster.nodes.values()
                        for one in node.agent.status().problems
                    )
                ),
                "every agent to have the server back",
                60,
            )
            time.sleep(2)
            counts = load.end()
        return claims + claims_of(counts, f"{mode}, API server away {AWAY_SECONDS:.0f} s")
