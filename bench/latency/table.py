# SPDX-License-Identifier: Apache-2.0
"""A run as text: rows of headers and cells, which the terminal and the HTML page both show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.latency.matrix import WAYS
from bench.latency.results import PERCENTILES, Outcome, Row, Run, State, Verdict
from bench.latency.statistics import Figure


@dataclass(frozen=True, slots=True)
class Table:
    """numbers: how many columns at the end stand to the right; notes: below."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: int
    notes: Sequence[str] = ()


def number(value: float) -> str:
    """Three significant digits, or as many as it has before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def with_interval(figure: Figure) -> str:
    """8.71 [8.65–8.80]"""
    return f"{number(figure.value)} [{number(figure.low)}–{number(figure.high)}]"


def claims(verdicts: Iterable[Verdict]) -> Table:
    """Every claim, in their order: none is left out for its outcome."""
    rows, notes = [], []
    for one in verdicts:
        bar = ""
        if one.bar is not None:
            bar = f"{'≥' if one.at_least else '≤'} {one.bar:g}"
            bar += " (upper bound)" if one.by_upper else ""
        figure = with_interval(one.figure) if one.figure else "–"
        if one.figure and one.unit != "ratio":
            figure += f" {one.unit}"
        state = str(one.state).upper() if one.state is State.FAILS else str(one.state)
        rows.append((one.claim, state, figure, bar))
        if one.reason:
            notes.append((f"{one.state}: {one.reason}", one.claim))
    headers = ("claim", "", "measured", "bar")
    return Table("Claims: ratio and 95 % interval", headers, rows, 2, _together(notes))


def group(outcome: Outcome) -> Table:
    """All rows of a group, those that are missing with the reason."""
    headers = ["", "Gbit/s", "CPU µs/MiB", "over UNIX"]
    if not outcome.is_stream:
        shares = [f"p{share} µs" for share in PERCENTILES]
        headers = ["", *shares, "min", "mean", "CPU µs", "count", "p50 over UNIX"]
    floor = outcome.rows.get("unix")
    rows, notes = [], []
    for name in outcome.group.ways:
        label = WAYS[name].label
        if name in outcome.rows:
            rows.append((label, *_cells(outcome.rows[name], floor)))
        else:
            rows.append((label, *["–"] * (len(headers) - 1)))
            notes.append((f"not measured: {outcome.missing.get(name, 'not asked for')}", label))
    title = outcome.group.load.text
    return Table(title, headers, rows, len(headers) - 1, _together(notes))


def _cells(row: Row, floor: Row | None) -> list[str]:
    if not row.percentiles:
        over = f"{row.gbit.value / floor.gbit.value:.2f} ×" if floor else "–"
        return [with_interval(row.gbit), number(row.cpu_us.value), over]
    over = "–"
    if floor is not None:
        over = f"{row.percentiles[50].value / floor.percentiles[50].value:.2f} ×"
    figures = [with_interval(row.percentiles[share]) for share in PERCENTILES]
    return [*figures, number(row.minimum), number(row.mean), number(row.cpu_us.value),
            f"{row.count:,}", over]  # fmt: skip


def render(table: Table) -> str:
    """Aligned, for a terminal."""
    cells = [list(table.headers), *map(list, table.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = len(widths) - table.numbers
    lines = [f"== {table.title}"]
    for row in cells:
        texts = [
            text.ljust(width) if place < left else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"  {'  '.join(texts)}".rstrip())
    return "\n".join([*lines, *(f"  * {note}" for note in table.notes)])


def _together(notes: Iterable[tuple[str, str]]) -> list[str]:
    """Those of one reason in one sentence, with the rows that it is about."""
    whom: dict[str, list[str]] = {}
    for reason, one in notes:
        whom.setdefault(reason, []).append(one)
    return [
        f"{reason} ({'; '.join(names) if len(names) < 5 else f'{len(names)} rows'})"
        for reason, names in whom.items()
    ]


def losing(outcomes: Sequence[Outcome]) -> list[str]:
    """Every place where a way over bristle is slower at the median than what it competes with."""
    rivals = {
        "redirected": ("unix", "loopback", "direct", "routed", "bristle"),
        "bristle": ("unix", "loopback", "direct", "routed"),
        "beside": ("bristle",),
        "envoy-1-redirected": ("envoy-1",),
        "envoy-2-redirected": ("envoy-2",),
    }
    found: list[str] = []
    for outcome in outcomes:
        for ours, against in rivals.items():
            for theirs in against:
                if ours in outcome.rows and theirs in outcome.rows:
                    found += _slower(outcome, ours, theirs)
    return found


def _slower(outcome: Outcome, ours: str, theirs: str) -> Iterator[str]:
    a, b = outcome.rows[ours], outcome.rows[theirs]
    if outcome.is_stream:
        mine, other, unit, what = a.gbit, b.gbit, "Gbit/s", "the throughput of"
        lost = mine.value < other.value
    else:
        mine, other, unit, what = a.percentiles[50], b.percentiles[50], "µs", "the time of"
        lost = mine.value > other.value
    if lost and not mine.agrees(other):
        yield (
            f"{outcome.group.load.text}: {WAYS[ours].label}: {mine.value / other.value:.2f} ×"
            f" {what} {WAYS[theirs].label} ({number(mine.value)} against"
            f" {number(other.value)} {unit})"
        )


def remarks(run: Run) -> list[str]:
    """What has to be known beside the figures."""
    found = [str(run.circumstances["unrest"])] if run.circumstances.get("unrest") else []
    redirect = run.circumstances.get("socket_redirect") or {}
    if redirect.get("forced") and redirect.get("failed_checks"):
        found.append(
            "redirect was forced for this run; unasked, the agent leaves out what its self-test"
            f" found wrong on this kernel: {'; '.join(map(str, redirect['failed_checks']))}"
        )
    if redirect.get("stalls"):
        found.append(f"the agent saw {redirect['stalls']} connections stall")
    return found


def whole(run: Run) -> str:
    """Everything, for a terminal: the groups, the disagreements, the claims."""
    parts = [render(group(outcome)) for outcome in run.outcomes]
    lost = ["== Where it loses, beyond both intervals"]
    lost += [f"  {one}" for one in losing(run.outcomes)] or ["  nowhere"]
    repeat = [f"== Repeat check: {run.compared_with}"]
    repeat += [f"  {one}" for one in [*run.disagreements, *remarks(run)]]
    return "\n\n".join([*parts, "\n".join(lost), "\n".join(repeat), render(claims(run.verdicts))])
