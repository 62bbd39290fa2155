# SPDX-License-Identifier: Apache-2.0
"""Fragments: the first names the ports, the others follow, what could rewrite it is dropped."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.packet import Raw

from bpf.layouts import DropReason
from tests.datapath.packets import (
    PROTOCOLS,
    arriving,
    into,
    number,
    out_of,
    ports,
    request,
    transport,
)
from tests.datapath.world import OK, OUTSIDE6, REDIRECT, SHOT, World, outside

pytestmark = pytest.mark.kernel

families = pytest.mark.parametrize("version", [4, 6])
kinds = pytest.mark.parametrize("kind", PROTOCOLS)
NOT_FOUND = DropReason.DROP_FRAGMENT_NOT_FOUND


def _piece(source: str, destination: str, protocol: int, body: bytes, offset: int, more: bool,
           identifier: int = 9) -> Any:  # fmt: skip
    """One fragment with these bytes, ``offset`` in bytes."""
    if ":" in source:
        return (IPv6(src=source, dst=destination)
                / IPv6ExtHdrFragment(nh=protocol, offset=offset // 8, m=int(more), id=identifier)
                / Raw(body))  # fmt: skip
    return IP(src=source, dst=destination, proto=protocol, id=identifier, frag=offset // 8,
              flags="MF" if more else 0) / Raw(body)  # fmt: skip


def _body(kind: str, version: int, size: int = 64, **more: Any) -> bytes:
    return (bytes(transport(kind, version, **more)) + bytes(size))[:size]


@families
@kinds
def test_later_ones_follow_the_first(world: World, version: int, kind: str) -> None:
    a, b, _ = world.pods
    protocol = number(kind, version)
    world.enforce(b, ingress=True)
    world.rule(b.ingress_table, a.class4 if version == 4 else a.class6, protocol,
               80 if kind in ("tcp", "udp", "sctp") else 0)  # fmt: skip

    def send(body: bytes, offset: int, more: bool, **fields: int) -> Any:
        piece = _piece(a.ip(version), b.ip(version), protocol, body, offset, more, **fields)
        return world.leave(a, out_of(a, piece))

    second, last = (bytes(32), 64, True), (bytes(13), 96, False)
    assert send(*second).dropped == NOT_FOUND
    assert send(_body(kind, version), 0, True).action == REDIRECT
    # In any order, and more than once.
    for piece in (last, second, second, last):
        outcome = send(*piece)
        assert outcome.action == REDIRECT
    assert send(bytes(8), 64, True, identifier=10).dropped == NOT_FOUND
    local, remote = ports(kind)
    entry = world.connection(a, b.ip(version), protocol, local, remote)
    assert entry is not None and entry.packets == (5, 0)
    assert len(world.connections()) == 2
    # Another verdict, now also for what follows.
    world.clear("policy")
    world.bump()
    assert send(*last).dropped == DropReason.DROP_POLICY_DENIED


@families
def test_a_refused_first_one_is_not_remembered(world: World, version: int) -> None:
    a, b, _ = world.pods
    world.enforce(b, ingress=True)
    first = _piece(a.ip(version), b.ip(version), 17, _body("udp", version), 0, True)
    later = _piece(a.ip(version), b.ip(version), 17, bytes(16), 64, False)
    assert world.leave(a, out_of(a, first)).dropped == DropReason.DROP_POLICY_DENIED
    assert world.leave(a, out_of(a, later)).dropped == NOT_FOUND
    assert not world.maps["fragments"].raw_items()


@families
@pytest.mark.parametrize(("kind", "header"), [("tcp", 20), ("udp", 8), ("sctp", 12), ("icmp", 8)])
def test_a_first_one_holds_the_whole_header(
    world: World, version: int, kind: str, header: int
) -> None:
    """RFC 1858, RFC 7112."""
    a, b, _ = world.pods
    for size in (0, 8, 16, 24):
        world.forget()
        body = _body(kind, version, size)
        piece = _piece(a.ip(version), b.ip(version), number(kind, version), body, 0, True)
        outcome = world.leave(a, out_of(a, piece))
        if size < header:
            assert outcome.dropped == NOT_FOUND
        else:
            assert outcome.action == REDIRECT


@families
def test_what_overlaps_the_first_one_is_dropped(world: World, version: int) -> None:
    a, b, _ = world.pods

    def send(body: bytes, offset: int, more: bool = True) -> Any:
        piece = _piece(a.ip(version), b.ip(version), 6, body, offset, more)
        return world.leave(a, out_of(a, piece))

    assert send(_body("tcp", version, 64), 0).action == REDIRECT
    for offset in range(8, 64, 8):
        assert send(bytes(80), offset).dropped == NOT_FOUND
    assert send(bytes(80), 64).action == REDIRECT


@families
@pytest.mark.parametrize("other", [{"sport": 41000}, {"dport": 22}, {"size": 72}])
def test_a_second_first_one_says_the_same(
    world: World, version: int, other: dict[str, int]
) -> None:
    a, b, _ = world.pods

    def send(**fields: int) -> Any:
        body = _body("udp", version, **fields)
        return world.leave(a, out_of(a, _piece(a.ip(version), b.ip(version), 17, body, 0, True)))

    assert send().action == REDIRECT
    assert send().action == REDIRECT
    assert send(**other).dropped == NOT_FOUND
    later = _piece(a.ip(version), b.ip(version), 17, bytes(8), 64, False)
    assert world.leave(a, out_of(a, later)).action == REDIRECT


@families
def test_pieces_that_cannot_be(world: World, version: int) -> None:
    a, b, _ = world.pods
    odd = _piece(a.ip(version), b.ip(version), 17, _body("udp", version, 65), 0, True)
    assert world.leave(a, out_of(a, odd)).dropped == DropReason.DROP_INVALID_PACKET
    # Put together it would be longer than any datagram (ping of death).
    beyond = _piece(a.ip(version), b.ip(version), 17, bytes(64), 65528, False)
    assert world.leave(a, out_of(a, beyond)).dropped == DropReason.DROP_INVALID_PACKET


@families
def test_each_hook_and_pod_knows_its_own(world: World, version: int) -> None:
    a, b, c = world.pods
    first = _piece(outside(version), a.ip(version), 17, _body("udp", version), 0, True)
    later = _piece(outside(version), a.ip(version), 17, bytes(16), 64, False)
    assert world.arrive(arriving(first)).action == REDIRECT
    assert world.enter(a, into(a, later), sender=world.uplink).dropped == NOT_FOUND
    assert world.arrive(arriving(later)).action == REDIRECT
    assert world.enter(a, into(a, first), sender=world.uplink).action == OK
    assert world.enter(a, into(a, later), sender=world.uplink).action == OK
    first = _piece(b.ip(version), a.ip(version), 17, _body("udp", version), 0, True)
    later = _piece(b.ip(version), a.ip(version), 17, bytes(16), 64, False)
    assert world.leave(b, out_of(b, first)).action == REDIRECT
    assert world.leave(c, out_of(c, later)).dropped == DropReason.DROP_INVALID_SOURCE_IP


@families
def test_pieces_of_what_the_stack_translated(world: World, version: int) -> None:
    """The uplink's program leaves a known connection's fragments to the stack: all of them."""
    a = world.a
    assert world.leave(a, out_of(a, request("udp", a.ip(version), outside(version)))).action == OK
    world.enforce(a, ingress=True)
    body = _body("udp", version, sport=80, dport=40000)
    first = _piece(outside(version), a.ip(version), 17, body, 0, True)
    later = _piece(outside(version), a.ip(version), 17, bytes(16), 64, False)
    for wrapped in (first, later):
        assert world.arrive(arriving(wrapped)).action == OK
        assert world.enter(a, into(a, wrapped), sender=world.uplink).action == OK


# ---- IPv6 ---------------------------------------------------------------------------------------

_CHAINS: list[list[Any]] = [
    [IPv6ExtHdrHopByHop()],
    [IPv6ExtHdrDestOpt()],
    [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrDestOpt()],
    [IPv6ExtHdrRouting(addresses=[OUTSIDE6], segleft=0)],
    [IPv6ExtHdrHopByHop(), IPv6ExtHdrFragment(id=5)],  # atomic, RFC 6946
]


@pytest.mark.parametrize("chain", _CHAINS)
@kinds
def test_extension_headers_are_walked(world: World, chain: list[Any], kind: str) -> None:
    a, b, _ = world.pods
    world.enforce(b, ingress=True)
    world.rule(b.ingress_table, a.class6, number(kind, 6), level=0)
    packet = IPv6(src=a.ip6, dst=b.ip6)
    for header in chain:
        packet = packet / header.copy()
    if kind == "other":
        packet.lastlayer().nh = number(kind, 6)
    packet = packet / transport(kind, 6)
    assert world.leave(a, out_of(a, packet)).action == REDIRECT
    local, remote = ports(kind)
    assert world.connection(a, b.ip6, number(kind, 6), local, remote) is not None
    assert not world.maps["fragments"].raw_items()


def test_fragments_behind_extension_headers(world: World) -> None:
    a, b, _ = world.pods
    head = IPv6(src=a.ip6, dst=b.ip6) / IPv6ExtHdrHopByHop()
    first = head / IPv6ExtHdrFragment(nh=17, m=1, id=3) / Raw(_body("udp", 6))
    # A later fragment's next header need not be the first one's (RFC 8200, 4.5).
    later = head / IPv6ExtHdrFragment(nh=60, offset=8, id=3) / Raw(bytes(10))
    assert world.leave(a, out_of(a, later)).dropped == NOT_FOUND
    assert world.leave(a, out_of(a, first)).action == REDIRECT
    assert world.leave(a, out_of(a, later)).action == REDIRECT


def test_chains_that_are_refused(world: World) -> None:
    a, b, _ = world.pods
    head = IPv6(src=a.ip6, dst=b.ip6)
    endless = head
    for _ in range(12):
        endless = endless / IPv6ExtHdrDestOpt()
    beyond = head / IPv6ExtHdrDestOpt(len=40) / Raw(bytes(8))
    cut = IPv6(src=a.ip6, dst=b.ip6, nh=60) / Raw(b"\x11\x00")
    for packet in (endless / transport("udp", 6), beyond, cut):
        outcome = world.leave(a, out_of(a, packet))
        assert outcome.dropped == DropReason.DROP_INVALID_EXTENSION_HEADER
    nested = head / IPv6ExtHdrFragment(m=1, id=1, nh=44) / IPv6ExtHdrFragment(m=1, id=2) / Raw(
        _body("udp", 6))  # fmt: skip
    assert world.leave(a, out_of(a, nested)).action == SHOT
    split = head / IPv6ExtHdrFragment(m=1, id=1, nh=60) / IPv6ExtHdrDestOpt(len=40) / Raw(bytes(8))
    assert world.leave(a, out_of(a, split)).dropped == NOT_FOUND


@settings(
    deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from((4, 6)), st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 12), st.integers(1, 6), st.booleans()),
    min_size=1, max_size=12))  # fmt: skip
def test_nothing_follows_a_first_one_that_was_not_allowed(
    world: World, version: int, pieces: list[tuple[int, int, int, bool]]
) -> None:
    """Any fragments in any order: all that passes belongs to a first one that passed before."""
    a, b, _ = world.pods
    world.enforce(b, ingress=True)
    world.clear("policy")
    world.forget()
    world.rule(b.ingress_table, a.class4 if version == 4 else a.class6, 17, 80)
    covered: dict[int, int] = {}
    for identifier, offset, length, allowed in pieces:
        body = _body("udp", version, length * 8, dport=80 if allowed else 81)
        piece = _piece(a.ip(version), b.ip(version), 17, body, offset * 8, True, identifier)
        passed = world.leave(a, out_of(a, piece)).action == REDIRECT
        if offset == 0:
            assert passed == (allowed and covered.get(identifier, length) == length)
            if passed:
                covered[identifier] = length
        else:
            assert passed == (identifier in covered and offset >= covered[identifier])
