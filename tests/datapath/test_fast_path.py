# SPDX-License-Identifier: Apache-2.0
"""Connections within the node: what one end vouches for, and that the short way of plain packets
(bpf/lib/fast.h) comes to the same as the full one."""

from __future__ import annotations

import os
import random
import time
from dataclasses import astuple, replace
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt
from scapy.packet import Raw

from agent.core.local import device_slot, id_slot, slots
from bpf.layouts import CtFlag, CtTold, CtVerdictBit, DropReason, LocalAddress, Place
from tests.datapath.packets import CLIENT, SERVER, network, out_of, reply, request
from tests.datapath.world import REDIRECT, SHOT, Outcome, Pod, World, mac, packed
from tests.datapath.world import TCP as TCP_NUMBER

pytestmark = pytest.mark.kernel

families = pytest.mark.parametrize("version", [4, 6])
MARK = 1
"""Only packets without a mark take the short way; this one means nothing else."""
SLOT = 1 << CtTold.CT_TOLD_BITS
CLOCK_MONOTONIC_COARSE = 6


def _open(world: World, version: int) -> tuple[Any, Any]:
    """A connection between two isolated pods; gives a packet of each direction."""
    a, b, _ = world.pods
    for pod in (a, b):
        world.enforce(pod, ingress=True, egress=True)
    world.rule(a.egress_table, b.class4 if version == 4 else b.class6)
    world.rule(b.ingress_table, a.class4 if version == 4 else a.class6)
    forth = out_of(a, request("tcp", a.ip(version), b.ip(version)))
    back = out_of(b, reply("tcp", b.ip(version), a.ip(version)))
    assert [world.leave(a, forth).action, world.leave(b, back).action] == [REDIRECT] * 2
    return (
        out_of(a, request("tcp", a.ip(version), b.ip(version), flags="A")),
        out_of(b, reply("tcp", b.ip(version), a.ip(version), flags="A")),
    )


def _change(world: World, pod: Pod, remote: str, local: int, far: int, **fields: Any) -> None:
    entry = world.connection(pod, remote, TCP_NUMBER, local, far)
    assert entry is not None
    world.maps["ct"].update(
        world.key(pod, remote, TCP_NUMBER, local, far), replace(entry, **fields)
    )


@pytest.mark.parametrize("mark", [0, MARK])
def test_time_goes_on_between_packets(world: World, mark: int) -> None:
    """The clock is kept from run to run, but not past its tick."""
    a, b, _ = world.pods
    forth, _ = _open(world, 4)
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})  # it is kept for each CPU
    try:
        world.leave(a, forth, mark=mark)
        before = int(time.clock_gettime(CLOCK_MONOTONIC_COARSE))
        while (now := int(time.clock_gettime(CLOCK_MONOTONIC_COARSE))) == before:
            time.sleep(0.01)
        world.leave(a, forth, mark=mark)
    finally:
        os.sched_setaffinity(0, allowed)
    entry = world.connection(a, b.ip(4), TCP_NUMBER, CLIENT, SERVER)
    assert entry is not None and entry.seen >= now


# ---- what is vouched for ---------------------------------------------------------------------


@families
@pytest.mark.parametrize("mark", [0, MARK])
@pytest.mark.parametrize("side", ["original", "reply"])
def test_the_far_end_is_not_asked_within_an_epoch_and_is_in_the_next(
    world: World, version: int, mark: int, side: str
) -> None:
    a, b, _ = world.pods
    forth, back = _open(world, version)
    # Without the entry that the far end has, a packet would be decided by its policy.
    sender, frame = (a, forth) if side == "original" else (b, back)
    gone = (b, a, SERVER, CLIENT) if side == "original" else (a, b, CLIENT, SERVER)
    world.maps["ct"].delete(world.key(gone[0], gone[1].ip(version), TCP_NUMBER, gone[2], gone[3]))
    world.enforce(gone[0], ingress=True, egress=True, levels=0)
    assert world.leave(sender, frame, mark=mark).action == REDIRECT
    world.bump()
    assert world.leave(sender, frame, mark=mark).dropped == DropReason.DROP_POLICY_DENIED


