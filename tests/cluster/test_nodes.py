# SPDX-License-Identifier: Apache-2.0
"""Several nodes of one cluster: identities and policy across them, and the life of nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bench.lab import manifests
from bench.lab.api_source import ApiSource, LabServer
from bench.lab.cluster import Cluster, Shape
from bench.lab.talk import Server, ask_udp, eventually_udp

pytestmark = pytest.mark.kernel

PORT = 8080
WEB = {"podSelector": {"matchLabels": {"app": "web"}}}


@dataclass(slots=True)
class World:
    cluster: Cluster
    api: LabServer


@pytest.fixture(params=["tunnel", "native"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    shape = Shape(nodes=3, mode=request.param)
    with Cluster(shape, source=ApiSource, start=False) as cluster:
        assert isinstance(cluster.source, ApiSource)
        with cluster.source.served(cluster.outside) as api:
            cluster.set_namespaces({"shop": {}})
            cluster.start()
            yield World(cluster, api)


def test_labels_decide_across_nodes(world: World) -> None:
    cluster = world.cluster
    db = cluster.add_pod("node-1", "shop", "db", {"app": "db"})
    web = cluster.add_pod("node-2", "shop", "web", {"app": "web"})
    guest = cluster.add_pod("node-3", "shop", "guest", {"app": "guest"})
    spec = {"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": [WEB]}]}
    cluster.set_policies([manifests.policy("shop", "db", spec)])
    with Server(db.namespace, [PORT]):
        for address in (db.ipv4, db.ipv6):
            assert eventually_udp(web.namespace, address, PORT)
            assert not ask_udp(guest.namespace, address, PORT)
        # Equal labels have one number, whichever node has given it.
        twin = cluster.add_pod("node-3", "shop", "twin", {"app": "web"})
        assert len(world.api.objects("BristleIdentity")) == 3
        assert eventually_udp(twin.namespace, db.ipv4, PORT)
        cluster.relabel(twin, {"app": "guest"})
        cluster.wait(lambda: not ask_udp(twin.namespace, db.ipv4, PORT), "the new labels to count")
        # A node's agent is away: its pods go on, and others' changes hold for them afterwards.
        cluster.kill("node-1")
        assert eventually_udp(web.namespace, db.ipv4, PORT)
        assert not ask_udp(guest.namespace, db.ipv4, PORT)
        cluster.relabel(web, {"app": "guest"})
        cluster.node("node-1").agent.start()
        cluster.wait(lambda: not ask_udp(web.namespace, db.ipv4, PORT), "what changed to count")


def test_an_address_that_another_pod_has_now_is_judged_as_that_one(world: World) -> None:
    cluster = world.cluster
    db = cluster.add_pod("node-1", "shop", "db", {"app": "db"})
    web = cluster.add_pod("node-2", "shop", "web", {"app": "web"})
    spec = {"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": [WEB]}]}
    cluster.set_policies([manifests.policy("shop", "db", spec)])
    with Server(db.namespace, [PORT]):
        assert eventually_udp(web.namespace, db.ipv4, PORT)
        former = web.ipv4
        cluster.delete_pod(web)
        guest = cluster.add_pod("node-2", "shop", "guest", {"app": "guest"})
        assert not ask_udp(guest.namespace, db.ipv4, PORT)
        assert former != guest.ipv4 or f"{former}/32" in cluster.identities("node-1")


def test_a_node_that_announces_another_way_is_named(world: World) -> None:
    cluster = world.cluster

    def announced() -> dict[str, tuple[str, int]]:
        specs = {one["metadata"]["name"]: one["spec"] for one in world.api.objects("BristleNode")}
        return {
            name: (spec.get("routingMode", ""), spec.get("encapsulation", {}).get("port", 0))
            for name, spec in specs.items()
        }

    def problems() -> dict[str, str]:
        return {one.what: one.message for one in cluster.node("node-1").agent.status().problems}

    mode = cluster.shape.mode
    ours = ("tunnel", 8472) if mode == "tunnel" else ("native", 0)
    cluster.wait(lambda: announced() == dict.fromkeys(cluster.nodes, ours), "all to say the same")
    assert problems() == {}
    (told,) = (n for n in world.api.objects("BristleNode") if n["metadata"]["name"] == "node-3")
    other = {**told["spec"], "routingMode": "tunnel", "encapsulation": {"port": 8473}}
    world.api.load([{**told, "spec": other}])
    wanted = (
        "tunnel port 8473 and this node has 8472"
        if mode == "tunnel"
        else ("routing mode tunnel and this node has native")
    )
    cluster.wait(lambda: wanted in problems().get("node node-3", ""), "the node to be named")
    world.api.load([{**told, "spec": {"addresses": told["spec"]["addresses"]}}])
    cluster.wait(lambda: problems() == {}, "a node that does not say not to be judged")


def test_a_node_that_is_gone_is_forgotten(world: World) -> None:
    cluster = world.cluster
    cluster.add_pod("node-1", "shop", "db", {"app": "db"})
    web = cluster.add_pod("node-3", "shop", "web", {"app": "web"})
    assert cluster.identities("node-1")[f"{web.ipv4}/32"] >= 256
    cluster.kill("node-3")
    cluster.nodes["node-3"].listed = False
    cluster.list_nodes()
    cluster.put("pod-shop-web", [])
    cluster.wait(
        lambda: f"{web.ipv4}/32" not in cluster.identities("node-1"), "its pods to be forgotten"
    )
    names = {one["metadata"]["name"] for one in world.api.objects("BristleNode")}
    assert names == {"node-1", "node-2"}
    others, gone = ([*cluster.nodes[name].pod_cidrs] for name in ("node-2", "node-3"))

    def routes() -> str:
        ask = cluster.node("node-1").namespace.command
        return ask(["ip", "route"]) + ask(["ip", "-6", "route"])

    cluster.wait(lambda: not any(one in routes() for one in gone), "its routes to be taken away")
    assert all(one in routes() for one in others)


def test_a_node_without_pod_cidrs_says_what_it_waits_for() -> None:
    """On the command line too, before there is anything to ask; and begins once it has them."""
    with Cluster(Shape(nodes=1), source=ApiSource, start=False) as cluster:
        assert isinstance(cluster.source, ApiSource)
        node = cluster.node("node-1")
        del node.agent.config["pod_cidrs"]
        with cluster.source.served(cluster.outside):
            bare = manifests.node(node.name, node.pod_cidrs, node.addresses)
            bare["spec"] = {}
            cluster.put("nodes", [bare])
            node.agent.launch()

            def said() -> str:
                return node.agent.cli("status", check=False).stderr

            cluster.wait(lambda: "has no spec.podCIDRs yet" in said(), "the agent to say so")
            assert "does not listen yet: waiting for this node's pod CIDRs" in said()
            cluster.list_nodes()
            cluster.start()
            node.agent.wait_ready()
            one = cluster.add_pod("node-1", "shop", "one", {})
            assert one.ipv4.startswith(node.pod_cidrs[0].rpartition(".")[0])
        node.agent.kill()
        assert "no agent listens on" in node.agent.cli("status", check=False).stderr
