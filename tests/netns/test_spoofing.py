# SPDX-License-Identifier: Apache-2.0
"""What a pod may claim to be: its own addresses at its own MAC address, and what RFCs ask for."""

from collections.abc import Callable, Iterator

import pytest
from scapy.layers.dhcp import BOOTP
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    IPv6,
    IPv6ExtHdrHopByHop,
    RouterAlert,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether

from bench.lab.node import Lab
from bench.lab.station import FAR4, FAR6, NODE4, NODE6, Pod
from bench.lab.wire import Wire, host_mac, pod_mac

pytestmark = pytest.mark.kernel

INVALID_SOURCE_MAC, INVALID_SOURCE_IP = 130, 132
INVALID_PACKET, UNSUPPORTED_L3, VLAN_FILTERED = 134, 139, 182
REASONS = (130, 132, 133, 134, 135, 139, 176, 182)
COPIES = 3

Drops = Callable[[int], int]
Build = Callable[[Pod, Pod], Ether]


@pytest.fixture(scope="module")
def wires(pair: tuple[Pod, Pod]) -> Iterator[tuple[Wire, Wire]]:
    with Wire(pair[0].namespace) as sender, Wire(pair[1].namespace) as receiver:
        yield sender, receiver


def _ether(pod: Pod) -> Ether:
    return Ether(src=pod_mac(pod), dst=host_mac(pod))


REFUSED: dict[str, tuple[int, Build]] = {
    "ipv4 of another pod": (
        INVALID_SOURCE_IP,
        lambda a, b: _ether(a) / IP(src=b.ipv4, dst=b.ipv4) / UDP(dport=80),
    ),
    "ipv4 of the node": (
        INVALID_SOURCE_IP,
        lambda a, b: _ether(a) / IP(src=NODE4, dst=b.ipv4) / UDP(dport=80),
    ),
    "ipv4 of the world": (
        INVALID_SOURCE_IP,
        lambda a, b: _ether(a) / IP(src=FAR4, dst=b.ipv4) / TCP(dport=80),
    ),
    "ipv4 loopback": (
        INVALID_SOURCE_IP,
        lambda a, b: _ether(a) / IP(src="127.0.0.1", dst=b.ipv4) / UDP(dport=80),
    ),
    "ipv4 unspecified, not DHCP": (
        INVALID_SOURCE_IP,
        lambda a, b: _ether(a) / IP(src="0.0.0.0", dst=b.ipv4) / UDP(dport=80),
    ),
    "ipv4 of a neighbour, ICMP": (
        INVALID_SOURCE_IP,
        lambda a, b: _ether(a) / IP(src=b.ipv4, dst=a.ipv4) / ICMP(),
    ),
    "ipv6 of another pod": (
        INVALID_SOURCE_IP,
        lambda a, b: _ether(a) / IPv6(src=b.ipv6, dst=b.ipv6) / UDP(dport=80),
    ),
    "ipv6 of the node": (
        INVALID_SOURCE_IP,
        lambda a, b: _ether(a) / IPv6(src=NODE6, dst=b.ipv6) / UDP(dport=80),
    ),
    "ipv6 of the world": (
        INVALID_SOURCE_IP,
        lambda a, b: _ether(a) / IPv6(src=FAR6, dst=b.ipv6) / TCP(dport=80),
    ),
    "ipv6 loopback": (
        INVALID_SOURCE_IP,
        lambda a, b: _ether(a) / IPv6(src="::1", dst=b.ipv6) / UDP(dport=80),
    ),
    "ipv6 unspecified": (
        INVALID_SOURCE_IP,
        lambda a, b: _ether(a) / IPv6(src="::", dst=b.ipv6) / UDP(dport=80),
    ),
    "ipv4 in ipv6": (
        INVALID_PACKET,  # no such address is on any wire, whoever sends it
        lambda a, b: _ether(a) / IPv6(src=f"::ffff:{a.ipv4}", dst=b.ipv6) / UDP(dport=80),
    ),
    "link-local beyond the link": (
        INVALID_SOURCE_IP,
        lambda a, b: _ether(a) / IPv6(src="fe80::5", dst=b.ipv6) / ICMPv6EchoRequest(),
    ),
    "mac of another pod, ipv4": (
        INVALID_SOURCE_MAC,
        lambda a, b: Ether(src=pod_mac(b), dst=host_mac(a)) / IP(src=a.ipv4, dst=b.ipv4) / UDP(),
    ),
    "mac of another pod, ipv6": (
        INVALID_SOURCE_MAC,
        lambda a, b: Ether(src=pod_mac(b), dst=host_mac(a)) / IPv6(src=a.ipv6, dst=b.ipv6) / UDP(),
    ),
    "mac of the gateway": (
        INVALID_SOURCE_MAC,
        lambda a, b: Ether(src=host_mac(a), dst=host_mac(a)) / IP(src=a.ipv4, dst=b.ipv4) / UDP(),
    ),
    "mac in ARP": (
        INVALID_SOURCE_MAC,
        lambda a, b: _ether(a) / ARP(hwsrc=pod_mac(b), psrc=a.ipv4, pdst="169.254.1.1"),
    ),
    "address in ARP": (
        INVALID_SOURCE_IP,
        lambda a, b: _ether(a) / ARP(hwsrc=pod_mac(a), psrc=b.ipv4, pdst="169.254.1.1"),
    ),
    "vlan tag": (
        VLAN_FILTERED,
        lambda a, b: _ether(a) / Dot1Q(vlan=5) / IP(src=a.ipv4, dst=b.ipv4) / UDP(dport=80),
    ),
    "no IP at all": (
        UNSUPPORTED_L3,
        lambda a, b: Ether(src=pod_mac(a), dst=host_mac(a), type=0x88B5) / (b"." * 46),
    ),
}

