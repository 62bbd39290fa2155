# SPDX-License-Identifier: Apache-2.0
"""ICMP errors about known connections pass, and only those."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.packet import Raw

from bpf.layouts import DropReason
from tests.datapath.packets import PROTOCOLS, arriving, into, network, out_of, reply, request
from tests.datapath.world import OK, REDIRECT, ROUTER4, ROUTER6, SHOT, World, outside

pytestmark = pytest.mark.kernel

families = pytest.mark.parametrize("version", [4, 6])
kinds = pytest.mark.parametrize("kind", PROTOCOLS)

ERRORS: dict[int, list[Any]] = {
    4: [ICMP(type=3, code=4, nexthopmtu=1400), ICMP(type=3, code=1), ICMP(type=4),
        ICMP(type=11), ICMP(type=12)],
    6: [ICMPv6DestUnreach(), ICMPv6PacketTooBig(mtu=1400), ICMPv6TimeExceeded(),
        ICMPv6ParamProblem()],
}  # fmt: skip
CASES = [(version, error) for version in (4, 6) for error in ERRORS[version]]


def _error(version: int, source: str, destination: str, quote: bytes, kind: Any = None) -> Any:
    header = kind if kind is not None else ERRORS[version][0]
    return network(source, destination) / header.copy() / Raw(quote)


def _router(version: int) -> str:
    return ROUTER4 if version == 4 else ROUTER6


@pytest.mark.parametrize(("version", "error"), CASES)
@kinds
def test_routers_errors_about_a_pods_connection(
    world: World, version: int, error: Any, kind: str
) -> None:
    a = world.a
    first = request(kind, a.ip(version), outside(version))
    message = _error(version, _router(version), a.ip(version), bytes(first), error)
    world.enforce(a, ingress=True)
    assert world.enter(a, into(a, message), sender=world.uplink).action == SHOT
    assert world.leave(a, out_of(a, first)).action == OK
    before = world.connections()
    outcome = world.arrive(arriving(message))  # of a connection that the stack may have translated
    assert outcome.action == OK
    assert world.enter(a, into(a, message), sender=world.uplink).action == OK
    assert world.connections() == before


@families
@kinds
def test_errors_about_what_came_past_the_stack(world: World, version: int, kind: str) -> None:
    """Path MTU of answers: a router tells the pod that answered."""
    a = world.a
    assert world.arrive(arriving(request(kind, outside(version), a.ip(version)))).action == REDIRECT
    answer = reply(kind, a.ip(version), outside(version))
    assert world.leave(a, out_of(a, answer)).action == REDIRECT
    world.enforce(a, ingress=True)
    message = _error(version, _router(version), a.ip(version), bytes(answer))
    assert world.arrive(arriving(message)).action == REDIRECT


@families
@kinds
def test_a_pods_own_complaint(world: World, version: int, kind: str) -> None:
    a, b, _ = world.pods
    first = request(kind, a.ip(version), b.ip(version))
    message = out_of(b, _error(version, b.ip(version), a.ip(version), bytes(first)))
    world.enforce(b, egress=True)
    assert world.leave(b, message).dropped == DropReason.DROP_POLICY_DENIED
    assert world.leave(a, out_of(a, first)).action == REDIRECT
    world.enforce(a, ingress=True)
    assert world.leave(b, message).action == REDIRECT


def _quotes(version: int, mine: str, other: str) -> list[tuple[str, bytes]]:
    """Quotes that belong to no connection from ``mine`` to ``other``, or are none."""
    good = bytes(request("tcp", mine, other))
    header = 20 if version == 4 else 40
    cases = [
        ("other port", bytes(request("tcp", mine, other, dport=81))),
        ("other source port", bytes(request("tcp", mine, other, sport=1))),
        ("other protocol", bytes(request("udp", mine, other))),
        ("other way round", bytes(request("tcp", other, mine))),
        ("other receiver", bytes(request("tcp", mine, _router(version)))),
        ("header alone", good[:header]),
        ("seven bytes", good[: header + 7]),
        ("nothing", b""),
        ("wrong version", bytes([good[0] ^ 0x30]) + good[1:]),
        ("an error in the error", bytes(_error(version, mine, other, good))),
    ]
    if version == 4:
        later = IP(good)
        later.frag = 5
        cases += [("later fragment", bytes(later)), ("short header", b"\x44" + good[1:])]
    else:
        inner = IPv6(good)
        cases += [("later fragment", bytes(IPv6(src=mine, dst=other)
                   / IPv6ExtHdrFragment(offset=5, nh=6) / inner.payload))]  # fmt: skip
    return cases


@pytest.mark.parametrize(
    ("version", "number"), [(4, n) for n in range(12)] + [(6, n) for n in range(11)]
)
def test_forged_and_broken_quotes(world: World, version: int, number: int) -> None:
    a = world.a
    assert world.leave(a, out_of(a, request("tcp", a.ip(version), outside(version)))).action == OK
    world.enforce(a, ingress=True, egress=True)
    cases = _quotes(version, a.ip(version), outside(version))
    what, quote = cases[number]
    message = _error(version, _router(version), a.ip(version), quote)
    outcome = world.enter(a, into(a, message), sender=world.uplink)
    assert outcome.dropped == DropReason.DROP_POLICY_DENIED, what


@families
def test_a_first_fragment_may_be_quoted(world: World, version: int) -> None:
    a = world.a
    whole = request("udp", a.ip(version), outside(version))
    assert world.leave(a, out_of(a, whole)).action == OK
    world.enforce(a, ingress=True)
    if version == 4:
        quote = whole.copy()
        quote.flags = "MF"
    else:
        quote = IPv6(src=a.ip6, dst=outside(6)) / IPv6ExtHdrFragment(m=1, nh=17) / whole.payload
    message = _error(version, _router(version), a.ip(version), bytes(quote))
    assert world.enter(a, into(a, message), sender=world.uplink).action == OK


@families
def test_a_pod_complains_of_its_own_connections_alone(world: World, version: int) -> None:
    """B was sent nothing by A: it may not tell A of A's connection to C."""
    a, b, c = world.pods
    first = request("tcp", a.ip(version), c.ip(version))
    assert world.leave(a, out_of(a, first)).action == REDIRECT
    world.enforce(b, egress=True)
    message = _error(version, b.ip(version), a.ip(version), bytes(first))
    assert world.leave(b, out_of(b, message)).dropped == DropReason.DROP_POLICY_DENIED