@families
@pytest.mark.parametrize("mark", [0, MARK])
def test_another_pod_with_the_address_is_asked(world: World, version: int, mark: int) -> None:
    """Also before the epoch moves: who had the address leaves the slot before it is given away."""
    a, b, c = world.pods
    forth, _ = _open(world, version)
    assert world.leave(a, forth, mark=mark).action == REDIRECT
    world.enforce(c, ingress=True, egress=True)
    addresses, key = world.maps["addresses"], packed(b.ip(version))
    held: LocalAddress = addresses.lookup(key)  # type: ignore[assignment]
    _nobody(world, *slots(b.endpoint, b.ifindex))
    addresses.update(key, replace(held, endpoint=c.endpoint))
    assert world.leave(a, forth, mark=mark).dropped == DropReason.DROP_POLICY_DENIED


# ---- places ----------------------------------------------------------------------------------


def _nobody(world: World, *numbers: int) -> None:
    for slot in numbers:
        world.maps["places"].update(slot, Place(0, 0, bytes(6), bytes(6), 0, bytes(16)))


def _without_tables(world: World) -> None:
    """Only who goes by the slots finds anybody."""
    for name in ("devices", "addresses"):
        world.clear(name)


@families
@pytest.mark.parametrize("side", ["original", "reply"])
def test_packets_in_full_swing_go_by_the_slots_alone(world: World, version: int, side: str) -> None:
    a, b, _ = world.pods
    forth, back = _open(world, version)
    _without_tables(world)
    sender, frame, receiver = (a, forth, b) if side == "original" else (b, back, a)
    outcome = world.leave(sender, frame)
    assert outcome.action == REDIRECT
    assert (outcome.frame[:6], outcome.frame[6:12]) == (mac(receiver.mac), mac(receiver.gateway))
    # What is not in full swing does not.
    fresh = out_of(a, request("tcp", a.ip(version), b.ip(version), sport=CLIENT + 1))
    assert world.leave(a, fresh).dropped == DropReason.DROP_ENDPOINT_NOT_READY


@families
@pytest.mark.parametrize("whose", ["sender's", "receiver's"])
@pytest.mark.parametrize("there", ["nobody", "another", "its like", "another address", "none"])
def test_a_slot_that_is_not_the_pods_is_left_for_the_tables(
    world: World, version: int, whose: str, there: str
) -> None:
    a, b, c = world.pods
    forth, _ = _open(world, version)
    slot = device_slot(a.ifindex) if whose == "sender's" else id_slot(b.endpoint)
    places = world.maps["places"]
    held: Place = places.lookup(slot)  # type: ignore[assignment]
    others = {
        "nobody": replace(held, endpoint=0),
        # Of two pods in one slot, both ways of finding them.
        "another": places.lookup(device_slot(c.ifindex))
        if whose == "sender's"
        else places.lookup(id_slot(c.endpoint)),
        # As another pod may have been before it, but for what the slot is found by.
        "its like": replace(held, ifindex=c.ifindex)
        if whose == "sender's"
        else replace(held, endpoint=c.endpoint),
        "another address": replace(held, address4=held.address4 ^ 1, address6=packed("fd00::99")),
        "none": replace(held, address4=0, address6=bytes(16)),
    }
    places.update(slot, others[there])
    outcome = world.leave(a, forth)
    assert outcome.action == REDIRECT  # by the tables
    assert (outcome.frame[:6], outcome.frame[6:12]) == (mac(b.mac), mac(b.gateway))
    _without_tables(world)
    assert world.leave(a, forth).dropped == DropReason.DROP_ENDPOINT_NOT_READY


