# SPDX-License-Identifier: Apache-2.0
"""What of a pod's leaves by an uplink through the node's stack, under the pod's own address: noted,
so that answers go through the stack, which may have translated the destination."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, IPv6ExtHdrFragment
from scapy.packet import Raw

from bpf.layouts import CtFlag
from tests.datapath.packets import (
    CLIENT,
    PROTOCOLS,
    SERVER,
    arriving,
    number,
    out_of,
    ports,
    reply,
    request,
)
from tests.datapath.world import OK, REDIRECT, World

pytestmark = pytest.mark.kernel

families = pytest.mark.parametrize("version", [4, 6])
kinds = pytest.mark.parametrize("kind", PROTOCOLS)
# Of the cluster, so that masquerading leaves it alone; on no tunnel, and no pod of this node.
BACKEND = {4: "10.0.0.200", 6: "fd00::200"}


def noted(world: World, kind: str, version: int) -> Any:
    local, remote = ports(kind)
    return world.connection(world.a, BACKEND[version], number(kind, version), local, remote)


@families
@kinds
def test_answers_go_through_the_stack(world: World, kind: str, version: int) -> None:
    a, there = world.a, BACKEND[version]
    back = arriving(reply(kind, there, a.ip(version)))
    assert world.arrive(back).action == REDIRECT  # unasked, and nothing forbids it
    world.forget()
    for _ in range(2):
        assert world.depart(out_of(a, request(kind, a.ip(version), there))).action == OK
        assert noted(world, kind, version).flags == CtFlag.CT_VIA_STACK
    outcome = world.arrive(back)
    assert (outcome.action, outcome.counted) == (OK, {})


@families
def test_also_where_the_pod_may_not_go_itself(world: World, version: int) -> None:
    """The pod was judged by the address that it asked for; what became of it is the node's."""
    a, there = world.a, BACKEND[version]
    world.enforce(a, ingress=True, egress=True)
    world.depart(out_of(a, request("tcp", a.ip(version), there)))
    assert world.arrive(arriving(reply("tcp", there, a.ip(version)))).action == OK


@families
def test_what_opens_nothing_is_not_noted(world: World, version: int) -> None:
    a, there = world.a, BACKEND[version]
    quoted = bytes(request("udp", there, a.ip(version)))
    if version == 4:
        error = IP(src=a.ip4, dst=there) / ICMP(type=3, code=3) / Raw(quoted)
        later = IP(src=a.ip4, dst=there, proto=17, frag=185, id=7) / Raw(bytes(64))
    else:
        error = IPv6(src=a.ip6, dst=there) / ICMPv6DestUnreach(code=4) / Raw(quoted)
        later = (
            IPv6(src=a.ip6, dst=there)
            / IPv6ExtHdrFragment(nh=17, offset=185, id=7)
            / Raw(bytes(64))
        )
    reset = request("tcp", a.ip(version), there, flags="R")
    of_the_node = request("tcp", BACKEND[version], a.ip(version), sport=CLIENT, dport=SERVER)
    for packet in (error, later, reset, of_the_node):
        assert world.depart(out_of(a, packet)).action == OK
    assert not world.maps["ct"].raw_items() and not world.maps["ct_overflow"].raw_items()
