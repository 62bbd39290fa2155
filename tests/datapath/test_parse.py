# SPDX-License-Identifier: Apache-2.0
"""Broken packets: cut at every length, with every length field wrong, and random bytes."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, IPOption_NOP, IPOption_Router_Alert
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.packet import Raw

from bpf.layouts import DropReason
from tests.datapath.packets import PROTOCOLS, arriving, into, out_of, request, transport
from tests.datapath.world import FROM_POD, FROM_UPLINK, OK, REDIRECT, SHOT, TO_POD, World, outside

pytestmark = pytest.mark.kernel

relaxed = settings(
    deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
HEADERS = {4: 34, 6: 54}
"""Ethernet and IP: the kernel's test run takes no shorter frame (test_wire.py sends them)."""
MINIMUM = {"tcp": 20, "udp": 8, "sctp": 12, "icmp": 8, "other": 0}


def _specimens(version: int, source: str, destination: str) -> list[tuple[str, Any, int]]:
    """Valid packets of every kind: (kind, packet, bytes before the transport header)."""
    found = [(kind, request(kind, source, destination), HEADERS[version] - 14)
             for kind in PROTOCOLS]  # fmt: skip
    if version == 4:
        options = [IPOption_Router_Alert(), IPOption_NOP()]
        head = IP(src=source, dst=destination, options=options)
        found += [(kind, head / transport(kind, 4), 28) for kind in ("tcp", "udp", "icmp")]
    else:
        for kind in ("tcp", "udp", "sctp", "icmp"):
            head = IPv6(src=source, dst=destination) / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt()
            found.append((kind, head / transport(kind, 6), 56))
            atomic = IPv6(src=source, dst=destination) / IPv6ExtHdrFragment()
            found.append((kind, atomic / transport(kind, 6), 48))
    return found


def _shortened(version: int, packet: bytes, size: int) -> bytes:
    """The first bytes of a packet, whose IP header says that it is no longer."""
    cut = bytearray(packet[:size])
    if version == 4:
        struct.pack_into("!H", cut, 2, size)
    else:
        struct.pack_into("!H", cut, 4, size - 40)
    return bytes(cut)


@pytest.mark.parametrize("version", [4, 6])
def test_frames_that_end_early(world: World, version: int) -> None:
    """The IP header promises more than there is: dropped at every length, by each program."""
    a, b, _ = world.pods
    hooks = (
        (FROM_POD, a.ifindex, 0, out_of, a, a.ip(version), b.ip(version), SHOT),
        (TO_POD, a.ifindex, world.uplink, into, a, outside(version), a.ip(version), SHOT),
        (FROM_UPLINK, world.uplink, 0, None, a, outside(version), a.ip(version), REDIRECT),
    )
    for program, ifindex, sender, wrap, pod, source, destination, _ in hooks:
        for kind, packet, _ in _specimens(version, source, destination):
            frame = bytes(wrap(pod, packet) if wrap else arriving(packet))
            for size in range(HEADERS[version], len(frame)):
                action = world.action(program, frame[:size], ifindex, sender)
                # An IPv4 header that is wrong is the stack's to drop, where it is not a pod's.
                assert action == SHOT or (program == FROM_UPLINK and action == OK), (kind, size)
            action = world.action(program, frame, ifindex, sender)
            assert action in (OK, REDIRECT), (program, kind)
    assert world.connections()


@pytest.mark.parametrize("version", [4, 6])
def test_headers_that_end_early(world: World, version: int) -> None:
    """Packets whose length is right and whose transport header is cut."""
    a, b, _ = world.pods
    for kind, packet, before in _specimens(version, a.ip(version), b.ip(version)):
        whole = bytes(packet)
        for size in range(40 if version == 6 else before, before + MINIMUM[kind]):
            frame = bytes(out_of(a, Raw(_shortened(version, whole, size))))
            frame = frame[:12] + (b"\x08\0" if version == 4 else b"\x86\xdd") + frame[14:]
            outcome = world.leave(a, frame)
            allowed = {DropReason.DROP_CT_INVALID_HEADER}
            if size < before:
                allowed = {DropReason.DROP_INVALID_EXTENSION_HEADER}
            assert outcome.dropped in allowed, (kind, size)
    assert not world.connections()


def test_ipv4_headers_that_cannot_be(world: World) -> None:
    a, b, _ = world.pods
    for fields in ({"version": 5}, {"version": 6}, {"ihl": 4}, {"ihl": 0}, {"len": 19}, {"len": 0},
                   {"len": 4000}):  # fmt: skip
        header = IP(src=a.ip4, dst=b.ip4, **fields)
        frame = out_of(a, header / transport("udp", 4))
        frame.type = 0x0800
        assert world.leave(a, frame).dropped == DropReason.DROP_INVALID_PACKET
        assert world.enter(a, frame).dropped == DropReason.DROP_INVALID_PACKET
    # Options that reach beyond the packet.
    frame = out_of(a, IP(src=a.ip4, dst=b.ip4, ihl=15, len=40) / Raw(bytes(20)))
    assert world.leave(a, frame).dropped == DropReason.DROP_INVALID_PACKET


