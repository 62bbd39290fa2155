# SPDX-License-Identifier: Apache-2.0
"""A verdict is never stale: a change ends or admits the packets of connections that are running.

Each way to change who is allowed is tried for the ingress of the receiver and for the egress of the
sender, both families at once, while datagrams and a TCP stream go both ways. From the moment in
which the agent says that the change is in force, no packet may be judged by what was before; a
flow that is allowed before and after must not lose any.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from bench.lab import manifests
from bench.lab.node import Lab
from bench.lab.station import Pod
from bench.lab.traffic import TcpFlow, Traffic, UdpFlow

pytestmark = pytest.mark.kernel

OBSERVED = 0.25
"""Seconds of traffic after a change; TCP sends again what was not acknowledged after 0.2."""
ROUNDS = 3


@dataclass(frozen=True)
class Scene:
    """client -> server is what changes; bystander -> server is allowed all the time."""

    lab: Lab
    client: Pod
    server: Pod
    bystander: Pod


# The server opens nothing towards the client, which takes nothing: so what it sends there can only
# be replies, and ends with the request's permission.
ONE_WAY = [
    manifests.policy("front", "one-way", {"podSelector": {}, "policyTypes": ["Ingress"]}),
    manifests.policy(
        "back",
        "one-way",
        {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {}}]}]},
    ),
]


@pytest.fixture(scope="module")
def scene(lab: Lab) -> Scene:
    for namespace in ("front", "back"):
        lab.manifests.put(f"namespace-{namespace}", [manifests.namespace(namespace)])
    lab.manifests.put("one-way", ONE_WAY)
    return Scene(
        lab,
        lab.add_pod("front", "client", {"app": "client"}),
        lab.add_pod("back", "server", {"app": "server"}),
        lab.add_pod("back", "bystander", {"app": "bystander"}),
    )


@dataclass(frozen=True)
class Change:
    """Policies that stay, and a switch: True allows client -> server, False denies it."""

    policies: list[manifests.Object]
    switch: Callable[[Scene, bool], None]


def _ingress(*peers: manifests.Object) -> manifests.Object:
    bystander = {"podSelector": {"matchLabels": {"app": "bystander"}}}
    return {
        "podSelector": {"matchLabels": {"app": "server"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [bystander, *peers]}],
    }


def _egress(selector: manifests.Object, *peers: manifests.Object) -> manifests.Object:
    rules = [{"to": [*peers]}] if peers else []  # a rule without peers would allow everything
    return {"podSelector": selector, "policyTypes": ["Egress"], "egress": rules}


def _pod(namespace: str, name: str, labels: dict[str, str]) -> Callable[[Scene, bool], None]:
    def switch(scene: Scene, allow: bool) -> None:
        shown = {"app": name} | (labels if allow else {"turned": "off"})
        scene.lab.change(f"pod-{namespace}-{name}", [manifests.pod(namespace, name, shown)])

    return switch


def _namespace(name: str) -> Callable[[Scene, bool], None]:
    def switch(scene: Scene, allow: bool) -> None:
        labels = {"trusted": "yes"} if allow else {"trusted": "no"}
        scene.lab.change(f"namespace-{name}", [manifests.namespace(name, labels)])

    return switch


def _policy(allow: manifests.Object, deny: manifests.Object) -> Callable[[Scene, bool], None]:
    def switch(scene: Scene, wanted: bool) -> None:
        scene.lab.change("edited", [allow if wanted else deny])

    return switch


_TRUSTED = {"matchLabels": {"trusted": "yes"}}
_ANYWHERE: manifests.Object = {"namespaceSelector": {}}
_CLIENT = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "client"}}}
_SERVER = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "server"}}}

CHANGES = {
    "peer-labels-ingress": Change(
        [manifests.policy("back", "in", _ingress(_ANYWHERE | {"podSelector": _TRUSTED}))],
        _pod("front", "client", {"trusted": "yes"}),
    ),
    "peer-labels-egress": Change(
        [manifests.policy("front", "out", _egress({}, _ANYWHERE | {"podSelector": _TRUSTED}))],
        _pod("back", "server", {"trusted": "yes"}),
    ),
    # The endpoint's own labels: which policy it is under.
    "endpoint-labels-ingress": Change(
        [
            manifests.policy("back", "in", _ingress()),
            manifests.policy(
                "back",
                "open",
                {"podSelector": _TRUSTED, "ingress": [{}]},
            ),
        ],
        _pod("back", "server", {"trusted": "yes"}),
    ),
    "endpoint-labels-egress": Change(
        [
            manifests.policy("front", "none", _egress({})),
            manifests.policy("front", "open", _egress(_TRUSTED, _ANYWHERE)),
        ],
        _pod("front", "client", {"trusted": "yes"}),
    ),
    "namespace-labels-ingress": Change(
        [manifests.policy("back", "in", _ingress({"namespaceSelector": _TRUSTED}))],
        _namespace("front"),
    ),
    "namespace-labels-egress": Change(
        [manifests.policy("front", "out", _egress({}, {"namespaceSelector": _TRUSTED}))],
        _namespace("back"),
    ),
    "policy-ingress": Change(
        [],
        _policy(
            manifests.policy("back", "edited", _ingress(_CLIENT)),
            manifests.policy("back", "edited", _ingress()),
        ),
    ),
    "policy-egress": Change(
        [],
        _policy(
            manifests.policy("front", "edited", _egress({}, _SERVER)),
            manifests.policy(
                "front", "edited", _egress({}, {"podSelector": {"matchLabels": {"app": "none"}}})
            ),
        ),
    ),
}


@pytest.fixture
def change(scene: Scene, request: pytest.FixtureRequest) -> Iterator[Change]:
    """The change with its lasting policies in force, allowing; everything undone afterwards."""
    chosen = CHANGES[request.param]
    # First the labels or the policy that allow, so that nothing is denied before the test.
    chosen.switch(scene, True)
    if chosen.policies:
        scene.lab.change("lasting", chosen.policies, lambda: _known(scene, chosen.policies))
    yield chosen
    for file in ("lasting", "edited"):
        scene.lab.manifests.remove(file)
    for pod in (scene.client, scene.server):
        labels = {"app": pod.pod_name}
        scene.lab.manifests.put(
            f"pod-{pod.pod_namespace}-{pod.pod_name}",
            [manifests.pod(pod.pod_namespace, pod.pod_name, labels)],
        )
    for namespace in ("front", "back"):
        scene.lab.manifests.put(f"namespace-{namespace}", [manifests.namespace(namespace)])
    scene.lab.agent.wait(lambda: _known(scene, []), "policies to be gone")


def _known(scene: Scene, policies: list[manifests.Object]) -> bool:
    """Whether these policies, and the lasting ones, are in force and no others."""
    metadata = [policy["metadata"] for policy in (*ONE_WAY, *policies)]
    return scene.lab.agent.has_policies({f"{m['namespace']}/{m['name']}" for m in metadata})


@pytest.mark.parametrize("change", CHANGES, indirect=True)
def test_change_reaches_running_connections(scene: Scene, change: Change) -> None:
    """Denied and admitted again, several times, while packets go both ways."""
    udp = [UdpFlow(scene.client, scene.server, family) for family in (4, 6)]
    tcp = [TcpFlow(scene.client, scene.server, family) for family in (4, 6)]
    steady = [UdpFlow(scene.bystander, scene.server, family, port=9002) for family in (4, 6)]
    with Traffic([*udp, *tcp, *steady]) as traffic:
        began, _ = traffic.run_for(0.05)
        for flow in (*udp, *steady):
            flow.answering = True  # from now on these are known connections
        first, until = traffic.run_for(0.05)
        assert [flow.lost(first, until) for flow in udp] == [0, 0]
        for _ in range(ROUNDS):
            change.switch(scene, False)
            in_force = traffic.drain()
            stopped = [flow.received() for flow in tcp]
            _, until = traffic.run_for(OBSERVED)
            assert {flow.name: flow.admitted(in_force, until) for flow in udp} == {
                flow.name: 0 for flow in udp
            }
            assert [flow.received() for flow in tcp] == stopped

            change.switch(scene, True)
            in_force, until = traffic.run_for(OBSERVED)
            assert {flow.name: flow.lost(in_force, until) for flow in udp} == {
                flow.name: 0 for flow in udp
            }
            scene.lab.agent.wait(partial(_all_go_on, tcp, stopped), "TCP to go on, both ways")
        _, until = traffic.run_for(0.05)
        assert {flow.name: flow.lost(began, until) for flow in steady} == {
            flow.name: 0 for flow in steady
        }
        assert [flow.broken for flow in tcp] == ["", ""]


def _all_go_on(flows: list[TcpFlow], before: list[tuple[int, int]]) -> bool:
    return all(
        now > then
        for flow, received in zip(flows, before, strict=True)
        for now, then in zip(flow.received(), received, strict=True)
    )


def test_new_connections_while_policy_flips(scene: Scene) -> None:
    """Edits in quick succession: a connection opened after each is judged by that edit."""
    edits = CHANGES["policy-ingress"]
    edits.switch(scene, True)
    try:
        for wanted in (False, True) * 4:
            edits.switch(scene, wanted)
            try:
                flow = TcpFlow(scene.client, scene.server, 4, port=9100)
            except OSError:
                assert not wanted, "allowed, but no connection came about"
            else:
                for end in flow.sockets():
                    end.close()
                assert wanted, "denied, but a connection came about"
    finally:
        scene.lab.change("edited", [])
