# SPDX-License-Identifier: Apache-2.0
"""The source against a server that works: what it says, and what it leaves unsaid."""

from pathlib import Path

import yaml

from agent.core.events import (
    EndpointSlice,
    EndpointSliceRemoved,
    EndpointSliceUpserted,
    Namespace,
    NamespaceUpserted,
    Node,
    NodeUpserted,
    Pod,
    PodRemoved,
    PodUpserted,
    PolicyRemoved,
    PublishedEndpoint,
    PublishedIdentity,
    RejectionCleared,
    ResourceKey,
    ResourceRejected,
    Service,
    ServicePort,
    ServiceRemoved,
    ServiceUpserted,
    SourceFailed,
    SourceSynced,
)
from agent.kube.access import Access
from agent.kube.credentials import in_cluster
from bench.lab.apiserver import write_service_account
from bench.lab.kubeapi.choice import Server, open_server
from policy.model import PolicyKey
from tests.cluster.following import (
    DEFINITIONS,
    NODE,
    Follower,
    access_to,
    endpoint,
    endpoint_slice,
    identity,
    install_definitions,
    namespace,
    node,
    pod,
    policy,
    service,
)


def test_every_kind_is_listed_before_the_source_is_synced(server: Server, tmp_path: Path) -> None:
    server.load(
        [
            namespace("shop", team="a"),
            node("node-2", "192.0.2.2", "10.244.2.0/24"),
            pod("web"),
            pod("elsewhere", node="node-2"),
            policy("np"),
            service(),
            endpoint_slice("10.244.2.1"),
            endpoint("elsewhere"),
            identity(4711, **{"k8s:app": "web"}),
        ]
    )
    with Follower(access_to(server, tmp_path)) as follower:
        follower.synced()
        assert isinstance(follower.events[-1], SourceSynced)
        facts = {str(key): fact for key, fact in follower.facts.items()}
    assert facts["Namespace shop"] == Namespace(
        "shop", {"team": "a", "kubernetes.io/metadata.name": "shop"}
    )
    found = facts["Node node-2"]
    assert isinstance(found, Node)
    assert (found.addresses, found.pod_cidrs) == (("192.0.2.2",), ("10.244.2.0/24",))
    assert isinstance(facts["Pod shop/web"], Pod)
    assert "Pod shop/elsewhere" not in facts
    published = facts["BristleEndpoint shop/elsewhere"]
    assert isinstance(published, PublishedEndpoint)
    assert (published.identity, published.ips, published.node_name) == (
        4711,
        ("10.244.2.1",),
        "node-2",
    )
    meaning = facts["BristleIdentity 4711"]
    assert isinstance(meaning, PublishedIdentity)
    assert dict(meaning.labels) == {"k8s:app": "web"}
    assert "NetworkPolicy shop/np" in facts
    ports = (ServicePort("http", 6, 80),)
    assert facts["Service shop/web"] == Service("shop", "web", ("10.96.0.80",), ports)
    assert facts["EndpointSlice shop/web-1"] == EndpointSlice(
        "shop", "web-1", "web", ("10.244.2.1",), ports
    )
    for entry in server.requests(verb="list", resource="pods"):
        assert entry["query"]["fieldSelector"] == f"spec.nodeName={NODE}"
        assert entry["agent"] == f"bristle/0.1 ({NODE})"


def test_changes_are_heard_and_what_is_not_used_is_no_event(
    server: Server, follower: Follower
) -> None:
    server.create(namespace("shop"))
    server.create(pod("web"))
    first = follower.settled(server)
    assert [type(event) for event in first if isinstance(event, PodUpserted)] == [PodUpserted]
    server.patch("Pod", "web", {"metadata": {"annotations": {"a": "b"}}}, "shop")
    server.patch("Pod", "web", {"status": {"qosClass": "Burstable"}}, "shop", status=True)
    server.patch("Namespace", "shop", {"metadata": {"annotations": {"a": "b"}}})
    assert follower.settled(server) == []
    server.patch("Pod", "web", {"metadata": {"labels": {"app": "db"}}}, "shop")
    server.patch("Namespace", "shop", {"metadata": {"labels": {"team": "a"}}})
    events = follower.settled(server)
    assert {type(event) for event in events} == {PodUpserted, NamespaceUpserted}
    server.delete("Pod", "web", "shop", grace=0)
    assert follower.settled(server)[-1] == PodRemoved(
        "kubernetes", ResourceKey("Pod", "shop", "web")
    )


def test_facts_of_every_kind_come_and_go(server: Server, follower: Follower) -> None:
    server.load([node("node-2"), endpoint("a"), identity(300), policy("np")])
    assert len(follower.settled(server)) == 4
    server.load([node("node-2", cidr="10.244.9.0/24")])
    [event] = follower.settled(server)
    assert isinstance(event, NodeUpserted)
    assert event.node.pod_cidrs == ("10.244.9.0/24",)
    server.delete("NetworkPolicy", "np", "shop")
    server.delete("BristleEndpoint", "a", "shop")
    gone = follower.settled(server)
    assert {type(event).__name__ for event in gone} == {"PolicyRemoved", "EndpointWithdrawn"}


