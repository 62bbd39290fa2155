# SPDX-License-Identifier: Apache-2.0
"""Nodes and agents that come and go: what is open goes on, nothing is misdirected, and what others
take away of the network between nodes is put back."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest

from agent.kernel import bpf
from agent.kernel.vxlan import DEVICE
from bench.lab import manifests
from bench.lab.cluster import Cluster, Shape
from bench.lab.netns import LabError
from bench.lab.station import UPLINK, Pod, Station
from bench.lab.talk import Server, ask_tcp, ask_udp
from bench.lab.traffic import TcpFlow, Traffic, UdpFlow
from tests.netns.test_cleanup import differences, inventory

pytestmark = pytest.mark.kernel

KILLS = 3
MODES = ("tunnel", "native")
PORT = 7000


@pytest.fixture(params=MODES)
def cluster(private_mounts: None, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with Cluster(Shape(nodes=2, mode=request.param)) as made:
        yield made


def _admit(name: str, app: str) -> manifests.Object:
    peers = [{"podSelector": {"matchLabels": {"app": app}}}]
    return manifests.policy(
        "ns",
        name,
        {"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"from": peers}]},
    )


def _index(cluster: Cluster, node: str, device: str = DEVICE) -> int:
    return cluster.nodes[node].namespace.run(lambda: socket.if_nametoindex(device))


def _problems(cluster: Cluster, node: str) -> dict[str, str]:
    return {p.what: p.message for p in cluster.nodes[node].agent.status().problems}


def test_agents_killed_under_load(cluster: Cluster) -> None:
    """On both nodes in turn: 0 lost, 0 wrongly admitted, and the device is adopted."""
    friend = cluster.add_pod("node-1", "ns", "friend", {"app": "friend"})
    stranger = cluster.add_pod("node-1", "ns", "stranger", {"app": "stranger"})
    server = cluster.add_pod("node-2", "ns", "server", {"app": "server"})
    node = cluster.nodes["node-1"].station
    cluster.set_policies([_admit("friends", "friend")])
    tunnel = cluster.shape.mode == "tunnel"
    before = [_index(cluster, n, DEVICE if tunnel else UPLINK) for n in cluster.nodes]
    allowed = [UdpFlow(friend, server, family) for family in (4, 6)]
    streams: list[TcpFlow] = [TcpFlow(friend, server, family) for family in (4, 6)]
    refused = [UdpFlow(one, server, f) for one in (stranger, node) for f in (4, 6)]
    with Traffic([*allowed, *streams, *refused]) as traffic:
        began, _ = traffic.run_for(0.1)
        for flow in allowed:
            flow.answering = True
        for _ in range(KILLS):
            for name in cluster.nodes:
                moved = [stream.received() for stream in streams]
                cluster.kill(name)
                assert ask_tcp(stranger.namespace, server.ipv4, 9001) is None
                traffic.run_for(0.1)
                cluster.nodes[name].agent.start()
                traffic.run_for(0.1)
                for stream, (up, down) in zip(streams, moved, strict=True):
                    now = stream.received()
                    assert now[0] > up and now[1] > down
        _, until = traffic.run_for(0.1)
        assert {f.name: f.lost(began, until) for f in allowed} == {f.name: 0 for f in allowed}
        assert {f.name: f.admitted(began, until) for f in refused} == {f.name: 0 for f in refused}
        assert [f.duplicated() for f in allowed] == [0, 0]
        assert [f.broken for f in streams] == ["", ""]
    assert [_index(cluster, n, DEVICE if tunnel else UPLINK) for n in cluster.nodes] == before


@pytest.mark.parametrize("cluster", MODES, indirect=True)
def test_a_node_that_comes_changes_and_goes(cluster: Cluster) -> None:
    """Each change is one transaction: others' traffic has no gap, and its own follows."""
    with contextlib.ExitStack() as stack:
        one = cluster.add_pod("node-1", "ns", "one", {})
        two = cluster.add_pod("node-2", "ns", "two", {})
        first, second = cluster.nodes["node-1"], cluster.nodes["node-2"]
        stack.enter_context(Server(two.namespace, (PORT,)))
        third = ("10.244.9.0/24", "fd00:10:244:9::/112")

        def known(network: str) -> bool:
            rows = cluster.tunnels("node-1")
            routes = first.namespace.command(["ip", "route"]) + first.namespace.command(
                ["ip", "-6", "route"]
            )
            return network in rows and network in routes

        flows = [UdpFlow(one, two, family) for family in (4, 6)]
        traffic = stack.enter_context(Traffic(flows))
        began, _ = traffic.run_for(0.05)

        def nodes(*more: manifests.Object) -> None:
            own = [manifests.node(n.name, n.pod_cidrs, n.addresses) for n in cluster.nodes.values()]
            cluster.put("nodes", [*own, *more])

        # A third node without an agent, then with another network, then with another address.
        nodes(manifests.node("node-3", third, ("192.0.2.3", "2001:db8:1::3")))
        cluster.wait(lambda: all(known(c) for c in third), "node 3 to be known")
        other = ("10.244.10.0/24", third[1])
        nodes(manifests.node("node-3", other, ("192.0.2.3", "2001:db8:1::3")))
        cluster.wait(lambda: known(other[0]), "its other network to be known")
        assert not known(third[0])
        nodes(manifests.node("node-3", other, ("192.0.2.33", "2001:db8:1::3")))
        shown = "192.0.2.33"

        def moved() -> bool:
            routes = first.namespace.command(["ip", "route"])
            return (
                cluster.tunnels("node-1").get(other[0]) == shown
                or f"{other[0]} via {shown}" in routes
            )

        cluster.wait(moved, "its other address to be in force")
        nodes()
        cluster.wait(lambda: not any(known(c) for c in (*third, *other)), "node 3 to be gone")
        _, until = traffic.run_for(0.05)
        assert [flow.lost(began, until) for flow in flows] == [0, 0]

        # The node at the other end goes: its packets are nobody's any more.
        assert ask_udp(one.namespace, two.ipv4, PORT)
        second.listed = False
        cluster.list_nodes()
        cluster.wait(lambda: not known(second.pod_cidrs[0]), "node 2 to be gone for node 1")
        if cluster.shape.mode == "tunnel":
            assert ask_udp(one.namespace, two.ipv4, PORT) is None
        second.listed = True
        cluster.list_nodes()
        cluster.wait(lambda: known(second.pod_cidrs[0]), "node 2 to be back")
        cluster.wait(lambda: ask_udp(one.namespace, two.ipv4, PORT), "the pods to talk again")
        assert _problems(cluster, "node-1") == {}


