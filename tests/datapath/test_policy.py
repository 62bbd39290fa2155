# SPDX-License-Identifier: Apache-2.0
"""Verdicts: levels, who is the peer, both sides of a node's own traffic, what is told about it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.core.flow import FlowType, Verdict
from bpf.layouts import DropReason, Observation, ReservedIdentity
from policy.levels import ALL_LEVELS, evaluate, mask
from tests.datapath.packets import PROTOCOLS, arriving, into, number, out_of, request
from tests.datapath.world import (
    EGRESS,
    INGRESS,
    MARK,
    OK,
    PRIORITY,
    REDIRECT,
    SHOT,
    WORLD4,
    WORLD6,
    World,
    outside,
    packed,
)

pytestmark = pytest.mark.kernel


@dataclass(frozen=True, slots=True)
class _Cell:
    protocol: int
    port: int
    level: int
    allow: bool
    rule: int


@st.composite
def _cells(draw: st.DrawFn) -> list[_Cell]:
    """Entries around few ports, so that levels overlap."""
    found = {}
    for rule in range(300, 300 + draw(st.integers(0, 12))):
        level = draw(st.integers(0, 17))
        base = draw(st.sampled_from((0, 79, 80, 81, 443, 8080, 32768, 65535)))
        protocol = 0 if level == 17 else draw(st.sampled_from((6, 17, 132, 1, 58, 50)))
        port = 0 if level == 17 else base & mask(level)
        found[level, protocol, port] = _Cell(protocol, port, level, draw(st.booleans()), rule)
    return list(found.values())


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    _cells(),
    st.sampled_from((INGRESS, EGRESS)),
    st.sampled_from((4, 6)),
    st.just(ALL_LEVELS) | st.integers(0, ALL_LEVELS),
    st.lists(st.sampled_from((0, 1, 78, 79, 80, 81, 82, 443, 8080, 8081, 32768, 65535)), min_size=1,
             max_size=4),
    st.sampled_from(PROTOCOLS),
)  # fmt: skip
def test_the_kernel_evaluates_levels_as_the_model(
    world: World, cells: list[_Cell], direction: int, version: int, levels: int, ports: list[int],
    kind: str,
) -> None:  # fmt: skip
    """Asked as probes, which are the same code and leave nothing for the next example."""
    a, b, _ = world.pods
    subject = a if direction == EGRESS else b
    table = a.egress_table if direction == EGRESS else b.ingress_table
    peer = b if direction == EGRESS else a
    for pod in (a, b):
        world.enforce(pod)
    world.enforce(subject, direction == INGRESS, direction == EGRESS, levels)
    world.clear("policy")
    for cell in cells:
        world.rule(table, peer.class4 if version == 4 else peer.class6, cell.protocol, cell.port,
                   cell.level, cell.allow, cell.rule)  # fmt: skip
    protocol = number(kind, version)
    for port in ports:
        # Other protocols have no port; what an echo request has, no rule of ours names.
        asked = port if kind in ("tcp", "udp", "sctp") else 0
        expected = evaluate(cells, protocol, asked, levels)
        frame = out_of(a, request(kind, a.ip(version), b.ip(version), dport=port))
        outcome = world.run("from_pod", frame, a.ifindex, mark=MARK, priority=PRIORITY)
        allowed = expected is not None and expected.allow
        assert outcome.action == (OK if allowed else SHOT)
        reason = 0
        if not allowed:
            reason = DropReason.DROP_POLICY_DENY_RULE if expected else DropReason.DROP_POLICY_DENIED
        assert outcome.cb[3] == reason
        answered = outcome.cb[0] if direction == EGRESS else outcome.cb[1]
        assert answered == (expected.rule if expected else 0)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", PROTOCOLS)
def test_both_ends_of_a_local_connection_decide(world: World, version: int, kind: str) -> None:
    a, b, _ = world.pods
    frame = out_of(a, request(kind, a.ip(version), b.ip(version)))
    toward = b.class4 if version == 4 else b.class6
    whence = a.class4 if version == 4 else a.class6
    world.enforce(a, egress=True)
    world.enforce(b, ingress=True)
    outcome = world.leave(a, frame)
    assert outcome.dropped == DropReason.DROP_POLICY_DENIED
    assert list(outcome.counted) == [(EGRESS, DropReason.DROP_POLICY_DENIED)]
    world.rule(a.egress_table, toward, number(kind, version), level=0)
    outcome = world.leave(a, frame)
    assert list(outcome.counted) == [(INGRESS, DropReason.DROP_POLICY_DENIED)]
    # Nothing is recorded of what the other side refused.
    assert not world.connections()
    key = world.rule(b.ingress_table, whence, number(kind, version), level=0, allow=False)
    outcome = world.leave(a, frame)
    assert outcome.dropped == DropReason.DROP_POLICY_DENY_RULE
    world.maps["policy"].delete(key)
    world.rule(b.ingress_table, whence)
    outcome = world.leave(a, frame)
    assert outcome.action == REDIRECT
    size = len(outcome.frame)
    assert outcome.counted == {(EGRESS, 0): (1, size), (INGRESS, 0): (1, size)}
    assert len(world.connections()) == 2
    # The receiver sees its own link's Ethernet addresses, and the rest as it was.
    assert outcome.frame[:12].hex() == (b.mac + b.gateway).replace(":", "")
    assert outcome.frame[12:] == bytes(frame)[12:]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", PROTOCOLS)
def test_the_outside_is_known_by_its_longest_prefix(world: World, version: int, kind: str) -> None:
    a = world.a
    default = WORLD4 if version == 4 else WORLD6
    block = "198.51.100.0/24" if version == 4 else "2001:db8:9::/48"
    hole = "198.51.100.7/32" if version == 4 else "2001:db8:9::7/128"
    world.enforce(a, ingress=True, egress=True)
    arriving_frame = arriving(request(kind, outside(version), a.ip(version)))
    stack_frame = into(a, request(kind, outside(version), a.ip(version)))
    leaving_frame = out_of(a, request(kind, a.ip(version), outside(version)))

    def reached() -> list[bool]:
        world.forget()
        results = [world.arrive(arriving_frame).action == REDIRECT]
        world.forget()
        results.append(world.enter(a, stack_frame, sender=world.uplink).action == OK)
        world.forget()
        results.append(world.leave(a, leaving_frame).action == OK)
        return results

    assert reached() == [False] * 3
    for table in (a.ingress_table, a.egress_table):
        world.rule(table, default, number(kind, version), level=0)
    assert reached() == [True] * 3
    world.peer(block, 280, 9)
    assert reached() == [False] * 3
    for table in (a.ingress_table, a.egress_table):
        world.rule(table, 280)
    assert reached() == [True] * 3
    world.peer(hole, 281, 9)
    assert reached() == [False] * 3


@pytest.mark.parametrize("version", [4, 6])
def test_the_node_reaches_its_pods_by_provenance(world: World, version: int) -> None:
    a = world.a
    world.enforce(a, ingress=True)
    frame = into(a, request("tcp", outside(version), a.ip(version)))
    assert world.enter(a, frame).dropped == DropReason.DROP_POLICY_DENIED
    world.rule(a.ingress_table, 1, rule=2)
    assert world.enter(a, frame).action == OK
    world.forget()
    assert world.enter(a, frame, sender=world.uplink).action == SHOT


@pytest.mark.parametrize("version", [4, 6])
def test_a_pod_without_policy_or_labels(world: World, version: int) -> None:
    a, b, _ = world.pods
    frame = out_of(a, request("tcp", a.ip(version), b.ip(version)))
    world.enforce(b, ingress=True, identity=ReservedIdentity.IDENTITY_INIT)
    outcome = world.leave(a, frame)
    assert outcome.dropped == DropReason.DROP_POLICY_DENIED
    assert {event.rule for event in outcome.events} == {6}
    world.maps["endpoints"].delete(b.endpoint)
    assert world.leave(a, frame).dropped == DropReason.DROP_NO_ENDPOINT_POLICY
    world.maps["endpoints"].delete(a.endpoint)
    assert world.leave(a, frame).dropped == DropReason.DROP_NO_ENDPOINT_POLICY
    assert world.enter(a, into(a, request("tcp", outside(version), a.ip(version)))).action == SHOT


@pytest.mark.parametrize("version", [4, 6])
def test_a_pod_reaches_itself(world: World, version: int) -> None:
    a = world.a
    world.enforce(a, ingress=True, egress=True)
    frame = out_of(a, request("tcp", a.ip(version), a.ip(version)))
    assert world.leave(a, frame).action == REDIRECT


def test_what_is_told(world: World) -> None:
    a, b, _ = world.pods
    world.reset(trace=True)
    world.enforce(b, ingress=True)
    key = world.rule(b.ingress_table, a.class4, 6, 80, rule=777)
    frame = out_of(a, request("tcp", a.ip4, b.ip4))
    first, second, third = world.leave(a, frame).events
    for event, direction, rule in ((first, EGRESS, 1), (second, INGRESS, 777)):
        assert event.type == FlowType.POLICY_VERDICT
        assert event.verdict == Verdict.FORWARDED
        assert (event.direction, event.rule) == (direction, rule)
        assert (event.source_identity, event.destination_identity) == (a.identity, b.identity)
        assert (event.source_port, event.destination_port) == (40000, 80)
        assert event.source is not None and packed(str(event.source)) == packed(a.ip4)
        assert event.tcp_flags == 2
        assert event.length == len(bytes(frame))
    assert third.type == FlowType.TRACE
    assert third.observation == Observation.OBSERVE_TO_ENDPOINT
    assert not world.leave(a, frame).events  # told once
    world.maps["policy"].delete(key)
    world.bump()
    verdict, drop = world.leave(a, frame).events
    assert (verdict.type, drop.type) == (FlowType.POLICY_VERDICT, FlowType.DROP)
    for event in (verdict, drop):
        assert event.verdict == Verdict.DROPPED
        assert (event.reason, event.rule, event.endpoint) == (133, 0, b.endpoint)
        assert (event.source_identity, event.destination_identity) == (a.identity, b.identity)
        assert event.source_mac == bytes.fromhex(a.mac.replace(":", ""))


def test_events_that_find_no_room_are_counted(world: World) -> None:
    from bpf.layouts import Counter

    world.enforce(world.a, egress=True)
    raw = bytes(out_of(world.a, request("tcp", world.a.ip4, world.b.ip4)))
    packets = 7000
    for _ in range(packets):
        assert world.action("from_pod", raw, world.a.ifindex) == SHOT
    told = len(world.drain())
    lost = world.counter(Counter.COUNTER_EVENTS_LOST)
    assert lost
    assert told + lost == 2 * packets
    # The counter of drops misses none.
    assert world.counted()[EGRESS, DropReason.DROP_POLICY_DENIED] == (packets, packets * len(raw))
