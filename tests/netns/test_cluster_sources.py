# SPDX-License-Identifier: Apache-2.0
"""A network between nodes that takes no packet with a pod's address, as clouds' do (AWS: source
and destination check), which is what tunnels are for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from bench.lab.cluster import Cluster, Shape
from bench.lab.station import Pod
from bench.lab.talk import Server, ask_tcp, ask_udp

pytestmark = pytest.mark.kernel

API = {4: "10.96.0.1", 6: "fd00:96::1"}
FIRST, SECOND = "node-1", "node-2"
families = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module")
def cluster(private_mounts: None) -> Iterator[Cluster]:
    shape = Shape(mode="tunnel", config={"masquerade": {"enabled": True}})
    with Cluster(shape) as cluster:
        first, second = cluster.nodes[FIRST], cluster.nodes[SECOND]
        second.namespace.nft("""
table inet cloud {
  chain prerouting {
    type filter hook prerouting priority raw;
    iifname "up0" ip saddr 10.244.0.0/16 drop
    iifname "up0" ip6 saddr fd00:10:244::/48 drop
  }
}
""")
        second.namespace.sysctl({"ipv4.conf.all.rp_filter": 1})
        for family, ip in ((4, "ip"), (6, "ip6")):
            first.namespace.nft(f"""
table {ip} services {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    {ip} daddr {API[family]} meta l4proto {{ tcp, udp }} dnat to {second.addresses[family == 6]}
  }}
}}
""")
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> Pod:
    return cluster.add_pod(FIRST, "ns", "client", {})


@families
@pytest.mark.parametrize("ask", [ask_tcp, ask_udp])
def test_a_service_of_another_node_itself(
    cluster: Cluster, client: Pod, family: int, ask: Callable[..., str | None]
) -> None:
    """As every pod asks the API server, by the service `kubernetes`."""
    first, second = cluster.nodes[FIRST], cluster.nodes[SECOND]
    with Server(second.namespace):
        assert ask(client.namespace, API[family]) == first.addresses[family == 6]


@families
def test_another_node_itself_sees_the_pod(cluster: Cluster, client: Pod, family: int) -> None:
    """Through the tunnel, which needs no translation."""
    second = cluster.nodes[SECOND]
    with Server(second.namespace):
        found = ask_tcp(client.namespace, second.addresses[family == 6])
        assert found == client.address(family)
