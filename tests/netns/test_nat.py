# SPDX-License-Identifier: Apache-2.0
"""A translation in the node's namespace, as kube-proxy makes it: replies take the way back.

The programs hand local packets over without the node's stack; a connection that came by the stack
must not have its replies short-cut, or the client gets answers from an address it never asked.
"""

from collections.abc import Callable, Iterator

import pytest

from bench.lab import manifests
from bench.lab.node import Lab
from bench.lab.station import NODE4, NODE6, Pod
from bench.lab.talk import Server, ask_tcp, ask_udp
from bench.lab.traffic import TcpFlow, Traffic

pytestmark = pytest.mark.kernel

SERVICE = {4: "10.96.0.10", 6: "fd00:96::10"}
NODE = {4: NODE4, 6: NODE6}
NODE_PORT = 30080
ASK: dict[str, Callable[..., str | None]] = {"tcp": ask_tcp, "udp": ask_udp}


@pytest.fixture(scope="module", autouse=True)
def service(lab: Lab, pair: tuple[Pod, Pod]) -> Iterator[None]:
    """A service address and a node port that lead to two/b; its own traffic is masqueraded."""
    backend = pair[1]
    chains = []
    for family, ip in ((4, "ip"), (6, "ip6")):
        there = backend.address(family)
        to = f"{there}:80" if family == 4 else f"[{there}]:80"
        chains.append(f"""
table {ip} services {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    {ip} daddr {SERVICE[family]} meta l4proto {{ tcp, udp }} dnat to {there}
    {ip} daddr {NODE[family]} tcp dport {NODE_PORT} dnat to {to}
    {ip} daddr {NODE[family]} udp dport {NODE_PORT} dnat to {to}
  }}
  chain output {{
    type nat hook output priority -100;
    {ip} daddr {SERVICE[family]} meta l4proto {{ tcp, udp }} dnat to {there}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    {ip} saddr {there} {ip} daddr {there} masquerade
  }}
}}""")
    lab.node_namespace.nft("\n".join(chains))
    with Server(backend.namespace):
        yield
    lab.node_namespace.nft("delete table ip services\ndelete table ip6 services\n")


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ASK)
def test_pod_reaches_service(
    clean_lab: Lab, pair: tuple[Pod, Pod], protocol: str, family: int
) -> None:
    """The answer comes from the service's address; the backend sees the pod's own."""
    client, backend = pair
    ask = ASK[protocol]
    for _ in range(3):
        assert ask(client.namespace, SERVICE[family]) == client.address(family)
    # Both ways to the same backend at once; neither disturbs the other.
    assert ask(client.namespace, backend.address(family)) == client.address(family)
    assert ask(client.namespace, SERVICE[family]) == client.address(family)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ASK)
def test_policy_is_about_pods_and_not_about_the_service(
    clean_lab: Lab, pair: tuple[Pod, Pod], protocol: str, family: int
) -> None:
    """The backend's ingress policy judges the client behind the service's address."""
    client, other = pair[0], clean_lab.add_pod("one", "c", {"app": "c"})
    ask = ASK[protocol]
    peers = [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "a"}}}]
    spec = {"podSelector": {}, "ingress": [{"from": peers}]}
    clean_lab.set_policies([manifests.policy("two", f"only-a-{protocol}-{family}", spec)])
    assert ask(client.namespace, SERVICE[family]) == client.address(family)
    assert ask(other.namespace, SERVICE[family]) is None


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ASK)
def test_pod_reaches_itself_through_a_service(
    clean_lab: Lab, pair: tuple[Pod, Pod], protocol: str, family: int
) -> None:
    """Hairpin: a pod may always reach itself, also when isolated, also under the node's address."""
    spec = {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
        # Its egress packets have the service's address, which is no pod's.
        "egress": [
            {"to": [{"ipBlock": {"cidr": f"{SERVICE[family]}/{32 if family == 4 else 128}"}}]}
        ],
    }
    clean_lab.set_policies([manifests.policy("two", f"alone-{protocol}-{family}", spec)])
    seen = ASK[protocol](pair[1].namespace, SERVICE[family])
    assert seen == NODE[family]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ASK)
def test_node_port_from_outside(
    lab: Lab, pair: tuple[Pod, Pod], protocol: str, family: int
) -> None:
    """From the uplink through the node's translation and back; the source stays."""
    ask = ASK[protocol]
    client = lab.outside
    assert ask(client.namespace, NODE[family], NODE_PORT) == client.address(family)
    assert ask(client.namespace, pair[1].address(family)) == client.address(family)
    assert ask(client.namespace, NODE[family], NODE_PORT) == client.address(family)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ASK)
def test_node_reaches_service(lab: Lab, protocol: str, family: int) -> None:
    """A process of the node itself."""
    assert ASK[protocol](lab.node_namespace, SERVICE[family]) == NODE[family]


@pytest.mark.parametrize("family", [4, 6])
def test_change_of_policy_reaches_translated_connections(
    clean_lab: Lab, pair: tuple[Pod, Pod], family: int
) -> None:
    """A stream through the node's stack ends with a new deny, like any other."""
    client, backend = pair
    stream = TcpFlow(client, backend, family, through=SERVICE[family])
    with Traffic([stream]) as traffic:
        traffic.run_for(0.05)
        before = stream.received()
        assert min(before) > 0
        spec = {"podSelector": {}, "policyTypes": ["Ingress"]}
        clean_lab.set_policies([manifests.policy("two", f"nobody-{family}", spec)])
        traffic.drain()
        stopped = stream.received()
        traffic.run_for(0.3)
        assert stream.received() == stopped
