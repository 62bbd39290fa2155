# SPDX-License-Identifier: Apache-2.0
"""Leader election between candidates whose clocks differ, over a real server."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from agent.kube.access import Access
from agent.kube.errors import Unavailable
from agent.kube.lease import Candidate, Election
from agent.kube.resources import Resources
from bench.lab.kubeapi.choice import Server
from tests.cluster.following import access_to

DURATION = 15


class World:
    """Time itself, and candidates each of whom sees it by clocks of its own."""

    def __init__(self, access: Access) -> None:
        self.now = 0.0
        self._leases = Resources(access).leases

    def candidate(self, name: str, wall: float = 0.0, monotonic: float = 0.0) -> Candidate:
        """wall, monotonic: seconds by which its clocks are off."""
        return Candidate(
            self._leases,
            Election("bristle-collector", "default", name, DURATION),
            lambda: 1_700_000_000 + self.now + wall,
            lambda: self.now + monotonic,
        )


def leaders(*candidates: Candidate) -> list[str]:
    return [one.leader for one in candidates if one.leading]


@pytest.fixture
def world(server: Server, tmp_path: Path) -> World:
    return World(access_to(server, tmp_path))


@pytest.mark.parametrize("skew", [-86_400.0, 0.0, 86_400.0])
def test_a_leader_that_falls_silent_is_followed_by_another(world: World, skew: float) -> None:
    one, two = world.candidate("one"), world.candidate("two", skew, 12_345.0)
    assert one.step()
    assert not two.step()
    assert leaders(one, two) == ["one"]
    for _ in range(20):
        world.now += 5
        assert one.step()
        assert not two.step()
    assert two.leader == "one"
    # It stops, and knows so itself before the other takes over.
    for second in range(1, DURATION + 1):
        world.now += 1
        two.step()
        assert len(leaders(one, two)) < 2, second
    assert leaders(one, two) == ["two"]
    assert not one.step()
    assert one.leader == "two"


def test_whoever_has_just_come_waits_for_the_whole_duration(world: World) -> None:
    """Its clock says that the lease ran out long ago; that counts for nothing."""
    assert world.candidate("one").step()
    world.now += 1000
    late = world.candidate("late", wall=1e6)
    assert not late.step()
    world.now += DURATION - 1
    assert not late.step()
    world.now += 1
    assert late.step()


def test_a_lease_that_is_given_up_is_taken_at_once(world: World, server: Server) -> None:
    one, two = world.candidate("one"), world.candidate("two", -500.0)
    assert one.step()
    assert not two.step()
    one.release()
    assert not one.leading
    assert two.step()
    two.release()
    one.release()  # not its own any more: nothing happens
    spec = server.get("Lease", "bristle-collector", "default")["spec"]
    assert not spec.get("holderIdentity")
    assert spec["leaseTransitions"] == 1


def test_the_lease_says_what_others_need(world: World, server: Server) -> None:
    one = world.candidate("one")
    assert one.step()
    first = server.get("Lease", "bristle-collector", "default")["spec"]
    world.now += 5
    assert one.step()
    then = server.get("Lease", "bristle-collector", "default")["spec"]
    assert first["acquireTime"] == then["acquireTime"] == "2023-11-14T22:13:20.000000Z"
    assert then["renewTime"] == "2023-11-14T22:13:25.000000Z"
    assert (then["holderIdentity"], then["leaseDurationSeconds"]) == ("one", DURATION)
    assert then["leaseTransitions"] == 0


def test_who_cannot_ask_ceases_to_lead(world: World, server: Server) -> None:
    one = world.candidate("one")
    assert one.step()
    server.stop()
    world.now += 9
    with pytest.raises(Unavailable):
        one.step()
    assert leaders(one) == ["one"]
    world.now += 1
    assert leaders(one) == []
    server.start()
    assert one.step()  # nobody else was there


@pytest.mark.parametrize("seed", range(5))
def test_there_are_never_two_leaders(world: World, server: Server, seed: int) -> None:
    """Candidates step when they like, are away for a while, and lose answers."""
    chance = random.Random(seed)
    candidates = [
        world.candidate(str(number), chance.uniform(-1e5, 1e5), chance.uniform(0, 1e5))
        for number in range(4)
    ]
    away = {one: 0.0 for one in candidates}
    led: set[Candidate] = set()
    for _ in range(400):
        world.now += chance.uniform(0, 3)
        one = chance.choice(candidates)
        if chance.random() < 0.02:
            away[one] = world.now + chance.uniform(0, 60)
        if world.now >= away[one]:
            if chance.random() < 0.1:
                server.drop_next(after=chance.random() < 0.5)
            try:
                if chance.random() < 0.05:
                    one.release()
                else:
                    one.step()
            except Unavailable:
                pass
            server.clear_faults()
        leading = [each for each in candidates if each.leading]
        assert len(leading) <= 1
        led.update(leading)
    assert len(led) > 1