def test_ipv6_headers_that_cannot_be(world: World) -> None:
    a, b, _ = world.pods
    for fields in ({"version": 4}, {"version": 7}, {"plen": 4000}):
        frame = out_of(a, IPv6(src=a.ip6, dst=b.ip6, **fields) / transport("udp", 6))
        frame.type = 0x86DD
        assert world.leave(a, frame).dropped == DropReason.DROP_INVALID_PACKET
    # A jumbogram (RFC 2675) that segmentation offload did not make.
    frame = out_of(a, IPv6(src=a.ip6, dst=b.ip6, plen=0) / transport("udp", 6))
    assert world.leave(a, frame).dropped == DropReason.DROP_CT_INVALID_HEADER
    frame = out_of(a, IPv6(src=a.ip6, dst=b.ip6, plen=0) / transport("tcp", 6) / Raw(bytes(2896)))
    outcome = world.leave(a, frame, gso_size=1448, gso_segments=2)
    assert outcome.action == REDIRECT


def test_data_offsets_of_tcp(world: World) -> None:
    a, b, _ = world.pods
    for offset in range(5):
        frame = bytearray(bytes(out_of(a, request("tcp", a.ip4, b.ip4))))
        frame[14 + 20 + 12] = offset << 4
        assert world.leave(a, bytes(frame)).dropped == DropReason.DROP_CT_INVALID_HEADER


def _source(frame: bytes) -> bytes:
    if frame[12:14] == b"\x08\0":
        return frame[26:30]
    return frame[22:38]


def _own(world: World, frame: bytes) -> bool:
    """Whether the pod may send this: its Ethernet address and one of its own addresses."""
    a = world.a
    if frame[6:12] != bytes.fromhex(a.mac.replace(":", "")):
        return False
    kind, source = frame[12:14], _source(frame)
    if kind == b"\x08\x06":
        return frame[28:32] in (bytes(map(int, a.ip4.split("."))), bytes(4))
    if kind == b"\x08\0":
        return source in (bytes(map(int, a.ip4.split("."))), bytes(4))
    own = bytes.fromhex("fd00") + bytes(13) + b"\1"
    link = source[:1] == b"\xfe" and len(source) == 16 and source[1] & 0xC0 == 0x80
    return kind == b"\x86\xdd" and (source in (own, bytes(16)) or link)


@relaxed
@given(st.sampled_from((b"\x08\0", b"\x86\xdd", b"\x08\x06", b"\x81\0", b"\x88\x47")),
       st.booleans(), st.binary(min_size=40, max_size=120))  # fmt: skip
def test_random_bytes_from_a_pod(world: World, kind: bytes, own: bool, body: bytes) -> None:
    hardware = bytes.fromhex(world.a.mac.replace(":", "")) if own else body[:6]
    frame = bytes.fromhex(world.a.gateway.replace(":", "")) + hardware + kind + body
    for program, ifindex in ((FROM_POD, world.a.ifindex), (TO_POD, world.a.ifindex),
                             (FROM_UPLINK, world.uplink)):  # fmt: skip
        action = world.action(program, frame, ifindex, world.b.ifindex)
        assert action in (OK, SHOT, REDIRECT)
        if program == FROM_POD and action != SHOT:
            assert _own(world, frame)


@relaxed
@given(
    st.sampled_from((4, 6)),
    st.integers(0, 8),
    st.lists(st.tuples(st.integers(0, 110), st.integers(0, 255)), min_size=1, max_size=4),
)
@example(6, 0, [(8, 0xFE), (9, 0x80)])
def test_valid_packets_with_some_bytes_changed(
    world: World, version: int, which: int, changes: list[tuple[int, int]]
) -> None:
    """Nothing with somebody else's source leaves a pod, whatever else is wrong with it."""
    a, b, _ = world.pods
    specimens = _specimens(version, a.ip(version), b.ip(version))
    frame = bytearray(bytes(out_of(a, specimens[which % len(specimens)][1])))
    for offset, value in changes:
        if offset < len(frame) and offset not in (12, 13):
            frame[offset] = value
    before = world.counted()
    action = world.action(FROM_POD, bytes(frame), a.ifindex)
    if not _own(world, bytes(frame)):
        assert action == SHOT
    # Each drop is counted once, each packet sent on too (control messages are neither).
    after = world.counted()
    drops = sum(after.get(key, (0, 0))[0] - before.get(key, (0, 0))[0] for key in after if key[1])
    assert drops == (action == SHOT)