def test_services_and_their_slices_are_followed(server: Server, follower: Follower) -> None:
    server.load([service(), endpoint_slice("10.244.2.1")])
    assert {type(event) for event in follower.settled(server)} == {
        ServiceUpserted,
        EndpointSliceUpserted,
    }
    server.load([endpoint_slice("10.244.2.1", "10.244.2.2")])
    [event] = follower.settled(server)
    assert isinstance(event, EndpointSliceUpserted)
    assert event.slice.addresses == ("10.244.2.1", "10.244.2.2")
    # What is not used: where an endpoint runs and whether it is ready, whom a service selects.
    unready = endpoint_slice("10.244.2.1", "10.244.2.2")
    unready["endpoints"][0] |= {"conditions": {"ready": False}, "nodeName": "node-2"}
    server.load([unready])
    server.patch("Service", "web", {"spec": {"selector": {"app": "web"}}}, "shop")
    assert follower.settled(server) == []
    server.delete("Service", "web", "shop")
    server.delete("EndpointSlice", "web-1", "shop")
    gone = follower.settled(server)
    assert len(gone) == 2
    assert ServiceRemoved("kubernetes", ResourceKey("Service", "shop", "web")) in gone
    assert EndpointSliceRemoved("kubernetes", ResourceKey("EndpointSlice", "shop", "web-1")) in gone


def test_what_cannot_be_used_is_rejected_and_its_last_good_state_stays(
    server: Server, follower: Follower
) -> None:
    server.load([policy("np", {"podSelector": {"matchLabels": {"app": "web"}}})])
    follower.settled(server)
    server.load([policy("np", {"podSelector": {}, "ingress": [{"from": [{}]}]})])
    follower.settled(server)
    [rejected] = [event for event in follower.events if isinstance(event, ResourceRejected)]
    assert rejected.field == "spec.ingress[0].from[0]"
    assert rejected.resource == ResourceKey("NetworkPolicy", "shop", "np")
    assert str(rejected.origin) == "kubernetes/networkpolicies/shop/np"
    server.load([policy("np", {"podSelector": {"matchLabels": {"app": "web"}}})])
    assert follower.settled(server) == []
    assert isinstance(follower.report, SourceSynced)
    assert any(
        event == RejectionCleared("kubernetes", rejected.origin) for event in follower.events
    )
    server.delete("NetworkPolicy", "np", "shop")
    assert follower.settled(server) == [
        PolicyRemoved("kubernetes", PolicyKey("NetworkPolicy", "shop", "np"))
    ]


def test_objects_without_status_and_from_a_newer_api(server: Server, follower: Follower) -> None:
    odd = pod("odd")
    odd["spec"]["fieldOfTomorrow"] = {"deep": [1, None]}
    odd["metadata"]["alsoNew"] = True
    bare = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "bare"}}
    server.load([odd, bare])
    assert len(follower.settled(server)) == 2


def test_a_kind_that_is_not_installed_is_named_and_tried_again(tmp_path: Path) -> None:
    with open_server() as server:
        for path in sorted(DEFINITIONS.glob("*.yaml")):
            if "endpoint" not in path.name:
                server.create(yaml.safe_load(path.read_text()))
        with Follower(access_to(server, tmp_path)) as follower:
            follower.said("the API server has no kind BristleEndpoint (bristle.io/v1alpha1)")
            assert isinstance(follower.report, SourceFailed)
            assert not any(isinstance(event, SourceSynced) for event in follower.events)
            server.create(yaml.safe_load((DEFINITIONS / "bristleendpoints.yaml").read_text()))
            follower.synced()


def test_long_lists_come_in_chunks(server: Server, tmp_path: Path) -> None:
    server.load([pod(f"web-{number}") for number in range(8)])
    with Follower(access_to(server, tmp_path)) as follower:
        follower.synced()
        assert sum(isinstance(fact, Pod) for fact in follower.facts.values()) == 8
    lists = server.requests(verb="list", resource="pods")
    assert [("continue" in entry["query"], entry["query"]["limit"]) for entry in lists] == [
        (False, "3"),
        (True, "3"),
        (True, "3"),
    ]


def test_over_tls_with_a_service_account(tmp_path: Path) -> None:
    with open_server(tls=True, tokens={"one": "agent"}, folder=tmp_path) as server:
        install_definitions(server)
        folder = tmp_path / "account"
        write_service_account(folder, "one\n", server.ca)
        environ = {
            "KUBERNETES_SERVICE_HOST": server.host,
            "KUBERNETES_SERVICE_PORT": str(server.port),
        }
        with Follower(Access(in_cluster(folder, environ), "bristle/0.1")) as follower:
            follower.synced()
        assert {entry["user"] for entry in server.requests()} == {"agent"}
