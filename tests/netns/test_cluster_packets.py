# SPDX-License-Identifier: Apache-2.0
"""All kinds of packets between nodes: both families inside and outside, large and in pieces, over
paths that carry less than the nodes think; and the nodes themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from agent.kernel.vxlan import DEVICE
from bench.lab import manifests
from bench.lab.cluster import ROUTED, Cluster, Shape
from bench.lab.probe import ICMP, UDP, Ports, Prober
from bench.lab.station import Pod
from bench.lab.talk import Server, ask_udp
from bench.lab.traffic import TcpFlow

pytestmark = pytest.mark.kernel

PORTS = Ports(tcp=(80,), udp=(80,), sctp=(80,))
SHAPES = {
    "tunnel": Shape(),
    "tunnel over IPv4 alone": Shape(underlay=(4,)),
    "tunnel over IPv6 alone": Shape(underlay=(6,)),
    "tunnel through a router": Shape(joined=ROUTED),
    "native": Shape(mode="native"),
    "native, the network routes": Shape(
        mode="native",
        joined=ROUTED,
        config={"routing": {"mode": "native", "direct_node_routes": False}},
    ),
    "native without a program at the uplink": Shape(mode="native", hook=False),
    "tunnel, but native networks": Shape(
        config={"routing": {"mode": "tunnel", "native_cidrs": ["10.244.0.0/16"]}}
    ),
}


@dataclass(frozen=True)
class Pair:
    cluster: Cluster
    one: Pod
    two: Pod


@pytest.fixture(scope="module", params=SHAPES)
def pair(private_mounts: None, request: pytest.FixtureRequest) -> Iterator[Pair]:
    shape = SHAPES[request.param]
    with Cluster(shape) as cluster:
        if shape.joined == ROUTED and shape.mode == "native":
            cluster.route_pods()
        one = cluster.add_pod("node-1", "ns", "one", {"app": "one"})
        two = cluster.add_pod("node-2", "ns", "two", {"app": "two"})
        yield Pair(cluster, one, two)


def _inside(cluster: Cluster) -> list[str]:
    return [*cluster.pods, *cluster.nodes]


def test_every_kind_of_packet(pair: Pair) -> None:
    """Pods and nodes, each with each; also in pieces, there and back."""
    cluster = pair.cluster
    stations = [*cluster.pods.values(), *(n.station for n in cluster.nodes.values())]
    with Prober(stations, PORTS) as prober:
        cells = prober.cells(_inside(cluster), _inside(cluster))
        # A node without an address of a family cannot be asked by it.
        assert len(cells) >= 2 * 6 * 2
        assert [str(c) for c, reached in prober.measure(cells).items() if not reached] == []
        large = [c for c in cells if c.protocol == ICMP or (c.protocol, c.port) == (UDP, 80)]
        for size in (1400, 4000, 20000):
            assert [str(c) for c, got in prober.measure(large, size).items() if not got] == []


def test_segments_of_any_size(pair: Pair) -> None:
    """Streams, with segmentation offload and checksums filled in late."""
    for family in (4, 6):
        for a, b in ((pair.one, pair.two), (pair.two, pair.one)):
            _stream(a, b, family, 3_000_000)


def _stream(source: Pod, destination: Pod, family: int, size: int) -> None:
    """So many bytes at once; the test's own time limit ends what does not come through."""
    flow = TcpFlow(source, destination, family)
    sent = 0
    while flow.received()[1] < size:
        with contextlib.suppress(BlockingIOError):
            sent += flow.client.send(bytes(min(size - sent, 500_000)))
        flow.read()
        assert not flow.broken
    for end in flow.sockets():
        end.close()


