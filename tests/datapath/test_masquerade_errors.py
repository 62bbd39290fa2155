# SPDX-License-Identifier: Apache-2.0
"""ICMP errors about masqueraded connections, both ways, and datagrams in fragments."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from bpf.layouts import DropReason
from tests.datapath.masquerade_world import checked, departing, send
from tests.datapath.packets import (
    CLIENT,
    PING,
    SERVER,
    arriving,
    network,
    out_of,
    reply,
    request,
    transport,
)
from tests.datapath.world import OK, ROUTER4, ROUTER6, World, node, outside

pytestmark = pytest.mark.kernel

families = pytest.mark.parametrize("version", [4, 6])
kinds = pytest.mark.parametrize("kind", ["tcp", "udp", "sctp", "icmp"])

ERRORS: dict[int, list[Any]] = {
    4: [ICMP(type=3, code=4, nexthopmtu=1400), ICMP(type=3, code=3), ICMP(type=11)],
    6: [ICMPv6PacketTooBig(mtu=1400), ICMPv6DestUnreach(code=4), ICMPv6TimeExceeded()],
}
CASES = [(version, n) for version in (4, 6) for n in range(3)]


def _router(version: int) -> str:
    return ROUTER4 if version == 4 else ROUTER6


def _error(version: int, source: str, destination: str, quote: bytes, kind: int = 0) -> Any:
    return network(source, destination) / ERRORS[version][kind].copy() / Raw(quote)


def _quote(frame: bytes) -> bytes:
    """What an ICMP error of this frame quotes."""
    ip = Ether(frame).payload
    return bytes(ip)[(20 if ip.version == 4 else 40) + 8 :]


@pytest.mark.parametrize(("version", "error"), CASES)
@kinds
@pytest.mark.parametrize("by", ["router", "receiver"])
def test_somebody_outside_complains(
    world: World, version: int, error: int, kind: str, by: str
) -> None:
    """The pod gets it, about the packet as it sent it."""
    a = world.a
    asked = request(kind, a.ip(version), outside(version))
    assert world.leave(a, out_of(a, asked)).action == OK
    sent = send(world, asked)
    before = world.traces(["nat", "nat_reverse"])
    source = _router(version) if by == "router" else outside(version)
    message = _error(version, source, node(version), sent.frame[14:], error)
    outcome = world.arrive(arriving(message))
    assert outcome.action == OK
    back = checked(outcome.frame)
    assert (back.source, back.destination) == (source, a.ip(version))
    assert _quote(outcome.frame) == bytes(asked)
    assert world.traces(["nat", "nat_reverse"]) == before
    # Through any policy.
    world.enforce(a, ingress=True)
    assert world.enter(a, outcome.frame, sender=world.uplink).action == OK


@pytest.mark.parametrize(("version", "error"), CASES)
@kinds
@pytest.mark.parametrize("by", ["pod", "node"])
def test_somebody_here_complains(
    world: World, version: int, error: int, kind: str, by: str
) -> None:
    """Who answered is told about the packet as it was sent, to the node."""
    a = world.a
    sent = send(world, request(kind, a.ip(version), outside(version)))
    more = {"flags": "SA"} if kind == "tcp" else {}
    answer = sent.answer(kind, **more)
    came = world.arrive(arriving(answer)).frame
    source = a.ip(version) if by == "pod" else node(version)
    message = _error(version, source, outside(version), came[14:], error)
    outcome = world.depart(departing(message))
    assert outcome.action == OK and not outcome.counted
    told = checked(outcome.frame)
    assert (told.source, told.destination) == (node(version), outside(version))
    assert _quote(outcome.frame) == bytes(answer)


@families
def test_short_quotes(world: World, version: int) -> None:
    """Eight bytes of TCP: ports, and no checksum."""
    asked = request("tcp", world.a.ip(version), outside(version))
    sent = send(world, asked)
    length = (20 if version == 4 else 40) + 8
    message = _error(version, _router(version), node(version), sent.frame[14 : 14 + length])
    outcome = world.arrive(arriving(message))
    assert checked(outcome.frame).destination == world.a.ip(version)
    assert _quote(outcome.frame) == bytes(asked)[:length]
    shorter = _error(version, _router(version), node(version), sent.frame[14 : 14 + length - 1])
    frame = arriving(shorter)
    assert world.arrive(frame).frame == bytes(frame)


def test_a_quoted_datagram_without_a_checksum(world: World) -> None:
    asked = IP(src=world.a.ip4, dst=outside(4)) / UDP(sport=CLIENT, dport=SERVER, chksum=0) / b"x"
    sent = world.depart(departing(asked)).frame
    message = _error(4, ROUTER4, node(4), sent[14:])
    outcome = world.arrive(arriving(message))
    assert _quote(outcome.frame) == bytes(asked)


@families
def test_errors_about_nothing_of_ours(world: World, version: int) -> None:
    """The node's own: it is told what it sent itself, whoever else has connections."""
    send(world, request("udp", world.a.ip(version), outside(version)))
    own = bytes(request("udp", node(version), outside(version), sport=5353))
    for quote in (own, b"", own[:10], bytes(request("udp", outside(version), node(version)))):
        frame = arriving(_error(version, _router(version), node(version), quote))
        assert world.arrive(frame).frame == bytes(frame)