def test_bad_input_is_named_and_the_rest_goes_on(cluster: Cluster) -> None:
    one = cluster.add_pod("node-1", "ns", "one", {})
    two = cluster.add_pod("node-2", "ns", "two", {})
    own = [manifests.node(n.name, n.pod_cidrs, n.addresses) for n in cluster.nodes.values()]
    bad = [
        manifests.node("node-3", ("10.244.2.0/25",), ("192.0.2.3",)),
        manifests.node("node-4", ("10.77.0.0/24",), ()),
        manifests.node("node-5", ("192.0.2.0/25",), ("192.0.2.5",)),
        manifests.node("node-6", ("10.244.1.0/24",), ("192.0.2.6",)),
        manifests.node("node-7", ("10.78.0.0/24",), ("198.51.100.77",)),
    ]
    cluster.put("nodes", [*own, *bad])
    expected = {"node node-3": "node-2", "node node-4": "no address", "node node-5": "node-1",
                "node node-6": "10.244.1.0/24 of this node"}  # fmt: skip

    def told() -> bool:
        said = _problems(cluster, "node-1")
        return all(text in said.get(name, "") for name, text in expected.items())

    cluster.wait(told, "the problems to be named")
    if cluster.shape.mode == "native":
        cluster.wait(
            lambda: (
                "needs the network's own routes"
                in _problems(cluster, "node-1").get("routes to nodes", "")
            ),
            "the node beyond to be named",
        )
    with Server(two.namespace, (PORT,)):
        for family in (4, 6):
            assert ask_udp(one.namespace, two.address(family), PORT) == one.address(family)
    cluster.list_nodes()
    cluster.wait(lambda: _problems(cluster, "node-1") == {}, "the problems to be over")


def _reached(one: Pod, two: Station) -> bool:
    return all(ask_udp(one.namespace, two.address(f), PORT) == one.address(f) for f in (4, 6))


