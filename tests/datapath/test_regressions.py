# SPDX-License-Identifier: Apache-2.0
"""Bypasses, wrong drops and wrong ways that the programs once had, one test each."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLReport,
    ICMPv6ND_NA,
    ICMPv6ND_RS,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    PadN,
)
from scapy.layers.sctp import SCTP, SCTPChunkInit
from scapy.packet import Raw

from bpf.layouts import CtFlag, DropReason
from tests.datapath.packets import (
    CLIENT,
    SERVER,
    arriving,
    datagram,
    into,
    network,
    out_of,
    reply,
    request,
)
from tests.datapath.world import (
    MARK,
    OK,
    OUTSIDE4,
    OUTSIDE6,
    PRIORITY,
    REDIRECT,
    ROUTER4,
    ROUTER6,
    SHOT,
    WORLD4,
    World,
    node,
    outside,
)

pytestmark = pytest.mark.kernel


def _unreachable(world: World, version: int, source: str, quoted: Any) -> Any:
    """An ICMP error to the sender of the quoted packet."""
    if version == 4:
        return IP(src=source, dst=quoted.src) / ICMP(type=3, code=4) / Raw(bytes(quoted))
    return IPv6(src=source, dst=quoted.src) / ICMPv6PacketTooBig() / Raw(bytes(quoted))


# ---- policy bypassed ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mld", "router-solicitation", "advertisement"])
def test_link_messages_do_not_leave_the_link(world: World, kind: str) -> None:
    """MLD, router solicitations and advertisements are no way past an egress policy."""
    world.enforce(world.a, egress=True)
    messages = {
        "mld": IPv6(src=world.a.ip6, dst=OUTSIDE6, hlim=64) / ICMPv6MLReport() / Raw(b"secret"),
        "router-solicitation": IPv6(src=world.a.ip6, dst=OUTSIDE6, hlim=255)
        / ICMPv6ND_RS() / Raw(b"secret"),
        "advertisement": IPv6(src=world.a.ip6, dst=OUTSIDE6, hlim=255)
        / ICMPv6ND_NA(tgt=world.a.ip6) / Raw(b"secret"),
    }  # fmt: skip
    assert world.leave(world.a, out_of(world.a, messages[kind])).action == SHOT


@pytest.mark.parametrize("version", [4, 6])
def test_another_pod_cannot_forge_a_related_error(world: World, version: int) -> None:
    """A pod is no router: its errors about others' connections pass no ingress policy."""
    a, b, c = world.pods
    first = request("tcp", a.ip(version), b.ip(version))
    assert world.leave(a, out_of(a, first)).action == REDIRECT
    world.enforce(a, ingress=True)
    forged = _unreachable(world, version, c.ip(version), first)
    outcome = world.leave(c, out_of(c, forged))
    assert outcome.dropped == DropReason.DROP_POLICY_DENIED


@pytest.mark.parametrize("version", [4, 6])
def test_a_related_error_renews_the_verdict_of_its_connection(world: World, version: int) -> None:
    """After a policy change the error is judged as its connection, so that one allowed protocol
    (ICMP) never renews another's entry.
    """
    a, b, _ = world.pods
    world.enforce(a, egress=True)
    protocol = 1 if version == 4 else 58
    peer_class = b.class4 if version == 4 else b.class6
    key = world.rule(a.egress_table, peer_class, 6, SERVER)
    world.rule(a.egress_table, peer_class, protocol)
    first = request("tcp", a.ip(version), b.ip(version))
    assert world.leave(a, out_of(a, first)).action == REDIRECT
    world.maps["policy"].delete(key)
    world.bump()
    error = _unreachable(world, version, b.ip(version), first)
    world.leave(b, out_of(b, error))
    assert world.leave(a, out_of(a, request("tcp", a.ip(version), b.ip(version), flags="A"))
                       ).dropped == DropReason.DROP_POLICY_DENIED  # fmt: skip


def test_an_unknown_sender_is_in_no_block_that_policies_name(world: World) -> None:
    """A source translated to the node's address is in no block but that of the whole family."""
    world.peer("0.0.0.0/1", 299, 9)
    world.enforce(world.a, ingress=True)
    world.rule(world.a.ingress_table, 299)
    packet = into(world.a, request("tcp", node(4), world.a.ip4))
    outcome = world.enter(world.a, packet, sender=world.uplink)
    assert outcome.action == SHOT
    world.rule(world.a.ingress_table, WORLD4)
    assert world.enter(world.a, packet, sender=world.uplink).action == OK


@pytest.mark.parametrize("version", [4, 6])
def test_an_echo_request_is_no_reply(world: World, version: int) -> None:
    """With identifier 0 both directions have one key."""
    a, b, _ = world.pods
    world.enforce(a, ingress=True)

    def ping(source: str, destination: str) -> Any:
        body = ICMP(type=8, id=0) if version == 4 else ICMPv6EchoRequest(id=0)
        return network(source, destination) / body

    assert world.leave(a, out_of(a, ping(a.ip(version), b.ip(version)))).action == REDIRECT
    assert world.leave(b, out_of(b, ping(b.ip(version), a.ip(version)))).action == SHOT


