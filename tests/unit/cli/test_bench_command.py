# SPDX-License-Identifier: Apache-2.0
"""`bristle bench latency`, with the benchmarks beside it and without."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from agent.cli.root import cli

COMMAND = "bench.latency.command"


def test_without_the_benchmarks_it_says_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, COMMAND, None)
    result = CliRunner().invoke(cli, ["bench", "latency"])
    assert result.exit_code == 1
    assert "the benchmarks are not installed" in result.stderr
    assert "make bench-latency" in result.stderr


def test_what_the_benchmarks_themselves_lack_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, COMMAND, raising=False)
    monkeypatch.setitem(sys.modules, "numpy", None)
    for name in [name for name in sys.modules if name.startswith("bench.")]:
        monkeypatch.delitem(sys.modules, name)
    result = CliRunner().invoke(cli, ["bench", "latency"])
    assert isinstance(result.exception, ModuleNotFoundError) and result.exception.name == "numpy"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [([], "default"), (["--quick"], "quick"), (["--full"], "full")],
)
def test_options_and_exit_status_are_passed_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: list[str], expected: str
) -> None:
    asked: list[tuple[str, Path | None]] = []

    def main(scale: str, output: Path | None) -> int:
        asked.append((scale, output))
        return 2

    monkeypatch.setitem(sys.modules, COMMAND, SimpleNamespace(main=main, FAILURES=(OSError,)))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    result = CliRunner().invoke(cli, ["bench", "latency", *flags, "--output", str(tmp_path)])
    assert result.exit_code == 2 and asked == [(expected, tmp_path)]


def test_a_run_that_cannot_be_made_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(scale: str, output: Path | None) -> int:
        raise OSError("no room")

    monkeypatch.setitem(sys.modules, COMMAND, SimpleNamespace(main=main, FAILURES=(OSError,)))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    result = CliRunner().invoke(cli, ["bench", "latency"])
    assert result.exit_code == 1 and "no room" in result.stderr


def test_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, COMMAND, SimpleNamespace(FAILURES=()))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = CliRunner().invoke(cli, ["bench", "latency"])
    assert result.exit_code == 1 and "run as root" in result.stderr
