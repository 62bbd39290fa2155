# SPDX-License-Identifier: Apache-2.0
"""One node as a member of a cluster: a real agent, real pods, an API server over HTTPS."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from bench.lab import api_source, manifests
from bench.lab.node import POD_CIDRS, Lab
from bench.lab.station import NODE4, NODE6
from bench.lab.talk import Server, ask_udp

pytestmark = pytest.mark.kernel

PORT = 8080


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(api=True) as made:
        made.manifests.put("namespaces", [manifests.namespace("shop", {"team": "a"})])
        yield made


def until(condition: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.02)


def test_a_pod_becomes_known_to_the_cluster(lab: Lab) -> None:
    pod = lab.add_pod("shop", "web", {"app": "web"}, [("http", "TCP", 80)])
    until(lambda: lab.api.objects("BristleEndpoint"), "the endpoint to be published")
    (endpoint,) = lab.api.objects("BristleEndpoint")
    (identity,) = lab.api.objects("BristleIdentity")
    spec = endpoint["spec"]
    assert spec["identity"] == int(identity["metadata"]["name"])
    assert (spec["ipv4"], spec["ipv6"]) == (pod.ipv4, pod.ipv6)
    assert spec["namedPorts"] == [{"name": "http", "port": 80, "protocol": "TCP"}]
    assert spec["node"]["name"] == "node-1"
    (owner,) = endpoint["metadata"]["ownerReferences"]
    uid = lab.api.get("Pod", "web", "shop")["metadata"]["uid"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("Pod", "web", uid)
    assert identity["security-labels"] == {
        "k8s:app": "web",
        "k8s:io.kubernetes.pod.namespace": "shop",
        "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name": "shop",
        "k8s:io.cilium.k8s.namespace.labels.team": "a",
        "k8s:io.cilium.k8s.policy.serviceaccount": "default",
    }

    def status() -> dict[str, Any]:
        return lab.api.objects("BristleEndpoint")[0].get("status") or {}

    until(lambda: status().get("state") == "ready", "the endpoint's status")
    assert not status()["ingressEnforcement"]
    lab.set_policies([manifests.policy("shop", "deny", {"podSelector": {}})])
    until(lambda: status()["ingressEnforcement"], "the status to follow the policy")
    lab.delete_pod(pod)
    until(lambda: not lab.api.objects("BristleEndpoint"), "the endpoint to be withdrawn")


def test_policy_of_the_cluster_decides(lab: Lab) -> None:
    server = lab.add_pod("shop", "db", {"app": "db"})
    friend = lab.add_pod("shop", "web", {"app": "web"})
    stranger = lab.add_pod("shop", "guest", {"app": "guest"})
    allow = {
        "podSelector": {"matchLabels": {"app": "db"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}],
    }
    lab.set_policies([manifests.policy("shop", "db", allow)])
    with Server(server.namespace, [PORT]):
        assert ask_udp(friend.namespace, server.ipv4, PORT)
        assert not ask_udp(stranger.namespace, server.ipv4, PORT)


def test_the_node_is_open_once_pods_can_be_served(lab: Lab) -> None:
    def node() -> dict[str, Any]:
        return lab.api.get("Node", "node-1")

    until(lambda: len(node()["spec"].get("taints", [])) == 1, "the taint to be taken away")
    assert node()["spec"]["taints"][0]["key"] == "example.org/other"
    until(
        lambda: (
            {one["type"]: one["status"] for one in node()["status"]["conditions"]}
            == {"NetworkUnavailable": "False", "Ready": "True"}
        ),
        "the condition",
    )
    until(lambda: lab.api.objects("BristleNode"), "BristleNode")
    (told,) = lab.api.objects("BristleNode")
    assert told["spec"]["podCIDRs"] == list(POD_CIDRS)
    assert "routingMode" not in told["spec"]  # none: it knows of no other node

    def conditions() -> list[tuple[str, str]]:
        status = lab.api.objects("BristleNode")[0].get("status") or {"conditions": []}
        return [(one["type"], one["status"]) for one in status["conditions"]]

    # It may have said before that it was not ready.
    until(lambda: conditions() == [("Ready", "True")], "its status")
    status = lab.api.objects("BristleNode")[0]["status"]
    assert status["capacity"]["endpoints"]["max"] == 4096


def test_a_deleted_bristlenode_comes_back(lab: Lab) -> None:
    """By hand, the Node being there; without waiting for the next time that figures are told."""

    def told() -> list[dict[str, Any]]:
        return [one for one in lab.api.objects("BristleNode") if one.get("status")]

    until(told, "BristleNode with its status")
    (before,) = told()
    lab.api.delete("BristleNode", "node-1")
    until(told, "it to come back", 5)
    (after,) = told()
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert after["spec"] == before["spec"]


def test_another_address_of_the_node_is_told_with_its_pods(lab: Lab) -> None:
    for name in ("db", "web"):
        lab.add_pod("shop", name, {"app": name})

    def told() -> list[tuple[str, str]]:
        found = lab.api.objects("BristleEndpoint")
        return [(one["spec"]["node"].get("ip", ""), one["metadata"]["uid"]) for one in found]

    until(lambda: [ip for ip, _ in told()] == [NODE4, NODE4], "both to be published")
    before = told()
    node = api_source.node("node-1", ["192.0.2.77", NODE6], POD_CIDRS)
    lab.api.load([{**node, "metadata": {**node["metadata"], "uid": "uid-node-1"}}])
    moved = [("192.0.2.77", uid) for _, uid in before]
    until(lambda: told() == moved, "the other address, in the same objects")


def test_with_the_server_away_everything_goes_on(lab: Lab) -> None:
    server = lab.add_pod("shop", "db", {"app": "db"})
    client = lab.add_pod("shop", "web", {"app": "web"})
    until(lambda: len(lab.api.objects("BristleEndpoint")) == 2, "both to be published")
    lab.manifests.put("later", [manifests.pod("shop", "late", {"app": "web"})])
    time.sleep(0.5)  # for the watch to bring it
    before = lab.agent.status().policy_revision
    lab.api.stop(reset=True)
    with Server(server.namespace, [PORT]):
        assert ask_udp(client.namespace, server.ipv4, PORT)
        late = lab.add_pod("shop", "late", {"app": "web"}, manifest=False)  # ADD of a known pod
        assert ask_udp(late.namespace, server.ipv4, PORT)
        until(
            lambda: any("kubernetes" in one.what for one in lab.agent.status().problems),
            "status to say so",
            30,
        )
        lab.delete_pod(client, manifest=False)
        lab.api.start()
        until(lambda: not lab.agent.status().problems, "the trouble to be over", 60)
        assert ask_udp(late.namespace, server.ipv4, PORT)
    until(
        lambda: (
            {one["metadata"]["name"] for one in lab.api.objects("BristleEndpoint")}
            == {"db", "late"}
        ),
        "what changed meanwhile to be published",
    )
    assert lab.agent.status().policy_revision - before < 12


def test_a_refused_policy_has_an_event(lab: Lab) -> None:
    bad = manifests.policy("shop", "bad", {"podSelector": {}, "ingress": [{"from": [{}]}]})
    lab.manifests.put("bad", [bad])
    until(lambda: lab.api.objects("events.k8s.io/v1/Event", "shop"), "the event", 30)
    (event,) = lab.api.objects("events.k8s.io/v1/Event", "shop")
    assert (event["reason"], event["type"]) == ("PolicyNotInForce", "Warning")
    assert event["regarding"]["name"] == "bad"
    assert "spec.ingress[0].from[0]" in event["note"]


def test_restarted_it_writes_nothing_that_is_there_already(lab: Lab) -> None:
    lab.add_pod("shop", "web", {"app": "web"})
    until(lambda: lab.api.objects("BristleEndpoint"), "the endpoint to be published")
    lab.agent.kill()
    before = lab.api.objects("BristleEndpoint"), lab.api.objects("BristleIdentity")
    lab.agent.start()
    time.sleep(2)
    after = lab.api.objects("BristleEndpoint"), lab.api.objects("BristleIdentity")
    assert [one["metadata"]["resourceVersion"] for one in after[1]] == [
        one["metadata"]["resourceVersion"] for one in before[1]
    ]
    assert [one["spec"] for one in after[0]] == [one["spec"] for one in before[0]]
    assert lab.api.unchanged_writes() == 0


def test_other_pod_cidrs_hold_for_pods_that_come(lab: Lab) -> None:
    before = lab.add_pod("shop", "web", {"app": "web"})
    other = ["10.244.9.0/24", "fd00:10:244:9::/112"]
    change = {"spec": {"podCIDR": other[0], "podCIDRs": other}}
    lab.api.load([{**lab.api.get("Node", "node-1"), **change}])

    def pools() -> set[str]:
        with contextlib.suppress(grpc.RpcError):  # it is just starting
            return {one.cidr for one in lab.agent.status().pools}
        return set()

    until(lambda: pools() == set(other), "the new networks to be the pool's")
    after = lab.add_pod("shop", "db", {"app": "db"})
    assert after.ipv4.startswith("10.244.9.") and after.ipv6.startswith("fd00:10:244:9::")
    with Server(after.namespace, [PORT]):
        assert ask_udp(before.namespace, after.ipv4, PORT)
        # A restarted agent begins with what it knew, also without the server.
        lab.agent.kill()
        lab.api.stop(reset=True)
        lab.agent.launch()
        until(lambda: pools() == set(other), "the agent to answer without the server", 30)
        assert ask_udp(before.namespace, after.ipv4, PORT)
        lab.api.start()
        lab.agent.wait_ready()
    lab.delete_pod(before)
    lab.delete_pod(after)


def test_cleanup_leaves_nothing_of_a_member(lab: Lab) -> None:
    lab.add_pod("shop", "web", {"app": "web"})
    lab.agent.stop()
    kept = {path.name for path in lab.scope.state_dir.iterdir()}
    assert {"pod-cidrs.json", "manifests.json"} <= kept
    lab.agent.cli("cleanup")
    assert not [path.name for path in lab.scope.state_dir.glob("*")]
