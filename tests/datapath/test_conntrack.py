# SPDX-License-Identifier: Apache-2.0
"""Connections: replies, epochs, who opened what, by which way, and a full table."""

from __future__ import annotations

import pytest

from bpf.layouts import Counter, CtFlag, CtVerdictBit, DropReason, Origin
from tests.datapath.packets import (
    CLIENT,
    PROTOCOLS,
    SERVER,
    arriving,
    datagram,
    into,
    number,
    out_of,
    ports,
    reply,
    request,
)
from tests.datapath.world import (
    OK,
    OUTSIDE4,
    REDIRECT,
    SHOT,
    TCP,
    Outcome,
    Pod,
    World,
    node,
    outside,
)

pytestmark = pytest.mark.kernel

families = pytest.mark.parametrize("version", [4, 6])
kinds = pytest.mark.parametrize("kind", PROTOCOLS)


def vouched(world: World) -> int:
    """A verdict of this epoch, of both ends."""
    return world.epoch | 1 << CtVerdictBit.CT_VOUCHED_BIT


def _allow(world: World, version: int, sender: Pod, receiver: Pod) -> list[object]:
    """Both isolated in both directions; only this one may talk to that one."""
    for pod in (sender, receiver):
        world.enforce(pod, ingress=True, egress=True)
    there = receiver.class4 if version == 4 else receiver.class6
    here = sender.class4 if version == 4 else sender.class6
    return [world.rule(sender.egress_table, there), world.rule(receiver.ingress_table, here)]


@families
@kinds
def test_replies_pass_and_nothing_else(world: World, version: int, kind: str) -> None:
    a, b, _ = world.pods
    _allow(world, version, a, b)
    forth = out_of(a, request(kind, a.ip(version), b.ip(version)))
    back = out_of(b, reply(kind, b.ip(version), a.ip(version)))
    assert world.leave(b, back).action == SHOT
    assert world.leave(a, forth).action == REDIRECT
    outcome = world.leave(b, back)
    assert outcome.action == REDIRECT
    assert outcome.frame[:12].hex() == (a.mac + a.gateway).replace(":", "")
    local, remote = ports(kind)
    protocol = number(kind, version)
    mine = world.connection(a, b.ip(version), protocol, local, remote)
    theirs = world.connection(b, a.ip(version), protocol, remote, local)
    assert mine is not None and theirs is not None
    # Each end counts what its own pod sent.
    assert (mine.packets, mine.bytes) == ((1, 0), (len(bytes(forth)), 0))
    assert (theirs.packets, theirs.bytes) == ((0, 1), (0, len(bytes(back))))
    assert mine.verdict == theirs.verdict == vouched(world)
    assert mine.flags == CtFlag.CT_SEEN_REPLY | CtFlag.CT_LOCAL
    assert theirs.flags == CtFlag.CT_SEEN_REPLY | CtFlag.CT_LOCAL | CtFlag.CT_INGRESS
    assert (mine.far_end, theirs.far_end) == (b.endpoint, a.endpoint)
    assert len(world.connections()) == 2
    if kind in ("tcp", "udp", "sctp"):
        other = out_of(b, reply(kind, b.ip(version), a.ip(version), sport=SERVER + 1))
        assert world.leave(b, other).action == SHOT


@families
@kinds
@pytest.mark.parametrize("side", ["sender's egress", "receiver's ingress"])
def test_a_deny_ends_it_from_either_side_and_an_allow_renews_it(
    world: World, version: int, kind: str, side: str
) -> None:
    a, b, _ = world.pods
    keys = _allow(world, version, a, b)
    forth = out_of(a, request(kind, a.ip(version), b.ip(version)))
    if kind == "tcp":
        later = out_of(a, request(kind, a.ip(version), b.ip(version), flags="A"))
    else:
        later = forth
    back = out_of(b, reply(kind, b.ip(version), a.ip(version)))
    assert [world.leave(a, forth).action, world.leave(b, back).action] == [REDIRECT] * 2
    key = keys[0 if side.startswith("sender") else 1]
    value = world.maps["policy"].lookup(key)
    world.maps["policy"].delete(key)
    # As long as the epoch stands, the remembered verdict does.
    assert [world.leave(b, back).action, world.leave(a, later).action] == [REDIRECT] * 2
    for order in ((a, later), (b, back)), ((b, back), (a, later)):
        world.bump()
        for pod, frame in order:
            assert world.leave(pod, frame).dropped == DropReason.DROP_POLICY_DENIED
    world.maps["policy"].update(key, value)
    for order in ((a, later), (b, back)), ((b, back), (a, later)):
        world.bump()
        for pod, frame in order:
            assert world.leave(pod, frame).action == REDIRECT
    assert world.counter(Counter.COUNTER_CT_REVALIDATED) >= 4
    assert len(world.connections()) == 2
    assert all(entry.verdict == vouched(world) for entry in world.connections().values())


