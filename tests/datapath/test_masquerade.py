# SPDX-License-Identifier: Apache-2.0
"""What pods send to the outside leaves under the node's address, and what comes back finds them.

Checksums are verified by letting scapy compute them anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from bpf.layouts import Counter, DropReason
from tests.datapath.masquerade_world import (
    checked,
    departing,
    send,
)
from tests.datapath.packets import (
    CLIENT,
    PING,
    SERVER,
    arriving,
    datagram,
    network,
    number,
    out_of,
    reply,
    request,
    transport,
)
from tests.datapath.world import (
    FIRST_PORT,
    LAST_PORT,
    NODE4,
    OK,
    REDIRECT,
    World,
    node,
    outside,
)

pytestmark = pytest.mark.kernel

families = pytest.mark.parametrize("version", [4, 6])
kinds = pytest.mark.parametrize("kind", ["tcp", "udp", "sctp", "icmp"])


@families
@kinds
def test_there_and_back(world: World, version: int, kind: str) -> None:
    """The outside sees the node, at a port that is kept for pods; the pod sees its own."""
    a = world.a
    asked = request(kind, a.ip(version), outside(version))
    assert world.leave(a, out_of(a, asked)).action == OK
    sent = send(world, asked)
    assert (sent.source, sent.destination) == (node(version), outside(version))
    if kind == "sctp":
        assert sent.port == CLIENT  # a CRC covers it
    else:
        assert FIRST_PORT <= sent.port <= LAST_PORT
    assert sent.remote_port == (0 if kind == "icmp" else SERVER)
    # Nothing but addresses, port and checksums.
    assert sent.like(asked)
    for flags in ("SA", "A"):
        more = {"flags": flags} if kind == "tcp" else {}
        answer = world.arrive(arriving(sent.answer(kind, **more)))
        assert answer.action == OK and not answer.counted
        back = checked(answer.frame)
        assert (back.source, back.destination) == (outside(version), a.ip(version))
        assert back.destination_port == (PING if kind == "icmp" else CLIENT)
        # As the stack hands it on.
        final = world.enter(a, answer.frame, sender=world.uplink)
        assert final.action == OK
    # The same once more: nothing new.
    assert send(world, asked).port == sent.port
    assert world.counter(Counter.COUNTER_NAT_CREATED) == 1
    assert len(world.traces(["nat"])["nat"]) == len(world.traces(["nat_reverse"])["nat_reverse"])


@families
def test_policy_judges_what_comes_back(world: World, version: int) -> None:
    """A pod that nothing may reach gets the answers it asked for, from there alone."""
    a = world.a
    asked = request("udp", a.ip(version), outside(version))
    assert world.leave(a, out_of(a, asked)).action == OK
    sent = send(world, asked)
    world.enforce(a, ingress=True)
    answer = world.arrive(arriving(sent.answer("udp")))
    assert world.enter(a, answer.frame, sender=world.uplink).action == OK
    # From another port or address nothing is translated: it is the node's own to judge.
    for stranger in (
        datagram("udp", outside(version), node(version), sport=SERVER + 1, dport=sent.port),
        datagram("udp", "198.51.100.8" if version == 4 else "2001:db8:9::8", node(version),
                 sport=SERVER, dport=sent.port),
        datagram("udp", outside(version), node(version), sport=SERVER, dport=sent.port ^ 1),
        datagram("tcp", outside(version), node(version), sport=SERVER, dport=sent.port),
    ):  # fmt: skip
        frame = arriving(stranger)
        passed = world.arrive(frame)
        assert passed.action == OK and passed.frame == bytes(frame)


@families
@pytest.mark.parametrize("destination", ["pod", "node", "link"])
@kinds
def test_excluded_destinations(world: World, version: int, kind: str, destination: str) -> None:
    there = {
        "pod": ("10.0.0.77", "fd00::77"),
        "node": (node(4), node(6)),
        "link": ("169.254.169.254", "fe80::1"),
    }[destination][version == 6]
    assert not send(world, request(kind, world.a.ip(version), there)).changed
    assert not world.traces(["nat", "nat_reverse"])["nat"]


@families
@kinds
def test_the_nodes_own_traffic(world: World, version: int, kind: str) -> None:
    assert not send(world, request(kind, node(version), outside(version))).changed
    # And that of addresses that nobody here knows, such as other containers'.
    stranger = "203.0.113.9" if version == 4 else "2001:db8:77::9"
    assert not send(world, request(kind, stranger, outside(version))).changed


@families
@kinds
def test_a_connection_that_was_opened_from_outside(world: World, version: int, kind: str) -> None:
    """Who asked the pod by its own address gets the answer from there."""
    a = world.a
    assert world.arrive(arriving(request(kind, outside(version), a.ip(version)))).action == REDIRECT
    answer = reply(kind, a.ip(version), outside(version))
    assert world.leave(a, out_of(a, answer)).action == REDIRECT
    assert not send(world, answer).changed


@families
@pytest.mark.parametrize("what", ["esp", "redirect", "answer", "reset"])
def test_what_cannot_be_translated_does_not_leave(world: World, version: int, what: str) -> None:
    mine, there = world.a.ip(version), outside(version)
    other = Raw(b"\x05\0\0\0\0\0\0\0") if version == 4 else Raw(b"\xc8\0\0\0\0\0\0\0")
    redirect = network(mine, there, **{"proto" if version == 4 else "nh": number("icmp", version)})
    packet = {
        "esp": lambda: request("other", mine, there),
        "redirect": lambda: redirect / other,
        "answer": lambda: reply("icmp", mine, there),
        "reset": lambda: request("tcp", mine, there, flags="RA"),
    }[what]()
    reason = {
        "esp": DropReason.DROP_NAT_UNSUPPORTED_PROTOCOL,
        "redirect": DropReason.DROP_NAT_UNSUPPORTED_PROTOCOL,
    }.get(what, DropReason.DROP_NAT_NO_MAPPING)
    dropped = world.depart(departing(packet))
    assert dropped.dropped == reason
    assert dropped.events[0].endpoint == world.a.endpoint
    assert not world.traces(["nat"])["nat"]


@families
def test_the_middle_of_a_connection_makes_a_mapping(world: World, version: int) -> None:
    """The other side then says that it knows nothing of it, and the pod learns that."""
    asked = request("tcp", world.a.ip(version), outside(version), flags="A")
    assert send(world, asked).source == node(version)


@families
def test_a_resets_mapping(world: World, version: int) -> None:
    a = world.a
    port = send(world, request("tcp", a.ip(version), outside(version))).port
    gone = send(world, request("tcp", a.ip(version), outside(version), flags="R"))
    assert gone.port == port


# ---- forms of packets --------------------------------------------------------------------------


def test_udp_without_a_checksum(world: World) -> None:
    asked = IP(src=world.a.ip4, dst=outside(4)) / UDP(sport=CLIENT, dport=SERVER, chksum=0) / b"x"
    outcome = world.depart(departing(asked))
    out = Ether(outcome.frame)
    assert out[IP].src == NODE4 and out[UDP].chksum == 0 and out[UDP].sport >= FIRST_PORT
    answer = (
        IP(src=outside(4), dst=NODE4) / UDP(sport=SERVER, dport=out[UDP].sport, chksum=0) / b"y"
    )
    back = Ether(world.arrive(arriving(answer)).frame)
    assert (back[IP].dst, back[UDP].dport, back[UDP].chksum) == (world.a.ip4, CLIENT, 0)


@families
def test_a_udp_checksum_that_becomes_zero(world: World, version: int) -> None:
    """Is written as all ones: zero would say that there is none (RFC 768)."""
    a = world.a
    first = send(world, request("udp", a.ip(version), outside(version)))
    bare = network(a.ip(version), outside(version)) / UDP(sport=CLIENT, dport=SERVER) / Raw(b"\0\0")
    seen = bytes(Ether(world.depart(departing(bare)).frame)[UDP])
    total = int.from_bytes(seen[6:8], "big")
    # One word that brings the sum to all ones.
    aimed = network(a.ip(version), outside(version)) / UDP(sport=CLIENT, dport=SERVER)
    outcome = world.depart(departing(aimed / Raw(total.to_bytes(2, "big"))))
    out = Ether(outcome.frame)
    assert out[UDP].sport == first.port and out[UDP].chksum == 0xFFFF


EXTENSIONS: dict[str, Callable[[], Any]] = {
    "hop-by-hop": lambda: IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)]),
    "options": lambda: IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 20)]),
    "routing": lambda: IPv6ExtHdrRouting(type=2, segleft=0, addresses=["2001:db8::5"]),
    "several": lambda: IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt(),
}


@pytest.mark.parametrize("name", EXTENSIONS)
@pytest.mark.parametrize("kind", ["tcp", "udp", "icmp"])
def test_extension_headers(world: World, name: str, kind: str) -> None:
    asked = IPv6(src=world.a.ip6, dst=outside(6)) / EXTENSIONS[name]() / transport(kind, 6)
    sent = send(world, asked)
    assert sent.source == node(6) and FIRST_PORT <= sent.port <= LAST_PORT
    assert sent.like(asked)
    back = network(outside(6), node(6)) / EXTENSIONS[name]() / sent.answer(kind)[IPv6].payload
    outcome = world.arrive(arriving(back))
    assert checked(outcome.frame).destination == world.a.ip6


def test_ipv4_options(world: World) -> None:
    asked = IP(src=world.a.ip4, dst=outside(4), options=b"\1" * 8) / transport("tcp", 4)
    sent = send(world, asked)
    assert sent.source == NODE4 and sent.like(asked)


@families
@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_what_segmentation_is_still_to_cut(world: World, version: int, kind: str) -> None:
    """One header for many segments."""
    payload = Raw(b"x" * 3000)
    header = TCP(sport=CLIENT, dport=SERVER, flags="A") if kind == "tcp" else UDP(
        sport=CLIENT, dport=SERVER
    )  # fmt: skip
    asked = network(world.a.ip(version), outside(version)) / header / payload
    outcome = world.depart(departing(asked), gso_size=1000, gso_segments=3)
    assert outcome.action == OK
    sent = checked(outcome.frame)
    assert sent.source == node(version) and sent.like(asked)
    answer = sent.answer(kind, **({"flags": "A"} if kind == "tcp" else {})) / payload
    back = world.arrive(arriving(answer), gso_size=1000, gso_segments=3)
    assert checked(back.frame).destination == world.a.ip(version)


@families
def test_frames_of_another_link(world: World, version: int) -> None:
    """In a VLAN: its own device sees them."""
    from scapy.layers.l2 import Dot1Q

    inner = request("udp", world.a.ip(version), outside(version))
    frame = Ether(dst="02:00:00:00:0f:01", src="02:00:00:00:0f:02") / Dot1Q(vlan=5) / inner
    outcome = world.depart(frame)
    assert outcome.action == OK and outcome.frame == bytes(frame)


def test_an_answer_to_a_ping_of_the_nodes_own(world: World) -> None:
    """With an identifier that no pod's has."""
    for version, answer in ((4, ICMP(type=0, id=5)), (6, ICMPv6EchoReply(id=5))):
        frame = arriving(network(outside(version), node(version)) / answer)
        assert world.arrive(frame).frame == bytes(frame)