ALLOWED: dict[str, Build] = {
    "own ipv4": lambda a, b: _ether(a) / IP(src=a.ipv4, dst=b.ipv4) / UDP(sport=7, dport=7),
    "own ipv6": lambda a, b: _ether(a) / IPv6(src=a.ipv6, dst=b.ipv6) / UDP(sport=7, dport=7),
    # RFC 2131, section 4.1
    "DHCP without an address": lambda a, b: (
        Ether(src=pod_mac(a), dst="ff:ff:ff:ff:ff:ff")
        / IP(src="0.0.0.0", dst="255.255.255.255")
        / UDP(sport=68, dport=67)
        / BOOTP()
    ),
    # RFC 3590, section 4
    "MLD without an address": lambda a, b: (
        Ether(src=pod_mac(a), dst="33:33:00:00:00:16")
        / IPv6(src="::", dst="ff02::16", hlim=1)
        / IPv6ExtHdrHopByHop(options=[RouterAlert()])
        / ICMPv6MLReport2()
    ),
    # RFC 4291, section 2.5.6
    "link-local within the link": lambda a, b: (
        _ether(a) / IPv6(src="fe80::5", dst="fe80::1") / ICMPv6EchoRequest()
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_foreign_source_is_refused(
    wires: tuple[Wire, Wire], pair: tuple[Pod, Pod], drops: Drops, name: str
) -> None:
    """Each copy is dropped with its reason and counted once; nothing of it reaches the pod."""
    reason, build = REFUSED[name]
    frame = build(*pair)
    sender, receiver = wires
    before = {each: drops(each) for each in REASONS}
    receiver.pending()
    for _ in range(COPIES):
        sender.send(bytes(frame))
    after = {each: drops(each) for each in REASONS}
    assert after == before | {reason: before[reason] + COPIES}
    payload = bytes(frame)[14:]
    assert [f for f in receiver.pending() if f[14:] == payload] == []


@pytest.mark.parametrize("name", ALLOWED)
def test_legitimate_source_passes(
    lab: Lab, wires: tuple[Wire, Wire], pair: tuple[Pod, Pod], drops: Drops, name: str
) -> None:
    """The pod's own addresses, and those that protocols use before or beside it."""
    frame = bytes(ALLOWED[name](*pair))
    before = {each: drops(each) for each in REASONS}
    forwarded = lab.agent.metric("bristle_forward_count_total")
    wires[0].send(frame)
    assert {each: drops(each) for each in REASONS} == before
    if name.startswith("own"):
        assert wires[1].receive(lambda got: got[14:] == frame[14:]) is not None
        assert lab.agent.metric("bristle_forward_count_total") > forwarded