@pytest.mark.parametrize("version", [4, 6])
def test_an_sctp_association_from_the_other_side_is_new(world: World, version: int) -> None:
    """INIT is to SCTP what SYN is to TCP; ports are often equal on both sides."""
    a, b, _ = world.pods
    world.enforce(a, ingress=True)
    there = network(a.ip(version), b.ip(version)) / SCTP(sport=3868, dport=3868)
    back = network(b.ip(version), a.ip(version)) / SCTP(sport=3868, dport=3868)
    init = SCTPChunkInit(init_tag=1)
    assert world.leave(a, out_of(a, there / init)).action == REDIRECT
    assert world.leave(b, out_of(b, back / init)).action == SHOT


# ---- fragments ----------------------------------------------------------------------------------


def test_an_overlap_with_extension_headers_is_refused(world: World) -> None:
    """RFC 5722: what a first fragment covers begins behind its fragment header."""
    a, b, _ = world.pods
    options = IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(28))], nh=17)
    first = (
        IPv6(src=a.ip6, dst=b.ip6) / IPv6ExtHdrFragment(id=9, offset=0, m=1, nh=60)
        / options / UDP(sport=CLIENT, dport=SERVER, len=200) / Raw(bytes(24))
    )  # fmt: skip
    covered = len(bytes(options)) + 8 + 24
    assert covered % 8 == 0
    assert world.leave(a, out_of(a, first)).action == REDIRECT
    for offset in range(8, covered, 8):
        later = (
            IPv6(src=a.ip6, dst=b.ip6)
            / IPv6ExtHdrFragment(id=9, offset=offset // 8, m=1, nh=60) / Raw(bytes(64))
        )  # fmt: skip
        outcome = world.leave(a, out_of(a, later))
        assert outcome.action == SHOT, f"offset {offset} of {covered} covered bytes"
        assert outcome.dropped == DropReason.DROP_FRAGMENT_NOT_FOUND


def test_a_second_first_fragment_of_another_protocol_is_refused(world: World) -> None:
    """IPv6 tells datagrams apart without the protocol."""
    a, b, _ = world.pods
    for body, expected in ((UDP(sport=CLIENT, dport=SERVER) / Raw(bytes(16)), REDIRECT),
                           (SCTP(sport=CLIENT, dport=SERVER) / Raw(bytes(12)), SHOT)):  # fmt: skip
        frame = IPv6(src=a.ip6, dst=b.ip6) / IPv6ExtHdrFragment(id=9, m=1) / body
        assert world.leave(a, out_of(a, frame)).action == expected


# ---- headers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_options_must_be_there(world: World, version: int) -> None:
    """A header that says it is longer than the packet."""
    a, b, _ = world.pods
    frame = network(a.ip(version), b.ip(version)) / TCP(dport=SERVER, dataofs=15, flags="S")
    assert world.leave(a, out_of(a, frame)).action == SHOT


@pytest.mark.parametrize("size", [4, 5, 6, 7])
def test_a_cut_icmpv6_header(world: World, size: int) -> None:
    """RFC 4443: every message has eight bytes."""
    a, b, _ = world.pods
    body = bytes(ICMPv6EchoRequest(id=1, seq=1))[:size]
    frame = IPv6(src=a.ip6, dst=b.ip6, nh=58) / Raw(body)
    assert world.leave(a, out_of(a, frame)).dropped == DropReason.DROP_CT_INVALID_HEADER


def test_ipv6_with_a_mapped_address_is_refused(world: World) -> None:
    """In every table a mapped address is the IPv4 one; on the wire there is none."""
    a, b, _ = world.pods
    frame = IPv6(src=a.ip6, dst=f"::ffff:{b.ip4}") / UDP(sport=CLIENT, dport=SERVER)
    assert world.leave(a, out_of(a, frame)).action == SHOT
    world.peer("198.51.100.0/24", 298, 9)
    world.enforce(a, ingress=True)
    world.rule(a.ingress_table, 298)
    frame = IPv6(src=f"::ffff:{OUTSIDE4}", dst=a.ip6) / UDP(sport=CLIENT, dport=SERVER)
    assert world.arrive(arriving(frame)).action == SHOT


def test_large_ipv4_segments_without_a_length(world: World) -> None:
    """IPv4 BIG TCP."""
    a, b, _ = world.pods
    first = request("tcp", a.ip4, b.ip4)
    assert world.leave(a, out_of(a, first)).action == REDIRECT
    frame = out_of(a, IP(src=a.ip4, dst=b.ip4, len=0) / TCP(sport=CLIENT, dport=SERVER, flags="A")
                   / Raw(bytes(2896)))  # fmt: skip
    outcome = world.leave(a, frame, gso_size=1448, gso_segments=2)
    assert outcome.action == REDIRECT


# ---- wrong drops and wrong ways -----------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_a_related_error_is_judged_by_its_connection(world: World, version: int) -> None:
    """Path MTU discovery goes on over a policy change that allows TCP alone."""
    a, b, _ = world.pods
    world.enforce(a, egress=True)
    world.rule(a.egress_table, b.class4 if version == 4 else b.class6, 6, SERVER)
    first = request("tcp", a.ip(version), b.ip(version))
    assert world.leave(a, out_of(a, first)).action == REDIRECT
    world.bump()
    error = _unreachable(world, version, b.ip(version), first)
    assert world.leave(b, out_of(b, error)).action == REDIRECT


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", ["udp", "other"])
def test_what_is_allowed_for_itself_needs_no_reply(world: World, version: int, kind: str) -> None:
    """A -> B is denied now, B -> A is allowed by itself."""
    a, b, _ = world.pods
    first = request(kind, a.ip(version), b.ip(version))
    assert world.leave(a, out_of(a, first)).action == REDIRECT
    world.enforce(a, egress=True)
    world.bump()
    assert world.leave(a, out_of(a, first)).dropped == DropReason.DROP_POLICY_DENIED
    back = reply(kind, b.ip(version), a.ip(version))
    assert world.leave(b, out_of(b, back)).action == REDIRECT


@pytest.mark.parametrize("version", [4, 6])
def test_large_replies_leave_as_small_ones_do(world: World, version: int) -> None:
    """A super-packet is as long on the wire as its segments."""
    a = world.a
    opening = request("tcp", outside(version), a.ip(version))
    assert world.arrive(arriving(opening)).action == REDIRECT
    answer = reply("tcp", a.ip(version), outside(version))
    assert world.leave(a, out_of(a, answer)).action == REDIRECT
    large = datagram("tcp", a.ip(version), outside(version), sport=SERVER, dport=CLIENT,
                     flags="A") / Raw(bytes(2800))  # fmt: skip
    outcome = world.leave(a, out_of(a, large), gso_size=1400, gso_segments=2)
    assert outcome.action == REDIRECT


@pytest.mark.parametrize("version", [4, 6])
def test_an_error_leaves_the_way_its_connection_came(world: World, version: int) -> None:
    """Past a connection tracking that saw none of it."""
    a = world.a
    opening = request("udp", outside(version), a.ip(version))
    assert world.arrive(arriving(opening)).action == REDIRECT
    error = _unreachable(world, version, a.ip(version), opening)
    assert world.leave(a, out_of(a, error)).action == REDIRECT


def test_a_new_connection_does_not_take_the_old_ones_way(world: World) -> None:
    """The way and the entry's flag agree, also over the remains of another connection."""
    a, b, _ = world.pods
    # B opened it through the stack (a service), and it was reset.
    opening = request("tcp", b.ip4, a.ip4)
    assert world.enter(a, into(a, opening), sender=b.ifindex).action == OK
    reset = datagram("tcp", b.ip4, a.ip4, flags="R")
    assert world.enter(a, into(a, reset), sender=b.ifindex).action == OK
    back = datagram("tcp", a.ip4, b.ip4, sport=SERVER, dport=CLIENT, flags="S")
    outcome = world.leave(a, out_of(a, back))
    entry = world.connection(a, b.ip4, 6, SERVER, CLIENT)
    assert entry is not None
    assert (outcome.action == OK) == bool(entry.flags & CtFlag.CT_VIA_STACK)


@pytest.mark.parametrize("version", [4, 6])
def test_a_quote_with_extension_headers_or_options(world: World, version: int) -> None:
    """Quotes are walked like packets."""
    a = world.a
    if version == 4:
        inner: Any = IP(src=a.ip4, dst=OUTSIDE4, options=[b"\1\1\1\1"])
    else:
        inner = IPv6(src=a.ip6, dst=OUTSIDE6) / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(4))])
    first = inner / TCP(sport=CLIENT, dport=SERVER, flags="S")
    assert world.leave(a, out_of(a, first)).action == OK
    world.enforce(a, ingress=True)
    router = ROUTER4 if version == 4 else ROUTER6
    quote = IP(bytes(first)) if version == 4 else IPv6(bytes(first))
    error = _unreachable(world, version, router, quote)
    assert world.enter(a, into(a, error), sender=world.uplink).action == OK


@pytest.mark.parametrize("program", ["from_pod", "to_pod"])
def test_a_probe_of_an_unknown_device_leaves_no_trace(world: World, program: str) -> None:
    """Nor is it answered with reason 0."""
    world.clear("devices")
    frame = out_of(world.a, request("tcp", world.a.ip4, world.b.ip4))
    outcome = world.run(program, frame, world.a.ifindex, mark=MARK, priority=PRIORITY)
    assert outcome.action == SHOT
    assert not outcome.counted
    assert not outcome.events
    assert outcome.cb[3] == DropReason.DROP_ENDPOINT_NOT_READY
