# SPDX-License-Identifier: Apache-2.0
"""From other nodes: who is believed, and what is dropped and why.

With real VXLAN devices (see tests/datapath/overlay.py); what needs no tunnel key is run by
BPF_PROG_TEST_RUN as in the other files.
"""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6PacketTooBig, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from bpf.layouts import CtFlag, DropReason, OriginBit
from tests.datapath.overlay import (
    ALIAS,
    CLASS,
    IDENTITY,
    NODE_CLASS,
    PEER,
    REMOTE,
    STRANGER,
    THIRD,
    THIRDS_POD,
    Overlay,
)
from tests.datapath.packets import (
    CLIENT,
    PROTOCOLS,
    SERVER,
    arriving,
    number,
    ports,
    reply,
    request,
)
from tests.datapath.world import (
    FROM_TUNNEL,
    WORLD4,
    WORLD6,
    World,
    node,
    outside,
)

pytestmark = pytest.mark.kernel

families = pytest.mark.parametrize("version", [4, 6])
underlays = pytest.mark.parametrize("underlay", [4, 6])
kinds = pytest.mark.parametrize("kind", PROTOCOLS)
REMOTE_NODE = 6
LOCAL_IDENTITY = (1 << 24) + 5
DENIED = DropReason.DROP_POLICY_DENIED
TUNNELLED = 1 << OriginBit.ORIGIN_TUNNEL_BIT


# ---- in: who is believed -------------------------------------------------------------------------


@families
@underlays
@kinds
def test_a_pod_of_another_node(overlay: Overlay, version: int, underlay: int, kind: str) -> None:
    """Let in by its class; the reply goes through the tunnel, to that node."""
    world, a = overlay.world, overlay.world.a
    overlay.reset(underlay)
    world.enforce(a, ingress=True, egress=True)
    first = request(kind, PEER[version], a.ip(version))
    assert overlay.receive(first, sender=REMOTE[underlay]) == DENIED
    world.rule(a.ingress_table, CLASS[version], number(kind, version), level=0)
    world.bump()
    assert overlay.receive(first, sender=REMOTE[underlay]) == 0
    theirs, mine = ports(kind)
    entry = world.connection(a, PEER[version], number(kind, version), mine, theirs)
    assert entry is not None and entry.far_end == TUNNELLED | IDENTITY
    assert entry.flags == CtFlag.CT_INGRESS | CtFlag.CT_TUNNEL
    seen = overlay.leave(a, reply(kind, a.ip(version), PEER[version]))
    assert seen is not None
    assert (seen.vni, seen.destination) == (a.identity, REMOTE[underlay])
    assert seen.source == node(underlay)
    assert overlay.receive(first, sender=REMOTE[underlay]) == 0


@families
@underlays
def test_who_is_not_believed(overlay: Overlay, version: int, underlay: int) -> None:
    a = overlay.world.a
    overlay.reset(underlay)
    packet = request("udp", PEER[version], a.ip(version))

    def outcome(sender: str, what: Any = packet, vni: int = IDENTITY) -> int:
        return overlay.receive(what, vni, sender)

    good = REMOTE[underlay]
    assert outcome(STRANGER[underlay]) == DropReason.DROP_UNKNOWN_SENDER
    # Another node, and another family of the right one: known, but not for this source.
    assert outcome(THIRD[underlay]) == DropReason.DROP_INVALID_SOURCE_IP
    assert outcome(REMOTE[10 - underlay]) == DropReason.DROP_INVALID_SOURCE_IP
    pods = a.ip(version), overlay.world.b.ip(version), THIRDS_POD[version]
    for source in (*pods, outside(version), node(version), THIRD[version]):
        spoofed = request("udp", source, a.ip(version))
        assert outcome(good, spoofed) == DropReason.DROP_INVALID_SOURCE_IP, source
    assert outcome(good, vni=1) == DropReason.DROP_INVALID_IDENTITY
    for vni in (65536, LOCAL_IDENTITY & 0xFFFFFF | 0x10000, 0xFFFFFF):
        assert outcome(good, vni=vni) == DropReason.DROP_INVALID_VNI
    assert not overlay.world.connections()
    assert outcome(good) == 0


