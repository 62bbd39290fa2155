# SPDX-License-Identifier: Apache-2.0
"""Who sent a packet is told by its way, not by its source address.

* the node's own stack (kubelet probes, host-network processes) is identity host (1), and always
  reaches its pods;
* a pod whose packets the node translated is still that pod;
* a packet from outside that the node masqueraded is of unknown world: no address is known of it
  but the node's, which it must not be taken for;
* a packet from the uplink that bears an address of the node or of a pod is refused.
"""

from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from bench.lab import manifests
from bench.lab.manifests import Object
from bench.lab.node import Lab
from bench.lab.station import NODE4, NODE6, OUTSIDE4, OUTSIDE6, UPLINK, Pod
from bench.lab.talk import Server, ask_tcp, ask_udp
from bench.lab.wire import Wire

pytestmark = pytest.mark.kernel

INVALID_SOURCE_IP = 132
RULE_NODE = 2
WORLD = {4: 9, 6: 10}
"""Identities world-ipv4 and world-ipv6."""
SERVICE = {4: "10.96.0.20", 6: "fd00:96::20"}
NODE = {4: NODE4, 6: NODE6}
NODE_PORT = 30080
ASK: dict[str, Callable[..., str | None]] = {"tcp": ask_tcp, "udp": ask_udp}
Drops = Callable[[int], int]


@pytest.fixture(scope="module", autouse=True)
def masquerading(lab: Lab, pair: tuple[Pod, Pod]) -> Iterator[None]:
    """A service and a node port that lead to two/b; what they translate gets the node's address."""
    backend = pair[1]
    tables = []
    for family, ip in ((4, "ip"), (6, "ip6")):
        there = backend.address(family)
        to = f"{there}:80" if family == 4 else f"[{there}]:80"
        tables.append(f"""
table {ip} services {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    {ip} daddr {SERVICE[family]} dnat to {there}
    {ip} daddr {NODE[family]} tcp dport {NODE_PORT} dnat to {to}
    {ip} daddr {NODE[family]} udp dport {NODE_PORT} dnat to {to}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    ct status dnat masquerade
  }}
}}""")
    lab.node_namespace.nft("\n".join(tables))
    with Server(backend.namespace):
        yield
    lab.node_namespace.nft("delete table ip services\ndelete table ip6 services\n")


def _allow(name: str, *peers: Object) -> list[Object]:
    """Ingress of two/b from these peers and nobody else."""
    rules = [{"from": [*peers]}] if peers else []
    spec = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": rules}
    return [manifests.policy("two", name, spec)]


def _pods(app: str) -> Object:
    return {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": app}}}


def _block(*cidrs: str) -> list[Object]:
    return [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]


def _denied_identity(lab: Lab, address: str) -> int:
    """Whom the last denied packet with this source address was taken for."""

    def last() -> list[int]:
        flows = lab.agent.flows()
        return [f.source.identity for f in flows if f.source.address == address and f.drop_reason]

    return lab.agent.wait(last, f"a drop from {address} to be told")[-1]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ASK)
def test_node_reaches_isolated_pods(
    clean_lab: Lab, pair: tuple[Pod, Pod], protocol: str, family: int
) -> None:
    """A kubelet's probe, or any host-network process: no policy is asked."""
    clean_lab.set_policies(_allow(f"nobody-{protocol}-{family}"))
    pod = pair[1]
    assert ASK[protocol](clean_lab.node_namespace, pod.address(family)) == NODE[family]
    rows = clean_lab.agent.cli_json("bpf", "ct", "list")
    remote = [r for r in rows if r["remote"] == NODE[family] and r["local"] == pod.address(family)]
    assert remote
    assert {row["rule"] for row in remote} == {RULE_NODE}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ASK)
def test_pod_reaches_its_node_though_isolated(
    clean_lab: Lab, pair: tuple[Pod, Pod], protocol: str, family: int
) -> None:
    """Traffic to the pod's own node is always allowed."""
    spec = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    clean_lab.set_policies([manifests.policy("one", f"closed-{protocol}-{family}", spec)])
    pod = pair[0]
    with Server(clean_lab.node_namespace, (8081,)):
        seen = ASK[protocol](pod.namespace, NODE[family], 8081)
    assert seen == pod.address(family)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ASK)
