# SPDX-License-Identifier: Apache-2.0
"""Rules of the node's own that masquerade what goes to another node's pods (kube-proxy's), where
the node has more addresses than the cluster knows: the other node believes the known ones alone."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from bench.lab.cluster import Cluster, Shape
from bench.lab.talk import Server, ask_tcp

pytestmark = pytest.mark.kernel

DEVICE = "bristle_vxlan"
SERVICE = {4: "10.96.0.10", 6: "fd00:96::10"}
NODE_PORT = 30080
# What Vagrant's first device has on every node; to the kernel it is the best source for ULAs.
FIRST = {4: "10.0.2.15", 6: "fd00:10:99::15"}
families = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module")
def cluster(private_mounts: None) -> Iterator[Cluster]:
    with Cluster(Shape(mode="tunnel"), start=False) as cluster:
        for node in cluster.nodes.values():
            own4 = node.addresses[0]
            node.namespace.ip(
                f"address del {own4}/24 dev up0",
                f"address add {FIRST[4]}/24 dev up0",
                f"address add {own4}/24 dev up0",
                f"route add default via {cluster.outside.ipv4}",
                f"address add {FIRST[6]}/64 dev up0 nodad",
            )
        cluster.start()
        backend = cluster.add_pod("node-2", "ns", "backend", {"app": "backend"})
        first = cluster.nodes["node-1"]
        for family, ip in ((4, "ip"), (6, "ip6")):
            node_address = next(one for one in first.addresses if (":" in one) == (family == 6))
            to = backend.address(family)
            to_port = f"[{to}]:80" if family == 6 else f"{to}:80"
            first.namespace.nft(f"""
table {ip} services {{
  chain output {{
    type nat hook output priority -100;
    {ip} daddr {SERVICE[family]} meta l4proto {{ tcp, udp }} dnat to {to}
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    {ip} daddr {node_address} tcp dport {NODE_PORT} dnat to {to_port}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    ct status dnat masquerade
  }}
}}
""")
        with Server(backend.namespace):
            yield cluster


@families
def test_the_node_asks_a_service(cluster: Cluster, family: int) -> None:
    """As the API server asks a webhook."""
    node = cluster.nodes["node-1"]
    own = node.addresses[family == 6]
    assert ask_tcp(node.namespace, SERVICE[family]) == own


@families
def test_a_node_port(cluster: Cluster, family: int) -> None:
    own = cluster.nodes["node-1"].addresses[family == 6]
    assert ask_tcp(cluster.outside_namespace, own, NODE_PORT) == own


def test_the_device_has_what_the_cluster_knows(cluster: Cluster) -> None:
    """After a change of the Node object, after a restart, and after somebody meddled with it."""
    node = cluster.nodes["node-1"]

    def borne() -> set[str]:
        (link,) = json.loads(node.namespace.command(["ip", "-j", "address", "show", "dev", DEVICE]))
        return {one["local"] for one in link["addr_info"] if one["scope"] == "global"}

    known = node.addresses
    assert borne() == set(known)
    cluster.restart(node)
    assert borne() == set(known)
    node.namespace.ip(
        f"address del {known[0]}/32 dev {DEVICE}", f"address add 192.0.2.99/32 dev {DEVICE}"
    )
    cluster.wait(lambda: borne() == set(known), "the device's addresses to be put back", 60)
    node.addresses = (FIRST[4], known[1])
    cluster.list_nodes()
    try:
        cluster.wait(lambda: borne() == {FIRST[4], known[1]}, "the other address")
        node.addresses = ("203.0.113.7", known[1])  # one that this node does not have
        cluster.list_nodes()
        cluster.wait(lambda: borne() == {known[1]}, "no address of another's")
    finally:
        node.addresses = known
        cluster.list_nodes()
    cluster.wait(lambda: borne() == set(known), "the former address")
