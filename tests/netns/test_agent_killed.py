# SPDX-License-Identifier: Apache-2.0
"""The datapath works without its agent: a kill costs no allowed packet and admits no denied one.

Other map layouts, sizes and kills in the midst of a take-over are in test_upgrade.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bench.lab import manifests
from bench.lab.node import Lab
from bench.lab.probe import Cell, Ports, Prober
from bench.lab.station import Pod
from bench.lab.traffic import TcpFlow, Traffic, UdpFlow

pytestmark = pytest.mark.kernel

KILLS = 4
PORTS = Ports(tcp=(80,), udp=(80,), sctp=(80,))


@dataclass(frozen=True)
class Scene:
    """server admits friend and outside, and not stranger."""

    lab: Lab
    friend: Pod
    stranger: Pod
    server: Pod


def _admit(name: str, *apps: str) -> manifests.Object:
    peers = [{"podSelector": {"matchLabels": {"app": app}}} for app in apps]
    world = [{"ipBlock": {"cidr": cidr}} for cidr in ("192.0.2.0/24", "2001:db8:1::/64")]
    spec = {"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"from": peers + world}]}
    return manifests.policy("one", name, spec)


@pytest.fixture(scope="module")
def scene(lab: Lab) -> Scene:
    pods = [lab.add_pod("one", name, {"app": name}) for name in ("friend", "stranger", "server")]
    return Scene(lab, *pods)


@pytest.fixture
def prober(scene: Scene) -> Iterator[Prober]:
    with Prober([*scene.lab.pods.values(), scene.lab.node, scene.lab.outside], PORTS) as made:
        yield made


def _denied(prober: Prober, scene: Scene) -> set[tuple[str, str]]:
    """Pairs of which any cell was not reached, all with the server as their receiver."""
    sources = [scene.friend.name, scene.stranger.name, "node", "outside"]
    cells: list[Cell] = prober.cells(sources, [scene.server.name])
    measured = prober.measure(cells)
    denied = {(c.source, c.destination) for c, reached in measured.items() if not reached}
    assert denied.isdisjoint(
        (c.source, c.destination) for c, reached in measured.items() if reached
    )
    return denied


def test_kills_under_load(scene: Scene, prober: Prober) -> None:
    """Streams both ways and new connections, with the agent dead, starting and there again."""
    lab, server = scene.lab, scene.server
    lab.set_policies([_admit("friends-1", "friend")])
    ways = [(scene.friend, server), (lab.outside, server), (lab.node, server), (server, lab.far)]
    allowed = [UdpFlow(a, b, family) for a, b in ways for family in (4, 6)]
    streams = [TcpFlow(a, b, family) for a, b in ways for family in (4, 6)]
    refused = [UdpFlow(scene.stranger, server, family) for family in (4, 6)]
    with Traffic([*allowed, *streams, *refused]) as traffic:
        began, _ = traffic.run_for(0.1)
        for flow in allowed:
            flow.answering = True
        for _ in range(KILLS):
            before = [flow.received() for flow in streams]
            lab.agent.kill()
            assert _denied(prober, scene) == {(scene.stranger.name, server.name)}
            lab.agent.launch()
            assert _denied(prober, scene) == {(scene.stranger.name, server.name)}
            lab.agent.wait_ready()
            traffic.run_for(0.1)
            moved = [
                min(now - then for now, then in zip(flow.received(), past, strict=True))
                for flow, past in zip(streams, before, strict=True)
            ]
            assert min(moved) > 0
        _, until = traffic.run_for(0.05)
        assert {f.name: f.lost(began, until) for f in allowed} == {f.name: 0 for f in allowed}
        assert {f.name: f.admitted(began, until) for f in refused} == {f.name: 0 for f in refused}
        assert [f.duplicated() for f in allowed] == [0] * len(allowed)
        assert [f.broken for f in streams] == [""] * len(streams)


def test_policy_edited_while_no_agent_runs(scene: Scene, prober: Prober) -> None:
    """What was in force stays so until an agent is back, which puts the new text in force."""
    lab, server = scene.lab, scene.server.name
    lab.set_policies([_admit("friends-2", "friend")])
    lab.agent.kill()
    lab.manifests.put("policies", [_admit("friends-2", "stranger")])
    assert _denied(prober, scene) == {(scene.stranger.name, server)}
    lab.agent.start()
    assert _denied(prober, scene) == {(scene.friend.name, server)}


def test_policy_made_invalid_while_no_agent_runs(scene: Scene, prober: Prober) -> None:
    """Its last good state stays in force, as it does when an agent sees the edit."""
    lab, denied = scene.lab, {(scene.stranger.name, scene.server.name)}
    lab.set_policies([_admit("friends-4", "friend")])
    kept = lab.scope.state_dir / "manifests.json"
    lab.agent.wait(
        lambda: kept.exists() and "friends-4" in kept.read_text(), "the policy to be written down"
    )
    lab.agent.kill()
    invalid = _admit("friends-4", "friend")
    invalid["spec"]["policyTypes"] = ["Ingres"]
    lab.manifests.put("policies", [invalid])
    for _ in range(2):
        lab.agent.start()
        assert _denied(prober, scene) == denied
        (rejected,) = lab.agent.policies().rejected
        assert rejected.field == "spec.policyTypes[0]" and rejected.last_good
        lab.agent.kill()
    lab.manifests.put("policies", [_admit("friends-4", "stranger")])
    lab.agent.start()
    assert _denied(prober, scene) == {(scene.friend.name, scene.server.name)}


def test_orderly_stop_leaves_the_datapath(scene: Scene, prober: Prober) -> None:
    """SIGTERM: exit status 0, and nothing changes for the pods."""
    lab = scene.lab
    lab.set_policies([_admit("friends-3", "friend")])
    assert lab.agent.stop() == 0
    assert _denied(prober, scene) == {(scene.stranger.name, scene.server.name)}
    lab.agent.start()
    assert _denied(prober, scene) == {(scene.stranger.name, scene.server.name)}
