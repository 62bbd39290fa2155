# SPDX-License-Identifier: Apache-2.0
"""What a node says of itself: how it is reached, how it is, and not again what it has said."""

from __future__ import annotations

import pytest

from agent.cluster.node_keeper import CAPACITY_SECONDS, READY_PAUSE, NodeKeeper
from agent.core.events import Node
from agent.kube.errors import ApiError
from agent.kube.objects import BristleNodeSpec, BristleNodeStatus, Encapsulation

NODE = Node("me", "uid", ("192.0.2.1", "2001:db8::1"), ("10.1.0.0/24",))


class World:
    """A registry in memory, and the keeper of a node that is ready or not."""

    def __init__(self, mode: str = "tunnel", port: int = 8472) -> None:
        self.now = 0.0
        self.ready = (True, "ok")
        self.used = {"policy": (1, 100)}
        self.current = NODE
        self.opened = 0
        self.failing = False
        self.told: list[tuple[BristleNodeSpec, BristleNodeStatus]] = []
        self.keeper = NodeKeeper(
            self,
            lambda: self.ready,
            lambda: self.used,
            routing_mode=mode,
            tunnel_port=port,
            version="0.1",
            clock=lambda: self.now,
            monotonic=lambda: self.now,
        )

    def node(self) -> Node:
        return self.current

    def open_for_pods(self) -> None:
        self.opened += 1

    def put_node(self, node: Node, spec: BristleNodeSpec, status: BristleNodeStatus) -> None:
        if self.failing:
            raise ApiError("the API server is away")
        self.told.append((spec, status))


@pytest.mark.parametrize(
    ("mode", "port", "encapsulation"),
    [("tunnel", 8472, Encapsulation(8472)), ("native", 0, None), ("", 0, None)],
)
def test_how_it_is_reached(mode: str, port: int, encapsulation: Encapsulation | None) -> None:
    world = World(mode, port)
    world.keeper.work()
    ((spec, status),) = world.told
    assert (spec.routingMode, spec.encapsulation) == (mode, encapsulation)
    assert [one.ip for one in spec.addresses] == ["192.0.2.1", "2001:db8::1"]
    assert spec.podCIDRs == ("10.1.0.0/24",)
    assert [(one.type, one.status) for one in status.conditions] == [("Ready", "True")]


def test_the_same_is_told_once_and_figures_of_tables_now_and_then() -> None:
    world = World()
    world.keeper.work()
    world.used = {"policy": (2, 100)}
    world.now = CAPACITY_SECONDS - 1
    world.keeper.work()
    assert len(world.told) == 1
    world.now = CAPACITY_SECONDS
    world.keeper.work()
    assert world.told[1][1].capacity["policy"].used == 2
    world.current = Node("me", "uid", ("192.0.2.9",), ("10.1.0.0/24",))
    world.keeper.work()
    assert [one.ip for one in world.told[2][0].addresses] == ["192.0.2.9"]


def test_it_is_open_only_once_it_is_ready() -> None:
    world = World()
    world.ready = (False, "starting")
    assert world.keeper.work() == READY_PAUSE
    assert world.opened == 0
    assert world.told[0][1].conditions[0].message == "starting"
    world.now = 1.0
    assert world.keeper.work() == READY_PAUSE
    assert len(world.told) == 1
    world.ready = (True, "ok")
    assert world.keeper.work() is None
    assert world.opened == 1 and world.told[1][1].conditions[0].status == "True"


def test_a_condition_keeps_the_time_of_its_last_change() -> None:
    world = World()
    world.keeper.work()
    world.now = 2 * CAPACITY_SECONDS
    world.keeper.work()
    first, second = (status.conditions[0] for _, status in world.told)
    assert first == second
    world.ready = (False, "the datapath")
    world.keeper.work()
    assert world.told[2][1].conditions[0].lastTransitionTime != first.lastTransitionTime


def test_what_could_not_be_told_is_told_the_next_time() -> None:
    world = World()
    world.failing = True
    with pytest.raises(ApiError):
        world.keeper.work()
    world.failing = False
    world.keeper.work()
    assert len(world.told) == 1


@pytest.mark.parametrize("ready", [True, False])
def test_what_somebody_deleted_is_told_again_at_once(ready: bool) -> None:
    world = World()
    world.ready = (ready, "so")
    world.keeper.work()
    world.keeper.work()
    assert len(world.told) == 1
    world.keeper.lost()
    world.failing = True
    with pytest.raises(ApiError):
        world.keeper.work()
    world.failing = False
    world.now = 1.0
    world.keeper.work()
    world.keeper.work()
    assert len(world.told) == 2 and world.told[0] == world.told[1]