def test_a_pod_without_an_address_sends_none(world: World) -> None:
    """All zero in a slot is no address, also for a packet that claims it."""
    a, b, _ = world.pods
    _open(world, 4)
    slot = device_slot(a.ifindex)
    held: Place = world.maps["places"].lookup(slot)  # type: ignore[assignment]
    world.maps["places"].update(slot, replace(held, address4=0))
    key = world.key(a, b.ip(4), TCP_NUMBER, CLIENT, SERVER)
    assert world.maps["ct"].lookup(key) is not None
    forged = out_of(a, request("tcp", "0.0.0.0", b.ip(4), flags="A"))
    assert world.leave(a, forged).dropped == DropReason.DROP_INVALID_SOURCE_IP


@families
@pytest.mark.parametrize("mark", [0, MARK])
def test_the_far_end_hears_of_the_connection_now_and_then(
    world: World, version: int, mark: int
) -> None:
    a, b, _ = world.pods
    forth, back = _open(world, version)
    for pod, far, local, remote, frame in (
        (a, b, CLIENT, SERVER, forth),
        (b, a, SERVER, CLIENT, back),
    ):
        seen = world.connection(pod, far.ip(version), TCP_NUMBER, local, remote).seen  # type: ignore[union-attr]
        _change(world, pod, far.ip(version), local, remote, seen=seen - SLOT)
        _change(world, far, pod.ip(version), remote, local, seen=seen - SLOT)
        assert world.leave(pod, frame, mark=mark).action == REDIRECT
        for end, other, mine, theirs in ((pod, far, local, remote), (far, pod, remote, local)):
            entry = world.connection(end, other.ip(version), TCP_NUMBER, mine, theirs)
            assert entry is not None and entry.seen >= seen


@families
@pytest.mark.parametrize("flags", ["FA", "R", "RA"])
def test_both_ends_hear_of_the_end(world: World, version: int, flags: str) -> None:
    a, b, _ = world.pods
    _open(world, version)
    last = out_of(a, request("tcp", a.ip(version), b.ip(version), flags=flags))
    assert world.leave(a, last).action == REDIRECT
    expected = CtFlag.CT_FIN_ORIGINAL if "F" in flags else CtFlag.CT_RST
    assert all(entry.flags & expected for entry in world.connections().values())
    assert len(world.connections()) == 2


@families
def test_a_denied_end_is_not_vouched_for(world: World, version: int) -> None:
    a, b, _ = world.pods
    forth, back = _open(world, version)
    world.enforce(b, ingress=True, egress=True, levels=0)
    world.bump()
    for frame, pod in ((forth, a), (back, b), (forth, a)):
        assert world.leave(pod, frame).dropped == DropReason.DROP_POLICY_DENIED
    entry = world.connection(a, b.ip(version), TCP_NUMBER, CLIENT, SERVER)
    assert entry is not None and not entry.verdict >> CtVerdictBit.CT_VOUCHED_BIT


def test_an_ipv4_connection_has_no_packets_of_ipv6(world: World) -> None:
    """Its key holds mapped addresses, which IPv6 packets can bear, too."""
    a, b, _ = world.pods
    forth, _ = _open(world, 4)
    assert world.leave(a, forth).action == REDIRECT
    forged = network(a.ip6, f"::ffff:{b.ip4}") / TCP(sport=CLIENT, dport=SERVER, flags="A")
    assert world.leave(a, out_of(a, forged)).dropped == DropReason.DROP_INVALID_PACKET


# ---- the short way is the full one -----------------------------------------------------------