@families
def test_what_is_not_for_a_pod_here(overlay: Overlay, version: int) -> None:
    for there in (
        outside(version),
        THIRDS_POD[version],
        "10.0.0.99" if version == 4 else "fd00::99",
    ):
        packet = request("udp", PEER[version], there)
        assert overlay.receive(packet) == DropReason.DROP_NO_LOCAL_ENDPOINT


@families
def test_what_is_no_good_packet(overlay: Overlay, version: int) -> None:
    a = overlay.world.a
    frame = Ether(src="02:00:00:00:0d:01", dst="02:00:00:00:0d:02")
    assert overlay.receive(frame / ARP()) == DropReason.DROP_UNSUPPORTED_L3
    packet = request("tcp", PEER[version], a.ip(version))
    cut = bytes(packet)[: 30 if version == 4 else 50]
    kind = 0x800 if version == 4 else 0x86DD
    frame = Ether(src="02:00:00:00:0d:01", dst="02:00:00:00:0d:02", type=kind)
    assert overlay.receive(frame / Raw(cut)) == DropReason.DROP_INVALID_PACKET
    packet[TCP].dataofs = 2
    assert overlay.receive(packet) == DropReason.DROP_CT_INVALID_HEADER
    if version == 6:
        asked = IPv6(src=PEER[6], dst=a.ip6, hlim=255) / ICMPv6ND_NS(tgt=a.ip6)
        assert overlay.receive(asked) == DropReason.DROP_FORBIDDEN_ICMP6


def test_without_a_tunnel_key(world: World) -> None:
    """Nothing that did not come through the tunnel is taken for it."""
    packet = request("udp", PEER[4], world.a.ip4)
    outcome = world.run(FROM_TUNNEL, arriving(packet), world.uplink)
    assert outcome.dropped == DropReason.DROP_TUNNEL_KEY


@families
def test_the_node_itself_is_a_receiver(overlay: Overlay, version: int) -> None:
    """The stack's to judge: not counted, and not dropped here."""
    overlay.pass_on(request("udp", PEER[version], node(version), dport=9))


# ---- in: whose identity --------------------------------------------------------------------------


@families
@pytest.mark.parametrize("claim", [0, 3, 5, 6, 300, IDENTITY + 1])
def test_an_identity_that_the_table_does_not_confirm(
    overlay: Overlay, version: int, claim: int
) -> None:
    """Never by label; as an unknown peer, whom only blocks of the whole family contain."""
    world, a = overlay.world, overlay.world.a
    world.enforce(a, ingress=True)
    world.rule(a.ingress_table, CLASS[version])
    packet = request("udp", PEER[version], a.ip(version))
    assert overlay.receive(packet, claim) == DENIED
    assert not world.connections()
    world.rule(a.ingress_table, WORLD4 if version == 4 else WORLD6)
    assert overlay.receive(packet, claim) == 0


@families
def test_an_address_that_nobody_is_known_at(overlay: Overlay, version: int) -> None:
    world, a = overlay.world, overlay.world.a
    other = PEER[version][:-1] + "8"
    world.enforce(a, ingress=True)
    world.rule(a.ingress_table, CLASS[version])
    packet = request("udp", other, a.ip(version))
    assert overlay.receive(packet, IDENTITY) == DENIED


@families
@kinds
def test_another_identity_does_not_inherit_a_connection(
    overlay: Overlay, version: int, kind: str
) -> None:
    """The address was given to another pod, which has the very same ports: until the table says
    so it is unknown, then it is judged by its own labels."""
    world, a = overlay.world, overlay.world.a
    world.enforce(a, ingress=True)
    world.rule(a.ingress_table, CLASS[version])
    packet = request(kind, PEER[version], a.ip(version), flags="A")
    assert overlay.receive(packet) == 0
    assert overlay.receive(packet) == 0
    before = world.connections()
    assert overlay.receive(packet, IDENTITY + 1) == DENIED
    assert world.connections() == before
    assert overlay.receive(packet) == 0  # the first pod's connection goes on
    # The table has the second pod now, which no rule lets in.
    world.peer(PEER[version], CLASS[version] + 1, IDENTITY + 1)
    world.bump()
    assert overlay.receive(packet, IDENTITY + 1) == DENIED
    assert overlay.receive(packet) == DENIED


