# SPDX-License-Identifier: Apache-2.0
"""The matrix, what is claimed of it, and what is read from agents and proxies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.latency import claims, proxies
from bench.latency.fingerprint import mitigations, unrest
from bench.latency.idle import awake
from bench.latency.matrix import (
    CONNECTIONS,
    PLAIN,
    SEQUENCE,
    SIZES,
    WAYS,
    Cores,
    Group,
    How,
    Load,
    Scale,
    Side,
    Turn,
    What,
    headline,
    plan,
)
from bench.latency.proxies import Address, Tool
from bench.latency.results import State
from bench.latency.runner import Cpus, Tally, compute, measure, turns
from bench.latency.sites import Sites, redirect_state
from bench.latency.statistics import Figure
from tests.unit.bench.latency_world import outcome


@pytest.mark.parametrize("scale", Scale)
def test_loads_and_their_keys_are_distinct(scale: Scale) -> None:
    groups = plan(scale)
    assert len({group.load for group in groups}) == len(groups)
    assert len({group.load.key for group in groups}) == len(groups)
    for group in groups:
        assert set(group.ways) <= set(WAYS) and group.rounds > 10


def test_default_takes_no_more_than_six_minutes_and_quick_one() -> None:
    seconds = {scale: sum(group.seconds() for group in plan(scale)) for scale in Scale}
    assert seconds[Scale.QUICK] < 60 and seconds[Scale.DEFAULT] < 360


def test_full_is_every_size_by_every_number_of_connections() -> None:
    loads = {group.load for group in plan(Scale.FULL)}
    for how in How:
        for cores in (Cores.SAME, Cores.TWO):
            for connections in CONNECTIONS:
                assert Load(how, What.STREAM, 65536, connections, cores) in loads
                for size in SIZES:
                    assert Load(how, What.EXCHANGE, size, connections, cores) in loads


@pytest.mark.parametrize("scale", Scale)
def test_every_bar_is_measured_in_one_group(scale: Scale) -> None:
    groups = {group.load: group for group in plan(scale)}
    for bar in claims.BARS:
        if bar.most is not None:
            assert {bar.ours, bar.theirs} <= set(groups[headline(How.EPOLL, bar.cores)].ways)


def test_redirected_rows_are_the_same_but_for_the_place() -> None:
    for name, way in WAYS.items():
        if name.endswith("-redirected"):
            plain = WAYS[name.removesuffix("-redirected")]
            assert (way.proxy, way.sides) == (plain.proxy, plain.sides)
            assert way.place != plain.place
    assert not any(WAYS[name].proxy for name in PLAIN)


@pytest.mark.parametrize("size", [0, (1 << 20) + 1])
def test_what_the_generator_cannot_do_is_no_load(size: int) -> None:
    with pytest.raises(ValueError):
        Load(How.EPOLL, What.EXCHANGE, size, 1, Cores.SAME)


def test_same_core_is_one_core_for_everybody() -> None:
    cpus = Cpus(5, 3)
    assert [cpus.of(side, Cores.SAME) for side in Side] == [5, 5]
    for cores in (Cores.TWO, Cores.ASLEEP):
        assert [cpus.of(side, cores) for side in Side] == [5, 3]


def judged(figure: Figure | None, bar: claims.Bar, failed: bool = False) -> Any:
    """What becomes of a bar with this ratio. failed: its row gave wrong bytes."""
    ratios = {} if figure is None else {(bar.ours, bar.theirs, bar.percentile): figure}
    missing = {} if figure else {bar.ours: "no agent"}
    group = outcome({bar.theirs: (1.0, 1.0, 1.0)}, missing, headline(How.EPOLL, bar.cores), ratios)
    group = replace(group, failed=frozenset(missing) if failed else frozenset())
    first = claims.first_byte(None)
    found = claims.judge([group], first)
    assert found[-1] is first
    return next(one for one in found if one.claim.startswith(bar.text) and one.bar == bar.most)


def wide(middle: float) -> Figure:
    """With an interval of a tenth on each side."""
    return Figure(middle, middle * 0.9, middle * 1.1)


def test_value_or_upper_bound_is_held_against_the_bar() -> None:
    value, upper = (
        next(b for b in claims.BARS if b.most and b.by_upper is u) for u in (False, True)
    )
    assert value.most and upper.most
    assert judged(wide(value.most), value).state is State.HOLDS
    assert judged(wide(value.most * 1.001), value).state is State.FAILS
    assert judged(wide(upper.most), upper).state is State.FAILS
    assert judged(wide(upper.most / 1.11), upper).state is State.HOLDS
    missing = judged(None, value)
    assert (missing.state, missing.reason) == (State.NOT_MEASURED, "no agent")
    broken = judged(None, value, failed=True)
    assert (broken.state, broken.reason) == (State.FAILS, "no agent")


def test_bars_of_the_redirect() -> None:
    bars = {(b.ours, b.theirs, b.percentile, b.cores): b.most for b in claims.BARS if b.most}
    assert bars == {
        ("redirected", "unix", 50, Cores.SAME): 1.00,
        ("redirected", "unix", 99, Cores.SAME): 1.10,
        ("redirected", "direct", 50, Cores.SAME): 0.65,
        ("redirected", "unix", 50, Cores.TWO): 1.20,
        ("redirected", "unix", 99, Cores.TWO): 1.30,
        ("redirected", "routed", 50, Cores.TWO): 0.90,
        ("envoy-2-redirected", "envoy-2", 50, Cores.SAME): 0.80,
        ("envoy-2-redirected", "envoy-2", 50, Cores.TWO): 0.80,
        ("beside", "bristle", 50, Cores.SAME): 1.03,
        ("beside", "bristle", 50, Cores.TWO): 1.03,
    }


class Counting:
    """An agent that counts."""

    def __init__(self, direct: float, stack: float) -> None:
        self._counts = {"redirected": direct, "stack": stack}

    def metric(self, name: str, **labels: str) -> float:
        assert name == claims.FIRST_METRIC
        return self._counts[labels["way"]]


@pytest.mark.parametrize(
    ("direct", "stack", "state"),
    [(999, 1, State.HOLDS), (998, 2, State.FAILS), (0, 0, State.NOT_MEASURED)],
)
def test_share_of_first_bytes(direct: float, stack: float, state: State) -> None:
    verdict = claims.first_byte(Counting(direct, stack))  # type: ignore[arg-type]
    assert verdict.state is state and bool(verdict.reason) is (state is State.NOT_MEASURED)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({}, (False, "this agent knows no socket redirect")),
        ({"socket_redirect": {"enabled": True, "mode": "on"}}, (True, "")),
        ({"socket_redirect": {"enabled": True, "mode": "all"}}, (True, "")),
        ({"socket_redirect": {"enabled": True, "mode": "off", "detail": "self-test: EAGAIN"}},
         (False, "self-test: EAGAIN")),
        ({"socket_redirect": {"enabled": False, "mode": "off"}},
         (False, "the agent does not say why")),
        ({"socket_redirect": None}, (False, "this agent knows no socket redirect")),
    ],
)  # fmt: skip
def test_redirect_is_on_only_if_the_agent_says_so(
    status: dict[str, Any], expected: tuple[bool, str]
) -> None:
    assert redirect_state(status) == expected


def test_a_listener_is_found_in_its_namespace_and_no_connection_is_taken_for_one(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "7" / "net"
    folder.mkdir(parents=True)
    head = "  sl  local_address rem_address   st tx_queue"
    lines = [
        "   0: 0100007F:138B 00000000:0000 0A 00000000:00000000",
        "   1: 0100007F:138C 0100007F:0050 01 00000000:00000000",
    ]
    (folder / "tcp").write_text("\n".join([head, *lines]))
    (folder / "tcp6").write_text(
        "\n".join([head, f"   0: {'0' * 32}:1770 {'0' * 32}:0000 0A 00000000:00000000"])
    )
    found = {port: proxies.listens(7, port, tmp_path) for port in (5003, 5004, 6000, 80)}
    assert found == {5003: True, 5004: False, 6000: True, 80: False}
    assert not proxies.listens(8, 5003, tmp_path)


@pytest.mark.parametrize("host", ["10.0.0.1", "fd00::1"])
@pytest.mark.parametrize("kind", ["envoy", "nginx", "haproxy"])
def test_configurations_name_both_ends(kind: str, host: str) -> None:
    listen, target = Address(host, 5001), Address(host, 5000)
    write = proxies._CONFIGURATIONS[kind]
    text = write(listen, target, Path("/tmp/x"), Tool(Path("/usr/sbin/nginx")))
    if kind == "envoy":
        resources = json.loads(text)["static_resources"]
        said = json.dumps(resources["listeners"]), json.dumps(resources["clusters"])
        for part, port in zip(said, (5001, 5000), strict=True):
            assert f'"address": "{host}", "port_value": {port}' in part
    else:
        end = str(listen) if kind == "nginx" else f"{host}:5001"
        assert end in text and end.replace("5001", "5000") in text
    assert "access_log off" in text or kind != "nginx"


def test_mitigations_leave_out_what_does_not_concern_the_machine(tmp_path: Path) -> None:
    (tmp_path / "meltdown").write_text("Not affected\n")
    (tmp_path / "spectre_v2").write_text("Mitigation: Retpolines\n")
    assert mitigations(tmp_path) == {"spectre_v2": "Mitigation: Retpolines"}
    assert mitigations(tmp_path / "none") == {}


def test_keeping_awake_asks_for_no_latency_as_long_as_it_lasts(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.touch()
    with awake(device) as taken:
        assert taken and device.read_bytes() == bytes(4)
    with awake(tmp_path / "none" / "device") as taken:
        assert not taken


def test_figures_are_computed_from_every_turn() -> None:
    """Client, server and proxies' time by requests; ratios of what is claimed; µs."""
    group = Group(headline(How.EPOLL, Cores.SAME), ("unix", "redirected"), 3, Turn(2, 1))
    tallies = {}
    for name, factor in (("unix", 1), ("redirected", 2)):
        ns = [np.array([1000 * factor, 3000 * factor], dtype=np.uint32)] * 3
        tallies[name] = Tally(ns, [8000 * factor] * 3, [256] * 3, [4096] * 3)
    found = compute(group, tallies)
    row = found.rows["redirected"]
    assert (row.count, row.minimum, row.mean) == (6, 2.0, 4.0)
    assert {share: figure.value for share, figure in row.percentiles.items()} == {
        50: 2,
        90: 6,
        99: 6,
    }
    assert row.cpu_us.value == 8 and row.gbit.value == 0.5
    assert list(row.by_round) == [[2, 6, 6]] * 3
    assert {key: figure.value for key, figure in found.ratios.items()} == {
        ("redirected", "unix", 50): 2,
        ("redirected", "unix", 99): 2,
    }
    del tallies["unix"].samples[0]
    with pytest.raises(ValueError):
        compute(group, tallies)


