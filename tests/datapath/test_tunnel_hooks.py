# SPDX-License-Identifier: Apache-2.0
"""The programs at the tunnel's device: made, replaced, and after others had their hands in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.kernel import bpf, clsact
from agent.kernel.links import ClsactAttacher, Hook, has_tcx
from agent.kernel.rtnl import RtnlSocket
from agent.kernel.tunnel_hooks import TunnelHooks
from agent.kernel.uplinks import Uplinks, uplink_name
from agent.kernel.vxlan import DEVICE
from tests.needs import lacking
from tests.netns.bare_node import Netns

pytestmark = pytest.mark.kernel

PINS = [uplink_name(DEVICE, hook) for hook in (Hook.EGRESS, Hook.INGRESS)]


@pytest.fixture
def programs() -> Iterator[tuple[int, int]]:
    def load(verdict: int) -> int:
        move = (0xB7).to_bytes(1) + b"\0\0\0" + verdict.to_bytes(4, sys.byteorder)
        return bpf.program_load(
            bpf.ProgramType.SCHED_CLS, move + b"\x95" + bytes(7), "t", licence="GPL"
        )

    made = load(0), load(2)
    yield made
    for fd in made:
        os.close(fd)


@pytest.fixture
def netns(make_netns: Callable[[], Netns]) -> Netns:
    made = make_netns()
    made.ip("link", "add", "name", DEVICE, "index", "70", "type", "veth", "peer", "name", "peer")
    return made


def filters() -> tuple[int, int]:
    with RtnlSocket() as netlink:
        return clsact.attached(netlink, 70)


def test_by_links(netns: Netns, programs: tuple[int, int], bpffs_dir: Path) -> None:
    if not has_tcx():
        lacking("the kernel has no TCX")
    one, two = programs
    ids = bpf.program_info(one).id, bpf.program_info(two).id
    folder = bpffs_dir / "links"
    hooks = TunnelHooks(folder)

    def work() -> None:
        assert hooks.attached(70) == (0, 0)
        # Those of a release that attached filters here make room.
        with RtnlSocket() as netlink:
            clsact.attach(netlink, 70, one, one)
        hooks.attach(70, one, two)
        assert hooks.attached(70) == ids and filters() == (0, 0)
        assert sorted(path.name for path in folder.iterdir()) == sorted(PINS)
        hooks.attach(70, two, one)
        assert hooks.attached(70) == ids[::-1]
        # A pin taken away ends its link; what is no link in its place goes.
        for pin in PINS:
            (folder / pin).unlink()
        bpf.object_pin(one, folder / PINS[0])
        assert hooks.attached(70) == (0, 0)
        hooks.attach(70, one, two)
        assert hooks.attached(70) == ids
        # Detached without its pin's going.
        link = bpf.object_get(folder / PINS[1])
        bpf.link_detach(link)
        os.close(link)
        assert hooks.attached(70) != ids
        hooks.attach(70, one, two)
        assert hooks.attached(70) == ids
        # An agent that knows of none takes them for an uplink's that is no longer configured.
        uplinks = Uplinks(folder)
        assert uplinks.detach_others([DEVICE], {}, tuple(Hook)) == []
        assert uplinks.detach_others(["up0"], {}, tuple(Hook)) == PINS
        assert hooks.attached(70) == (0, 0)

    netns.run(work)


def test_by_filters(netns: Netns, programs: tuple[int, int], tmp_path: Path) -> None:
    one, two = programs
    hooks = TunnelHooks(tmp_path / "links", ClsactAttacher())

    def work() -> None:
        hooks.attach(70, one, two)
        ids = bpf.program_info(one).id, bpf.program_info(two).id
        assert hooks.attached(70) == filters() == ids

    netns.run(work)