@families
def test_a_verdict_names_the_new_rule_after_a_change(world: World, version: int) -> None:
    a, b, _ = world.pods
    _allow(world, version, a, b)
    frame = out_of(a, request("tcp", a.ip(version), b.ip(version)))
    assert world.leave(a, frame).action == REDIRECT
    world.rule(b.ingress_table, a.class4 if version == 4 else a.class6, rule=555)
    world.bump()
    assert world.leave(a, frame).action == REDIRECT
    entry = world.connection(b, a.ip(version), TCP, SERVER, CLIENT)
    assert entry is not None and entry.rule == 555


def _tcp(world: World, sender: Pod, receiver: Pod, version: int, flags: str,
         back: bool = False) -> Outcome:  # fmt: skip
    ports = {"sport": SERVER, "dport": CLIENT} if back else {}
    frame = datagram("tcp", sender.ip(version), receiver.ip(version), flags=flags, **ports)
    return world.leave(sender, out_of(sender, frame))


@families
@pytest.mark.parametrize("ending", ["F", "FA", "R", "RA"])
def test_a_syn_over_a_closed_connection_is_judged_anew(
    world: World, version: int, ending: str
) -> None:
    a, b, _ = world.pods
    keys = _allow(world, version, a, b)
    assert _tcp(world, a, b, version, "S").action == REDIRECT
    assert _tcp(world, b, a, version, "SA", True).action == REDIRECT
    for key in keys:
        world.maps["policy"].delete(key)
    # The epoch stands: a SYN again over a live connection asks nothing.
    assert _tcp(world, a, b, version, "S").action == REDIRECT
    assert _tcp(world, a, b, version, ending).action == REDIRECT
    entry = world.connection(b, a.ip(version), TCP, SERVER, CLIENT)
    assert entry is not None
    wanted = CtFlag.CT_RST if "R" in ending else CtFlag.CT_FIN_ORIGINAL
    assert entry.flags == CtFlag.CT_INGRESS | CtFlag.CT_LOCAL | CtFlag.CT_SEEN_REPLY | wanted
    for flags in ("S", "SF", "SPU"):
        assert _tcp(world, a, b, version, flags).dropped == DropReason.DROP_POLICY_DENIED
    # What is still on its way of the old one passes.
    assert _tcp(world, b, a, version, "A", True).action == REDIRECT
    _allow(world, version, a, b)
    assert _tcp(world, a, b, version, "S").action == REDIRECT
    entry = world.connection(b, a.ip(version), TCP, SERVER, CLIENT)
    assert entry is not None
    assert entry.flags == CtFlag.CT_INGRESS | CtFlag.CT_LOCAL
    entry = world.connection(a, b.ip(version), TCP, CLIENT, SERVER)
    assert entry is not None and entry.packets == (1, 0)


@families
@pytest.mark.parametrize("flags", ["S", "SF", "SE", "SPUC"])
def test_a_syn_from_the_other_side_is_no_reply(world: World, version: int, flags: str) -> None:
    a, b, _ = world.pods
    _allow(world, version, a, b)
    assert _tcp(world, a, b, version, "S").action == REDIRECT
    assert _tcp(world, b, a, version, "SA", True).action == REDIRECT
    assert _tcp(world, b, a, version, flags, True).dropped == DropReason.DROP_POLICY_DENIED
    # It changed nothing for the connection.
    assert _tcp(world, b, a, version, "A", True).action == REDIRECT
    assert _tcp(world, a, b, version, "A").action == REDIRECT


@families
def test_a_reset_opens_nothing(world: World, version: int) -> None:
    for flags in ("R", "RA", "SR"):
        assert _tcp(world, world.a, world.b, version, flags).action == REDIRECT
    assert not world.connections()


@families
@kinds
def test_replies_go_by_the_way_of_the_request(world: World, version: int, kind: str) -> None:
    """Opened through the node's stack: back through it, also to a pod of this node."""
    a, b, _ = world.pods
    for source, sender, origin in (
        (b.ip(version), b.ifindex, b.endpoint),
        (node(version), 0, Origin.ORIGIN_NODE),
        (node(version), world.uplink, Origin.ORIGIN_UNKNOWN),
        (outside(version), world.uplink, Origin.ORIGIN_ADDRESS),
    ):
        world.forget()
        forth = into(a, request(kind, source, a.ip(version)))
        assert world.enter(a, forth, sender=sender).action == OK
        (entry,) = world.connections().values()
        assert entry.flags == CtFlag.CT_INGRESS | CtFlag.CT_VIA_STACK
        assert entry.far_end == origin
        back = out_of(a, reply(kind, a.ip(version), source))
        outcome = world.leave(a, back)
        assert outcome.action == OK
        assert outcome.frame == bytes(back)
        assert len(world.connections()) == 1
    # Opened from outside, past the stack: back past it.
    world.forget()
    forth = arriving(request(kind, outside(version), a.ip(version)))
    assert world.arrive(forth).action == REDIRECT
    back = out_of(a, reply(kind, a.ip(version), outside(version)))
    assert world.leave(a, back).action == REDIRECT


