# SPDX-License-Identifier: Apache-2.0
"""Policy between nodes: who reaches whom on three nodes, in both routing modes, with real packets.

The cases are those of test_policy_matrix.py, every fifth of them; pods of one world are spread over
the nodes, and each node is another one to the others' pods.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.lab.cases import Case, Oracle, World, differences, load_cases
from bench.lab.cluster import Cluster, Shape
from bench.lab.manifests import Object
from bench.lab.probe import ICMP, UDP, Cell, Ports, Prober
from bench.lab.station import FAR4, FAR6, Station

pytestmark = pytest.mark.kernel

FOLDER = Path(__file__).parent / "cases"
PODS = ("10.244.0.0/16", "fd00:10:244::/48")
PORTS = Ports(tcp=(80, 8080), udp=(80,), sctp=(80,))
BEYOND_MTU = 4000


def _chosen() -> list[Case]:
    """Every fifth, of those that relabel nothing and mean no node by its address."""
    cases = [
        one
        for one in load_cases(FOLDER)
        if not one.namespaces and not one.pods and "${node." not in str(one.policies)
    ]
    return cases[::5]


CASES = _chosen()


@dataclass(frozen=True)
class Stage:
    cluster: Cluster
    world: World
    prober: Prober
    stations: tuple[Station, ...]
    cells: list[Cell]

    def is_own_node(self, pod: str, other: str) -> bool:
        return self.cluster.node_of(self.cluster.pods[pod]).name == other


@pytest.fixture(scope="module", params=["tunnel", "native"])
def stage(private_mounts: None, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """The pods of the world, one after the other on node 1, 2 and 3."""
    whole = World.load(FOLDER / "world.yaml")
    world = World(
        whole.namespaces, {k: o for k, o in whole.pods.items() if not whole.host_network(k)}
    )
    with Cluster(Shape(nodes=3, mode=request.param)) as cluster:
        cluster.outside_namespace.ip(
            f"address add {FAR4}/32 dev lo", f"address add {FAR6}/128 dev lo nodad"
        )
        cluster.route_pods()
        cluster.put("namespaces", list(world.namespaces.values()))
        nodes = list(cluster.nodes)
        for number, (key, item) in enumerate(world.pods.items()):
            namespace, name = key.split("/")
            labels = item["metadata"].get("labels", {})
            cluster.add_pod(nodes[number % 3], namespace, name, labels, _ports(item))
        far = Station("far", cluster.outside_namespace, FAR4, FAR6)
        others = (*(n.station for n in cluster.nodes.values()), cluster.outside, far)
        stations = (*cluster.pods.values(), *others)
        with Prober(stations, PORTS) as prober:
            pods, names = list(cluster.pods), [one.name for one in others]
            cells = prober.cells(pods, pods + names) + prober.cells(names, pods)
            yield Stage(cluster, world, prober, stations, cells)


def _ports(item: Object) -> list[tuple[str, str, int]]:
    return [
        (port.get("name", ""), port.get("protocol", "TCP"), port["containerPort"])
        for container in item["spec"]["containers"]
        for port in container.get("ports", ())
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_measured_equals_the_evaluator(stage: Stage, case: Case) -> None:
    """Connections and replies of every cell; fragments, both ways, of every allowed pair."""
    policies = case.manifests(stage.stations, PODS)
    stage.cluster.set_policies(policies)
    measured = stage.prober.measure(stage.cells)
    oracle = Oracle(stage.world, stage.stations, policies, stage.is_own_node)
    expected = {cell: oracle.allowed(cell) for cell in stage.cells}
    assert differences(expected, measured) == []
    fragmented = [cell for cell in stage.cells if expected[cell] and cell.protocol in (ICMP, UDP)
                  and cell.port not in PORTS.closed]  # fmt: skip
    in_pieces = stage.prober.measure(fragmented, size=BEYOND_MTU)
    # Pods have a smaller MTU than the outside, which learns it by its first answer (RFC 8201).
    again = [cell for cell in fragmented if not in_pieces[cell]]
    assert not [str(cell) for cell in again if "outside" not in cell and "far" not in cell]
    in_pieces = stage.prober.measure(again, size=BEYOND_MTU)
    assert [str(cell) for cell in again if not in_pieces[cell]] == []


def test_there_are_a_dozen_cases() -> None:
    assert len(CASES) >= 12


def test_every_node_holds_what_its_policies_say(stage: Stage) -> None:
    """After all transitions above; and nothing of the network between nodes is amiss."""
    for node in stage.cluster.nodes.values():
        assert node.agent.cli("policy", "check").returncode == 0
        assert list(node.agent.status().problems) == []
