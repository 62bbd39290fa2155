# SPDX-License-Identifier: Apache-2.0
"""The policy cases of tests/netns/cases across three nodes of a cluster, in both routing modes:
every cell, measured with real packets, against the naive evaluator.

What a human wrote beside a case speaks of one node, and is held against that one there. Each case
is measured in one of the modes, by turns; with BRISTLE_ALL_CASES=1 (make test-cluster) in both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.lab.api_source import ApiSource, LabServer
from bench.lab.cases import Case, Oracle, World, differences, load_cases
from bench.lab.cluster import Cluster, Shape
from bench.lab.probe import ICMP, UDP, Cell, Prober
from bench.lab.station import FAR4, FAR6, Station

pytestmark = pytest.mark.kernel

FOLDER = Path(__file__).parents[1] / "netns" / "cases"
CASES = load_cases(FOLDER)
BEYOND_MTU = 4000
EVERYTHING = os.environ.get("BRISTLE_ALL_CASES") == "1"
NODES = ("node-1", "node-2", "node-3")
CLUSTER_CIDRS = ("10.244.0.0/16", "fd00:10:244::/48")


@dataclass(frozen=True)
class Stage:
    """Nine pods on three nodes, the nodes themselves, and a host outside."""

    cluster: Cluster
    api: LabServer
    world: World
    prober: Prober
    stations: tuple[Station, ...]
    node_of: Mapping[str, str]
    cells: list[Cell]

    def show(self, wanted: World, case: Case) -> None:
        """Makes namespaces and pods of a case as they are in a world, on every node."""
        for name in case.namespaces:
            self.cluster.put(f"namespace-{name}", [wanted.namespaces[name]])
        for key in case.pods:
            self._put(key, wanted.pods[key])
        if case.namespaces or case.pods:
            self.cluster.wait(lambda: self._settled(wanted), f"labels of {case.name}")

    def _put(self, key: str, item: Mapping[str, Any]) -> None:
        placed = {**item, "spec": {**item["spec"], "nodeName": self.node_of[key]}}
        self.cluster.put(f"pod-{key.replace('/', '-')}", [placed])

    def _settled(self, wanted: World) -> bool:
        """Every node knows every pod by the number that its labels have now."""
        labels = {
            one["metadata"]["name"]: one["security-labels"]
            for one in self.api.objects("BristleIdentity")
        }
        wanted_numbers: dict[str, int] = {}
        for one in self.api.objects("BristleEndpoint"):
            spec, key = one["spec"], f"{one['metadata']['namespace']}/{one['metadata']['name']}"
            found = labels.get(str(spec["identity"]), {})
            pod = wanted.pods[key]["metadata"].get("labels") or {}
            space = wanted.namespaces[one["metadata"]["namespace"]]["metadata"].get("labels") or {}
            mine = {k.removeprefix("k8s:"): v for k, v in found.items() if ":io." not in k}
            if mine != pod:
                return False
            prefix = "k8s:io.cilium.k8s.namespace.labels."
            given = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
            given.pop("kubernetes.io/metadata.name", None)
            if given != {k: v for k, v in space.items() if k != "kubernetes.io/metadata.name"}:
                return False
            wanted_numbers[f"{spec['ipv4']}/32"] = spec["identity"]
        for node in NODES:
            if not wanted_numbers.items() <= self.cluster.identities(node).items():
                return False
        return True

    def expected(self, world: World, policies: list[Any]) -> dict[Cell, bool]:
        """By the evaluator. A pod's own node may always reach it; another one is an address."""
        oracle = Oracle(
            world, self.stations, policies, lambda pod, other: self.node_of.get(pod) == other
        )
        return {cell: oracle.allowed(cell) for cell in self.cells}


@contextmanager
def _staged(mode: str) -> Iterator[Stage]:
    world = World.load(FOLDER / "world.yaml")
    shape = Shape(nodes=3, mode=mode)
    with Cluster(shape, source=ApiSource, start=False) as cluster:
        assert isinstance(cluster.source, ApiSource)
        with cluster.source.served(cluster.outside) as api:
            for name, item in world.namespaces.items():
                cluster.put(f"namespace-{name}", [item])
            cluster.start()
            cluster.route_pods()
            keys = [key for key in sorted(world.pods) if not world.host_network(key)]
            node_of = {key: NODES[n % 3] for n, key in enumerate(keys)}
            for key in keys:
                namespace, name = key.split("/")
                metadata = world.pods[key]["metadata"]
                cluster.add_pod(node_of[key], namespace, name, metadata.get("labels") or {})
            pods = [cluster.pods[key] for key in keys]
            hosts = [cluster.node(name).station for name in NODES]
            far = Station("far", cluster.outside_namespace, FAR4, FAR6)
            outside = cluster.outside
            with Prober((*pods, *hosts, outside)) as prober:
                inside, others = [one.name for one in pods], [*NODES, outside.name]
                cells = prober.cells(inside, inside) + prober.cells(others, inside)
                cells += prober.cells(inside, [outside.name])
                # For the addresses that cases name: of a node, and of nobody here.
                one = Station("node", hosts[0].namespace, hosts[0].ipv4, hosts[0].ipv6)
                stations = (*pods, *hosts, outside, far, one)
                made = Stage(cluster, api, world, prober, stations, node_of, cells)
                for key in keys:
                    made._put(key, world.pods[key])
                cluster.wait(lambda: made._settled(world), "the world to be known")
                yield made


@pytest.fixture(scope="module")
def tunnel() -> Iterator[Stage]:
    with _staged("tunnel") as made:
        yield made


@pytest.fixture(scope="module")
def native() -> Iterator[Stage]:
    with _staged("native") as made:
        yield made


@pytest.mark.parametrize("case", CASES if EVERYTHING else CASES[::2], ids=lambda case: case.name)
def test_through_the_tunnel(tunnel: Stage, case: Case) -> None:
    _measured_equals_the_evaluator(tunnel, case)


@pytest.mark.parametrize("case", CASES if EVERYTHING else CASES[1::2], ids=lambda case: case.name)
def test_along_routes(native: Stage, case: Case) -> None:
    _measured_equals_the_evaluator(native, case)


def _measured_equals_the_evaluator(stage: Stage, case: Case) -> None:
    """Connections and replies of every cell; fragments, both ways, of every allowed pair."""
    world = stage.world.with_labels(case.namespaces, case.pods)
    stage.show(world, case)
    try:
        policies = case.manifests(stage.stations, CLUSTER_CIDRS)
        stage.cluster.set_policies(policies)
        expected = stage.expected(world, policies)
        measured = stage.prober.measure(stage.cells)
        assert differences(expected, measured) == []
        pods = set(stage.node_of)
        fragmented = [
            cell
            for cell in stage.cells
            if expected[cell] and {cell.source, cell.destination} <= pods and _splits(stage, cell)
        ]
        in_pieces = stage.prober.measure(fragmented, size=BEYOND_MTU)
        assert [str(cell) for cell in fragmented if not in_pieces[cell]] == []
    finally:
        stage.show(stage.world, case)


def _splits(stage: Stage, cell: Cell) -> bool:
    return cell.protocol == ICMP or (cell.protocol == UDP and cell.port in stage.prober.ports.udp)
