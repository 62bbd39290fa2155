# SPDX-License-Identifier: Apache-2.0
"""Whatever happens in whatever order, the facts are those of a source that came afterwards."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench.lab.apiserver import ApiError
from bench.lab.kubeapi import KubeApi
from bench.lab.kubeapi.choice import Server, open_server
from tests.cluster.following import (
    Follower,
    Object,
    access_to,
    endpoint,
    identity,
    install_definitions,
    namespace,
    node,
    pod,
    policy,
)

STEPS = 150


def some_object(chance: random.Random) -> Object:
    """One of a few objects, in one of a few states, some of them not usable."""
    name = chance.choice("abc")
    bad = chance.random() < 0.1
    match chance.randrange(6):
        case 0:
            return pod(name, "-bad" if bad else chance.choice(["web", "db"]))
        case 1:
            return node(f"node-{name}", "nonsense" if bad else f"192.0.2.{chance.randrange(3)}")
        case 2:
            return namespace(f"ns-{name}", team="-bad" if bad else chance.choice(["a", "b"]))
        case 3:
            rules = [{"from": [{"new": 1}]}] if bad else chance.choice([[], [{}]])
            return policy(name, {"podSelector": {}, "ingress": rules})
        case 4:
            return endpoint(name, 1 if bad else chance.choice([300, 301]))
        case _:
            number = 300 + ord(name) - ord("a")
            return identity(number, **{"k8s:a": "x;y" if bad else chance.choice(["x", "y"])})


def step(server: Server, chance: random.Random) -> None:
    one = some_object(chance)
    meta = one["metadata"]
    if chance.random() < 0.6:
        try:
            server.load([one])
        except ApiError as error:  # Kubernetes does not let in everything that the lab does
            assert isinstance(server, KubeApi) and error.code == 422, error.message
    else:
        known = [found["metadata"]["name"] for found in server.objects(one["kind"])]
        if meta["name"] in known:
            server.delete(one["kind"], meta["name"], meta.get("namespace", ""), grace=0)
    # With Kubernetes' libraries the server is killed; faults are the lab's own.
    what = chance.randrange(40)
    if isinstance(server, KubeApi):
        what = {0: 1, 2: 5, 3: 1}.get(what, -1 if what == 4 else what)
        if chance.random() < 0.6:
            what = -1
    match what:
        case 0:
            server.break_watches(chance.choice(["break", "reset", "cut"]))
        case 1:
            server.compact()
            server.drop_connections()
        case 2:
            server.expire_watches()
        case 3:
            server.end_watches()
        case 4:
            server.fail_next(count=2, code=chance.choice([429, 500, 503, 410]))
        case 5:
            server.stop()
            server.compact()
            server.start()


@pytest.mark.parametrize("seed", range(6))
def test_the_facts_are_those_of_a_source_that_came_afterwards(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    with open_server(seed=seed) as server:
        install_definitions(server)
        with Follower(access_to(server, tmp_path)) as early:
            for _ in range(STEPS):
                step(server, chance)
            server.clear_faults()
            early.settled(server)
            early.synced()
        with Follower(access_to(server, tmp_path)) as late:
            late.synced()
        # An object that has become unusable keeps its last good state; who comes later has none.
        usable = {key: fact for key, fact in early.facts.items() if key in late.facts}
        assert usable == late.facts
        unusable = {str(rejection.resource) for rejection in late.rejections.values()}
        assert {str(key) for key in early.facts.keys() - late.facts.keys()} <= unusable
        assert early.rejections == late.rejections
        assert early.source.facts == early.facts
