# SPDX-License-Identifier: Apache-2.0
"""Policies that were edited into what is refused, and an agent that starts over them: what they
last said stays in force, from the first packet on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.core.events import PolicyUpserted, SourceSynced
from agent.kube.reflector import Timing
from bench.lab import manifests
from bench.lab.apiserver import ApiServer
from bench.lab.node import Lab
from bench.lab.station import Pod
from bench.lab.talk import Server, ask_udp
from tests.cluster.following import Follower, access_to, namespace, policy

kernel = pytest.mark.kernel

PORT = 8080
BAD = {"ipBlock": {"cidr": "10.0.0.1/8"}}  # which an API server takes
WEB = {"podSelector": {"matchLabels": {"app": "web"}}}
SOON = Timing(settled=0.05, first_wait=0.01, longest_wait=0.05, patience=0.2, page=3, remember=0.05)


# ---- the source --------------------------------------------------------------------------------


def _spec(*peers: Any) -> Any:
    return {
        "podSelector": {"matchLabels": {"app": "db"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": list(peers)}],
    }


def test_it_is_delivered_before_the_source_is_synced(server: ApiServer, tmp_path: Path) -> None:
    """Also with many policies, of which a page has few, and after a list that was cut short."""
    names = [f"np-{number}" for number in range(10)]
    server.create(namespace("shop"))
    for name in names:
        server.create(policy(name, _spec(WEB)))
    kept = tmp_path / "manifests.json"

    def follower() -> Follower:
        return Follower(access_to(server, tmp_path), SOON, last_good=kept)

    with follower() as first:
        first.synced()
        before = dict(first.facts)
        first.wait(kept.exists, "what is in force to be written down")
    for name in names[:8]:
        server.patch("NetworkPolicy", name, {"spec": _spec(BAD)}, "shop")
    server.delete("NetworkPolicy", names[0], "shop")
    server.create(policy(names[0], _spec(BAD)))
    del before["NetworkPolicy", "shop", names[0]]  # type: ignore[arg-type]
    for _ in range(2):
        server.fail_next(code=500, resource="networkpolicies", path="continue=")
        with follower() as second:
            second.synced()
            synced = [isinstance(event, SourceSynced) for event in second.events].index(True)
            said = [e for e in second.events[:synced] if isinstance(e, PolicyUpserted)]
            assert len(said) == 9 and second.facts == before
            assert len(second.rejections) == 8


# ---- an agent, and packets ---------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """db admits web and not guest, by a policy of that name."""

    lab: Lab
    db: Pod
    web: Pod
    guest: Pod

    def reach(self) -> set[str]:
        """Who is answered by db, over either family."""
        return {
            one.name
            for one in (self.web, self.guest)
            for family in (4, 6)
            if ask_udp(one.namespace, self.db.address(family), PORT)
        }

    def edit(self, *peers: Any) -> None:
        """As users do it, so with all the checks of the server."""
        self.lab.api.patch("NetworkPolicy", "db", {"spec": _spec(*peers)}, "shop")

    def shown(self) -> tuple[str, bool]:
        """Of the one that is rejected, the field, and whether a last good state is in force."""
        (rejected,) = self.lab.agent.policies().rejected
        table = self.lab.agent.cli("policy", "get").stdout
        assert ("last good state" in table) == rejected.last_good
        return rejected.field, rejected.last_good

    def server_is_missed(self) -> bool:
        with contextlib.suppress(grpc.RpcError):  # it is just starting
            return self.lab.api.url in str(self.lab.agent.status().problems)
        return False

    def wait_written(self, text: str) -> None:
        kept = self.lab.scope.state_dir / "manifests.json"
        self.lab.agent.wait(lambda: kept.exists() and text in kept.read_text(), f"{text} written")


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Lab(api=True) as lab:
        lab.manifests.put("namespaces", [manifests.namespace("shop")])
        pods = [lab.add_pod("shop", name, {"app": name}) for name in ("db", "web", "guest")]
        lab.api.create(manifests.policy("shop", "db", _spec(WEB)))
        lab.agent.wait(lambda: lab.agent.has_policies({"shop/db"}), "the policy to be in force")
        with Server(pods[0].namespace, [PORT]):
            yield Scene(lab, *pods)


FIELD = "spec.ingress[0].from[0].ipBlock.cidr"


@kernel
def test_policy_made_invalid_while_no_agent_runs(scene: Scene) -> None:
    """However the agent ends, however often, and with the server away at the start."""
    agent, web = scene.lab.agent, {scene.web.name}
    scene.wait_written("shop/db")
    assert scene.reach() == web
    agent.kill()
    scene.edit(BAD)
    ends: list[Callable[[], object]] = [agent.kill, agent.stop, agent.kill]
    for end in ends:
        agent.start()
        assert scene.reach() == web and scene.shown() == (FIELD, True)
        end()
    scene.lab.api.stop(reset=True)
    agent.launch()
    agent.wait(scene.server_is_missed, "status to say so", 60)
    assert scene.reach() == web
    scene.lab.api.start()
    agent.wait_ready()
    assert scene.reach() == web and scene.shown() == (FIELD, True)
    # Repaired, with another meaning.
    scene.edit({"podSelector": {"matchLabels": {"app": "guest"}}})
    agent.wait(lambda: not agent.policies().rejected, "the rejection to be over")
    agent.wait(lambda: scene.reach() == {scene.guest.name}, "the new text to be in force")


@kernel
def test_a_policy_that_was_made_anew_has_no_former_state(scene: Scene) -> None:
    """Deleted and made anew, invalid, under its name while no agent runs: another object."""
    agent, everybody = scene.lab.agent, {scene.web.name, scene.guest.name}
    scene.wait_written("shop/db")
    agent.kill()
    scene.lab.api.delete("NetworkPolicy", "db", "shop")
    scene.lab.api.create(manifests.policy("shop", "db", _spec(BAD)))
    agent.start()
    assert scene.shown() == (FIELD, False)
    agent.wait(lambda: scene.reach() == everybody, "nothing to isolate the pod")
    kept = scene.lab.scope.state_dir / "manifests.json"
    agent.wait(lambda: "shop/db" not in _files(kept), "it to be forgotten")


def _files(path: Path) -> str:
    return " ".join(json.loads(path.read_text())["files"])
