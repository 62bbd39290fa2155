# SPDX-License-Identifier: Apache-2.0
"""Frames sent over a real pair of devices: what the kernel's test run cannot make.

Frames too short for their IP header, and tags that the kernel takes out of the frame before the
program sees it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from agent.kernel import clsact
from agent.kernel.rtnl import RtnlSocket
from bpf.layouts import DropReason
from tests.datapath.packets import out_of, request
from tests.datapath.world import EGRESS, FROM_POD, TO_POD, World

pytestmark = pytest.mark.kernel

Send = Callable[[object], int]


@pytest.fixture
def send(world: World) -> Iterator[Send]:
    """Sends from the far end of pod a's device, both programs being attached to the near one.

    veth hands a frame over in the sender's system call, so it was counted when this returns.
    """
    with RtnlSocket() as netlink:
        clsact.attach(netlink, world.a.ifindex, world.programs[FROM_POD], world.programs[TO_POD])
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind(("xbri1", 0))
            yield lambda frame: wire.send(bytes(frame))  # type: ignore[call-overload]
        clsact.detach(netlink, world.a.ifindex)


def _dropped(world: World) -> dict[int, int]:
    return {reason: count for (direction, reason), (count, _) in world.counted().items()
            if direction == EGRESS and reason}  # fmt: skip


@pytest.mark.parametrize("version", [4, 6])
def test_frames_without_a_whole_ip_header(world: World, send: Send, version: int) -> None:
    whole = bytes(out_of(world.a, request("tcp", world.a.ip(version), world.b.ip(version))))
    sizes = range(15, 34 if version == 4 else 54)
    world.forget()
    for size in sizes:
        send(whole[:size])
    assert _dropped(world) == {DropReason.DROP_INVALID_PACKET: len(sizes)}


@pytest.mark.parametrize("tags", [1, 2])
def test_tags_that_the_kernel_takes_out(world: World, send: Send, tags: int) -> None:
    head = Ether(src=world.a.mac, dst=world.a.gateway) / Dot1Q(vlan=5)
    if tags == 2:
        head = head / Dot1Q(vlan=6)
    world.forget()
    send(head / request("udp", world.a.ip4, world.b.ip4) / Raw(bytes(20)))
    assert _dropped(world) == {DropReason.DROP_VLAN_FILTERED: 1}
    assert not world.connections()


def test_a_packet_that_is_sent_on(world: World, send: Send) -> None:
    """The same path, so that the tests above do not pass for nothing being received."""
    world.forget()
    send(out_of(world.a, request("udp", world.a.ip4, world.b.ip4)))
    assert len(world.connections()) == 2
    assert not _dropped(world)