@families
def test_a_pod_whose_labels_change_keeps_what_it_may(overlay: Overlay, version: int) -> None:
    world, a = overlay.world, overlay.world.a
    world.enforce(a, ingress=True)
    for peer_class in (CLASS[version], CLASS[version] + 1):
        world.rule(a.ingress_table, peer_class)
    packet = request("tcp", PEER[version], a.ip(version), flags="A")
    assert overlay.receive(packet) == 0
    world.peer(PEER[version], CLASS[version] + 1, IDENTITY + 1)
    world.bump()
    assert overlay.receive(packet) == DENIED  # its node has not heard of it yet
    assert overlay.receive(packet, IDENTITY + 1) == 0
    entry = world.connection(a, PEER[version], 6, SERVER, CLIENT)
    assert entry is not None and entry.far_end == TUNNELLED | (IDENTITY + 1)
    seen = overlay.leave(a, reply("tcp", a.ip(version), PEER[version], flags="A"))
    assert seen is not None  # the reply too
    world.bump()
    assert overlay.leave(a, reply("tcp", a.ip(version), PEER[version], flags="A")) is not None


@families
def test_the_other_node_itself(overlay: Overlay, version: int) -> None:
    """By each of its addresses, as identity remote-node."""
    world, a = overlay.world, overlay.world.a
    world.enforce(a, ingress=True)
    world.rule(a.ingress_table, NODE_CLASS)
    world.peer(ALIAS[version], NODE_CLASS, REMOTE_NODE)
    for source in (REMOTE[version], ALIAS[version]):
        packet = request("tcp", source, a.ip(version))
        assert overlay.receive(packet, IDENTITY) == DENIED
        assert overlay.receive(packet, REMOTE_NODE) == 0
    assert overlay.receive(request("tcp", THIRD[version], a.ip(version)), REMOTE_NODE) == (
        DropReason.DROP_INVALID_SOURCE_IP
    )


# ---- in: fragments, errors -----------------------------------------------------------------------


def _pieces(version: int, source: str, destination: str) -> list[Any]:
    body = bytes(UDP(sport=CLIENT, dport=SERVER, len=48) / Raw(b"x" * 40))
    if version == 4:
        header = IP(src=source, dst=destination, proto=17, id=7)
        first, last = header.copy(), header.copy()
        first.flags, last.frag = "MF", 3
        return [first / Raw(body[:24]), last / Raw(body[24:])]
    header6 = IPv6(src=source, dst=destination)
    return [
        header6 / IPv6ExtHdrFragment(nh=17, id=7, m=1, offset=0) / Raw(body[:24]),
        header6 / IPv6ExtHdrFragment(nh=17, id=7, m=0, offset=3) / Raw(body[24:]),
    ]


@families
def test_fragments(overlay: Overlay, version: int) -> None:
    world, a = overlay.world, overlay.world.a
    first, last = _pieces(version, PEER[version], a.ip(version))
    assert overlay.receive(last) == DropReason.DROP_FRAGMENT_NOT_FOUND
    world.enforce(a, ingress=True)
    assert overlay.receive(first) == DENIED
    assert overlay.receive(last) == DropReason.DROP_FRAGMENT_NOT_FOUND
    world.rule(a.ingress_table, CLASS[version], 17, SERVER)
    assert overlay.receive(first) == 0
    assert overlay.receive(last) == 0
    # Out again, whole connection.
    for piece in _pieces(version, a.ip(version), PEER[version]):
        assert overlay.leave(a, piece) is not None


@families
@kinds
def test_errors_about_a_connection(overlay: Overlay, version: int, kind: str) -> None:
    """From the receiver, and from its node, which routes for it; not from another pod."""
    world, a = overlay.world, overlay.world.a
    first = request(kind, a.ip(version), PEER[version])
    assert overlay.leave(a, first) is not None
    world.enforce(a, ingress=True)
    world.peer(PEER[version][:-1] + "8", CLASS[version], IDENTITY)

    def complaint(source: str) -> Any:
        if version == 4:
            return (IP(src=source, dst=a.ip4) / ICMP(type=3, code=4, nexthopmtu=1400)
                    / Raw(bytes(first)))  # fmt: skip
        return IPv6(src=source, dst=a.ip6) / ICMPv6PacketTooBig(mtu=1400) / Raw(bytes(first))

    assert overlay.receive(complaint(PEER[version])) == 0
    assert overlay.receive(complaint(REMOTE[version]), REMOTE_NODE) == 0
    assert overlay.receive(complaint(PEER[version][:-1] + "8")) == DENIED
