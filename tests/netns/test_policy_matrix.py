# SPDX-License-Identifier: Apache-2.0
"""Who can reach whom, measured with real packets in a real kernel, case by case.

Each case (cases/*.yaml) is held against two readings of the NetworkPolicy API: what a human wrote
beside it, and what the naive evaluator says, cell by cell. All cases share one agent and one world,
so each also is a transition from the one before, with connections that are known already.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.lab.cases import Case, Oracle, World, differences, load_cases
from bench.lab.node import Lab
from bench.lab.probe import ICMP, UDP, Cell, Prober
from bench.lab.station import Station

pytestmark = pytest.mark.kernel

FOLDER = Path(__file__).parent / "cases"
CASES = load_cases(FOLDER)
BEYOND_MTU = 4000


@dataclass(frozen=True)
class Stage:
    """The world as it runs: who is in it, and every question to ask."""

    lab: Lab
    world: World
    prober: Prober
    stations: tuple[Station, ...]
    cells: list[Cell]

    def relabel(self, case: Case) -> World:
        """Gives namespaces and pods the labels of a case; the world as it is then."""
        wanted = self.world.with_labels(case.namespaces, case.pods)
        self._show(wanted, case)
        return wanted

    def restore(self, case: Case) -> None:
        """Gives everything its usual labels again."""
        self._show(self.world, case)

    def _show(self, wanted: World, case: Case) -> None:
        for name in case.namespaces:
            self.lab.change(f"namespace-{name}", [wanted.namespaces[name]])
        for key in case.pods:
            self.lab.change(f"pod-{key.replace('/', '-')}", [wanted.pods[key]])


@pytest.fixture(scope="module")
def stage(lab: Lab) -> Iterator[Stage]:
    """The pods of the world, added by CNI calls, and a prober on all of them."""
    world = World.load(FOLDER / "world.yaml")
    for name, item in world.namespaces.items():
        lab.manifests.put(f"namespace-{name}", [item])
    for key, item in world.pods.items():
        lab.manifests.put(f"pod-{key.replace('/', '-')}", [item])
        if not world.host_network(key):
            namespace, name = key.split("/")
            lab.add_pod(namespace, name, manifest=False)
    lab.agent.wait_known(*lab.pods)
    pods, others = tuple(lab.pods.values()), (lab.node, lab.outside, lab.far)
    with Prober((*pods, *others)) as prober:
        inside, outside = [p.name for p in pods], [o.name for o in others]
        cells = prober.cells(inside, inside + outside) + prober.cells(outside, inside)
        yield Stage(lab, world, prober, (*pods, *others), cells)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_measured_equals_both_readings(stage: Stage, case: Case) -> None:
    """Connections and replies of every cell; fragments, both ways, of every allowed pair."""
    world = stage.relabel(case)
    try:
        policies = case.manifests(stage.stations, stage.lab.pod_cidrs)
        stage.lab.set_policies(policies)
        measured = stage.prober.measure(stage.cells)

        oracle = Oracle(world, stage.stations, policies)
        expected = {cell: oracle.allowed(cell) for cell in stage.cells}
        assert differences(expected, measured) == []
        by_hand = case.by_hand(stage.cells, set(stage.lab.pods))
        assert differences(by_hand, measured) == []

        fragmented = [cell for cell in stage.cells if expected[cell] and _splits(stage, cell)]
        in_pieces = stage.prober.measure(fragmented, size=BEYOND_MTU)
        assert [str(cell) for cell in fragmented if not in_pieces[cell]] == []
    finally:
        stage.restore(case)


def test_there_are_enough_cases() -> None:
    """Each field of the API, in both families and all protocols: at least 60 cases."""
    assert len(CASES) >= 60


def test_policy_check_agrees_with_the_kernel(stage: Stage) -> None:
    """After every transition above, the tables still hold exactly what the model says."""
    assert stage.lab.agent.cli("policy", "check").returncode == 0


def _splits(stage: Stage, cell: Cell) -> bool:
    """Whether its packets can be made larger than the MTU and are answered in full."""
    return cell.protocol == ICMP or (cell.protocol == UDP and cell.port in stage.prober.ports.udp)
