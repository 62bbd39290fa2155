# SPDX-License-Identifier: Apache-2.0
"""To other nodes, out of pods and out of the node's stack; and what comes past the tunnel.

With real VXLAN devices (see tests/datapath/overlay.py); what needs no tunnel key is run by
BPF_PROG_TEST_RUN as in the other files.
"""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from agent.kernel.testrun import SkbContext, prog_test_run
from bpf.layouts import CtFlag, DropReason
from tests.datapath.overlay import (
    ALIAS,
    CLASS,
    PEER,
    REMOTE,
    Overlay,
)
from tests.datapath.packets import (
    CLIENT,
    PROTOCOLS,
    SERVER,
    arriving,
    into,
    number,
    out_of,
    ports,
    reply,
    request,
)
from tests.datapath.world import (
    FROM_POD,
    MARK,
    OK,
    PRIORITY,
    REDIRECT,
    SHOT,
    TO_TUNNEL,
    TUNNEL_PORT,
    node,
    outside,
)

pytestmark = pytest.mark.kernel

families = pytest.mark.parametrize("version", [4, 6])
underlays = pytest.mark.parametrize("underlay", [4, 6])
kinds = pytest.mark.parametrize("kind", PROTOCOLS)
LOCAL_IDENTITY = (1 << 24) + 5
DENIED = DropReason.DROP_POLICY_DENIED


# ---- out -----------------------------------------------------------------------------------------


@families
@underlays
@kinds
def test_out_of_a_pod(overlay: Overlay, version: int, underlay: int, kind: str) -> None:
    """The sender's identity, both outer addresses, the inner packet as it was."""
    world, a = overlay.world, overlay.world.a
    overlay.reset(underlay)
    first = request(kind, a.ip(version), PEER[version])
    seen = overlay.leave(a, first)
    assert seen is not None
    assert (seen.vni, seen.source, seen.destination) == (
        a.identity, node(underlay), REMOTE[underlay],
    )  # fmt: skip
    # Over IPv6 there must be a checksum (RFC 8200, section 8.1).
    assert (seen.checksum == 0) == (underlay == 4)
    layer = IP if version == 4 else IPv6
    assert bytes(seen.inner[layer]) == bytes(first)
    mine, theirs = ports(kind)
    entry = world.connection(a, PEER[version], number(kind, version), mine, theirs)
    assert entry is not None and entry.flags == CtFlag.CT_TUNNEL
    # The reply needs no rule.
    world.enforce(a, ingress=True)
    assert overlay.receive(reply(kind, PEER[version], a.ip(version)), sender=REMOTE[underlay]) == 0
    for _ in range(2):
        more = request(kind, a.ip(version), PEER[version], flags="A")
        assert overlay.leave(a, more) is not None


@families
@pytest.mark.parametrize(("identity", "vni"), [(256, 256), (65535, 65535), (5, 5), (65536, 0),
                                               (LOCAL_IDENTITY, 0)])  # fmt: skip
def test_which_identities_are_sent(overlay: Overlay, version: int, identity: int, vni: int) -> None:
    world, a = overlay.world, overlay.world.a
    world.enforce(a, identity=identity)
    seen = overlay.leave(a, request("udp", a.ip(version), PEER[version]))
    assert seen is not None and seen.vni == vni


@families
def test_out_under_the_senders_policy(overlay: Overlay, version: int) -> None:
    world, a = overlay.world, overlay.world.a
    world.enforce(a, egress=True)
    frame = out_of(a, request("tcp", a.ip(version), PEER[version]))
    assert world.leave(a, frame).dropped == DENIED
    world.rule(a.egress_table, CLASS[version], 6, SERVER)
    assert world.leave(a, frame).action == REDIRECT
    world.bump()
    world.maps["policy"].delete_packed(b"".join(world.maps["policy"].raw_items()))
    plain = out_of(a, request("tcp", a.ip(version), PEER[version], flags="A"))
    assert world.leave(a, plain).dropped == DENIED  # a connection in full swing too


@families
def test_out_where_there_is_no_device(overlay: Overlay, version: int) -> None:
    world, a = overlay.world, overlay.world.a
    frame = out_of(a, request("udp", a.ip(version), PEER[version]))
    cidr = "10.0.9.0/24" if version == 4 else "fd00:0:0:9::/112"
    assert world.leave(a, frame).action == REDIRECT
    overlay.tunnel(cidr, REMOTE, 4, ifindex=0)
    for _ in range(2):
        assert world.leave(a, frame).dropped == DropReason.DROP_NO_TUNNEL


@families
def test_what_does_not_go_through_the_tunnel(overlay: Overlay, version: int) -> None:
    """The outside, addresses that a node only sends from, and what came by the stack before."""
    world, a = overlay.world, overlay.world.a
    for there in (outside(version), ALIAS[version]):
        assert world.leave(a, out_of(a, request("udp", a.ip(version), there))).action == OK
        entry = world.connection(a, there, 17, CLIENT, SERVER)
        assert entry is not None and entry.flags == CtFlag.CT_VIA_STACK
    frame = into(a, request("tcp", PEER[version], a.ip(version)))
    assert world.enter(a, frame, sender=world.uplink).action == OK
    answer = out_of(a, reply("tcp", a.ip(version), PEER[version]))
    assert world.leave(a, answer).action == OK
    # And what comes by the tunnel for it goes the stack's way too.
    overlay.pass_on(request("tcp", PEER[version], a.ip(version), flags="A"))


