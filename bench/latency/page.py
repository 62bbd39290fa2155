# SPDX-License-Identifier: Apache-2.0
"""The report as one HTML file that needs no other: chart, claims, tables, method, machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bench.latency import table
from bench.latency.results import Run, State
from bench.latency.table import Table

_STYLE = """
body { font: 15px/1.45 system-ui, "DejaVu Sans", sans-serif; margin: 2rem auto; max-width: 1260px;
  padding: 0 1rem; color: #222; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-size: 13px; margin: .6rem 0 1.4rem; }
caption { text-align: left; font-weight: bold; padding: .3rem 0; }
th, td { border-bottom: 1px solid #ccc; padding: .25rem .7rem; text-align: left;
  vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
tr.fails td { background: #fdeee4; } tr.fails td:nth-child(2) { font-weight: bold; }
tr.open td { color: #555; font-style: italic; }
svg { max-width: 100%; height: auto; } ul { padding-left: 1.2rem; }
.note { font-size: 13px; color: #444; }
"""

METHOD = (
    "One load generator for all rows (bench/native/latency.c): client and server are two processes,"
    " each pinned to one CPU at nice −20, TCP_NODELAY on. Each answer is compared byte by byte with"
    " what was sent, each stream chunk by its receiver; a wrong byte or an exchange of more than"
    " 2 s fails the row. A sample is the time from before the first write to after the last read.",
    "All rows of a table are up at the same time and are measured in turn, round by round, in an"
    " order that rotates and turns round, with what is compared side by side; each turn begins with"
    " an eighth of it to warm up. Percentiles are of all samples of all rounds. For the"
    " rows with a claim all processes are started anew several times (sittings), as the place of"
    " their memory alone makes some per cent. Intervals (95 %) are drawn from whole sittings, and"
    " in each from whole rounds in blocks of neighbours. A ratio of medians is the median of the"
    " rounds' ratios; a ratio of other percentiles is that of all samples, both rows drawn alike.",
    "Same core: client, server and every proxy share one CPU. Two cores: the server, and a sidecar"
    " in its pod, have another CPU than the client and a proxy in the client's pod, and idle cores"
    " are kept awake (PM QoS) except where it says that they sleep. Proxies have one worker, no"
    " access log, and forward plain TCP. CPU time is user and system time of both processes and of"
    " the proxies, divided by requests.",
    "Pods of bristle are wired by CNI calls to a real agent, with a policy in force in both"
    " directions, which is tried by a pod it does not name. Redirected rows are the same with the"
    " pod's annotation.",
)


def render(run: Run, chart: str) -> str:
    """chart: an SVG element, trusted; all else is escaped."""
    time = str(run.circumstances.get("time", ""))
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width">',
        f"<title>Bristle: latency, {escape(time)}</title><style>{_STYLE}</style></head><body>",
        "<h1>Latency between two applications of one node</h1>",
        f"<p>{escape(_summary(run))}</p>",
        _list(table.remarks(run), ""),
        chart,
        "<h2>Claims</h2>",
        _table(table.claims(run.verdicts), [_class(one.state) for one in run.verdicts]),
        "<h2>Where it loses</h2>",
        "<p>Every row of bristle that is slower than what it competes with, beyond both"
        " intervals.</p>",
        _list(
            table.losing(run.outcomes), "No row of bristle is slower than what it competes with."
        ),
        "<h2>Repeat check</h2>",
        f"<p>{escape(run.compared_with)}</p>",
        _list(run.disagreements, ""),
        "<h2>All rows</h2>",
        *(_table(table.group(outcome)) for outcome in run.outcomes),
        "<h2>Method</h2>",
        *(f"<p>{escape(text)}</p>" for text in METHOD),
        "<h2>Machine and versions</h2>",
        _facts({**run.fingerprint, **run.circumstances}),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _summary(run: Run) -> str:
    counts = {state: sum(one.state is state for one in run.verdicts) for state in State}
    return (
        f"{run.circumstances.get('time', '')}, run “{run.scale}” of {run.seconds:.0f} s."
        f" Of the claims that have a bar, {counts[State.HOLDS]} hold, {counts[State.FAILS]} fail,"
        f" {counts[State.NOT_MEASURED]} were not measured, and for {counts[State.NO_CLAIM]} two"
        " runs disagree."
    )


def _class(state: State) -> str:
    if state is State.FAILS:
        return "fails"
    return "open" if state in (State.NOT_MEASURED, State.NO_CLAIM) else ""


def _table(shown: Table, classes: Sequence[str] = ()) -> str:
    left = len(shown.headers) - shown.numbers

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = [' class="n"' if place >= left else "" for place in range(len(row))]
        return "".join(
            f"<{tag}{kind}>{escape(text)}</{tag}>" for kind, text in zip(kinds, row, strict=True)
        )

    lines = [f"<table><caption>{escape(shown.title)}</caption>"]
    lines.append(f"<tr>{cells('th', shown.headers)}</tr>")
    for place, row in enumerate(shown.rows):
        kind = f' class="{classes[place]}"' if place < len(classes) and classes[place] else ""
        lines.append(f"<tr{kind}>{cells('td', row)}</tr>")
    lines.append("</table>")
    if shown.notes:
        lines.append(f'<div class="note">{_list(shown.notes, "")}</div>')
    return "\n".join(lines)


def _list(items: Sequence[str], otherwise: str) -> str:
    if not items:
        return f"<p>{escape(otherwise)}</p>" if otherwise else ""
    return "<ul>" + "".join(f"<li>{escape(one)}</li>" for one in items) + "</ul>"


def _facts(facts: Mapping[str, Any]) -> str:
    rows = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            rows += [(f"{name}: {inner}", str(one)) for inner, one in value.items()]
        else:
            rows.append((name, str(value)))
    return _table(Table("", ("what", "is"), rows, 0))
