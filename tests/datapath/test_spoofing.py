# SPDX-License-Identifier: Apache-2.0
"""What a pod, the outside and the node may claim to be."""

from __future__ import annotations

import dataclasses

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLReport,
    ICMPv6MLReport2,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    IPv6,
    IPv6ExtHdrHopByHop,
    RouterAlert,
)
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from bpf.layouts import DropReason
from tests.datapath.packets import arriving, into, out_of, request
from tests.datapath.world import (
    NODE4,
    NODE6,
    OK,
    OUTSIDE4,
    OUTSIDE6,
    REDIRECT,
    ROUTER_MAC,
    UPLINK_MAC,
    World,
    node,
    outside,
)

pytestmark = pytest.mark.kernel

LINK_LOCAL = "fe80::5"


@pytest.mark.parametrize(
    "source",
    ["10.0.0.2", "10.0.0.99", NODE4, OUTSIDE4, "0.0.0.0", "127.0.0.1", "169.254.1.1", "224.0.0.1",
     "255.255.255.255", "fd00::2", "fd00::99", NODE6, OUTSIDE6, "::1", "::", "ff02::1",
     "::10.0.0.1"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["tcp", "udp", "sctp", "icmp", "other"])
def test_a_pod_has_no_other_source(world: World, source: str, kind: str) -> None:
    destination = world.b.ip6 if ":" in source else world.b.ip4
    outcome = world.leave(world.a, out_of(world.a, request(kind, source, destination)))
    assert outcome.dropped == DropReason.DROP_INVALID_SOURCE_IP
    assert not world.connections()


@pytest.mark.parametrize("version", [4, 6])
def test_a_pod_without_an_address_of_a_family(world: World, version: int) -> None:
    device = world.maps["devices"].lookup(world.a.ifindex)
    assert device is not None
    without = {f"address{version}": bytes(16)}
    world.maps["devices"].update(world.a.ifindex, dataclasses.replace(device, **without))
    frame = out_of(world.a, request("tcp", world.a.ip(version), world.b.ip(version)))
    assert world.leave(world.a, frame).dropped == DropReason.DROP_INVALID_SOURCE_IP
    other = 10 - version
    frame = out_of(world.a, request("tcp", world.a.ip(other), world.b.ip(other)))
    assert world.leave(world.a, frame).action == REDIRECT
    zero = "0.0.0.0" if version == 4 else "::"
    frame = out_of(world.a, request("tcp", zero, world.b.ip(version)))
    assert world.leave(world.a, frame).dropped == DropReason.DROP_INVALID_SOURCE_IP


@pytest.mark.parametrize("source", ["02:00:00:00:01:02", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"])
def test_a_pod_has_no_other_ethernet_address(world: World, source: str) -> None:
    frame = Ether(src=source, dst=world.a.gateway) / request("udp", world.a.ip4, world.b.ip4)
    assert world.leave(world.a, frame).dropped == DropReason.DROP_INVALID_SOURCE_MAC


def test_a_device_that_is_no_pods(world: World) -> None:
    frame = out_of(world.a, request("udp", world.a.ip4, world.b.ip4))
    world.maps["devices"].delete(world.a.ifindex)
    assert world.leave(world.a, frame).dropped == DropReason.DROP_ENDPOINT_NOT_READY
    assert world.enter(world.a, frame).dropped == DropReason.DROP_ENDPOINT_NOT_READY


@pytest.mark.parametrize("kind", [0x8100, 0x88A8])
def test_vlan_tags_are_refused(world: World, kind: int) -> None:
    frame = Ether(src=world.a.mac, dst=world.a.gateway, type=kind) / Dot1Q(vlan=5) / request(
        "udp", world.a.ip4, world.b.ip4)  # fmt: skip
    assert world.leave(world.a, frame).dropped == DropReason.DROP_VLAN_FILTERED


@pytest.mark.parametrize("kind", [0x8847, 0x88CC, 0x8863, 0x0060])
def test_other_protocols_are_refused(world: World, kind: int) -> None:
    frame = Ether(src=world.a.mac, dst=world.a.gateway, type=kind) / Raw(bytes(60))
    assert world.leave(world.a, frame).dropped == DropReason.DROP_UNSUPPORTED_L3
    assert world.enter(world.a, frame).dropped == DropReason.DROP_UNSUPPORTED_L3
    assert world.arrive(frame).action == OK


def test_dhcp_asks_without_an_address(world: World) -> None:
    def ask(source: int, destination: int) -> int:
        packet = IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=source, dport=destination)
        return world.leave(world.a, out_of(world.a, packet / Raw(bytes(240)))).action

    assert ask(68, 67) == OK
    assert ask(67, 68) != OK
    assert ask(68, 53) != OK
    world.enforce(world.a, egress=True)
    world.forget()
    assert ask(68, 67) != OK  # the source is fine; policy decides as for anything else


def test_link_local_sources_stay_on_the_link(world: World) -> None:
    a = world.a
    for destination, fine in (("ff02::fb", True), ("fe80::1", True), (world.b.ip6, False),
                              (OUTSIDE6, False), (NODE6, False)):  # fmt: skip
        outcome = world.leave(a, out_of(a, request("udp", LINK_LOCAL, destination)))
        assert (outcome.action == OK) == fine, destination
        assert fine or outcome.dropped == DropReason.DROP_INVALID_SOURCE_IP


@pytest.mark.parametrize("source", ["::", LINK_LOCAL])
def test_multicast_listeners_report(world: World, source: str) -> None:
    """RFC 3590 and 3810: also from the unspecified address, and whatever policy says."""
    world.enforce(world.a, egress=True)
    for report in (ICMPv6MLReport2(), ICMPv6MLReport(mladdr="ff02::1:ff00:1")):
        packet = (IPv6(src=source, dst="ff02::16", hlim=1)
                  / IPv6ExtHdrHopByHop(options=[RouterAlert()]) / report)  # fmt: skip
        assert world.leave(world.a, out_of(world.a, packet)).action == OK
    packet = IPv6(src=source, dst="ff02::1") / ICMPv6EchoRequest()
    assert world.leave(world.a, out_of(world.a, packet)).action != OK


@pytest.mark.parametrize("version", [4, 6])
def test_local_sources_do_not_come_from_outside(world: World, version: int) -> None:
    for source in (world.b.ip(version), node(version), world.a.ip(version)):
        for destination in (world.a.ip(version), node(version), outside(version)):
            frame = arriving(request("tcp", source, destination))
            assert world.arrive(frame).dropped == DropReason.DROP_INVALID_SOURCE_IP
    assert not world.connections()


@pytest.mark.parametrize("version", [4, 6])
def test_from_outside_to_whom(world: World, version: int) -> None:
    for destination, action in ((world.a.ip(version), REDIRECT), (node(version), OK),
                                (outside(version), OK)):  # fmt: skip
        frame = arriving(request("tcp", "203.0.113.1" if version == 4 else "2001:db8:7::1",
                                 destination))  # fmt: skip
        assert world.arrive(frame).action == action


@pytest.mark.parametrize("version", [4, 6])
def test_frames_for_other_stations_are_left_alone(world: World, version: int) -> None:
    packet = request("tcp", outside(version), world.a.ip(version))
    frame = Ether(src=ROUTER_MAC, dst="02:00:00:00:0f:99") / packet
    assert world.arrive(frame).action == OK
    assert not world.connections()
    assert world.arrive(Ether(src=ROUTER_MAC, dst=UPLINK_MAC) / packet).action == REDIRECT


def test_link_messages_from_outside_are_not_a_pods(world: World) -> None:
    for message in (ICMPv6ND_RA(), ICMPv6ND_Redirect(tgt="fe80::9"), ICMPv6MLReport()):
        frame = arriving(IPv6(src="fe80::9", dst=world.a.ip6, hlim=255) / message)
        assert world.arrive(frame).action != REDIRECT
        frame = into(world.a, IPv6(src="fe80::9", dst=world.a.ip6, hlim=255) / message)
        outcome = world.enter(world.a, frame, sender=world.uplink)
        assert outcome.dropped == DropReason.DROP_FORBIDDEN_ICMP6
        assert world.enter(world.a, frame).action == OK


@pytest.mark.parametrize("version", [4, 6])
def test_provenance_decides_who_sent_it(world: World, version: int) -> None:
    """Through the stack: nothing of what the source address says counts when a pod sent it."""
    a, b, c = world.pods
    world.enforce(a, ingress=True)
    world.rule(a.ingress_table, b.class4 if version == 4 else b.class6, 6)
    for source in (b.ip(version), c.ip(version), node(version), outside(version)):
        frame = into(a, request("tcp", source, a.ip(version)))
        for sender, passes in ((b.ifindex, True), (c.ifindex, False)):
            world.forget()
            assert (world.enter(a, frame, sender=sender).action == OK) == passes, source
    frame = into(a, request("tcp", b.ip(version), a.ip(version)))
    outcome = world.enter(a, frame, sender=world.uplink)
    assert outcome.dropped == DropReason.DROP_INVALID_SOURCE_IP
    world.rule(a.ingress_table, 1, allow=True, rule=2)
    assert world.enter(a, frame, sender=0).action == OK


@pytest.mark.parametrize("version", [4, 6])
def test_a_pod_reaches_itself_through_the_stack(world: World, version: int) -> None:
    a = world.a
    world.enforce(a, ingress=True)
    frame = into(a, request("tcp", node(version), a.ip(version)))
    assert world.enter(a, frame, sender=a.ifindex).action == OK