@families
@kinds
def test_straight_along_the_route(overlay: Overlay, version: int, kind: str) -> None:
    """Native mode: questions go out by the program, so answers may come in by it."""
    world, a = overlay.world, overlay.world.a
    world.clear("tunnels")
    overlay.along_the_route("10.0.9.0/24" if version == 4 else "fd00:0:0:9::/112")
    assert world.leave(a, out_of(a, request(kind, a.ip(version), PEER[version]))).action == REDIRECT
    mine, theirs = ports(kind)
    entry = world.connection(a, PEER[version], number(kind, version), mine, theirs)
    assert entry is not None and entry.flags == 0
    world.enforce(a, ingress=True)
    answer = arriving(reply(kind, PEER[version], a.ip(version)))
    for _ in range(2):
        assert world.arrive(answer).action == REDIRECT
    more = out_of(a, request(kind, a.ip(version), PEER[version], flags="A"))
    assert world.leave(a, more).action == REDIRECT


# ---- by the uplink, and out of the stack ---------------------------------------------------------


@families
def test_past_the_tunnel(overlay: Overlay, version: int) -> None:
    """What only the tunnel brings does not come by the uplink, whatever is open already."""
    world, a = overlay.world, overlay.world.a
    for source in (PEER[version], REMOTE[version]):
        frame = arriving(request("tcp", source, a.ip(version)))
        assert world.arrive(frame).dropped == DropReason.DROP_INVALID_SOURCE_IP
    assert overlay.receive(request("tcp", PEER[version], a.ip(version), flags="A")) == 0
    assert overlay.leave(a, reply("tcp", a.ip(version), PEER[version], flags="A")) is not None
    injected = arriving(request("tcp", PEER[version], a.ip(version), flags="A"))
    assert world.arrive(injected).dropped == DropReason.DROP_INVALID_SOURCE_IP
    # The other way round: the pod asked, and was answered through the tunnel.
    assert overlay.leave(a, request("udp", a.ip(version), PEER[version])) is not None
    assert overlay.receive(reply("udp", PEER[version], a.ip(version))) == 0
    injected = arriving(reply("udp", PEER[version], a.ip(version)))
    assert world.arrive(injected).dropped == DropReason.DROP_INVALID_SOURCE_IP


@families
def test_packets_of_the_tunnel_at_the_uplink(overlay: Overlay, version: int) -> None:
    """Left to the stack at once, but for sources that are this node's; pods may use the port."""
    world, a = overlay.world, overlay.world.a
    world.enforce(a, ingress=True)

    def outcome(source: str, destination: str) -> Any:
        return world.arrive(arriving(request("udp", source, destination, dport=TUNNEL_PORT)))

    passed = outcome(REMOTE[version], node(version))
    assert (passed.action, passed.counted, passed.events) == (OK, {}, ())
    for source in (a.ip(version), node(version)):
        assert outcome(source, node(version)).dropped == DropReason.DROP_INVALID_SOURCE_IP
    assert outcome(outside(version), a.ip(version)).dropped == DENIED


@families
@underlays
def test_out_of_the_stack(overlay: Overlay, version: int, underlay: int) -> None:
    """The node's own packets, as remote-node."""
    overlay.reset(underlay)
    world = overlay.world
    own = Ether(src="02:00:00:00:0c:01", dst="02:00:00:00:0c:02")

    def outcome(source: str, destination: str) -> Any:
        return world.run(TO_TUNNEL, own / request("udp", source, destination), overlay.index)

    assert outcome(node(version), PEER[version]).action == OK
    assert outcome(node(version), outside(version)).dropped == DropReason.DROP_NO_TUNNEL
    assert outcome(node(version), ALIAS[version]).dropped == DropReason.DROP_NO_TUNNEL
    assert outcome(outside(version), PEER[version]).dropped == DropReason.DROP_INVALID_SOURCE_IP
    frame = own / request("udp", node(version), PEER[version])
    result = prog_test_run(
        world.programs[TO_TUNNEL], bytes(frame), SkbContext(ifindex=overlay.index)
    )
    assert result.retval == OK


@families
def test_a_translated_connection_of_a_pod(overlay: Overlay, version: int) -> None:
    """A service's address became another node's pod in the node's stack: what comes back for it
    goes to the stack, and is no new connection."""
    world, a = overlay.world, overlay.world.a
    frame = Ether() / request("tcp", a.ip(version), PEER[version])
    assert world.run(TO_TUNNEL, frame, overlay.index).action == OK
    entry = world.connection(a, PEER[version], 6, CLIENT, SERVER)
    assert entry is not None and entry.flags == CtFlag.CT_VIA_STACK
    world.enforce(a, ingress=True, egress=True)
    overlay.pass_on(reply("tcp", PEER[version], a.ip(version)))


def test_probes_are_answered_without_a_trace(overlay: Overlay) -> None:
    """`policy explain` asks from_pod; the verdict of the sender is all that this node has."""
    world, a = overlay.world, overlay.world.a
    frame = out_of(a, request("tcp", a.ip4, PEER[4]))
    before = world.traces()
    outcome = world.run(FROM_POD, frame, a.ifindex, mark=MARK, priority=PRIORITY)
    assert (outcome.action, world.traces()) == (OK, before)
    world.enforce(a, egress=True)
    outcome = world.run(FROM_POD, frame, a.ifindex, mark=MARK, priority=PRIORITY)
    assert outcome.action == SHOT
