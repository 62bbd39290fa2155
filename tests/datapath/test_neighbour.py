# SPDX-License-Identifier: Apache-2.0
"""ARP and neighbour discovery: every answer, to the bit."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from bpf.layouts import DropReason
from tests.datapath.packets import into, out_of
from tests.datapath.world import OK, REDIRECT, SHOT, World

pytestmark = pytest.mark.kernel

relaxed = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _ask(world: World, **fields: object) -> Ether:
    pod = world.a
    given = {"op": 1, "hwsrc": pod.mac, "psrc": pod.ip4, "pdst": "169.254.1.1",
             "hwdst": "00:00:00:00:00:00", **fields}  # fmt: skip
    return Ether(src=pod.mac, dst="ff:ff:ff:ff:ff:ff") / ARP(**given)


@pytest.mark.parametrize("target", ["169.254.1.1", "10.0.0.2", "192.0.2.10", "203.0.113.9"])
@pytest.mark.parametrize("padding", [0, 18])
def test_arp_is_answered_bit_for_bit(world: World, target: str, padding: int) -> None:
    pod = world.a
    outcome = world.leave(pod, _ask(world, pdst=target) / Raw(bytes(padding)))
    assert outcome.action == REDIRECT
    answer = Ether(src=pod.gateway, dst=pod.mac) / ARP(
        op=2, hwsrc=pod.gateway, psrc=target, hwdst=pod.mac, pdst=pod.ip4
    )
    assert outcome.frame == bytes(answer) + bytes(padding)
    assert not outcome.counted
    # The answer passes the pod's own egress hook.
    assert world.enter(pod, outcome.frame, sender=pod.ifindex).action == OK


def test_arp_probes_and_announcements_of_the_own_address(world: World) -> None:
    """RFC 5227: silence means that the address is free."""
    for source in ("0.0.0.0", world.a.ip4):
        frame = _ask(world, psrc=source, pdst=world.a.ip4)
        outcome = world.leave(world.a, frame)
        assert outcome.action == OK
        assert outcome.frame == bytes(frame)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"psrc": "10.0.0.2"}, DropReason.DROP_INVALID_SOURCE_IP),
        ({"psrc": "169.254.1.1", "op": 2}, DropReason.DROP_INVALID_SOURCE_IP),
        ({"hwsrc": "02:00:00:00:01:02"}, DropReason.DROP_INVALID_SOURCE_MAC),
        ({"hwtype": 6}, DropReason.DROP_INVALID_PACKET),
        ({"ptype": 0x86DD}, DropReason.DROP_INVALID_PACKET),
        ({"hwlen": 8}, DropReason.DROP_INVALID_PACKET),
        ({"plen": 16}, DropReason.DROP_INVALID_PACKET),
    ],
)
def test_forged_arp(world: World, fields: dict[str, object], reason: DropReason) -> None:
    assert world.leave(world.a, _ask(world, **fields)).dropped == reason


def test_cut_arp(world: World) -> None:
    whole = bytes(_ask(world))
    for size in range(14, 42):
        assert world.leave(world.a, whole[:size]).dropped == DropReason.DROP_INVALID_PACKET


def _solicit(world: World, target: str, source: str = "", option: bool = True) -> Ether:
    pod = world.a
    packet = IPv6(src=source or pod.ip6, dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt=target)
    return out_of(pod, packet / ICMPv6NDOptSrcLLAddr(lladdr=pod.mac) if option else packet)


@relaxed
@given(st.ip_addresses(v=6), st.booleans(), st.sampled_from(["", "fe80::5"]))
def test_solicitations_are_answered_bit_for_bit(
    world: World, address: object, option: bool, source: str
) -> None:
    pod, target = world.a, str(address)
    assume(target not in (pod.ip6, source))
    assume(not target.startswith("ff") and IPv6Address(target).ipv4_mapped is None)
    outcome = world.leave(pod, _solicit(world, target, source, option))
    assert outcome.action == REDIRECT
    # scapy computes length and checksum itself.
    answer = (
        Ether(src=pod.gateway, dst=pod.mac)
        / IPv6(src=target, dst=source or pod.ip6, hlim=255)
        / ICMPv6ND_NA(R=0, S=1, O=1, tgt=target)
        / ICMPv6NDOptDstLLAddr(lladdr=pod.gateway)
    )
    assert outcome.frame == bytes(answer)
    assert not outcome.counted
    assert world.enter(pod, outcome.frame, sender=pod.ifindex).action == OK


def test_duplicate_detection_is_met_with_silence(world: World) -> None:
    own = world.a.ip6
    for frame in (_solicit(world, own, "::", False), _solicit(world, "fe80::5", "::", False),
                  _solicit(world, own), _solicit(world, "fe80::5", "fe80::5")):  # fmt: skip
        outcome = world.leave(world.a, frame)
        assert outcome.action == OK
        assert outcome.frame == bytes(frame)


def test_what_a_pod_may_not_say(world: World) -> None:
    pod = world.a
    head = IPv6(src=pod.ip6, dst="ff02::1", hlim=255)
    for message in (ICMPv6ND_RA(), ICMPv6ND_Redirect(tgt="fe80::9", dst=pod.ip6)):
        assert world.leave(pod, out_of(pod, head / message)).dropped == (
            DropReason.DROP_FORBIDDEN_ICMP6
        )
    for message in (ICMPv6ND_RS(), ICMPv6ND_NA(tgt=pod.ip6), ICMPv6ND_NA(tgt="fe80::5")):
        assert world.leave(pod, out_of(pod, head / message)).action == OK
    lie = head / ICMPv6ND_NA(tgt=world.b.ip6)
    assert world.leave(pod, out_of(pod, lie)).dropped == DropReason.DROP_INVALID_SOURCE_IP
    # RFC 4861: from this link, and RFC 6980: in one piece.
    far = IPv6(src=pod.ip6, dst="ff02::1", hlim=254) / ICMPv6ND_NS(tgt="fe80::1")
    wrapped = head / IPv6ExtHdrDestOpt() / ICMPv6ND_NS(tgt="fe80::1")
    coded = head / ICMPv6ND_NS(tgt="fe80::1", code=1)
    for packet in (far, wrapped, coded):
        outcome = world.leave(pod, out_of(pod, packet))
        assert outcome.dropped == DropReason.DROP_FORBIDDEN_ICMP6


def test_cut_solicitations(world: World) -> None:
    body = bytes(ICMPv6ND_NS(tgt="fe80::1"))
    for size in range(4, 24):
        packet = IPv6(src=world.a.ip6, dst="ff02::1:ff00:1", hlim=255, nh=58) / Raw(body[:size])
        outcome = world.leave(world.a, out_of(world.a, packet))
        assert outcome.dropped == DropReason.DROP_CT_INVALID_HEADER
    whole = bytes(_solicit(world, "fe80::1"))
    for size in range(54, len(whole)):
        assert world.leave(world.a, whole[:size]).action == SHOT


def test_answers_for_pods_come_from_the_node_alone(world: World) -> None:
    packet = IPv6(src="fe80::1", dst=world.a.ip6, hlim=255) / ICMPv6ND_NS(tgt=world.a.ip6)
    assert world.enter(world.a, into(world.a, packet)).action == OK
    outcome = world.enter(world.a, into(world.a, packet), sender=world.b.ifindex)
    assert outcome.dropped == DropReason.DROP_FORBIDDEN_ICMP6
