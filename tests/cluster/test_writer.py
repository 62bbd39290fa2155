# SPDX-License-Identifier: Apache-2.0
"""What the agent writes, against a server that is as strict as a real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.kube.access import Access, Answer, Query
from agent.kube.credentials import from_kubeconfig
from agent.kube.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Unauthorized,
    Unavailable,
)
from agent.kube.node import get_node, remove_taint, set_network_available
from agent.kube.notices import Notices
from agent.kube.objects import (
    BristleEndpoint,
    BristleIdentity,
    BristleNode,
    BristleNodeSpec,
    BristleNodeStatus,
    Capacity,
    Condition,
    Encapsulation,
    EndpointAddress,
    EndpointNode,
    EndpointPort,
    EndpointSpec,
    EndpointStatus,
    Metadata,
    NodeAddress,
    ObjectReference,
    OwnerReference,
)
from agent.kube.resources import Resources
from bench.lab.apiserver import write_kubeconfig
from bench.lab.kubeapi.choice import Server
from tests.cluster.following import access_to, namespace, node, pod, policy


@pytest.fixture
def access(server: Server, tmp_path: Path) -> Access:
    server.load([namespace("shop")])
    return access_to(server, tmp_path)


@pytest.fixture
def resources(access: Access) -> Resources:
    return Resources(access)


ENDPOINT = BristleEndpoint(
    metadata=Metadata(name="web", namespace="shop"),
    spec=EndpointSpec(
        endpointID=7,
        identity=4711,
        addresses=(EndpointAddress("10.244.1.2"), EndpointAddress("fd00::2")),
        ipv4="10.244.1.2",
        ipv6="fd00::2",
        namedPorts=(EndpointPort("http", 80, "TCP"),),
        node=EndpointNode("node-1", "192.0.2.1"),
    ),
)
CONDITION = Condition(
    type="Ready", status="True", reason="Programmed", lastTransitionTime="2026-01-01T00:00:00Z"
)


# ---- resources ---------------------------------------------------------------------------------


def test_an_endpoint_and_its_status(server: Server, resources: Resources) -> None:
    uid = server.create(pod("web"))["metadata"]["uid"]
    owner = OwnerReference(apiVersion="v1", kind="Pod", name="web", uid=uid, controller=True)
    meta = msgspec.structs.replace(ENDPOINT.metadata, ownerReferences=(owner,))
    wanted = msgspec.structs.replace(ENDPOINT, metadata=meta)
    made = resources.endpoints.create(wanted)
    assert made.spec == ENDPOINT.spec
    assert made.metadata.ownerReferences == (owner,)
    assert made.metadata.resourceVersion
    with pytest.raises(AlreadyExists):
        resources.endpoints.create(wanted)
    on = EndpointStatus(state="ready", ingressEnforcement=True, conditions=(CONDITION,))
    resources.endpoints.patch_status("web", on, "shop")
    off = EndpointStatus(state="ready")
    found = resources.endpoints.patch_status("web", off, "shop")
    assert found.status == off  # a false follows a true
    assert found.spec == ENDPOINT.spec
    assert [one.metadata.name for one in resources.endpoints.list("shop")] == ["web"]
    stored = server.get("BristleEndpoint", "web", "shop")
    assert stored["metadata"]["managedFields"][0]["manager"] == "bristle"
    server.delete("Pod", "web", "shop", grace=0)
    with pytest.raises(NotFound):  # the owner takes it along
        resources.endpoints.get("web", "shop")


def test_two_writers_do_not_overwrite_each_other(resources: Resources) -> None:
    one = resources.endpoints.create(ENDPOINT)
    other = resources.endpoints.get("web", "shop")
    spec = msgspec.structs.replace(one.spec, identity=4712)
    newer = resources.endpoints.update(msgspec.structs.replace(one, spec=spec))
    assert newer.spec.identity == 4712
    with pytest.raises(Conflict):
        resources.endpoints.update(msgspec.structs.replace(other, spec=ENDPOINT.spec))
    version = other.metadata.resourceVersion
    with pytest.raises(Conflict):
        resources.endpoints.patch(
            "web", {"spec": {"identity": 9000}}, "shop", resource_version=version
        )
    with pytest.raises(Conflict):
        resources.endpoints.delete("web", "shop", resource_version=version)
    with pytest.raises(Conflict):
        resources.endpoints.delete("web", "shop", uid="another")
    with pytest.raises(ValueError, match="resourceVersion"):
        resources.endpoints.update(ENDPOINT)
    assert resources.endpoints.delete("web", "shop", uid=one.metadata.uid)
    assert not resources.endpoints.delete("web", "shop")
    with pytest.raises(NotFound):
        resources.endpoints.get("web", "shop")


def test_identities_are_created_marked_and_deleted(resources: Resources) -> None:
    meta = Metadata(name="4711", labels={"io.kubernetes.pod.namespace": "shop"})
    made = resources.identities.create(
        BristleIdentity(metadata=meta, security_labels={"k8s:app": "web"})
    )
    mark = {"metadata": {"annotations": {"bristle.io/unused-since": "2026-01-01T00:00:00Z"}}}
    marked = resources.identities.patch(
        "4711", mark, resource_version=made.metadata.resourceVersion
    )
    assert marked.metadata.annotations == {"bristle.io/unused-since": "2026-01-01T00:00:00Z"}
    assert marked.security_labels == {"k8s:app": "web"}
    unmark = {"metadata": {"annotations": {"bristle.io/unused-since": None}}}
    assert not resources.identities.patch("4711", unmark).metadata.annotations
    with pytest.raises(Conflict):
        resources.identities.delete("4711", resource_version=marked.metadata.resourceVersion)
    assert resources.identities.delete("4711")


def test_a_node_of_ours(resources: Resources) -> None:
    spec = BristleNodeSpec(
        addresses=(NodeAddress("InternalIP", "192.0.2.1"),),
        podCIDRs=("10.244.1.0/24",),
        routingMode="tunnel",
        encapsulation=Encapsulation(8472),
    )
    made = resources.nodes.create(BristleNode(metadata=Metadata(name="node-1"), spec=spec))
    status = BristleNodeStatus(
        conditions=(CONDITION,), capacity={"ct": Capacity(1, 2)}, version="0.1"
    )
    found = resources.nodes.update_status(msgspec.structs.replace(made, status=status))
    assert (found.spec, found.status) == (spec, status)


def test_unknown_fields_and_bad_values_are_refused_and_not_dropped(resources: Resources) -> None:
    resources.endpoints.create(ENDPOINT)
    with pytest.raises(Invalid, match="unknownField"):
        resources.endpoints.patch("web", {"spec": {"unknownField": 1}}, "shop")
    with pytest.raises(Invalid, match="identity"):
        resources.endpoints.patch("web", {"spec": {"identity": 1 << 20}}, "shop")


def test_long_lists_are_read_to_their_end(server: Server, resources: Resources) -> None:
    server.load(
        [
            {
                "apiVersion": "bristle.io/v1alpha1",
                "kind": "BristleIdentity",
                "metadata": {"name": str(number)},
                "security-labels": {"k8s:a": str(number)},
            }
            for number in range(300, 1400)
        ]
    )
    assert len(resources.identities.list()) == 1100


# ---- the node ----------------------------------------------------------------------------------

OURS = {"key": "node.bristle.io/agent-not-ready", "effect": "NoSchedule"}
OTHER = {"key": "example.org/maintenance", "value": "x", "effect": "NoExecute"}


class Interposed(Access):
    """Does something once before the next patch goes out, as somebody else would."""

    before: Callable[[], object] | None = None

    def open(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        read_timeout: float | None = None,
    ) -> Answer:
        if method == "PATCH" and self.before is not None:
            before, self.before = self.before, None
            before()
        return super().open(
            method,
            path,
            query=query,
            body=body,
            content_type=content_type,
            read_timeout=read_timeout,
        )


def tainted(*taints: Any) -> dict[str, Any]:
    made = node("node-1")
    made["spec"]["taints"] = list(taints)
    return made


def taints(access: Access) -> list[dict[str, Any]]:
    return get_node(access, "node-1").spec.taints or []


def test_our_taint_is_taken_off_and_nothing_else(server: Server, access: Access) -> None:
    other_effect = {**OURS, "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}
    server.load([tainted(OURS, OTHER, other_effect)])
    assert remove_taint(access, "node-1")
    assert taints(access) == [OTHER]
    assert not remove_taint(access, "node-1")
    server.load([tainted(OURS)])
    assert remove_taint(access, "node-1")
    assert taints(access) == []


def test_a_taint_that_comes_in_between_is_not_lost(server: Server, tmp_path: Path) -> None:
    config = tmp_path / "kubeconfig"
    write_kubeconfig(config, server.url, ca=server.ca)
    access = Interposed(from_kubeconfig(config), "bristle/0.1")
    server.load([tainted(OURS)])
    access.before = lambda: server.load([tainted(OTHER, OURS)])
    assert remove_taint(access, "node-1")
    assert taints(access) == [OTHER]


def test_the_network_is_available(server: Server, access: Access) -> None:
    made = node("node-1")
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
    down = {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}
    made["status"]["conditions"] = [ready, down]
    server.load([made])

    def say() -> bool:
        return set_network_available(
            access, "node-1", lambda: 0.0, reason="BristleIsUp", message="the datapath is in force"
        )

    assert say()
    conditions = server.get("Node", "node-1")["status"]["conditions"]
    found = {one["type"]: (one["status"], one["reason"]) for one in conditions}
    assert found == {
        "Ready": ("True", "KubeletReady"),
        "NetworkUnavailable": ("False", "BristleIsUp"),
    }
    assert not say()


# ---- events on objects -------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_same_again_is_counted_on_the_first_event(server: Server, resources: Resources) -> None:
    server.load([policy("np")])
    clock = Clock()
    notices = Notices(resources.events, "node-1", lambda: 1_700_000_000 + clock.now, clock)
    about = ObjectReference(
        apiVersion="networking.k8s.io/v1", kind="NetworkPolicy", name="np", namespace="shop"
    )

    def write(note: str) -> None:
        notices.write(about, "PolicyRefused", note, action="Enforce")

    def events() -> list[tuple[str, int]]:
        found = server.objects("events.k8s.io/v1/Event", "shop")
        return sorted((e["note"], (e.get("series") or {"count": 1})["count"]) for e in found)

    write("no room")
    write("something else")
    assert events() == [("no room", 1), ("something else", 1)]
    write("no room")
    assert events() == [("no room", 2), ("something else", 1)]
    for _ in range(5):  # at most every ten seconds
        write("no room")
    assert events()[0] == ("no room", 2)
    clock.now = 11.0
    write("no room")
    assert events()[0] == ("no room", 8)
    # The server forgets events after a while; then it is a new one.
    for one in server.objects("events.k8s.io/v1/Event", "shop"):
        server.delete("events.k8s.io/v1/Event", one["metadata"]["name"], "shop")
    clock.now = 30.0
    write("no room")
    assert events() == [("no room", 1)]
    clock.now = 3000.0  # a new story, an event of its own
    write("no room")
    assert events() == [("no room", 1), ("no room", 1)]


def test_events_on_what_is_in_no_namespace_and_notes_of_any_length(
    server: Server, resources: Resources
) -> None:
    clock = Clock()
    notices = Notices(resources.events, "node-1", lambda: 1.5, clock)
    about = ObjectReference(apiVersion="v1", kind="Node", name="n" * 253)
    notices.write(about, "Odd", "ä" * 2000, action="Look", warning=False)
    [event] = server.objects("events.k8s.io/v1/Event", "default")
    assert len(event["note"].encode()) <= 1024
    assert (event["type"], event["reportingInstance"]) == ("Normal", "node-1")


# ---- errors ------------------------------------------------------------------------------------


def test_what_is_not_allowed_is_named(server: Server, resources: Resources) -> None:
    server.set_tokens({"one": "agent"})
    with pytest.raises(Forbidden) as caught:
        resources.endpoints.patch_status("web", EndpointStatus(), "shop")
    assert (caught.value.verb, caught.value.resource) == ("patch", "bristleendpoints/status")


def test_who_is_not_known_is_told_so(server: Server, tmp_path: Path) -> None:
    server.set_tokens({"one": "agent"})
    access = access_to(server, tmp_path, "wrong")
    with pytest.raises(Unauthorized):
        access.request("GET", "/api/v1/nodes")
    write_kubeconfig(tmp_path / "kubeconfig", server.url, "one", server.ca)
    access.request("GET", "/api/v1/nodes")


def test_no_server_at_all(server: Server, resources: Resources) -> None:
    server.stop()
    with pytest.raises(Unavailable) as caught:
        resources.nodes.get("node-1")
    assert caught.value.status == 0
    server.start()
    server.drop_next(verb="get", resource="bristlenodes")
    with pytest.raises(Unavailable):
        resources.nodes.get("node-1")
    with pytest.raises(NotFound):
        resources.nodes.get("node-1")
