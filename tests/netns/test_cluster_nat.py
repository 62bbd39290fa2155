# SPDX-License-Identifier: Apache-2.0
"""A service address that the node's own NAT translates (kube-proxy) to somewhere on another node:
answers go back through the node's stack, which alone can translate them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from bench.lab import manifests
from bench.lab.cluster import Cluster, Shape
from bench.lab.station import Pod
from bench.lab.talk import Server, ask_tcp, ask_udp
from bench.lab.traffic import TcpFlow, Traffic

pytestmark = pytest.mark.kernel

SERVICE = {4: "10.96.0.10", 6: "fd00:96::10"}
API = {4: "10.96.0.1", 6: "fd00:96::1"}
"""What leads to a process of another node itself, as `kubernetes.default` does."""
NODE_PORT = 30080
"""Of the other node, which leads to its own pod: as of a NodePort or a hostPort."""
ASK: dict[str, Callable[..., str | None]] = {"tcp": ask_tcp, "udp": ask_udp}
SHAPES = {
    "tunnel": Shape(mode="tunnel"),
    "tunnel, masqueraded": Shape(mode="tunnel", config={"masquerade": {"enabled": True}}),
    "native": Shape(mode="native"),
    "native, masqueraded": Shape(mode="native", config={"masquerade": {"enabled": True}}),
    "native, no uplink program": Shape(mode="native", hook=False),
}


@dataclass(frozen=True, slots=True)
class World:
    cluster: Cluster
    client: Pod
    backend: Pod


@pytest.fixture(scope="module", params=SHAPES)
def world(private_mounts: None, request: pytest.FixtureRequest) -> Iterator[World]:
    with Cluster(SHAPES[request.param]) as cluster:
        client = cluster.add_pod("node-1", "ns", "client", {"app": "client"})
        backend = cluster.add_pod("node-2", "ns", "backend", {"app": "backend"})
        first, second = cluster.nodes["node-1"], cluster.nodes["node-2"]
        for family, ip in ((4, "ip"), (6, "ip6")):
            node = next(one for one in second.addresses if (":" in one) == (family == 6))
            first.namespace.nft(f"""
table {ip} services {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    {ip} daddr {SERVICE[family]} meta l4proto {{ tcp, udp }} dnat to {backend.address(family)}
    {ip} daddr {API[family]} meta l4proto {{ tcp, udp }} dnat to {node}
  }}
}}
""")
            there = backend.address(family)
            to = f"{there}:80" if family == 4 else f"[{there}]:80"
            second.namespace.nft(f"""
table {ip} ports {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    {ip} daddr {node} tcp dport {NODE_PORT} dnat to {to}
    {ip} daddr {node} udp dport {NODE_PORT} dnat to {to}
  }}
}}
""")
        with Server(backend.namespace), Server(second.namespace):
            yield World(cluster, client, backend)


families = pytest.mark.parametrize("family", [4, 6])
protocols = pytest.mark.parametrize("protocol", ASK)


@families
@protocols
def test_a_service_of_another_nodes_pod(world: World, protocol: str, family: int) -> None:
    """The backend sees the pod's own address; beside it, straight connections go on as they do."""
    client, ask = world.client, ASK[protocol]
    for _ in range(2):
        for address in (SERVICE[family], world.backend.address(family)):
            assert ask(client.namespace, address) == client.address(family)


@families
@protocols
def test_a_service_of_another_node_itself(world: World, protocol: str, family: int) -> None:
    assert ASK[protocol](world.client.namespace, API[family])


@families
@protocols
def test_a_port_of_another_node(world: World, protocol: str, family: int) -> None:
    """Translated where the pod is, which sees the asking pod's own address."""
    client, ask = world.client, ASK[protocol]
    node = world.cluster.nodes["node-2"].addresses[family == 6]
    for _ in range(2):
        assert ask(client.namespace, node, NODE_PORT) == client.address(family)
        assert ask(client.namespace, world.backend.address(family)) == client.address(family)


@families
def test_large_datagrams(world: World, family: int) -> None:
    """In fragments, whose first one tells the way for all."""
    assert ask_udp(world.client.namespace, SERVICE[family], size=4000)


@families
@protocols
def test_policy_of_both_ends(world: World, protocol: str, family: int) -> None:
    """The client is isolated from all but may be answered; the backend lets nobody but it in."""
    cluster, ask = world.cluster, ASK[protocol]
    other = cluster.add_pod("node-1", "ns", f"other-{protocol}-{family}", {"app": "other"})
    peer = {"podSelector": {"matchLabels": {"app": "client"}}}
    spec = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [peer]}]}
    cluster.set_policies([manifests.policy("ns", f"only-{protocol}-{family}", spec)])
    try:
        cluster.wait(lambda: ask(other.namespace, SERVICE[family]) is None, "the policy")
        assert ask(world.client.namespace, SERVICE[family]) == world.client.address(family)
        node = cluster.nodes["node-2"].addresses[family == 6]
        assert ask(other.namespace, node, NODE_PORT) is None
        assert ask(world.client.namespace, node, NODE_PORT) == world.client.address(family)
    finally:
        cluster.set_policies([])
        cluster.delete_pod(other)


@families
def test_a_stream_outlives_agents(world: World, family: int) -> None:
    """Both nodes' agents are killed and come back while a translated connection is in use."""
    flow = TcpFlow(world.client, world.backend, family, through=SERVICE[family])
    with Traffic([flow]) as traffic:
        for name in ("node-1", "node-2"):
            world.cluster.restart(name)
        traffic.drain()
        before = flow.received()
        traffic.run_for(0.3)
        after = flow.received()
        assert not flow.broken and after[0] > before[0] and after[1] > before[1]


@families
def test_straight_connections_stay_straight(world: World, family: int) -> None:
    """What from_pod sends on by itself is not taken for something that the stack sent."""
    flow = TcpFlow(world.client, world.backend, family)
    with Traffic([flow]) as traffic:
        traffic.run_for(0.1)
        port = flow.client.getsockname()[1]
        for name, pod, key in (
            ("node-1", world.client, "local_port"),
            ("node-2", world.backend, "remote_port"),
        ):
            rows = world.cluster.nodes[name].agent.cli_json("bpf", "ct", "list")
            (row,) = (r for r in rows if r[key] == port and r["local"] == pod.address(family))
            straight = world.cluster.shape.mode == "tunnel" or world.cluster.shape.hook
            assert ("via_stack" in row["flags"]) is not straight, (name, row)
