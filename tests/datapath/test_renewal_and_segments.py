# SPDX-License-Identifier: Apache-2.0
"""Verdicts that are renewed, and packets larger than their segments: faults that once were."""

from __future__ import annotations

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.packet import Raw

from tests.datapath.packets import (
    CLIENT,
    SERVER,
    arriving,
    network,
    out_of,
    reply,
    request,
)
from tests.datapath.world import OK, REDIRECT, SHOT, World, outside

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", ["udp", "sctp", "other"])
def test_a_renewed_allow_admits_a_reply_first(world: World, version: int, kind: str) -> None:
    """A denial holds under its epoch, whichever side's packet is the first under the next one: else
    a reply that is would be taken for a connection of its own, and denied.
    """
    a, b, _ = world.pods
    for pod in (a, b):
        world.enforce(pod, ingress=True, egress=True)
    key = world.rule(a.egress_table, b.class4 if version == 4 else b.class6)
    world.rule(b.ingress_table, a.class4 if version == 4 else a.class6)
    forth = out_of(a, request(kind, a.ip(version), b.ip(version)))
    back = out_of(b, reply(kind, b.ip(version), a.ip(version)))
    assert [world.leave(a, forth).action, world.leave(b, back).action] == [REDIRECT] * 2
    value = world.maps["policy"].lookup(key)
    world.maps["policy"].delete(key)
    world.bump()
    assert [world.leave(a, forth).action, world.leave(b, back).action] == [SHOT] * 2
    world.maps["policy"].update(key, value)
    world.bump()
    assert world.leave(b, back).action == REDIRECT


@pytest.mark.parametrize("version", [4, 6])
def test_udp_segments_that_fit_leave_past_the_stack(world: World, version: int) -> None:
    """bpf/from_pod.c reply_to_uplink(): a UDP segment's header has 8 bytes and not
    TRANSPORT_HEADER (20), so segments of exactly the MTU (QUIC) go to the stack. Fix: 8 for UDP.
    """
    a = world.a
    opening = arriving(request("udp", outside(version), a.ip(version)))
    assert world.arrive(opening).action == REDIRECT
    size = 1500 - (28 if version == 4 else 48)
    large = (network(a.ip(version), outside(version)) / UDP(sport=SERVER, dport=CLIENT)
             / Raw(bytes(2 * size)))  # fmt: skip
    outcome = world.leave(a, out_of(a, large), gso_size=size, gso_segments=2)
    assert outcome.action == REDIRECT


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_segments_are_as_long_as_their_options(world: World, version: int) -> None:
    """bpf/from_pod.c reply_to_uplink(): gso_size is payload alone (tcp_gso_segment copies the whole
    header in front of each piece), so options count too; with timestamps a segment may be 12 bytes
    longer than is asked about, and one that does not fit the route leaves all the same, where the
    stack would have told the pod (path MTU). Fix: tcp.doff * 4 of the parsed header.
    """
    a = world.a
    opening = arriving(request("tcp", outside(version), a.ip(version)))
    assert world.arrive(opening).action == REDIRECT
    options = [("Timestamp", (1, 2)), ("NOP", None), ("NOP", None)]
    size = 1500 - (40 if version == 4 else 60)
    large = (network(a.ip(version), outside(version))
             / TCP(sport=SERVER, dport=CLIENT, flags="A", options=options)
             / Raw(bytes(2 * size)))  # fmt: skip
    for fits in (False, True):
        length = size - 12 * fits
        outcome = world.leave(a, out_of(a, large), gso_size=length, gso_segments=2)
        assert outcome.action == (REDIRECT if fits else OK)
