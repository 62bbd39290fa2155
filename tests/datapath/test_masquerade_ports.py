# SPDX-License-Identifier: Apache-2.0
"""Which ports masqueraded connections get, when there is none for them, and whose each is."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6EchoRequest

from bpf.layouts import Counter, CtFlag, DropReason
from tests.datapath.masquerade_world import (
    SLOTS,
    Translated,
    checked,
    departing,
    ports_taken,
    send,
)
from tests.datapath.packets import CLIENT, SERVER, arriving, network, request
from tests.datapath.world import FIRST_PORT, LAST_PORT, World, node, outside, packed

pytestmark = pytest.mark.kernel

families = pytest.mark.parametrize("version", [4, 6])


# ---- ports -------------------------------------------------------------------------------------


@families
def test_the_pods_own_port_is_preferred(world: World, version: int) -> None:
    a, b, _ = world.pods
    own = FIRST_PORT + 7
    for kind in ("tcp", "udp"):
        assert send(world, request(kind, a.ip(version), outside(version), sport=own)).port == own
        # Another pod's connection to the same place has to take another one, to another not.
        second = send(world, request(kind, b.ip(version), outside(version), sport=own))
        assert second.port != own and FIRST_PORT <= second.port <= LAST_PORT
        other = request(kind, b.ip(version), outside(version), sport=own, dport=SERVER + 1)
        assert send(world, other).port == own


@families
def test_one_port_of_sctp_for_each_place(world: World, version: int) -> None:
    """It cannot be replaced, so a second pod cannot have it."""
    a, b, _ = world.pods
    assert send(world, request("sctp", a.ip(version), outside(version))).port == CLIENT
    second = request("sctp", b.ip(version), outside(version))
    assert world.depart(departing(second)).dropped == DropReason.DROP_NAT_NO_MAPPING
    assert world.counter(Counter.COUNTER_NAT_EXHAUSTED) == 1
    elsewhere = request("sctp", b.ip(version), outside(version), dport=SERVER + 1)
    assert send(world, elsewhere).port == CLIENT


def _listening(version: int, kind: int, port: int, address: str = "") -> socket.socket:
    made = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, kind)
    made.bind((address, port))
    if kind == socket.SOCK_STREAM:
        made.listen()
    return made


@families
@pytest.mark.parametrize("kind", ["tcp", "udp"])
@pytest.mark.parametrize("bound", ["any", "address", "both families"])
def test_a_port_that_the_node_listens_at(world: World, version: int, kind: str, bound: str) -> None:
    own = FIRST_PORT + 1
    way = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    if bound == "both families":
        made = socket.socket(socket.AF_INET6, way)
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind(("::", own))
        if kind == "tcp":
            made.listen()
    else:
        made = _listening(version, way, own, node(version) if bound == "address" else "")
    asked = request(kind, world.a.ip(version), outside(version), sport=own)
    with made:
        taken = send(world, asked).port
        assert taken != own and FIRST_PORT <= taken <= LAST_PORT
    world.forget()
    assert send(world, asked).port == own


@families
def test_a_connection_of_the_nodes_own(world: World, version: int) -> None:
    """To the same place from the same port; to another the port is free."""
    own = FIRST_PORT + 1
    made = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    with made:
        made.bind((node(version), own))
        made.connect((outside(version), SERVER))
        asked = request("udp", world.a.ip(version), outside(version), sport=own)
        assert send(world, asked).port != own
        elsewhere = request("udp", world.a.ip(version), outside(version), sport=own, dport=81)
        assert send(world, elsewhere).port == own


@families
@pytest.mark.parametrize("kind", ["tcp", "udp", "icmp"])
def test_every_port_of_the_range_and_none_beyond(world: World, version: int, kind: str) -> None:
    """A small range is used up, for one place; what finds no port is dropped and counted."""
    world.masquerade(FIRST_PORT, FIRST_PORT + 3)
    mine, there = world.a.ip(version), outside(version)

    def asked(n: int, there: str = there) -> Any:
        if kind != "icmp":
            return request(kind, mine, there, sport=2000 + n)
        echo = ICMP(type=8, id=n) if version == 4 else ICMPv6EchoRequest(id=n)
        return network(mine, there) / echo

    ports = {send(world, asked(n)).port for n in range(4)}
    assert ports == set(range(FIRST_PORT, FIRST_PORT + 4))
    before = world.traces(["nat", "nat_reverse"])
    assert world.depart(departing(asked(4))).dropped == DropReason.DROP_NAT_NO_MAPPING
    assert world.counter(Counter.COUNTER_NAT_EXHAUSTED) == 1
    assert world.traces(["nat", "nat_reverse"]) == before
    # Those that are there go on, and another place has all ports again.
    assert {send(world, asked(n)).port for n in range(4)} == ports
    other = "198.51.100.9" if version == 4 else "2001:db8:9::9"
    assert {send(world, asked(n, other)).port for n in range(4)} == ports


def test_a_full_table(world: World) -> None:
    """New connections are refused; those that are there go on, and both entries stay together."""
    mine, there = world.a.ip4, outside(4)
    made = [send(world, request("udp", mine, there, dport=n + 1)).port for n in range(SLOTS)]
    late = request("udp", mine, there, dport=SLOTS + 1)
    assert world.depart(departing(late)).dropped == DropReason.DROP_CT_INSERTION_FAILED
    assert world.counter(Counter.COUNTER_NAT_FULL) == 1
    assert len(ports_taken(world)) == SLOTS
    again = [send(world, request("udp", mine, there, dport=n + 1)).port for n in range(SLOTS)]
    assert again == made


def test_no_room_for_the_way_out_alone(world: World) -> None:
    """What could not be made whole leaves no half."""
    for n in range(SLOTS):
        send(world, request("udp", world.a.ip4, outside(4), dport=n + 1))
    whole = world.traces(["nat_reverse"])["nat_reverse"]
    world.maps["nat_reverse"].delete_packed(next(iter(whole)))
    late = request("udp", world.a.ip4, outside(4), dport=SLOTS + 1)
    assert world.depart(departing(late)).dropped == DropReason.DROP_CT_INSERTION_FAILED
    assert len(world.traces(["nat_reverse"])["nat_reverse"]) == SLOTS - 1


def test_ports_of_one_pod_to_many_places(world: World) -> None:
    """As many as the table holds, from a range of two ports."""
    world.masquerade(FIRST_PORT, FIRST_PORT + 1)
    for n in range(100):
        for sport in (1000, 1001):
            asked = request("tcp", world.a.ip4, f"198.51.100.{n}", sport=sport)
            assert send(world, asked).port in (FIRST_PORT, FIRST_PORT + 1)
    assert world.counter(Counter.COUNTER_NAT_CREATED) == 200


# ---- whose it is -------------------------------------------------------------------------------


@families
def test_without_an_address_nothing_leaves(world: World, version: int) -> None:
    world.clear("masquerade")
    packet = departing(request("tcp", world.a.ip(version), outside(version)))
    assert world.depart(packet).dropped == DropReason.DROP_NAT_NO_MAPPING


@families
def test_each_uplink_has_its_own_address(world: World, version: int) -> None:
    """What began by one goes on under its address, also where the route leads to another now."""
    second = world.b.ifindex  # any other device will do
    other = ("203.0.113.1", "2001:db8:5::1")
    world.masquerade(ifindex=second, addresses=other)
    first = request("udp", world.a.ip(version), outside(version))
    port = send(world, first).port
    assert send(world, first, ifindex=second).source == node(version)
    assert send(world, first, ifindex=second).port == port
    new = request("udp", world.a.ip(version), outside(version), sport=CLIENT + 1)
    assert send(world, new, ifindex=second).source == other[version == 6]


@families
def test_a_pod_that_is_gone(world: World, version: int) -> None:
    """Late packets reach nobody: not the pod that has its address now either."""
    a = world.a
    asked = request("udp", a.ip(version), outside(version), sport=FIRST_PORT)
    sent = send(world, asked)
    late = arriving(sent.answer("udp"))
    assert checked(world.arrive(late).frame).destination == a.ip(version)
    value: Any = world.maps["addresses"].lookup(packed(a.ip(version)))
    world.maps["addresses"].update(packed(a.ip(version)), replace(value, endpoint=99))
    assert world.arrive(late).frame == bytes(late)
    # The new pod has to take another port, as long as this one rests.
    assert send(world, asked).port != sent.port
    world.maps["addresses"].delete(packed(a.ip(version)))
    assert world.arrive(late).frame == bytes(late)


@families
def test_a_connection_finds_its_port_again(world: World, version: int) -> None:
    """Of what has ended the entry of the way back stays for a moment."""
    asked = request("udp", world.a.ip(version), outside(version))
    port = send(world, asked).port
    world.clear("nat")
    assert send(world, asked).port == port
    world.clear("nat_reverse")
    world.clear("nat")
    assert send(world, asked).port == port


def _flags(world: World) -> tuple[int, int]:
    (out,) = (value for _, value in world.maps["nat"].items())
    (back,) = (value for _, value in world.maps["nat_reverse"].items())
    return out.flags, back.flags


@families
def test_what_tcp_says_is_noted(world: World, version: int) -> None:
    a = world.a

    def out(flags: str) -> Translated:
        return send(world, request("tcp", a.ip(version), outside(version), flags=flags))

    def back(flags: str) -> None:
        answer = world.arrive(arriving(sent.answer("tcp", flags=flags)))
        assert checked(answer.frame).destination == a.ip(version)

    sent = out("S")
    assert _flags(world) == (0, 0)
    back("SA")
    assert _flags(world) == (0, CtFlag.CT_SEEN_REPLY)
    back("R")
    assert _flags(world) == (0, CtFlag.CT_SEEN_REPLY | CtFlag.CT_RST)
    back("A")  # it was not the other side's
    assert _flags(world) == (0, CtFlag.CT_SEEN_REPLY)
    out("FA")
    back("FA")
    assert _flags(world) == (
        CtFlag.CT_FIN_ORIGINAL,
        CtFlag.CT_SEEN_REPLY | CtFlag.CT_FIN_REPLY,
    )
    # The same ports once more: a new connection, with nothing of the former one.
    out("S")
    back("SA")
    assert _flags(world) == (0, CtFlag.CT_SEEN_REPLY)
    out("RA")
    assert _flags(world) == (CtFlag.CT_RST, CtFlag.CT_SEEN_REPLY)