def test_policy_sees_the_pod_itself(pair: Pair) -> None:
    """Who comes from another node is known by labels, and a node is nobody's pod."""
    cluster = pair.cluster
    allow = [{"podSelector": {"matchLabels": {"app": "one"}}}]
    spec = {"podSelector": {"matchLabels": {"app": "two"}}, "ingress": [{"from": allow}]}
    stranger = cluster.add_pod("node-1", "ns", "stranger", {"app": "other"})
    try:
        cluster.set_policies([manifests.policy("ns", f"in-{cluster.scope.prefix[-6:]}", spec)])
        stations = [*cluster.pods.values(), *(n.station for n in cluster.nodes.values())]
        with Prober(stations, PORTS) as prober:
            cells = prober.cells(_inside(cluster), [pair.two.name])
            measured = prober.measure(cells)
            reached = {c.source for c, got in measured.items() if got}
            denied = {c.source for c, got in measured.items() if not got}
            assert reached == {pair.one.name, "node-2"}
            assert denied == {stranger.name, "node-1"}
    finally:
        cluster.set_policies([])
        cluster.delete_pod(stranger)


def test_addresses_are_seen_as_they_are(pair: Pair) -> None:
    """Nothing between nodes translates them; a node comes as one of its own addresses."""
    cluster = pair.cluster
    with Server(pair.two.namespace, (7000,)), Server(cluster.nodes["node-2"].namespace, (7001,)):
        for family in (4, 6):
            there, here = pair.two.address(family), pair.one.address(family)
            assert ask_udp(pair.one.namespace, there, 7000) == here
            node = cluster.nodes["node-1"]
            if node.station.address(family):
                own = node.station.address(family)
                assert ask_udp(node.namespace, there, 7000) == own
                far = cluster.nodes["node-2"].station.address(family)
                assert ask_udp(pair.one.namespace, far, 7001) == here


def test_nothing_is_amiss(pair: Pair) -> None:
    for node in pair.cluster.nodes.values():
        assert [f"{p.what}: {p.message}" for p in node.agent.status().problems] == []
        assert node.agent.cli("policy", "check").returncode == 0
        drops = [r for r in node.agent.cli_json("bpf", "metrics", "list")
                 if r.get("reason") not in (None, 0, 133, 203)]  # fmt: skip
        assert drops == []


def test_the_mtu_of_pods(pair: Pair) -> None:
    """What the underlay leaves, less the most that a tunnel of this cluster adds."""
    shape = pair.cluster.shape
    overhead = 0
    if shape.mode == "tunnel":
        overhead = 70 if shape.underlay == (6,) else 50
    for pod in (pair.one, pair.two):
        shown = pod.namespace.command(["ip", "-o", "link", "show", "eth0"])
        assert f"mtu {1500 - overhead} " in shown
    if shape.mode == "tunnel":
        node = pair.cluster.nodes["node-1"].namespace
        assert f"mtu {1500 - overhead} " in node.command(["ip", "-o", "link", "show", DEVICE])


@pytest.mark.parametrize("mode", ["tunnel", "native"])
def test_a_path_that_carries_less(private_mounts: None, mode: str) -> None:
    """A link beyond the router is smaller than the nodes' own: said in status with the numbers, and
    packets of any size come through all the same."""
    routing = {"mode": mode, "direct_node_routes": False}
    config = {"routing": routing, "mtu": 1450 if mode == "tunnel" else 1500}
    shape = Shape(mode=mode, joined=ROUTED, mtus={2: 1400}, config=config)
    with Cluster(shape) as cluster:
        if mode == "native":
            cluster.route_pods()
        # Node 1 believes in 1500 bytes; node 2 knows better.
        one = cluster.add_pod("node-1", "ns", "one", {})
        two = cluster.add_pod("node-2", "ns", "two", {})
        if mode == "tunnel":
            cluster.wait(
                lambda: any(
                    "node-2" in p.what and "1400 bytes" in p.message and "1500 bytes" in p.message
                    for p in cluster.nodes["node-1"].agent.status().problems
                ),
                "node 1 to warn of the path",
            )
        with Prober([one, two], PORTS) as prober:
            cells = prober.cells([one.name, two.name], [one.name, two.name])
            assert all(prober.measure(cells).values())
            large = [c for c in cells if c.protocol == ICMP or (c.protocol, c.port) == (UDP, 80)]
            for _ in range(3):  # what is too large first is lost, and its sender hears of it
                got = prober.measure(large, 6000)
            assert [str(c) for c, reached in got.items() if not reached] == []
        for family in (4, 6):
            for a, b in ((one, two), (two, one)):
                _stream(a, b, family, 400_000)
