# SPDX-License-Identifier: Apache-2.0
"""A group of the latency benchmark, from places to figures; what breaks stops nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.latency import runner
from bench.latency.generator import GeneratorError, Seat, Server
from bench.latency.matrix import Cores, Group, How, Load, Turn, What, headline
from bench.latency.proxies import ToolMissing
from bench.latency.runner import Cpus, measure
from bench.latency.sites import Sites

pytestmark = pytest.mark.kernel

LONG = 60_000  # ms: the count ends a turn, not the clock
CPU = max(os.sched_getaffinity(0))
WAYS = ("unix", "loopback", "direct", "nginx-1")


@pytest.fixture(scope="module")
def sites(private_mounts: None) -> Iterator[Sites]:
    with Sites() as made:
        yield made


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether one is installed or not."""

    def find(name: str) -> None:
        raise ToolMissing(f"{name} is missing")

    monkeypatch.setattr(runner, "find", find)


@pytest.mark.parametrize("how", How)
def test_rows_that_can_be_measured_are(sites: Sites, how: How) -> None:
    group = Group(headline(how, Cores.SAME), WAYS, 3, Turn(20, LONG))
    found = measure(group, sites, Cpus(CPU, CPU))
    assert found.missing == {"nginx-1": "nginx is missing"} and not found.failed
    assert list(found.rows) == ["unix", "loopback", "direct"]
    for row in found.rows.values():
        assert row.count == 60 and len(row.by_round) == 3
        assert 0 < row.minimum <= row.percentiles[50].value <= row.percentiles[99].value
        assert row.cpu_us.value > 0


def test_a_stream_has_a_throughput_and_no_percentiles(sites: Sites) -> None:
    load = Load(How.EPOLL, What.STREAM, 65536, 2, Cores.SAME)
    found = measure(Group(load, ("unix", "direct"), 3, Turn(1, 5)), sites, Cpus(CPU, CPU))
    assert list(found.rows) == ["unix", "direct"]
    assert all(row.gbit.value > 0 and not row.percentiles for row in found.rows.values())


def test_a_row_that_gives_wrong_bytes_has_failed_and_the_others_go_on(
    sites: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(Server):
        def __init__(self, seat: Seat, address: str, load: Load, cpu: int) -> None:
            # Through its priming and first round, not through the second.
            corrupt = 50 + 2 + 20 + 2 + 5 if address.startswith("tcp:127") else 0
            super().__init__(seat, address, load, cpu, corrupt)

    monkeypatch.setattr(runner, "Server", Wrong)
    group = Group(headline(How.EPOLL, Cores.SAME), WAYS, 3, Turn(20, LONG))
    found = measure(group, sites, Cpus(CPU, CPU))
    assert list(found.rows) == ["unix", "direct"]
    assert found.failed == {"loopback"}
    assert "FAILED in round 2" in found.missing["loopback"]
    assert "wrong byte in answer" in found.missing["loopback"]


def test_a_row_that_never_starts_has_failed(sites: Sites, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(seat: Seat, address: str, load: Load, cpu: int) -> None:
        raise GeneratorError("no greeting")

    monkeypatch.setattr(runner, "Client", refuse)
    group = Group(headline(How.EPOLL, Cores.SAME), ("unix",), 3, Turn(20, LONG))
    found = measure(group, sites, Cpus(CPU, CPU))
    assert found.missing == {"unix": "no greeting"} and found.failed == {"unix"}


def test_nothing_is_left(private_mounts: None) -> None:
    with Sites() as made:
        group = Group(headline(How.BLOCKING, Cores.SAME), WAYS, 2, Turn(5, LONG))
        measure(group, made, Cpus(CPU, CPU))
        places = [made.scope.root, made.scope.cgroup]
        prefix = made.scope.prefix
        assert all(place.exists() for place in places)
    assert not any(place.exists() for place in places)
    assert not [path for path in Path("/run/netns").iterdir() if path.name.startswith(prefix)]