def test_masqueraded_pod_is_still_that_pod(
    clean_lab: Lab, pair: tuple[Pod, Pod], protocol: str, family: int
) -> None:
    """The backend sees the node's address, policy sees the pod."""
    client, other = pair[0], clean_lab.add_pod("one", "c", {"app": "c"})
    ask = ASK[protocol]
    clean_lab.set_policies(_allow(f"only-a-{protocol}-{family}", _pods("a")))
    assert ask(client.namespace, SERVICE[family]) == NODE[family]
    assert ask(other.namespace, SERVICE[family]) is None
    identity = clean_lab.agent.endpoint(other.name).identity
    assert _denied_identity(clean_lab, NODE[family]) == identity
    clean_lab.set_policies(
        _allow(f"node-block-{protocol}-{family}", *_block(f"{NODE4}/32", f"{NODE6}/128"))
    )
    assert ask(client.namespace, SERVICE[family]) is None


PEERS: dict[str, tuple[list[Object], bool]] = {
    "all pods": ([{"namespaceSelector": {}}], False),
    "the node's address": (_block(f"{NODE4}/32", f"{NODE6}/128"), False),
    "the sender's own address": (_block(f"{OUTSIDE4}/32", f"{OUTSIDE6}/128"), False),
    "everybody": (_block("0.0.0.0/0", "::/0"), True),
}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("peers", PEERS)
def test_masqueraded_outsider_is_unknown_world(
    clean_lab: Lab, pair: tuple[Pod, Pod], peers: str, family: int
) -> None:
    """Neither the node nor anybody in particular; only a rule for all addresses lets it in."""
    allowed, expected = PEERS[peers]
    name = f"{peers.replace(' ', '-').replace(chr(39), '')}-{family}"
    clean_lab.set_policies(_allow(name, *allowed))
    for ask in ASK.values():
        seen = ask(clean_lab.outside_namespace, NODE[family], NODE_PORT)
        assert seen == (NODE[family] if expected else None)
    if not expected:
        assert _denied_identity(clean_lab, NODE[family]) == WORLD[family]
    # Without the node's translation the address is known.
    straight = ask_udp(clean_lab.outside_namespace, pair[1].address(family))
    assert (straight is not None) == (peers in ("the sender's own address", "everybody"))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("claimed", ["node", "pod", "receiver", "new address of the node"])
def test_uplink_must_not_bear_our_addresses(
    lab: Lab, pair: tuple[Pod, Pod], drops: Drops, claimed: str, family: int
) -> None:
    """Refused with reason 132, whether meant for a pod or for the node; nothing gets through."""
    ip = IP if family == 4 else IPv6
    fresh = "203.0.113.77" if family == 4 else "2001:db8:77::1"
    length = 32 if family == 4 else 128
    source = {
        "node": NODE[family],
        "pod": pair[0].address(family),
        "receiver": pair[1].address(family),
        "new address of the node": fresh,
    }[claimed]
    with (
        Wire(lab.outside_namespace) as outside,
        Wire(lab.node_namespace, UPLINK) as uplink,
        Wire(pair[1].namespace) as inside,
    ):
        ether = Ether(src=outside.mac, dst=uplink.mac)
        frames = [
            bytes(ether / ip(src=source, dst=there) / UDP(sport=5, dport=80) / b"spoofed")
            for there in (pair[1].address(family), NODE[family])
        ]
        if claimed.startswith("new"):
            lab.node_namespace.ip(f"address add {fresh}/{length} dev lo")
            probe = frames[1]

            def refused() -> bool:
                before = drops(INVALID_SOURCE_IP)
                outside.send(probe)
                return drops(INVALID_SOURCE_IP) > before

            lab.agent.wait(refused, f"{fresh} to be known as the node's")
        inside.pending()
        before = drops(INVALID_SOURCE_IP)
        outside.send(*frames)
        assert drops(INVALID_SOURCE_IP) == before + 2
        assert not any(frame.endswith(b"spoofed") for frame in inside.pending())
        if claimed.startswith("new"):
            lab.node_namespace.ip(f"address del {fresh}/{length} dev lo")
