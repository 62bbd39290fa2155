# SPDX-License-Identifier: Apache-2.0
"""Egress to an address of a service: judged is who is behind it (map ``service_peers``)."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpf.layouts import DropReason, ServiceKey, ServicePeers
from tests.datapath.packets import into, number, out_of, reply, request
from tests.datapath.world import EGRESS, MARK, OK, PRIORITY, SHOT, World, packed, swapped

pytestmark = pytest.mark.kernel

SERVICE = {4: "10.96.0.10", 6: "fd00:96::10"}
Kind = tuple[int, int]
"""Peer class and port of who is behind a service."""

versions = pytest.mark.parametrize("version", [4, 6])
protocols = pytest.mark.parametrize("kind", ["tcp", "udp", "sctp"])


def serve(
    world: World, version: int, kind: str, kinds: list[Kind], port: int = 80, named: str = ""
) -> ServiceKey:
    """Puts these behind a service's port. named: an address that the entry says it is of."""
    spare = [0] * (4 - len(kinds))
    classes, ports = ([*values, *spare] for values in zip(*kinds, strict=True))
    key = ServiceKey(packed(SERVICE[version]), swapped(port), number(kind, version))
    world.maps["service_peers"].update(
        key,
        ServicePeers(
            packed(named or SERVICE[version]), key.port, key.protocol, len(kinds),
            (classes[0], classes[1], classes[2], classes[3]),
            (500, 501, 502, 503),
            (ports[0], ports[1], ports[2], ports[3]),
        ),
    )  # fmt: skip
    return key


def ask(world: World, version: int, kind: str, port: int = 80) -> tuple[int, int]:
    """The action, and the rule that decided, of a packet from pod a; nothing is recorded."""
    frame = out_of(world.a, request(kind, world.a.ip(version), SERVICE[version], dport=port))
    outcome = world.run("from_pod", frame, world.a.ifindex, mark=MARK, priority=PRIORITY)
    return outcome.action, outcome.cb[0]


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.integers(600, 603), st.sampled_from((53, 80, 8080))), min_size=1,
             max_size=4, unique=True),
    st.dictionaries(st.tuples(st.integers(600, 603), st.sampled_from((53, 80, 8080))),
                    st.booleans()),
    st.sampled_from((4, 6)),
    st.sampled_from(("tcp", "udp", "sctp")),
)  # fmt: skip
def test_allowed_if_each_of_them_is(
    world: World, kinds: list[Kind], rules: dict[Kind, bool], version: int, kind: str
) -> None:
    """The first that is not allowed decides, or the last one."""
    world.enforce(world.a, egress=True)
    world.clear("policy")
    world.clear("service_peers")
    serve(world, version, kind, kinds)
    rule_of = {}
    for rule, ((peer, port), allow) in enumerate(rules.items(), 300):
        rule_of[peer, port] = rule
        world.rule(
            world.a.egress_table, peer, number(kind, version), port, 16, allow=allow, rule=rule
        )
    refused = [one for one in kinds if not rules.get(one, False)]
    decisive = refused[0] if refused else kinds[-1]
    assert ask(world, version, kind) == (SHOT if refused else OK, rule_of.get(decisive, 0))
    # Another port is none of the service's.
    assert ask(world, version, kind, 81)[0] == SHOT


@versions
@protocols
def test_answers_and_changes(world: World, version: int, kind: str) -> None:
    """Both directions of a connection follow who is behind the service now."""
    a = world.a
    world.enforce(a, ingress=True, egress=True)
    world.rule(a.egress_table, 600, number(kind, version), 8080, 16)
    key = serve(world, version, kind, [(600, 8080)])
    out = out_of(a, request(kind, a.ip(version), SERVICE[version], dport=80))
    back = into(a, reply(kind, SERVICE[version], a.ip(version)))
    assert world.leave(a, out).action == OK
    assert world.enter(a, back, world.uplink).action == OK
    for kinds, allowed in (([(601, 8080)], False), ([(600, 8080)], True),
                           ([(600, 8080), (600, 9)], False)):  # fmt: skip
        serve(world, version, kind, kinds)
        world.bump()
        for outcome in (world.leave(a, out), world.enter(a, back, world.uplink)):
            assert (outcome.action == OK) is allowed, (kinds, outcome)
    world.maps["service_peers"].delete(key)
    world.bump()
    assert world.leave(a, out).dropped == DropReason.DROP_POLICY_DENIED


@versions
def test_an_element_that_was_given_to_another(world: World, version: int) -> None:
    """A reader that sees what came in its place takes nothing from it."""
    world.enforce(world.a, egress=True)
    world.rule(world.a.egress_table, 600, 6, 80, 16)
    serve(world, version, "tcp", [(600, 80)])
    assert ask(world, version, "tcp")[0] == OK
    serve(world, version, "tcp", [(600, 80)], named="10.96.0.11")
    assert ask(world, version, "tcp")[0] == SHOT


@versions
def test_only_what_goes_to_the_stack(world: World, version: int) -> None:
    """An address of a pod here is that pod's, whatever the table says."""
    a, b, _ = world.pods
    world.enforce(a, egress=True)
    world.enforce(b)
    world.rule(a.egress_table, 600, 6, 80, 16)
    key = ServiceKey(packed(b.ip(version)), swapped(80), 6)
    value = ServicePeers(key.address, key.port, 6, 1, (600, 0, 0, 0), (5, 0, 0, 0), (80, 0, 0, 0))
    world.maps["service_peers"].update(key, value)
    outcome = world.leave(a, out_of(a, request("tcp", a.ip(version), b.ip(version))))
    assert outcome.dropped == DropReason.DROP_POLICY_DENIED
    assert list(outcome.counted) == [(EGRESS, DropReason.DROP_POLICY_DENIED)]
