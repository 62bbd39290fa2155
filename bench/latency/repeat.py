# SPDX-License-Identifier: Apache-2.0
"""Whether a run agrees with the one before it on the same machine.

A row's percentile, or a claim, whose 95 % intervals in both runs have nothing in common is said to
disagree; such a claim is not made, in either direction.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.latency.matrix import WAYS
from bench.latency.results import PERCENTILES, VERSION, Outcome, Row, State, Verdict
from bench.latency.statistics import Figure
from bench.latency.table import number


def earlier(path: Path, fingerprint: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, str]:
    """The document of an earlier run that can be compared with, or None and why not."""
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        return None, "there is no earlier run"
    except (OSError, ValueError) as error:
        return None, f"the earlier run cannot be read: {error}"
    if not isinstance(document, dict) or document.get("version") != VERSION:
        return None, "the earlier run is in another format"
    before = document.get("fingerprint")
    # By way of JSON, which knows no tuples.
    if before != json.loads(json.dumps(dict(fingerprint))):
        names = sorted(
            name
            for name in {*fingerprint, *(before if isinstance(before, dict) else {})}
            if not isinstance(before, dict)
            or json.loads(json.dumps(fingerprint.get(name))) != before.get(name)
        )
        return None, f"the earlier run was made with another {', '.join(names)}"
    return document, ""


def disagreements(outcomes: Sequence[Outcome], document: Mapping[str, Any]) -> list[str]:
    """A sentence for each row that both runs have and disagree about, with the percentiles.

    Raises ValueError for a document that is none of ours.
    """
    found = []
    for outcome in outcomes:
        rows = _group(document, outcome.group.load.key).get("rows", {})
        for name, row in outcome.rows.items():
            differing = [
                f"p{share} {_range(figure)} now, {_range(before)} before"
                for share, figure, before in _shared(row, rows.get(name, {}))
                if not figure.agrees(before)
            ]
            if differing:
                what = f"{WAYS[name].label}, {outcome.group.load.text}"
                found.append(f"two runs disagree: {what}: {'; '.join(differing)}: no claim")
    return found


def _shared(row: Row, earlier: Mapping[str, Any]) -> Iterator[tuple[int, Figure, Figure]]:
    """Percentiles that both runs have of a row."""
    for share in PERCENTILES:
        if share in row.percentiles and f"p{share}_us" in earlier:
            yield share, row.percentiles[share], Figure.from_json(earlier[f"p{share}_us"])


def withhold(verdicts: Sequence[Verdict], document: Mapping[str, Any]) -> list[Verdict]:
    """The verdicts, where those that the earlier run's figure contradicts are not made."""
    before = {one.get("claim"): one for one in document.get("claims", ())}
    return [_held_back(one, before.get(one.claim)) for one in verdicts]


def _held_back(verdict: Verdict, before: Mapping[str, Any] | None) -> Verdict:
    if verdict.figure is None or before is None or before.get("interval95") is None:
        return verdict
    figure = Figure.from_json([before["measured"], *before["interval95"]])
    if verdict.figure.agrees(figure):
        return verdict
    reason = f"{_range(verdict.figure)} now, {_range(figure)} before"
    return replace(verdict, state=State.NO_CLAIM, reason=reason)


def _group(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    groups = document.get("groups", ())
    return next((one for one in groups if one.get("key") == key), {})


def _range(figure: Figure) -> str:
    return f"{number(figure.value)} ({number(figure.low)} to {number(figure.high)})"