@families
def test_a_pods_errors_that_nobody_could_use(world: World, version: int) -> None:
    """Not about a connection of its own: they would tell the pod's address, and do not leave."""
    a, b, _ = world.pods
    sent = send(world, request("udp", b.ip(version), outside(version)))
    came = world.arrive(arriving(sent.answer("udp"))).frame[14:]
    for quote in (came, b"", bytes(request("udp", outside(version), a.ip(version)))):
        message = _error(version, a.ip(version), outside(version), quote)
        assert world.depart(departing(message)).dropped == DropReason.DROP_NAT_NO_MAPPING
        inside = "10.0.0.77" if version == 4 else "fd00::77"
        assert not send(world, _error(version, a.ip(version), inside, quote)).changed


@families
def test_errors_about_what_was_opened_from_outside(world: World, version: int) -> None:
    """They come from the address that was asked."""
    a = world.a
    first = request("udp", outside(version), a.ip(version))
    world.arrive(arriving(first))
    message = _error(version, a.ip(version), outside(version), bytes(first))
    assert not send(world, message).changed
    assert not send(
        world, _error(version, node(version), outside(version), bytes(first))
    ).changed  # the node's


@families
def test_the_nodes_errors_to_others(world: World, version: int) -> None:
    quote = bytes(request("udp", outside(version), node(version)))
    assert not send(world, _error(version, node(version), outside(version), quote)).changed


# ---- fragments ---------------------------------------------------------------------------------

SIZE = 64
"""Bytes of payload of a fragment."""


def _fragments(packet: Any, number: int = 7, order: tuple[int, ...] = (0, 1, 2)) -> list[Any]:
    """A packet in pieces of SIZE bytes."""
    body = bytes(packet.payload)
    pieces = []
    for at in range(0, len(body), SIZE):
        part, more = body[at : at + SIZE], at + SIZE < len(body)
        if packet.version == 4:
            header = IP(src=packet.src, dst=packet.dst, id=number, proto=packet.proto)
            header.frag, header.flags = at // 8, "MF" if more else 0
            pieces.append(header / Raw(part))
        else:
            extension = IPv6ExtHdrFragment(id=number, offset=at // 8, m=int(more), nh=packet.nh)
            pieces.append(IPv6(src=packet.src, dst=packet.dst) / extension / Raw(part))
    return [pieces[n] for n in order]


def _whole(frames: list[bytes]) -> bytes:
    """The payload of fragments that are in order."""
    parts = []
    for frame in frames:
        ip = Ether(frame).payload
        parts.append(bytes(ip)[20 if ip.version == 4 else 48 :])
    return b"".join(parts)


def _large(kind: str, source: str, destination: str, **more: Any) -> Any:
    version = 6 if ":" in source else 4
    packet = network(source, destination) / transport(kind, version, **more) / Raw(b"y" * 130)
    return type(packet)(bytes(packet))


@families
@pytest.mark.parametrize("kind", ["tcp", "udp", "icmp", "sctp"])
def test_fragments_there_and_back(world: World, version: int, kind: str) -> None:
    a = world.a
    asked = _large(kind, a.ip(version), outside(version))
    frames = [world.depart(departing(one)).frame for one in _fragments(asked)]
    assert all(Ether(one).payload.src == node(version) for one in frames)
    # Put together it is a packet whose checksums are right.
    header = network(node(version), outside(version))
    setattr(header, "proto" if version == 4 else "nh", asked.fields["proto" if version == 4
            else "nh"])  # fmt: skip
    sent = checked(bytes(departing(header / Raw(_whole(frames)))))
    assert sent.like(asked)
    if kind != "sctp":
        assert sent.port not in (CLIENT, PING)
    answer = sent.answer(kind) / Raw(b"z" * 150)
    answer = type(answer)(bytes(answer))
    backs = [world.arrive(arriving(one)).frame for one in _fragments(answer)]
    assert all(Ether(one).payload.dst == a.ip(version) for one in backs)
    header = network(outside(version), a.ip(version))
    setattr(header, "proto" if version == 4 else "nh", asked.fields["proto" if version == 4
            else "nh"])  # fmt: skip
    back = checked(bytes(departing(header / Raw(_whole(backs)))))
    assert back.destination_port == (PING if kind == "icmp" else CLIENT)


@families
def test_a_fragment_before_the_first(world: World, version: int) -> None:
    """Out of a pod: it does not leave. From outside: it is the node's, as it is."""
    mine, there = world.a.ip(version), outside(version)
    first, second, _ = _fragments(_large("udp", mine, there))
    assert world.depart(departing(second)).dropped == DropReason.DROP_FRAGMENT_NOT_FOUND
    sent = world.depart(departing(first))
    assert sent.action == OK
    frame = arriving(_fragments(_large("udp", there, node(version)))[1])
    passed = world.arrive(frame)
    assert passed.action == OK and passed.frame == bytes(frame)


@families
def test_fragments_of_and_to_others(world: World, version: int) -> None:
    """Between pods of the cluster, of the node, and in answer to who asked the pod itself."""
    a = world.a
    inside = "10.0.0.77" if version == 4 else "fd00::77"
    for source, destination in ((a.ip(version), inside), (node(version), outside(version))):
        for one in _fragments(_large("udp", source, destination), order=(1, 0, 2)):
            assert not send(world, one).changed
    world.arrive(arriving(request("udp", outside(version), a.ip(version))))
    answer = reply("udp", a.ip(version), outside(version)) / Raw(b"y" * 130)
    for one in _fragments(type(answer)(bytes(answer)), number=8):
        assert not send(world, one).changed
