# SPDX-License-Identifier: Apache-2.0
"""A pod's only neighbour is its gateway, which answers for every address but the pod's own."""

import json
from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    in6_getnsma,
    in6_getnsmac,
)
from scapy.layers.l2 import ARP, Ether
from scapy.utils6 import inet_pton

from bench.lab import manifests
from bench.lab.node import Lab
from bench.lab.station import Pod
from bench.lab.talk import Server, ask_udp
from bench.lab.wire import Wire, host_mac, pod_mac

pytestmark = pytest.mark.kernel

FORBIDDEN_ICMP6 = 176
SILENCE = 0.2
Drops = Callable[[int], int]


@pytest.fixture(scope="module")
def wire(pair: tuple[Pod, Pod]) -> Iterator[Wire]:
    with Wire(pair[0].namespace) as made:
        yield made


def _arp(pod: Pod, sender: str, target: str) -> bytes:
    ether = Ether(src=pod_mac(pod), dst="ff:ff:ff:ff:ff:ff")
    return bytes(ether / ARP(op=1, hwsrc=pod_mac(pod), psrc=sender, pdst=target))


def _is_arp(frame: bytes) -> bool:
    return frame[12:14] == b"\x08\x06"


def _solicitation(pod: Pod, source: str, target: str, hop_limit: int = 255) -> bytes:
    group = inet_pton(10, target)
    ether = Ether(src=pod_mac(pod), dst=in6_getnsmac(in6_getnsma(group)))
    ip = IPv6(src=source, dst="ff02::1:ff" + target_suffix(target), hlim=hop_limit)
    option = ICMPv6NDOptSrcLLAddr(lladdr=pod_mac(pod)) if source != "::" else b""
    return bytes(ether / ip / ICMPv6ND_NS(tgt=target) / option)


def target_suffix(target: str) -> str:
    """Last 24 bits of an address as in a solicited-node group (RFC 4291, section 2.7.1)."""
    last = inet_pton(10, target)[-3:].hex()
    return f"{last[:2]}:{last[2:]}"


def _is_advertisement(frame: bytes) -> bool:
    return ICMPv6ND_NA in Ether(frame)


@pytest.mark.parametrize("target", ["169.254.1.1", "10.244.1.250", "192.0.2.1", "203.0.113.9"])
def test_arp_is_answered_by_the_gateway(pair: tuple[Pod, Pod], wire: Wire, target: str) -> None:
    """Whatever address is asked for: everything is behind the gateway (RFC 826)."""
    pod = pair[0]
    wire.send(_arp(pod, pod.ipv4, target))
    frame = wire.receive(_is_arp)
    assert frame is not None
    answer = Ether(frame)
    assert (answer.src, answer.dst) == (host_mac(pod), pod_mac(pod))
    assert (answer[ARP].op, answer[ARP].hwsrc, answer[ARP].psrc) == (2, host_mac(pod), target)
    assert (answer[ARP].hwdst, answer[ARP].pdst) == (pod_mac(pod), pod.ipv4)


@pytest.mark.parametrize("sender", ["0.0.0.0", "own"])
def test_arp_for_the_own_address_is_not_answered(
    pair: tuple[Pod, Pod], wire: Wire, sender: str
) -> None:
    """Probe and announcement (RFC 5227): an answer would mean that the address is taken."""
    pod = pair[0]
    wire.pending()
    wire.send(_arp(pod, pod.ipv4 if sender == "own" else sender, pod.ipv4))
    assert wire.receive(_is_arp, SILENCE) is None


@pytest.mark.parametrize("target", ["fe80::1", "2001:db8:1::1", "fd00:10:244:1::fa", "2001:db8::9"])
def test_solicitation_is_answered_by_the_gateway(
    pair: tuple[Pod, Pod], wire: Wire, target: str
) -> None:
    """RFC 4861, section 7.2.4: solicited, with the gateway's link-layer address, checksum right."""
    pod = pair[0]
    wire.send(_solicitation(pod, pod.ipv6, target))
    frame = wire.receive(_is_advertisement)
    assert frame is not None
    answer = Ether(frame)
    assert (answer.src, answer.dst) == (host_mac(pod), pod_mac(pod))
    assert (answer[IPv6].src, answer[IPv6].dst, answer[IPv6].hlim) == (target, pod.ipv6, 255)
    advertisement = answer[ICMPv6ND_NA]
    assert (advertisement.tgt, advertisement.S, advertisement.O) == (target, 1, 1)
    assert answer[ICMPv6NDOptDstLLAddr].lladdr == host_mac(pod)
    again = Ether(frame)
    del again[ICMPv6ND_NA].cksum
    assert bytes(again) == frame


@pytest.mark.parametrize("source", ["::", "own"])
def test_solicitation_for_the_own_address_is_not_answered(
    pair: tuple[Pod, Pod], wire: Wire, source: str
) -> None:
    """Duplicate detection (RFC 4862): silence means that nobody else has the address."""
    pod = pair[0]
    wire.pending()
    wire.send(_solicitation(pod, pod.ipv6 if source == "own" else source, pod.ipv6))
    assert wire.receive(_is_advertisement, SILENCE) is None


def test_pods_neither_route_nor_redirect(
    lab: Lab, pair: tuple[Pod, Pod], wire: Wire, drops: Drops
) -> None:
    """Router advertisements and redirects are refused, as is what did not come from the link."""
    pod, other = pair
    ether = Ether(src=pod_mac(pod), dst=host_mac(pod))
    link = IPv6(src="fe80::5", dst="ff02::1", hlim=255)
    before = drops(FORBIDDEN_ICMP6)
    wire.send(
        bytes(ether / link / ICMPv6ND_RA()),
        bytes(ether / link / ICMPv6ND_Redirect(tgt="fe80::5", dst=other.ipv6)),
        _solicitation(pod, pod.ipv6, "fe80::1", hop_limit=64),
    )
    assert drops(FORBIDDEN_ICMP6) == before + 3
    wire.send(bytes(ether / IPv6(src="fe80::5", dst="ff02::2", hlim=255) / ICMPv6ND_RS()))
    assert drops(FORBIDDEN_ICMP6) == before + 3


def test_ipv6_is_usable_when_add_returns(clean_lab: Lab, pair: tuple[Pod, Pod]) -> None:
    """No wait for duplicate detection: no address is tentative, and the first packet arrives."""
    with Server(pair[1].namespace):
        # The agent knows the pod before the runtime asks, as it does on a node.
        clean_lab.change("pod-one-fresh", [manifests.pod("one", "fresh", {"app": "fresh"})])
        pod = clean_lab.add_pod("one", "fresh", manifest=False)
        answer = ask_udp(pod.namespace, pair[1].ipv6)
        shown = pod.namespace.command(["ip", "-j", "-6", "address", "show", "dev", "eth0"])
    assert answer == pod.ipv6
    flags = [entry for link in json.loads(shown) for entry in link["addr_info"]]
    assert [entry["local"] for entry in flags if entry.get("tentative")] == []
    assert pod.ipv6 in [entry["local"] for entry in flags]