def test_what_others_take_away_is_put_back(cluster: Cluster) -> None:
    one = cluster.add_pod("node-1", "ns", "one", {})
    two = cluster.add_pod("node-2", "ns", "two", {})
    first = cluster.nodes["node-1"]
    routes = "ip route", "ip -6 route"

    def shown() -> list[str]:
        return sorted(
            line.strip()
            for command in routes
            for line in first.namespace.command(command.split()).splitlines()
            if "10:244:2::" in line or "10.244.2." in line
        )

    before = shown()
    damage = ["route delete 10.244.2.0/24", "-6 route delete fd00:10:244:2::/112"]
    if cluster.shape.mode == "tunnel":
        damage = [
            "route delete 10.244.2.0/24",
            f"link set {DEVICE} mtu 1300",
            f"link set {DEVICE} down",
            f"link delete {DEVICE}",
        ]
    with Server(two.namespace, (PORT,)):
        for line in damage:
            first.namespace.command(["ip", *line.split()])
            first.agent.cli("policy", "check", "--repair", check=False)
            cluster.wait(lambda: _reached(one, two), f"the pods to talk after: {line}")
            cluster.wait(lambda: shown() == before, f"the routes after: {line}")
            assert first.agent.cli("policy", "check").returncode == 0
        if cluster.shape.mode == "tunnel":
            # Programs taken away: for the time being nothing is let in unseen.
            for pin in sorted((first.bpffs / "links").glob("uplink-bristle*")):
                link = bpf.object_get(pin)
                bpf.link_detach(link)
                os.close(link)
            first.agent.cli("policy", "check", "--repair", check=False)
            assert _reached(one, two)
        # Without being asked, too.
        first.namespace.command(["ip", "route", "flush", "proto", "178", "10.244.2.0/24"])
        cluster.wait(lambda: shown() == before, "the route to be back by itself", 40)
    # Each was found and named, by whoever came first: the question or the next round.
    log = first.agent.log.read_text()
    assert "routes to nodes are not as they should be: 10.244.2.0/24" in log
    if cluster.shape.mode == "tunnel":
        for text in ("MTU 1300 instead of 1450", "down", "no such device", "others, or none"):
            assert text in log
    assert _problems(cluster, "node-1") == {}


def test_a_foreign_device_and_a_port_in_use(private_mounts: None) -> None:
    """Named in status; pods of the node go on; all is well once it is out of the way."""
    with Cluster(Shape(nodes=2), start=False) as cluster:
        first, second = cluster.nodes["node-1"], cluster.nodes["node-2"]
        first.namespace.ip(f"link add {DEVICE} type veth peer name other0")
        sock = second.namespace.run(partial(_udp_socket, 8472))
        cluster.start()
        one = cluster.add_pod("node-1", "ns", "one", {})
        near = cluster.add_pod("node-1", "ns", "near", {})
        two = cluster.add_pod("node-2", "ns", "two", {})
        said = {name: " ".join(_problems(cluster, name).values()) for name in cluster.nodes}
        assert f"another's device {DEVICE}" in said["node-1"]
        assert "UDP port 8472" in said["node-2"]
        with Server(near.namespace, (PORT,)), Server(two.namespace, (PORT,)):
            assert _reached(one, near)
            assert ask_udp(one.namespace, two.ipv4, PORT) is None
            drops = first.agent.cli_json("bpf", "metrics", "list")
            assert any(row.get("reason") == 160 for row in drops)
            first.namespace.ip(f"link delete {DEVICE}")
            sock.close()
            for node in cluster.nodes.values():
                node.agent.cli("policy", "check", "--repair", check=False)
            cluster.wait(lambda: _reached(one, two), "the tunnel to work")
            cluster.wait(
                lambda: not _problems(cluster, "node-1") and not _problems(cluster, "node-2"),
                "the problems to be over",
            )


def _udp_socket(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.bind(("::", port))
    return made


def test_cleanup_leaves_nothing(cluster: Cluster) -> None:
    node = cluster.nodes["node-1"]
    with Cluster(replace(cluster.shape, nodes=1), start=False) as fresh:
        empty = fresh.nodes["node-1"]
        before = inventory(empty.namespace)
        fresh.put(
            "nodes",
            [
                manifests.node("node-1", empty.pod_cidrs, empty.addresses),
                manifests.node("node-2", ("10.244.2.0/24",), ("192.0.2.2", "2001:db8:1::2")),
            ],
        )
        fresh.start()
        fresh.add_pod("node-1", "ns", "one", {})
        fresh.wait(lambda: "10.244.2.0/24" in empty.namespace.command(["ip", "route"]), "the route")
        fresh.kill("node-1")
        said = empty.agent.cli("cleanup").stdout
        assert (f"device {DEVICE}" in said) == (fresh.shape.mode == "tunnel")
        assert ("route to 10.244.2.0/24" in said) == (fresh.shape.mode == "native")
        assert differences(before, inventory(empty.namespace)) == {}
        assert not [path for path in (empty.folder / "state").glob("*")]
    # Another agent, elsewhere, has not lost anything.
    assert node.agent.cli("policy", "check").returncode == 0


def test_another_mode_takes_the_device_away(private_mounts: None) -> None:
    with Cluster(Shape(nodes=2)) as cluster:
        one = cluster.add_pod("node-1", "ns", "one", {})
        two = cluster.add_pod("node-2", "ns", "two", {})
        for node in cluster.nodes.values():
            node.agent.stop()
            node.agent.config["routing"] = {"mode": "native"}
        cluster.start()
        for node in cluster.nodes.values():
            with pytest.raises(LabError):
                node.namespace.command(["ip", "link", "show", DEVICE])
        with Server(two.namespace, (PORT,)):
            cluster.wait(lambda: _reached(one, two), "the pods to talk along routes")
