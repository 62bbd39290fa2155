# SPDX-License-Identifier: Apache-2.0
"""What an area claims, on which machine, and whether it holds: as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True)
class Claim:
    """One figure.

    bar: what it is held against; None: it is stated only. at_least: the bar is a lower one.
    raw: what the figure was computed from, whatever is needed to judge it.
    """

    claim: str
    measured: float
    bar: float | None
    unit: str
    at_least: bool = False
    raw: Mapping[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool | None:
        """None where there is no bar. What is no number holds nothing."""
        if self.bar is None:
            return None
        return self.measured >= self.bar if self.at_least else self.measured <= self.bar

    def as_json(self) -> dict[str, Any]:
        """As in results/AREA.json."""
        return {
            "claim": self.claim,
            "measured": self.measured,
            "bar": self.bar,
            "unit": self.unit,
            "sense": "at least" if self.at_least else "at most",
            "holds": self.holds,
            "raw": dict(self.raw),
        }


def environment() -> dict[str, Any]:
    """The machine and the versions that figures were made with."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpu": model,
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("grpcio", "msgspec", "numpy", "pyroute2")},
        "commit": _git("rev-parse", "HEAD"),
        "modified": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write(area: str, claims: Sequence[Claim], seconds: float, facts: Mapping[str, Any]) -> Path:
    """Writes results/AREA.json; `facts` is the environment before the run. Gives its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{area}.json"
    document = {
        "area": area,
        "environment": {**facts, "load_average_after": os.getloadavg()},
        "seconds": round(seconds, 1),
        "claims": [one.as_json() for one in claims],
    }
    path.write_text(json.dumps(document, indent=1, allow_nan=True) + "\n")
    return path


def table(area: str, claims: Sequence[Claim]) -> str:
    """The claims, aligned."""
    rows = [("claim", "measured", "bar", "unit", "holds")]
    for one in claims:
        bar = "" if one.bar is None else f"{'≥' if one.at_least else '≤'} {_number(one.bar)}"
        holds = {None: "", True: "yes", False: "NO"}[one.holds]
        rows.append((one.claim, _number(one.measured), bar, one.unit, holds))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [f"== {area}"]
    for row in rows:
        name, measured, bar, unit, holds = (
            text.rjust(width) if column in (1, 2) else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append(f"  {name}  {measured}  {bar}  {unit}  {holds}".rstrip())
    return "\n".join(lines)


def say(text: str) -> None:
    """Progress, for whoever waits: to standard error, so that the tables stay by themselves."""
    print(f"   … {text}", file=sys.stderr, flush=True)


def _number(value: float) -> str:
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