@families
@kinds
def test_answers_to_what_a_pod_asked_outside(world: World, version: int, kind: str) -> None:
    a = world.a
    assert world.leave(a, out_of(a, request(kind, a.ip(version), outside(version)))).action == OK
    world.enforce(a, ingress=True)
    answer = reply(kind, outside(version), a.ip(version))
    # The uplink's program leaves it to the stack, which may have translated; to_pod judges.
    outcome = world.arrive(arriving(answer))
    assert outcome.action == OK
    assert not outcome.counted
    assert world.enter(a, into(a, answer), sender=world.uplink).action == OK
    unasked = reply(kind, "203.0.113.5" if version == 4 else "2001:db8:5::5", a.ip(version))
    assert world.arrive(arriving(unasked)).dropped == DropReason.DROP_POLICY_DENIED
    assert world.enter(a, into(a, unasked), sender=world.uplink).action == SHOT


@families
def test_the_tuple_of_somebody_elses_connection(world: World, version: int) -> None:
    """The node's own stack may; the same tuple from elsewhere is judged by itself."""
    a, b, _ = world.pods
    world.enforce(a, ingress=True)
    world.rule(a.ingress_table, 1, rule=2)
    frame = into(a, request("tcp", outside(version), a.ip(version)))
    later = into(a, request("tcp", outside(version), a.ip(version), flags="A"))
    assert world.enter(a, frame).action == OK
    before = world.traces(["ct"])
    for packet in (frame, later):
        for sender in (world.uplink, b.ifindex):
            assert world.enter(a, packet, sender=sender).action == SHOT
    for packet in (request("tcp", outside(version), a.ip(version)),
                   request("tcp", outside(version), a.ip(version), flags="A")):  # fmt: skip
        raw = bytes(arriving(packet))
        # The entry says that its packets come by the stack, which is where this one is judged.
        assert world.action("from_uplink", raw, world.uplink) in (OK, SHOT)
    assert world.traces(["ct"]) == before
    assert world.enter(a, later).action == OK


@families
def test_a_full_table(world: World, version: int) -> None:
    """New connections go on in the overflow table; established ones stay where they are."""
    a, b, _ = world.pods
    _allow(world, version, a, b)
    capacity = world.maps["ct"].capacity
    made = 0
    while len(world.maps["ct"].raw_items()) < capacity:
        frame = request("udp", a.ip(version), b.ip(version), sport=1000 + made)
        assert world.leave(a, out_of(a, frame)).action == REDIRECT
        made += 1
    before = world.maps["ct"].raw_items().keys()
    late = out_of(a, request("udp", a.ip(version), b.ip(version), sport=999))
    assert world.leave(a, late).action == REDIRECT
    assert world.counter(Counter.COUNTER_CT_CREATED) == capacity
    assert world.counter(Counter.COUNTER_CT_OVERFLOW) == 2
    assert world.maps["ct"].raw_items().keys() == before
    entry = world.connection(a, b.ip(version), 17, 999, SERVER, table="ct_overflow")
    assert entry is not None
    # It is found there, and is not made again.
    back = out_of(b, reply("udp", b.ip(version), a.ip(version), dport=999))
    assert world.leave(b, back).action == REDIRECT
    assert world.leave(a, late).action == REDIRECT
    entry = world.connection(a, b.ip(version), 17, 999, SERVER, table="ct_overflow")
    assert entry is not None and entry.packets == (2, 0)
    assert world.counter(Counter.COUNTER_CT_OVERFLOW) == 2
    # A verdict in the overflow table is no staler than elsewhere.
    world.clear("policy")
    world.bump()
    assert world.leave(b, back).action == SHOT
    early = out_of(a, request("udp", a.ip(version), b.ip(version), sport=1000))
    assert world.leave(a, early).action == SHOT


def test_entries_are_per_endpoint(world: World) -> None:
    """One pod's connection says nothing about the same tuple at another pod."""
    world.enforce(world.b, ingress=True)
    assert world.arrive(arriving(request("tcp", OUTSIDE4, world.a.ip4))).action == REDIRECT
    assert world.arrive(arriving(request("tcp", OUTSIDE4, world.b.ip4))).action == SHOT
