# SPDX-License-Identifier: Apache-2.0
"""Policy rules over redirected connections as over all others: only what is allowed is redirected,
a deny ends the flow of bytes of those that live, and no byte is lost when they are allowed again.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from bench.lab import manifests
from bench.lab.node import Lab
from bench.lab.station import Pod
from tests.netns.redirect_pods import (
    ON,
    Link,
    Port,
    Stream,
    both_direct,
    by_label,
    grown,
    isolated,
    opened,
    outcomes,
    ready,
    receive,
    redirecting,
    send,
    taught,
)

pytestmark = pytest.mark.kernel

FAMILIES = pytest.mark.parametrize("family", [4, 6])
PORT = 8000


@dataclass(frozen=True)
class Scene:
    lab: Lab
    client: Pod
    server: Pod


@pytest.fixture(scope="module")
def scene(private_mounts: None) -> Iterator[Scene]:
    with redirecting() as lab:
        for name in ("front", "back"):
            lab.manifests.put(f"namespace-{name}", [manifests.namespace(name)])
        yield Scene(
            lab,
            lab.add_pod("front", "client", {"app": "client"}, annotations=ON),
            lab.add_pod("back", "server", {"app": "server"}, annotations=ON),
        )


# ---- ways to deny and allow, as in test_live_changes ---------------------------------------------


def _policy(egress: bool) -> Callable[[Scene, bool], None]:
    def switch(scene: Scene, allow: bool) -> None:
        one = ("client", "front") if egress else ("server", "back")
        objects = [] if allow else [isolated(*one, egress=egress)]
        scene.lab.change("edited", objects)

    return switch


def _pod(namespace: str, name: str) -> Callable[[Scene, bool], None]:
    def switch(scene: Scene, allow: bool) -> None:
        labels = {"app": name, "trusted": "yes" if allow else "no"}
        scene.lab.change(
            f"pod-{namespace}-{name}", [manifests.pod(namespace, name, labels, annotations=ON)]
        )

    return switch


def _namespace(name: str) -> Callable[[Scene, bool], None]:
    def switch(scene: Scene, allow: bool) -> None:
        labels = {"trusted": "yes" if allow else "no"}
        scene.lab.change(f"namespace-{name}", [manifests.namespace(name, labels)])

    return switch


_TRUSTED = {"matchLabels": {"trusted": "yes"}}


def _lasting(egress: bool, peer: manifests.Object) -> manifests.Object:
    name, namespace = ("client", "front") if egress else ("server", "back")
    rules = {"egress": [{"to": [peer]}]} if egress else {"ingress": [{"from": [peer]}]}
    spec = {
        "podSelector": {"matchLabels": {"app": name}},
        "policyTypes": ["Egress" if egress else "Ingress"],
        **rules,
    }
    return manifests.policy(namespace, "lasting", spec)


_ANY_POD: manifests.Object = {"namespaceSelector": {}, "podSelector": _TRUSTED}
CHANGES: dict[str, tuple[list[manifests.Object], Callable[[Scene, bool], None]]] = {
    "policy-ingress": ([], _policy(False)),
    "policy-egress": ([], _policy(True)),
    "client-labels": ([_lasting(False, _ANY_POD)], _pod("front", "client")),
    "server-labels": ([_lasting(True, _ANY_POD)], _pod("back", "server")),
    "client-namespace": ([_lasting(False, {"namespaceSelector": _TRUSTED})], _namespace("front")),
    "server-namespace": ([_lasting(True, {"namespaceSelector": _TRUSTED})], _namespace("back")),
}


@pytest.fixture
def switch(scene: Scene, request: pytest.FixtureRequest) -> Iterator[Callable[[bool], None]]:
    """Denies and allows client -> server; allowed at first, and everything undone afterwards."""
    lasting, change = CHANGES[request.param]
    if lasting:
        change(scene, True)
        scene.lab.change("lasting", lasting, lambda: _known(scene, lasting))
    yield lambda allow: change(scene, allow)
    for file in ("lasting", "edited"):
        scene.lab.manifests.remove(file)
    for pod in (scene.client, scene.server):
        labels = {"app": pod.pod_name}
        made = manifests.pod(pod.pod_namespace, pod.pod_name, labels, annotations=ON)
        scene.lab.manifests.put(f"pod-{pod.pod_namespace}-{pod.pod_name}", [made])
        name = pod.pod_namespace
        scene.lab.manifests.put(f"namespace-{name}", [manifests.namespace(name)])
    scene.lab.agent.wait(lambda: _known(scene, []), "policies to be gone")


def _known(scene: Scene, policies: list[manifests.Object]) -> bool:
    metadata = [policy["metadata"] for policy in policies]
    return scene.lab.agent.has_policies({f"{m['namespace']}/{m['name']}" for m in metadata})


@pytest.mark.parametrize("switch", CHANGES, indirect=True)
def test_change_reaches_redirected_connections(
    scene: Scene, switch: Callable[[bool], None], record_property: Callable[[str, object], None]
) -> None:
    """Denied and allowed again, while both ends of connections of both families send."""
    lab = scene.lab
    links = []
    with Port(scene.server.namespace, PORT) as served:
        for family in (4, 6):
            taught(lab, scene.client.namespace, served, scene.server.address(family))
            links.append(Link(lab, scene.client.namespace, served, scene.server.address(family)))
        try:
            for link in links:
                link.exchange_until_direct()
            with Stream(*links) as stream:
                for _ in range(2):
                    for link in links:
                        lab.agent.wait(
                            partial(both_direct, link), "both directions to be redirected"
                        )
                    before = stream.received()
                    lab.agent.wait(partial(grown, [stream], [before]), "bytes to flow")
                    switch(False)
                    in_force = time.monotonic()
                    time.sleep(0.3)
                    stopped, redirected = stream.received(), [o.redirected_bytes() for o in links]
                    late = max(way.last for way in stream.ways) - in_force
                    record_property("last byte after the deny was in force, ms", late * 1000)
                    print(f"last byte {late * 1000:.1f} ms after the deny was in force")
                    time.sleep(0.3)
                    assert stream.received() == stopped, "bytes came in spite of a deny"
                    assert [one.redirected_bytes() for one in links] == redirected
                    assert all(one.direct() == (False, False) for one in links)
                    switch(True)
                    lab.agent.wait(partial(grown, [stream], [stopped]), "bytes to flow again", 30)
                for link in links:
                    lab.agent.wait(partial(both_direct, link), "redirect to come back", 30)
        finally:
            for link in links:
                link.__exit__()


@FAMILIES
@pytest.mark.parametrize("egress", [False, True], ids=["ingress", "egress"])
def test_only_what_is_allowed_enters(scene: Scene, family: int, egress: bool) -> None:
    """A connection that policy denies is not made, and no end of it enters the table; one that was
    denied when it was tried enters when it is allowed."""
    lab = scene.lab
    there = scene.server.address(family)
    with Port(scene.server.namespace, PORT) as served:
        taught(lab, scene.client.namespace, served, there)
        _policy(egress)(scene, False)
        try:
            before = outcomes(lab)
            with opened(scene.client.namespace, there, PORT) as tried:
                assert not ready(tried, select.POLLOUT, 0.5)
                assert outcomes(lab) == before
                _policy(egress)(scene, True)
                assert ready(tried, select.POLLOUT)
                with served.accept() as server:
                    send(tried, b"at last")
                    assert receive(server, 7) == b"at last"
                assert outcomes(lab)["entered"] == before["entered"] + 2
        finally:
            scene.lab.manifests.remove("edited")


def test_counters_are_exact(scene: Scene) -> None:
    """Bytes and messages by pair of identities, of connections that live and that have closed,
    also over a killed and a new agent: as many as the applications sent past the stack."""
    lab = scene.lab
    sent = {"bytes": 0, "messages": 0}
    links = []

    def metric() -> dict[str, float]:
        return {
            name: sum(by_label(lab, f"bristle_socket_redirect_{name}_total",
                               "source_identity").values())
            for name in sent
        }  # fmt: skip

    with Port(scene.server.namespace, PORT) as served:
        taught(lab, scene.client.namespace, served, scene.server.ipv4)
        before = metric()
        try:
            for n in range(60):
                family = 4 if n % 2 else 6
                link = Link(lab, scene.client.namespace, served, scene.server.address(family))
                links.append(link)
                for size in (1, 100 + n, 10000):
                    for source, target in ((link.client, link.server), (link.server, link.client)):
                        source.send(b"x" * size)
                        receive(target, size)
                        sent["bytes"] += size
                        sent["messages"] += 1
                assert link.direct() == (True, True), link.explain()
                if n % 3 == 0:
                    link.__exit__()
                if n == 30:
                    lab.agent.kill()
                if n == 40:
                    lab.agent.start()
            after = metric()
            assert {name: after[name] - before[name] for name in sent} == sent
            for link in links[::2]:
                link.__exit__()
            after = metric()
            assert {name: after[name] - before[name] for name in sent} == sent
        finally:
            for link in links:
                link.__exit__()
        after = metric()
        assert {name: after[name] - before[name] for name in sent} == sent
        pair = by_label(lab, "bristle_socket_redirect_bytes_total", "source_identity")
        assert len([one for one in pair.values() if one]) >= 2, "both directions have their own"