def test_with_one_cpu_rows_on_two_are_not_measured() -> None:
    group = next(group for group in plan(Scale.QUICK) if group.load.cores is Cores.TWO)
    found = measure(group, Sites(), Cpus(0, 0))
    assert set(found.missing) == set(group.ways) and not found.rows and not found.failed


def test_a_busy_machine_is_said_to_be_one() -> None:
    assert unrest({"load_average": (0.4, 9.0, 9.0), "cores": 2}) == ""
    assert "load average 3.0 on 2 cores" in unrest({"load_average": (3.0, 0, 0), "cores": 2})


def test_a_proxy_that_is_missing_is_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("PYTHON", "DEBIAN"):
        monkeypatch.setattr(proxies, name, tmp_path / name)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    for name in ("envoy", "nginx", "haproxy"):
        with pytest.raises(proxies.ToolMissing, match=f"{name} is missing: tools/bench_tools.sh"):
            proxies.find(name)
        assert proxies.version(name) == ""
    fetched = tmp_path / "DEBIAN" / "usr" / "sbin" / "nginx"
    fetched.parent.mkdir(parents=True)
    fetched.write_text("#!/bin/sh\necho nginx version: nginx/9\n")
    assert proxies.find("nginx").path == fetched
    assert proxies.version("nginx") == "nginx version: nginx/9"


def test_rows_take_turns_and_stay_beside_what_they_are_compared_with() -> None:
    assert sorted(SEQUENCE) == sorted(WAYS)
    rounds = [turns(list(SEQUENCE), number) for number in range(2 * len(SEQUENCE))]
    for order in rounds:
        assert sorted(order) == sorted(SEQUENCE)
    assert {order[0] for order in rounds} == set(SEQUENCE)
    pairs = {(bar.ours, bar.theirs) for bar in claims.BARS if bar.most}
    for ours, theirs in pairs:
        near = [abs(order.index(ours) - order.index(theirs)) <= 2 for order in rounds]
        assert sum(near) > 0.8 * len(rounds), f"{ours} is far from {theirs}"
        first = [order.index(ours) < order.index(theirs) for order in rounds]
        assert 0.3 * len(rounds) < sum(first) < 0.7 * len(rounds)
    assert turns([], 3) == []
