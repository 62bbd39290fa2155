# SPDX-License-Identifier: Apache-2.0
"""Random packets of several pods against a naive translator, and packets that are none.

The naive translator takes down which port the programs chose, and from then on knows everything:
a port is one connection's alone for its remote end, and what comes back goes to that pod or nobody.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from bpf.layouts import DropReason
from tests.datapath.masquerade_world import Translated, checked, departing
from tests.datapath.packets import arriving, datagram, network, request
from tests.datapath.world import (
    FIRST_PORT,
    FROM_UPLINK,
    OK,
    SHOT,
    TO_UPLINK,
    World,
    node,
    outside,
    packed,
)

pytestmark = pytest.mark.kernel

relaxed = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PORTS = 4
"""Of the range: few, so that they run out."""
REMOTES = {4: ("198.51.100.7", "198.51.100.8"), 6: ("2001:db8:9::7", "2001:db8:9::8")}

Place = tuple[int, str, int, str]
"""Family, remote address and port, protocol: where a port of the node is one connection's alone."""
Inside = tuple[int, int, int]
"""A pod's number, how often it was made anew, and its port."""


@dataclass
class Naive:
    """Who has which port at which place."""

    holders: dict[Place, dict[int, Inside]] = field(default_factory=dict)

    def port(self, place: Place, inside: Inside) -> int | None:
        """The port that a connection has."""
        for port, holder in self.holders.get(place, {}).items():
            if holder == inside:
                return port
        return None

    def room(self, place: Place, sport: int) -> bool:
        """Whether a new connection can get one. SCTP can have its own alone."""
        taken = self.holders.get(place, {})
        return sport not in taken if place[3] == "sctp" else len(taken) < PORTS

    def take(self, place: Place, inside: Inside, port: int) -> None:
        assert port not in self.holders.setdefault(place, {}), "two connections with one port"
        if place[3] != "sctp":
            assert FIRST_PORT <= port < FIRST_PORT + PORTS
        self.holders[place][port] = inside


pods, versions = st.integers(0, 2), st.sampled_from((4, 6))
kinds = st.sampled_from(("tcp", "udp", "icmp", "sctp"))
sports = st.integers(FIRST_PORT - 2, FIRST_PORT + PORTS)
places = st.tuples(versions, st.integers(0, 1), st.sampled_from((80, 443)), kinds)
steps = st.one_of(
    st.tuples(st.just("out"), pods, places, sports),
    st.tuples(st.just("back"), pods, places, sports),
    st.tuples(st.just("error"), pods, places, sports),
    st.tuples(st.just("renew"), pods, places, sports),
)


def _asked(place: Place, source: str, sport: int) -> Any:
    version, remote, rport, kind = place
    if kind == "icmp":
        echo = ICMP(type=8, id=sport) if version == 4 else ICMPv6EchoRequest(id=sport)
        return network(source, remote) / echo / Raw(b"ping")
    flags = {"flags": "A"} if kind == "tcp" else {}
    return request(kind, source, remote, sport=sport, dport=rport, **flags)


class Rig:
    """The programs and the naive translator, side by side."""

    def __init__(self, world: World) -> None:
        world.reset()
        world.masquerade(FIRST_PORT, FIRST_PORT + PORTS - 1)
        self.world, self.naive = world, Naive()
        self.lives = [0, 0, 0]

    def out(self, number: int, place: Place, sport: int) -> None:
        pod, inside = self.world.pods[number], (number, self.lives[number], sport)
        asked = _asked(place, pod.ip(place[0]), sport)
        outcome = self.world.depart(departing(asked))
        known = self.naive.port(place, inside)
        if known is None and not self.naive.room(place, sport):
            assert outcome.dropped == DropReason.DROP_NAT_NO_MAPPING
            return
        assert outcome.action == OK
        sent = checked(outcome.frame)
        assert (sent.source, sent.destination) == (node(place[0]), place[1])
        if known is None:
            self.naive.take(place, inside, sent.port)
        else:
            assert sent.port == known

    def back(self, place: Place, port: int) -> None:
        version, remote, rport, kind = place
        template = Translated(bytes(departing(_asked(place, node(version), port))))
        answer = template.answer(kind, **({"flags": "A"} if kind == "tcp" else {}))
        frame = bytes(arriving(answer))
        outcome = self.world.arrive(frame)
        assert outcome.action == OK
        inside = self._living(place, port)
        if inside is None:
            assert outcome.frame == frame
            return
        back = checked(outcome.frame)
        assert (back.source, back.destination) == (remote, self.world.pods[inside[0]].ip(version))
        assert back.destination_port == inside[2]
        if kind != "icmp":
            assert back.port == rport

    def error(self, place: Place, port: int) -> None:
        version = place[0]
        quote = bytes(_asked(place, node(version), port))
        kind = ICMP(type=3, code=1) if version == 4 else ICMPv6DestUnreach()
        frame = bytes(arriving(network(outside(version), node(version)) / kind / Raw(quote)))
        outcome = self.world.arrive(frame)
        inside = self._living(place, port)
        if inside is None:
            assert outcome.frame == frame
            return
        mine = self.world.pods[inside[0]].ip(version)
        assert checked(outcome.frame).destination == mine
        assert outcome.frame.endswith(bytes(_asked(place, mine, inside[2])))

    def renew(self, number: int) -> None:
        """A pod goes, and another has its addresses: nothing of the former's reaches it."""
        self.lives[number] += 1
        pod = self.world.pods[number]
        for version in (4, 6):
            key = packed(pod.ip(version))
            there: Any = self.world.maps["addresses"].lookup(key)
            endpoint = number + 1 + 100 * self.lives[number]
            self.world.maps["addresses"].update(key, replace(there, endpoint=endpoint))

    def _living(self, place: Place, port: int) -> Inside | None:
        inside = self.naive.holders.get(place, {}).get(port)
        return inside if inside is not None and inside[1] == self.lives[inside[0]] else None