@families
def test_a_denied_connections_errors_are_denied(world: World, version: int) -> None:
    a = world.a
    first = request("tcp", a.ip(version), outside(version))
    assert world.leave(a, out_of(a, first)).action == OK
    world.enforce(a, ingress=True, egress=True)
    message = into(a, _error(version, _router(version), a.ip(version), bytes(first)))
    assert world.enter(a, message, sender=world.uplink).action == OK
    world.bump()
    outcome = world.enter(a, message, sender=world.uplink)
    assert outcome.dropped == DropReason.DROP_POLICY_DENIED


@families
def test_unasked_answers_and_other_messages_leave_no_entry(world: World, version: int) -> None:
    a, b, _ = world.pods
    answer = reply("icmp", a.ip(version), b.ip(version))
    assert world.leave(a, out_of(a, answer)).action == REDIRECT
    other = network(a.ip(version), b.ip(version)) / (
        ICMP(type=5) if version == 4 else Raw(b"\xc8\0\0\0\0\0\0\0")
    )
    if version == 6:
        other.nh = 58
    assert world.leave(a, out_of(a, other)).action == REDIRECT
    assert not world.connections()
    world.enforce(b, ingress=True)
    for packet in (answer, other):
        assert world.leave(a, out_of(a, packet)).dropped == DropReason.DROP_POLICY_DENIED


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from((4, 6)), st.binary(max_size=120), st.integers(0, 60))
def test_random_quotes_are_related_to_nothing(
    world: World, version: int, noise: bytes, kept: int
) -> None:
    """From the end of a true quote's addresses on at the latest, it must be a true one."""
    a = world.a
    world.enforce(a)
    world.forget()
    first = request("tcp", a.ip(version), outside(version))
    assert world.leave(a, out_of(a, first)).action == OK
    world.enforce(a, ingress=True)
    true = bytes(first)
    quote = true[:kept] + noise
    needed = 24 if version == 4 else 44
    message = _error(version, _router(version), a.ip(version), quote)
    outcome = world.enter(a, into(a, message), sender=world.uplink)
    if outcome.action == OK:
        address = slice(12, needed) if version == 4 else slice(8, needed)
        assert quote[address] == true[address]
