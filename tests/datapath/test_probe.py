# SPDX-License-Identifier: Apache-2.0
"""Questions of the agent: the verdict of the loaded program, and no trace of it anywhere.

Also what loading the programs costs: the verifier gives up at a million instructions.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.kernel import bpf
from agent.kernel.loader import Loader, ProgramSpec
from agent.kernel.maps import PinnedMap
from bpf.layouts import CtEntry, DropReason, ProbeBit
from bpf.maps import CT, CT_OVERFLOW
from tests.datapath.packets import PROTOCOLS, arriving, into, number, out_of, request
from tests.datapath.world import (
    FROM_POD,
    FROM_TUNNEL,
    FROM_UPLINK,
    MARK,
    OK,
    PRIORITY,
    PROGRAMS,
    REDIRECT,
    SHOT,
    TO_POD,
    TO_TUNNEL,
    TO_UPLINK,
    Outcome,
    World,
    outside,
)

pytestmark = pytest.mark.kernel

#: Of the kernel's 1,000,000 instructions walked: room for what comes.
VERIFIER_BOUNDS = {
    FROM_POD: 500_000,
    TO_POD: 100_000,
    FROM_UPLINK: 100_000,
    FROM_TUNNEL: 100_000,
    TO_TUNNEL: 50_000,
    TO_UPLINK: 200_000,
}
BOTH_DECIDED = ProbeBit.PROBE_EGRESS_DECIDED | ProbeBit.PROBE_INGRESS_DECIDED
BOTH_ALLOWED = ProbeBit.PROBE_EGRESS_ALLOWED | ProbeBit.PROBE_INGRESS_ALLOWED


def _ask(world: World, program: str, frame: object, ifindex: int, sender: int = 0) -> Outcome:
    before = world.traces()
    outcome = world.run(program, frame, ifindex, sender, mark=MARK, priority=PRIORITY)
    assert world.traces() == before
    assert not outcome.events
    return outcome


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("kind", PROTOCOLS)
def test_both_sides_answer(world: World, version: int, kind: str) -> None:
    a, b, _ = world.pods
    frame = out_of(a, request(kind, a.ip(version), b.ip(version)))
    outcome = _ask(world, FROM_POD, frame, a.ifindex)
    assert outcome.action == OK
    assert outcome.cb[:4] == (1, 1, BOTH_DECIDED | BOTH_ALLOWED, 0)
    world.enforce(a, egress=True)
    outcome = _ask(world, FROM_POD, frame, a.ifindex)
    assert outcome.action == SHOT
    assert outcome.cb[2:4] == (ProbeBit.PROBE_EGRESS_DECIDED, DropReason.DROP_POLICY_DENIED)
    world.rule(a.egress_table, b.class4 if version == 4 else b.class6, number(kind, version),
               level=0, rule=400)  # fmt: skip
    world.enforce(b, ingress=True)
    world.rule(b.ingress_table, a.class4 if version == 4 else a.class6, allow=False, rule=401)
    outcome = _ask(world, FROM_POD, frame, a.ifindex)
    assert outcome.action == SHOT
    assert outcome.cb[:4] == (
        400, 401, BOTH_DECIDED | ProbeBit.PROBE_EGRESS_ALLOWED, DropReason.DROP_POLICY_DENY_RULE,
    )  # fmt: skip


@pytest.mark.parametrize("version", [4, 6])
def test_the_other_programs_answer(world: World, version: int) -> None:
    a = world.a
    packet = request("tcp", outside(version), a.ip(version))
    for program, frame, ifindex, sender in (
        (TO_POD, into(a, packet), a.ifindex, world.uplink),
        (FROM_UPLINK, arriving(packet), world.uplink, 0),
    ):
        world.enforce(a)
        outcome = _ask(world, program, frame, ifindex, sender)
        assert outcome.action == OK
        world.enforce(a, ingress=True)
        outcome = _ask(world, program, frame, ifindex, sender)
        assert outcome.action == SHOT
        assert outcome.cb[2:4] == (ProbeBit.PROBE_INGRESS_DECIDED, DropReason.DROP_POLICY_DENIED)


def test_a_probe_is_not_answered_from_a_connection(world: World) -> None:
    """It is the policy that is asked about, not what was decided before."""
    a, b, _ = world.pods
    frame = out_of(a, request("tcp", a.ip4, b.ip4))
    assert world.leave(a, frame).action == REDIRECT
    world.enforce(b, ingress=True)
    assert _ask(world, FROM_POD, frame, a.ifindex).action == SHOT
    assert world.leave(a, frame).action == REDIRECT  # nothing changed: the epoch stands


def test_broken_probes_leave_no_trace_either(world: World) -> None:
    a, b, _ = world.pods
    forged = out_of(a, request("tcp", b.ip4, a.ip4))
    outcome = _ask(world, FROM_POD, forged, a.ifindex)
    assert (outcome.action, outcome.cb[3]) == (SHOT, DropReason.DROP_INVALID_SOURCE_IP)
    good = bytes(out_of(a, request("tcp", a.ip4, b.ip4)))
    for size in range(34, len(good)):
        assert _ask(world, FROM_POD, good[:size], a.ifindex).action == SHOT


@pytest.mark.parametrize(("mark", "priority"), [(MARK, 0), (MARK, PRIORITY ^ 1), (0, PRIORITY),
                                                (MARK ^ 1, PRIORITY)])  # fmt: skip
def test_other_marks_are_traffic(world: World, mark: int, priority: int) -> None:
    a, b, _ = world.pods
    frame = out_of(a, request("tcp", a.ip4, b.ip4))
    assert world.leave(a, frame, mark=mark, priority=priority).action == REDIRECT
    assert len(world.connections()) == 2


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_verifier_has_room(world: World, program: str) -> None:
    walked = bpf.program_info(world.programs[program]).verified_instructions
    assert walked < VERIFIER_BOUNDS[program], f"{walked} instructions"


def test_programs_that_take_over_connections_load(world: World, tmp_path: Path) -> None:
    """As an agent with another layout of the table builds them, from any size of value."""
    former = {
        "ct_previous": PinnedMap.create(CT.resized(64)),
        "ct_previous_overflow": PinnedMap.create(CT_OVERFLOW.resized(64)),
    }
    fds = {name: one.fd for name, one in {**world.maps, **former}.items() if name != "numbers"}
    defines = {"CT_PREVIOUS_BYTES": CtEntry.SIZE, "CT_COMMON_BYTES": CtEntry.SIZE}
    loaded = Loader(tmp_path).load([ProgramSpec(name) for name in PROGRAMS], defines, fds)
    own = dict(world.programs)
    try:
        world.programs.update(loaded)
        a, b, _ = world.pods
        frame = out_of(a, request("udp", a.ip4, b.ip4))
        assert world.leave(a, frame).action == REDIRECT
        # Recorded in both tables, and found again in the former one alone.
        assert former["ct_previous"].raw_items().keys() == world.maps["ct"].raw_items().keys()
        world.clear("ct")
        for pod in (a, b):
            world.enforce(pod, ingress=True, egress=True)
        assert world.leave(a, frame).action == REDIRECT
        assert len(world.connections()) == 2
    finally:
        world.programs.update(own)
        for descriptor in loaded.values():
            os.close(descriptor)
        for one in former.values():
            one.close()