@relaxed
@given(st.lists(steps, max_size=60))
def test_any_sequence_of_packets(
    world: World, drawn: list[tuple[str, int, tuple[int, int, int, str], int]]
) -> None:
    rig = Rig(world)
    for what, number, (version, remote, rport, kind), port in drawn:
        place = version, REMOTES[version][remote], 0 if kind == "icmp" else rport, kind
        if what == "out":
            rig.out(number, place, port)
        elif what == "back":
            rig.back(place, port)
        elif what == "error":
            rig.error(place, port)
        else:
            rig.renew(number)
    # Everything once more that there is, in both directions.
    for place, holders in rig.naive.holders.items():
        for port, (number, life, sport) in list(holders.items()):
            if life == rig.lives[number]:
                rig.out(number, place, sport)
            rig.back(place, port)
            rig.error(place, port)
    out, back = (world.traces([name])[name] for name in ("nat", "nat_reverse"))
    assert len(out) == len(back) == sum(map(len, rig.naive.holders.values()))


# ---- packets that are none ---------------------------------------------------------------------


def _templates(world: World, version: int) -> list[bytes]:
    mine, there = world.a.ip(version), outside(version)
    inner = bytes(datagram("udp", there, mine))
    error = ICMP(type=3, code=1) if version == 4 else ICMPv6DestUnreach()
    packets = [
        *(datagram(kind, mine, there) for kind in ("tcp", "udp", "icmp", "sctp", "other")),
        network(mine, there) / error / Raw(inner),
    ]
    return [bytes(departing(one)) for one in packets]


changes = st.lists(st.tuples(st.integers(12, 100), st.integers(0, 255)), max_size=6)


def _mangled(frame: bytes, changed: list[tuple[int, int]], length: int) -> bytes:
    raw = bytearray(frame)
    for at, value in changed:
        if at < len(raw):
            raw[at] = value
    # BPF_PROG_TEST_RUN takes no shorter ones of these protocols.
    least = {b"\x08\x00": 34, b"\x86\xdd": 54}.get(bytes(raw[12:14]), 14)
    return bytes(raw[: max(least, len(raw) - length)])


def _leaks(world: World, frame: bytes) -> bool:
    """Whether a source address of a pod's is told to somebody outside the cluster."""
    kind, ip = frame[12:14], frame[14:]
    if kind == b"\x08\x00":
        source, destination, inside = ip[12:16], ip[16:20], world.pods
        own = any(source == packed(pod.ip4)[12:] for pod in inside)
        near = destination[:3] == b"\x0a\0\0" or destination[:2] == b"\xa9\xfe"
        return own and not near and destination != packed(node(4))[12:]
    if kind == b"\x86\xdd":
        source, destination = ip[8:24], ip[24:40]
        own = any(source == packed(pod.ip6) for pod in world.pods)
        near = destination[:8] == packed("fd00::")[:8]
        near = near or (destination[0:1] == b"\xfe" and destination[1] & 0xC0 == 0x80)
        return own and not near and destination != packed(node(6))
    return False


@settings(relaxed, max_examples=400)
@given(versions, st.integers(0, 5), changes, st.integers(0, 40))
def test_nothing_of_a_pods_leaves_as_it_is(
    world: World, version: int, number: int, changed: list[tuple[int, int]], cut: int
) -> None:
    """Whatever is sent by an uplink, however broken."""
    frame = _mangled(_templates(world, version)[number], changed, cut)
    # An Ethernet header of another protocol is none of ours.
    assume(frame[12:14] in (b"\x08\x00", b"\x86\xdd"))
    outcome = world.run(TO_UPLINK, frame, world.uplink)
    assert outcome.action in (OK, SHOT)
    if outcome.action == OK:
        assert not _leaks(world, outcome.frame)
    else:
        assert outcome.dropped


@settings(relaxed, max_examples=400)
@given(versions, st.integers(0, 5), changes, st.integers(0, 40))
def test_broken_packets_to_the_node(
    world: World, version: int, number: int, changed: list[tuple[int, int]], cut: int
) -> None:
    """What comes for a port of a pod's is translated, or is the node's own as it is."""
    sent = checked(
        world.depart(departing(datagram("udp", world.a.ip(version), outside(version)))).frame
    )
    answers: list[Any] = [
        sent.answer("udp"),
        network(outside(version), node(version))
        / (ICMP(type=3, code=1) if version == 4 else ICMPv6DestUnreach())
        / Raw(sent.frame[14:]),
    ]
    good = bytes(arriving(answers[number % 2]))
    frame = _mangled(good, changed, cut)
    outcome = world.run(FROM_UPLINK, frame, world.uplink)
    assert outcome.action in (OK, SHOT, 7)
    if outcome.action == OK and outcome.frame != frame:
        ip = Ether(outcome.frame).payload
        assert ip.dst == world.a.ip(version)
