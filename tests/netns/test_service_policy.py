# SPDX-License-Identifier: Apache-2.0
"""Egress policy and services that the node's own NAT leads to their pods, as kube-proxy does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from bench.lab import manifests
from bench.lab.cluster import Cluster, Shape
from bench.lab.station import Pod
from bench.lab.talk import Server, ask_tcp, ask_udp
from bench.lab.traffic import TcpFlow, Traffic

pytestmark = pytest.mark.kernel

PORT, TARGET = 8000, 80
FLOW_PORT, FLOW_TARGET = 8001, 9001
ASK: dict[str, Callable[..., str | None]] = {"tcp": ask_tcp, "udp": ask_udp}
SERVICES = {
    "near": {4: "10.96.0.10", 6: "fd00:96::10"},
    "far": {4: "10.96.0.11", 6: "fd00:96::11"},
    "node": {4: "10.96.0.1", 6: "fd00:96::1"},
}
"""Led to a pod of the client's node, to one of another node, to another node itself."""
SHAPES = {
    "tunnel": Shape(mode="tunnel"),
    "tunnel, masqueraded": Shape(mode="tunnel", config={"masquerade": {"enabled": True}}),
    "native": Shape(mode="native"),
}
BACKENDS = {"podSelector": {"matchLabels": {"app": "backend"}}}

families = pytest.mark.parametrize("family", [4, 6])
protocols = pytest.mark.parametrize("protocol", ASK)


@dataclass(frozen=True, slots=True)
class World:
    cluster: Cluster
    client: Pod
    backends: dict[str, Pod]
    numbers: Iterator[int] = field(default_factory=count)

    def serve(self, name: str, addresses: Sequence[str]) -> None:
        """The objects of a service whose endpoints have these addresses."""
        ports = [(one, one.upper(), PORT) for one in ASK] + [("flow", "TCP", FLOW_PORT)]
        targets = [(one, one.upper(), TARGET) for one in ASK] + [("flow", "TCP", FLOW_TARGET)]
        slices = []
        for six in (False, True):
            some = [one for one in addresses if (":" in one) is six]
            slices.append(
                manifests.endpoint_slice("ns", f"{name}-{4 + 2 * six}", name, some, targets)
            )
        ips = list(SERVICES[name].values())
        self.cluster.put(f"service-{name}", [manifests.service("ns", name, ips, ports), *slices])

    def isolate(self, *rules: dict[str, Any]) -> None:
        """The client may begin nothing but what these egress rules allow."""
        spec = {
            "podSelector": {"matchLabels": {"app": "client"}},
            "policyTypes": ["Egress"],
            "egress": list(rules),
        }
        # Another name each time: what is waited for is that name.
        name = f"egress-{next(self.numbers)}"
        self.cluster.set_policies([manifests.policy("ns", name, spec)])

    def reaches(self, name: str, protocol: str, family: int) -> bool:
        return ASK[protocol](self.client.namespace, SERVICES[name][family], PORT) is not None


@pytest.fixture(scope="module", params=SHAPES)
def world(private_mounts: None, request: pytest.FixtureRequest) -> Iterator[World]:
    with Cluster(SHAPES[request.param]) as cluster:
        client = cluster.add_pod("node-1", "ns", "client", {"app": "client"})
        near = cluster.add_pod("node-1", "ns", "near", {"app": "backend"})
        far = cluster.add_pod("node-2", "ns", "far", {"app": "backend"})
        first, second = cluster.nodes["node-1"], cluster.nodes["node-2"]
        made = World(cluster, client, {"near": near, "far": far})
        for family, ip in ((4, "ip"), (6, "ip6")):
            node = next(one for one in second.addresses if (":" in one) == (family == 6))
            ends = {"near": near.address(family), "far": far.address(family), "node": node}
            rules = "\n".join(
                f"{ip} daddr {SERVICES[name][family]} {protocol} dport {port} dnat to"
                f" {f'[{end}]' if family == 6 else end}:{target}"
                for name, end in ends.items()
                for protocol, port, target in (
                    ("tcp", PORT, TARGET),
                    ("udp", PORT, TARGET),
                    ("tcp", FLOW_PORT, FLOW_TARGET),
                )
            )
            first.namespace.nft(
                f"table {ip} services {{\nchain prerouting {{\n"
                f"type nat hook prerouting priority dstnat;\n{rules}\n}}\n}}\n"
            )
        for name, pod in made.backends.items():
            made.serve(name, [pod.ipv4, pod.ipv6])
        made.serve("node", list(second.addresses))
        with Server(near.namespace), Server(far.namespace), Server(second.namespace):
            yield made
            cluster.set_policies([])


