# SPDX-License-Identifier: Apache-2.0
"""Runs that nobody made: rows with figures that a test chooses."""

from __future__ import annotations

from collections.abc import Mapping

from bench.latency.matrix import Cores, Group, How, Load, Turn, What, headline
from bench.latency.results import PERCENTILES, Outcome, Row, Run, Verdict
from bench.latency.statistics import Figure

FINGERPRINT = {"cpu": "one", "proxies": {"envoy": "1"}, "cores": 2}


def exactly(value: float, spread: float = 0.01) -> Figure:
    """A figure with an interval of so much on each side, relative."""
    return Figure(value, value * (1 - spread), value * (1 + spread))


def row(way: str, *percentiles: float) -> Row:
    """A row with these percentiles in µs; none: of a stream."""
    figures = {
        share: exactly(value) for share, value in zip(PERCENTILES, percentiles, strict=False)
    }
    return Row(way, 1000, 1.0, 2.0, figures, exactly(3), exactly(4))


def outcome(
    rows: Mapping[str, tuple[float, ...]],
    missing: Mapping[str, str] | None = None,
    load: Load | None = None,
    ratios: Mapping[tuple[str, str, int], Figure] | None = None,
) -> Outcome:
    """A group with these rows."""
    load = load or headline(How.EPOLL, Cores.SAME)
    ways = (*rows, *(missing or {}))
    made = {name: row(name, *values) for name, values in rows.items()}
    return Outcome(Group(load, ways, 9, Turn(10, 10)), made, missing or {}, ratios or {})


def stream(rows: Mapping[str, tuple[float, ...]]) -> Outcome:
    """A group about throughput."""
    return outcome(rows, load=Load(How.EPOLL, What.STREAM, 65536, 1, Cores.SAME))


def run(*outcomes: Outcome, verdicts: tuple[Verdict, ...] = (), **given: object) -> Run:
    """A run of them."""
    facts: dict[str, object] = {"fingerprint": FINGERPRINT, "circumstances": {"time": "now"}}
    return Run("quick", 1.0, outcomes=outcomes, verdicts=verdicts, **(facts | given))  # type: ignore[arg-type]
