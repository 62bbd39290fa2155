# SPDX-License-Identifier: Apache-2.0
"""Mappings are collected from the kernel's own maps, key for key."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from agent.core.conntrack import Lifetimes
from agent.kernel.maps import PinnedMap
from agent.kernel.nat import collect
from bpf.layouts import CtKey, NatEntry, NatOrigin, NatReverseKey
from bpf.maps import NAT, NAT_REVERSE

pytestmark = pytest.mark.kernel

COUNT = 300
NODE, POD = bytes(15) + b"\1", bytes(15) + b"\2"
Maps = tuple[PinnedMap[CtKey, NatEntry], PinnedMap[NatReverseKey, NatOrigin]]


@pytest.fixture
def maps() -> Iterator[Maps]:
    """Mappings of two pods, all in use just now."""
    with PinnedMap.create(NAT) as out, PinnedMap.create(NAT_REVERSE) as back:
        now = int(time.monotonic())
        for n in range(COUNT):
            endpoint = 1 + n % 2
            out.update(CtKey(POD, endpoint, n, 80, 17), NatEntry(NODE, now, 1000 + n, 0))
            back.update(
                NatReverseKey(POD, NODE, 80, 1000 + n, 17), NatOrigin(POD, endpoint, now, n, 0)
            )
        yield out, back


def dirty_memory() -> None:
    """What numpy is given next is not zero."""
    for size in range(8, 1 << 15, 64):
        np.full(size, 0xA5, dtype=np.uint8)


def test_a_pod_that_is_gone(maps: Maps) -> None:
    out, back = maps
    dirty_memory()
    assert collect(out, back, {1}, [NODE], Lifetimes()) == (COUNT, COUNT // 2)
    assert {key.endpoint for key, _ in out.items()} == {1}
    # Its ports rest, and nothing else was made of them.
    assert len(list(back.items())) == COUNT
    assert collect(out, back, {1}, [NODE], Lifetimes()) == (COUNT // 2, 0)


def test_everything_ends_in_two_rounds(maps: Maps) -> None:
    out, back = maps
    dirty_memory()
    soon = Lifetimes(unanswered=-1.0, answered=-1.0)
    assert collect(out, back, {1, 2}, [NODE], soon) == (COUNT, COUNT)
    assert len(list(back.items())) == COUNT
    past = int(time.monotonic()) - 100
    back.update_many([(k, NatOrigin(v.address, v.endpoint, past, v.port, 0))
                      for k, v in list(back.items())])  # fmt: skip
    dirty_memory()
    assert collect(out, back, {1, 2}, [NODE], soon) == (0, 0)
    assert not list(back.items()) and not list(out.items())


def test_a_crowded_table(maps: Maps) -> None:
    """What is old and unanswered goes early once the table is nearly full."""
    _, back = maps
    with PinnedMap.create(NAT.resized(COUNT)) as full:
        past = int(time.monotonic()) - 20
        full.update_many((k, NatEntry(v.address, past, v.port, 0)) for k, v in maps[0].items())
        back.update_many([(k, NatOrigin(v.address, v.endpoint, past, v.port, 0))
                          for k, v in list(back.items())])  # fmt: skip
        assert collect(maps[0], back, {1, 2}, [NODE], Lifetimes()) == (COUNT, 0)
        assert collect(full, back, {1, 2}, [NODE], Lifetimes()) == (COUNT, COUNT)