class _Script:
    """A random story of packets and changes, told twice in the same words."""

    def __init__(self, world: World, seed: int, mark: int) -> None:
        self.world, self.mark = world, mark
        self.dice = random.Random(seed)
        self.version = self.dice.choice((4, 6))
        self.told: list[object] = []

    def tell(self, steps: int) -> list[object]:
        """What was seen of each step, and the connections at the end."""
        world = self.world
        world.reset()
        for pod in world.pods:
            world.enforce(pod, ingress=True, egress=True)
        self.rules = [
            (table, peer, port)
            for pod in world.pods
            for table in (pod.ingress_table, pod.egress_table)
            for other in world.pods
            for peer in ((other.class4, other.class6)[self.version == 6],)
            for port in (0, SERVER)
        ]
        self.keys = {one: world.rule(one[0], one[1], TCP_NUMBER if one[2] else 0, one[2])
                     for one in self.rules if self.dice.random() < 0.85}  # fmt: skip
        for _ in range(steps):
            self._step()
        self.told.append({
            astuple(key): astuple(replace(entry, seen=0))
            for key, entry in world.connections().items()
        })  # fmt: skip
        return self.told

    def _step(self) -> None:
        chance = self.dice.random()
        if chance < 0.04:
            one = self.dice.choice(self.rules)
            if one in self.keys:
                self.world.maps["policy"].delete(self.keys.pop(one))
            else:
                port = one[2]
                self.keys[one] = self.world.rule(one[0], one[1], TCP_NUMBER if port else 0, port)
            if self.dice.random() < 0.7:
                self.world.bump()
            return
        if chance < 0.05:
            self.world.bump()
            return
        sender, receiver = self.dice.sample(self.world.pods, 2)
        frame = self._frame(sender, receiver)
        outcome = self.world.leave(sender, frame, mark=self.mark)
        self.told.append(self._summary(outcome))

    def _frame(self, sender: Pod, receiver: Pod) -> object:
        dice, version = self.dice, self.version
        source, target = sender.ip(version), receiver.ip(version)
        if dice.random() < 0.05:  # not its own address
            source = receiver.ip(version)
        ports = dice.choice(((CLIENT, SERVER), (SERVER, CLIENT), (CLIENT, CLIENT + 1)))
        header = network(source, target)
        if dice.random() < 0.1:
            header = self._odd(header)
        if dice.random() < 0.3:
            segment = UDP(sport=ports[0], dport=ports[1])
        else:
            flags = dice.choice(("S", "SA", "A", "A", "A", "A", "PA", "FA", "R", "U"))
            segment = TCP(sport=ports[0], dport=ports[1], flags=flags)
            if dice.random() < 0.05:
                segment.dataofs = dice.choice((4, 6, 15))
        raw = bytearray(bytes(out_of(sender, header / segment / Raw(b"x" * dice.randrange(40)))))
        if dice.random() < 0.03:  # cut short, or a byte broken
            # Test runs want a whole IP header.
            del raw[dice.randrange(34 if version == 4 else 54, len(raw)) :]
        elif dice.random() < 0.05:
            place = dice.choice([*range(6, 12), *range(14, len(raw))])  # all but the EtherType
            raw[place] ^= 1 << dice.randrange(8)
        return bytes(raw)

    def _odd(self, header: Any) -> Any:
        if self.version == 6:
            return self.dice.choice((header / IPv6ExtHdrDestOpt(), IPv6(bytes(header), tc=3)))
        more = self.dice.choice(
            ({"flags": "MF"}, {"frag": 3}, {"flags": "DF"}, {"ttl": 1}, {"len": 25})
        )
        return IP(src=header.src, dst=header.dst, **more)

    @staticmethod
    def _summary(outcome: Outcome) -> object:
        events = [replace(event, time_ns=0) for event in outcome.events]
        return outcome.action, outcome.frame, events, outcome.counted


@pytest.mark.parametrize("seed", range(20))
def test_the_short_way_comes_to_the_same(world: World, seed: int) -> None:
    short = _Script(world, seed, 0).tell(250)
    full = _Script(world, seed, MARK).tell(250)
    for step, (one, other) in enumerate(zip(short, full, strict=True)):
        assert one == other, f"step {step}"
    actions = [one[0] for one in short if isinstance(one, tuple)]
    assert {REDIRECT, SHOT} <= set(actions)
