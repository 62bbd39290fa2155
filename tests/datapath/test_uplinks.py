# SPDX-License-Identifier: Apache-2.0
"""Uplinks without TCX: what is attached is found by what was written down."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from agent.kernel import bpf, clsact, tcfilter
from agent.kernel.links import ClsactAttacher, Hook
from agent.kernel.loader import Loader, ProgramSpec
from agent.kernel.rtnl import RtnlSocket
from agent.kernel.uplinks import Uplinks, uplink_name
from tests.conftest import Netns

pytestmark = pytest.mark.kernel

T = TypeVar("T")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    sources = tmp_path_factory.mktemp("sources")
    (sources / "pass.c").write_text("int pass(struct __sk_buff *skb) { return -1; }")
    loaded = Loader(tmp_path_factory.mktemp("work"), sources=sources).load(
        [ProgramSpec("pass")], {}, {}
    )
    yield loaded["pass"]
    os.close(loaded["pass"])


def with_socket(work: Callable[[RtnlSocket], T]) -> T:
    with RtnlSocket() as netlink:
        return work(netlink)


@pytest.mark.parametrize("everything", [False, True])
def test_without_tcx(
    program: int, make_netns: Callable[[], Netns], tmp_path: Path, everything: bool
) -> None:
    netns = make_netns()
    indexes = {"up0": 70, "up1": 71, "up2": 72}
    for name, index in indexes.items():
        peer = ("type", "veth", "peer", "name", f"{name}-peer")
        netns.ip("link", "add", "name", name, "index", str(index), *peer)
    # Somebody else's filters, at a device where ours is.
    netns.run(lambda: with_socket(lambda netlink: clsact.attach(netlink, 71, program, program)))
    uplinks = Uplinks(tmp_path / "links", ClsactAttacher())
    assert uplinks.mode == "clsact"

    def attached() -> list[str]:
        return [n for n, i in indexes.items() if tcfilter.attached(i, Hook.INGRESS.minor)]

    for name in ("up0", "up1"):
        index = indexes[name]
        netns.run(lambda n=name, i=index: uplinks.attach(program, n, i))  # type: ignore[misc]
    assert netns.run(lambda: uplinks.program_id("up0", 70)) == bpf.program_info(program).id
    assert netns.run(lambda: uplinks.program_id("up2", 72)) == 0
    netns.ip("link", "set", "up1", "name", "renamed")
    if everything:
        assert netns.run(lambda: uplinks.remove(indexes)) == [*map(uplink_name, ("up0", "up1"))]
        assert netns.run(attached) == []
    else:
        gone = netns.run(lambda: uplinks.detach_others(["up0"], indexes))
        assert gone == [uplink_name("up1")] and netns.run(attached) == ["up0"]
    others = netns.run(lambda: with_socket(lambda netlink: clsact.attached(netlink, 71)))
    assert others == (bpf.program_info(program).id,) * 2
