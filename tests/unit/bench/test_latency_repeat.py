# SPDX-License-Identifier: Apache-2.0
"""Two runs on one machine that disagree say so, and claim nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.latency import repeat
from bench.latency.results import State, as_json, verdict_of
from tests.unit.bench.latency_world import FINGERPRINT, exactly, outcome, run, stream

ROWS = {"unix": (10.0, 12.0, 20.0), "redirected": (9.0, 11.0, 19.0)}


def document(*outcomes: Any, **given: Any) -> dict[str, Any]:
    """A run as it is found on disk."""
    loaded: dict[str, Any] = json.loads(json.dumps(as_json(run(*outcomes, **given))))
    return loaded


def test_runs_that_agree_have_nothing_to_say() -> None:
    before = document(outcome(ROWS), stream({"unix": ()}))
    assert repeat.disagreements([outcome(ROWS), stream({"unix": ()})], before) == []


@pytest.mark.parametrize(
    ("p99", "shown"), [(30.0, "30 (29.7 to 30.3)"), (15.0, "15 (14.8 to 15.2)")]
)
def test_each_percentile_that_disagrees_is_named(p99: float, shown: str) -> None:
    now = outcome(ROWS | {"redirected": (9.0, 11.0, p99)})
    (said,) = repeat.disagreements([now], document(outcome(ROWS)))
    assert said.startswith("two runs disagree: bristle, redirected, round trip, 64 B")
    assert said.endswith(f": p99 {shown} now, 19 (18.8 to 19.2) before: no claim")


def test_rows_that_only_one_run_has_are_no_disagreement() -> None:
    before = document(outcome({"unix": (99.0, 99.0, 99.0)}))
    assert repeat.disagreements([outcome({"redirected": (9.0, 11.0, 19.0)})], before) == []


@pytest.mark.parametrize("now", [0.9, 1.2])
def test_a_claim_whose_ratio_disagrees_is_not_made_either_way(now: float) -> None:
    claim = verdict_of("it is quick", 1.0, exactly(now))
    assert claim.state is (State.HOLDS if now < 1 else State.FAILS)
    before = document(verdicts=(verdict_of("it is quick", 1.0, exactly(1.05)),))
    (held,) = repeat.withhold([claim], before)
    assert held.state is State.NO_CLAIM
    assert str(held.state) == "two runs disagree: no claim"
    assert "before" in held.reason and held.figure == claim.figure


def test_claims_that_agree_or_are_new_or_were_not_measured_stand() -> None:
    before = document(
        verdicts=(verdict_of("same", 1.0, exactly(0.9)), verdict_of("was missing", 1.0, None))
    )
    claims = [verdict_of(name, 1.0, exactly(0.9)) for name in ("same", "was missing", "new")]
    claims.append(verdict_of("same", 1.0, None, reason="why"))
    assert repeat.withhold(claims, before) == claims


def test_an_earlier_run_of_this_machine_is_found(tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    file.write_text(json.dumps(as_json(run(outcome(ROWS)))))
    found, why = repeat.earlier(file, {**FINGERPRINT})
    assert found is not None and not why


def test_another_machine_is_not_compared_with_and_is_said_to_differ(tmp_path: Path) -> None:
    file = tmp_path / "latency.json"
    file.write_text(json.dumps(as_json(run(outcome(ROWS)))))
    found, why = repeat.earlier(file, {**FINGERPRINT, "cpu": "two", "kernel": "7"})
    assert found is None
    assert why == "the earlier run was made with another cpu, kernel"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 0}', '{"version": 1}'])
def test_what_is_no_earlier_run_stops_nothing(tmp_path: Path, text: str) -> None:
    file = tmp_path / "latency.json"
    assert repeat.earlier(file, FINGERPRINT) == (None, "there is no earlier run")
    file.write_text(text)
    found, why = repeat.earlier(file, FINGERPRINT)
    assert found is None and why
