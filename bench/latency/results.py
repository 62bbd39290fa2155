# SPDX-License-Identifier: Apache-2.0
"""What a run found, as plain values, and as the document latency.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from bench.latency.matrix import Group, What
from bench.latency.statistics import Figure

PERCENTILES = (50, 90, 99)
VERSION = 1


@dataclass(frozen=True, slots=True)
class Row:
    """One way under one load.

    percentiles: µs, of round trips; none for streams. cpu_us: user and system time of client,
    server and proxies for a request, in µs; for a stream for each MiB. gbit: payload, both ways.
    by_round: of each round the percentiles in µs.
    """

    way: str
    count: int
    minimum: float
    mean: float
    percentiles: Mapping[int, Figure]
    cpu_us: Figure
    gbit: Figure
    by_round: Sequence[Sequence[float]] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """A group as measured. missing: way to the reason why there is no row of it; failed: those of
    them that gave wrong bytes, stalled or broke. ratios: (ours, theirs, percentile) of what is
    claimed."""

    group: Group
    rows: Mapping[str, Row]
    missing: Mapping[str, str]
    ratios: Mapping[tuple[str, str, int], Figure] = field(default_factory=dict)
    failed: frozenset[str] = frozenset()

    @property
    def is_stream(self) -> bool:
        """Whether it is about throughput, not round trips."""
        return self.group.load.what is What.STREAM


class State(StrEnum):
    """What has become of a claim."""

    HOLDS = "holds"
    FAILS = "fails"
    NOT_MEASURED = "not measured"
    NO_CLAIM = "two runs disagree: no claim"
    STATED = "stated only"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A claim and what the run says about it.

    figure: what is held against the bar, with its interval; None: not measured. by_upper: the
    interval's upper bound is held against it, not the value. reason: of a claim that is not made.
    """

    claim: str
    bar: float | None
    figure: Figure | None
    unit: str = "ratio"
    at_least: bool = False
    by_upper: bool = False
    state: State = State.NOT_MEASURED
    reason: str = ""


def verdict_of(
    claim: str,
    bar: float | None,
    figure: Figure | None,
    *,
    unit: str = "ratio",
    at_least: bool = False,
    by_upper: bool = False,
    reason: str = "",
    failed: bool = False,
) -> Verdict:
    """Judges a figure. failed: there is none since what it is about did not work."""
    if figure is None:
        state = State.FAILS if failed else State.NOT_MEASURED
    elif bar is None:
        state = State.STATED
    else:
        value = figure.high if by_upper else figure.value
        state = State.HOLDS if (value >= bar if at_least else value <= bar) else State.FAILS
    return Verdict(claim, bar, figure, unit, at_least, by_upper, state, reason)


@dataclass(frozen=True, slots=True)
class Run:
    """One run. fingerprint: of the machine and the versions; circumstances: what differs from run
    to run all the same, such as the time and the load. disagreements: with an earlier run."""

    scale: str
    seconds: float
    fingerprint: Mapping[str, Any]
    circumstances: Mapping[str, Any]
    outcomes: Sequence[Outcome]
    verdicts: Sequence[Verdict]
    disagreements: Sequence[str] = ()
    compared_with: str = ""


def as_json(run: Run) -> dict[str, Any]:
    """The document."""
    return {
        "area": "latency",
        "version": VERSION,
        "scale": run.scale,
        "seconds": round(run.seconds, 1),
        "environment": {**run.fingerprint, **run.circumstances},
        "fingerprint": dict(run.fingerprint),
        "claims": [_verdict(one) for one in run.verdicts],
        "compared_with": run.compared_with,
        "disagreements": list(run.disagreements),
        "groups": [_group(one) for one in run.outcomes],
    }


def _verdict(one: Verdict) -> dict[str, Any]:
    return {
        "claim": one.claim,
        "measured": None if one.figure is None else one.figure.value,
        "interval95": None if one.figure is None else [one.figure.low, one.figure.high],
        "bar": one.bar,
        "unit": one.unit,
        "sense": "at least" if one.at_least else "at most",
        "held_against_bar": "upper bound" if one.by_upper else "value",
        "holds": {State.HOLDS: True, State.FAILS: False}.get(one.state),
        "state": str(one.state),
        "reason": one.reason,
    }


def _group(one: Outcome) -> dict[str, Any]:
    load, turn = one.group.load, one.group.turn
    return {
        "key": load.key,
        "load": {
            "how": str(load.how),
            "what": str(load.what),
            "size": load.size,
            "connections": load.connections,
            "cores": str(load.cores),
            "family": load.family,
        },
        "config": {
            "rounds": one.group.rounds,
            "sittings": one.group.sittings,
            "turn_count": turn.count,
            "turn_milliseconds": turn.milliseconds,
        },
        "rows": {name: _row(row) for name, row in one.rows.items()},
        "not_measured": dict(one.missing),
        "failed": sorted(one.failed),
        "ratios": [
            {"ours": ours, "theirs": theirs, "percentile": share, "figure": figure.as_json()}
            for (ours, theirs, share), figure in one.ratios.items()
        ],
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "count": row.count,
        "minimum_us": row.minimum,
        "mean_us": row.mean,
        **{f"p{share}_us": figure.as_json() for share, figure in row.percentiles.items()},
        "cpu_us": row.cpu_us.as_json(),
        "gbit_per_second": row.gbit.as_json(),
        "by_round_us": [list(one) for one in row.by_round],
    }