@families
@protocols
def test_policy_speaks_of_pods(world: World, protocol: str, family: int) -> None:
    """What allows a service's pods at their port allows the service, and nothing else does."""
    reaches = world.reaches
    for name in SERVICES:
        assert reaches(name, protocol, family)
    world.isolate()
    for name in SERVICES:
        assert not reaches(name, protocol, family)
    port = {"protocol": protocol.upper(), "port": TARGET}
    world.isolate({"to": [BACKENDS], "ports": [port]})
    assert reaches("near", protocol, family) and reaches("far", protocol, family)
    assert not reaches("node", protocol, family)
    # The service's own port is not the pods'.
    world.isolate({"to": [BACKENDS], "ports": [{**port, "port": PORT}]})
    assert not reaches("near", protocol, family) and not reaches("far", protocol, family)
    blocks = [{"ipBlock": {"cidr": one}} for one in ("192.0.2.0/24", "2001:db8:1::/64")]
    world.isolate({"to": blocks})
    assert reaches("node", protocol, family) and not reaches("far", protocol, family)
    world.cluster.set_policies([])


@families
@pytest.mark.parametrize("name", ["near", "far"])
def test_labels_of_who_is_behind(world: World, name: str, family: int) -> None:
    """A live connection ends in both directions when its pod is none of those any more."""
    pod, cluster = world.backends[name], world.cluster
    world.isolate({"to": [BACKENDS]})
    through = SERVICES[name][family]
    flow = TcpFlow(world.client, pod, family, FLOW_TARGET, through, FLOW_PORT)
    with Traffic([flow]) as traffic:
        traffic.run_for(0.2)
        assert all(flow.received())
        cluster.relabel(pod, {"app": "other"})
        cluster.wait(lambda: not world.reaches(name, "tcp", family), "the other labels")
        traffic.run_for(0.2)
        before = flow.received()
        traffic.run_for(0.3)
        assert flow.received() == before
    cluster.relabel(pod, {"app": "backend"})
    cluster.wait(lambda: world.reaches(name, "tcp", family), "the labels again")
    cluster.set_policies([])


@families
def test_of_several_each_must_be_allowed(world: World, family: int) -> None:
    """kube-proxy may choose any: with one that is not allowed the service is not, until it goes."""
    cluster, near = world.cluster, world.backends["near"]
    other = cluster.add_pod("node-1", "ns", "other", {"app": "other"})
    world.isolate({"to": [BACKENDS]})
    try:
        assert world.reaches("near", "tcp", family)
        world.serve("near", [near.ipv4, near.ipv6, other.ipv4, other.ipv6])
        cluster.wait(lambda: not world.reaches("near", "tcp", family), "the other endpoint")
        world.serve("near", [near.ipv4, near.ipv6])
        cluster.wait(lambda: world.reaches("near", "tcp", family), "its end")
    finally:
        cluster.delete_pod(other)
        cluster.set_policies([])


@families
def test_explained_by_model_and_kernel(world: World, family: int) -> None:
    world.isolate({"to": [BACKENDS], "ports": [{"protocol": "TCP", "port": TARGET}]})
    agent = world.cluster.nodes["node-1"].agent
    for name, allowed in (("near", True), ("far", True), ("node", False)):
        told = agent.cli_json(
            "policy", "explain", "--from", "ns/client", "--to", SERVICES[name][family],
            "--port", f"{PORT}/tcp",
        )  # fmt: skip
        egress = told["egress"]
        assert egress["agrees"] and egress["allowed"] is allowed, told
        assert f"service ns/{name}" in egress["note"] and f"port {TARGET}" in egress["note"]
    world.cluster.set_policies([])
