# SPDX-License-Identifier: Apache-2.0
"""What the areas about packets claim, from clients whose times are given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import cast

import pytest

from bench.areas import cluster, datapath, ways
from bench.areas.measure import last_cpu
from bench.areas.ways import Way
from bench.report import Claim

GIGABIT = 1_000_000_000 / 8


class FakeWay:
    """Round trips take so many ns, with a tail of twice that; streams run at so many Gbit/s."""

    def __init__(self, ns: float, rate: float) -> None:
        self.ns, self.rate = ns, rate
        self.served: list[tuple[int, int]] = []
        self.connected: list[tuple[str, int, int, int]] = []

    def at(self, sitting: ExitStack) -> FakeWay:
        return self

    def serve(self, port: int, cpu: int) -> None:
        self.served.append((port, cpu))

    def connect(self, mode: str, port: int, cpu: int, size: int) -> FakeClient:
        assert self.served[-1][0] == port, "the server first"
        self.connected.append((mode, port, cpu, size))
        return FakeClient(self, mode)


class FakeClient:
    def __init__(self, way: FakeWay, mode: str) -> None:
        self._way = way
        self._mode = mode

    def ask(self, amount: int) -> list[float]:
        if self._mode == "roundtrip":
            return [self._way.ns, 2 * self._way.ns, 0]
        return [self._way.rate * GIGABIT, 1_000_000_000]


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ways, "ROUNDS", 3)
    monkeypatch.setattr(ways, "SITTINGS", 1)
    monkeypatch.setattr(datapath, "STREAM_ROUNDS", 3)
    monkeypatch.setattr(cluster, "STREAM_ROUNDS", 3)
    yield


def made(ns: float, rate: float) -> tuple[Way, FakeWay]:
    fake = FakeWay(ns, rate)
    return cast(Way, fake), fake


def figures(claims: list[Claim]) -> list[tuple[str, float, float | None]]:
    return [(one.claim, round(one.measured, 3), one.bar) for one in claims]


def test_two_pods_of_one_node() -> None:
    (ours, _), (theirs, _), (direct, _) = made(10_000, 9), made(20_000, 6), made(8_000, 0)
    assert figures(datapath._round_trips(ours, theirs, direct)) == [
        ("TCP round trip over routed pod–host–pod, same core", 0.5, 1.0),
        ("TCP round trip over one direct pair, same core", 1.25, 1.12),
        ("  99th percentile over routed", 0.5, None),
        ("  two pods, policy in force", 10.0, None),
        ("  routed by the kernel", 20.0, None),
        ("  one direct pair", 8.0, None),
    ]
    assert figures(datapath._streams(ours, theirs)) == [
        ("TCP throughput over routed, same core", 1.5, 0.95),
        ("  two pods, policy in force", 9.0, None),
        ("  routed by the kernel", 6.0, None),
        ("TCP throughput over routed, two cores", 1.5, 0.95),
        ("  two pods, policy in force", 9.0, None),
        ("  routed by the kernel", 6.0, None),
    ]


def test_pods_of_two_nodes() -> None:
    (ours, _), (theirs, _) = made(15_000, 6), made(20_000, 8)
    base = "the kernel's own VXLAN with routes"
    (other, _) = made(30_000, 3)
    assert figures(cluster._round_trips(ours, {base: theirs, "b": other}, "tunnel", 6)) == [
        (f"tunnel: TCP round trip over {base}, IPv6", 0.75, 1.0),
        ("  two pods, policy in force", 15.0, None),
        (f"  {base}", 20.0, None),
        ("  b", 30.0, None),
    ]
    assert figures(cluster._streams(ours, {base: theirs, "b": other}, "tunnel", 4))[:5] == [
        (f"tunnel: TCP throughput over {base}, same core, IPv4", 0.75, 0.95),
        ("  two pods, policy in force", 6.0, None),
        (f"  {base}", 8.0, None),
        ("  b", 3.0, None),
        ("    ours over that", 2.0, None),
    ]
    found = figures(cluster._streams(ours, {"routing": theirs}, "native", 4))
    assert [name for name, *_ in found[::3]] == [
        "native: TCP throughput over routing by the kernel, same core, IPv4",
        "native: TCP throughput over routing by the kernel, two cores, IPv4",
    ]
    assert [measured for _, measured, _ in found] == 2 * [0.75, 6.0, 8.0]


def test_where_they_run() -> None:
    ours, fake = made(10_000, 9)
    ways.round_trips([ours])
    ways.throughput(ours, {"another": made(1, 1)[0]}, 3, str)
    first, last = min(os.sched_getaffinity(0)), last_cpu()
    assert fake.served == [(5001, last), (5002, last), (5003, first)]
    assert [(mode, port, cpu) for mode, port, cpu, _ in fake.connected] == [
        ("roundtrip", 5001, last), ("stream", 5002, last), ("stream", 5003, last)
    ]  # fmt: skip


def test_several_sittings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with processes of its own; no fewer rounds than asked for."""
    monkeypatch.setattr(ways, "SITTINGS", 3)
    monkeypatch.setattr(ways, "ROUNDS", 7)
    ours, fake = made(10_000, 9)
    times, tails = ways.round_trips([ours])
    assert (times, tails) == ([[10_000] * 9], [[20_000] * 9])
    assert len(fake.served) == len(fake.connected) == 3
