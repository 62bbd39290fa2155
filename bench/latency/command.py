# SPDX-License-Identifier: Apache-2.0
"""`make bench-latency` and `bristle bench latency`: one run from beginning to end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import report
from bench.lab.netns import LabError
from bench.latency import chart, page, png, repeat, table
from bench.latency.claims import first_byte, judge
from bench.latency.fingerprint import circumstances, fingerprint, unrest
from bench.latency.foreign import tracepoint
from bench.latency.matrix import Scale, plan
from bench.latency.proxies import ToolMissing
from bench.latency.results import Outcome, Run, State, Verdict, as_json
from bench.latency.runner import Cpus, measure
from bench.latency.sites import Sites

FAILURES = (LabError, OSError)
"""What keeps a run from being made at all; the message is for whoever started it."""
JSON, SVG, PNG, HTML = "latency.json", "latency.svg", "latency.png", "latency.html"


def main(scale: str = Scale.DEFAULT, output: Path | None = None) -> int:
    """Measures, writes four files, prints the tables.

    output: the folder, bench/results where None. Exit status 0: all claims hold; 1: one fails; 2:
    none fails, but there is one that was not measured, or about which two runs disagree.
    """
    folder = output or report.RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    # What an earlier run left that was killed; only strays go.
    subprocess.run([sys.executable, str(report.REPOSITORY / "tools" / "cleanup.py")], check=False)
    facts = report.environment()
    prints = fingerprint(facts)
    before, why_not = repeat.earlier(folder / JSON, prints)
    started = time.monotonic()
    outcomes, verdicts, redirect = _measure(Scale(scale))
    disagreements: list[str] = []
    compared = f"not done: {why_not}"
    if before is not None:
        when = before.get("environment", {}).get("time", "at an unknown time")
        compared = f"with the run of {when} on the same machine"
        disagreements = repeat.disagreements(outcomes, before)
        verdicts = repeat.withhold(verdicts, before)
        if not disagreements:
            compared += ": every row agrees"
    now = {
        **circumstances(facts),
        "load_average_after": os.getloadavg(),
        "unrest": unrest(facts),
        "socket_redirect": redirect,
    }
    run = Run(scale, time.monotonic() - started, prints, now, outcomes, verdicts, disagreements,
              compared)  # fmt: skip
    _write(run, folder)
    print(table.whole(run))
    print(f"  ({folder / JSON}, {SVG}, {PNG}, {HTML}; {run.seconds:.0f} s)\n", flush=True)
    return status(run)


def status(run: Run) -> int:
    """The exit status."""
    states = {one.state for one in run.verdicts}
    if State.FAILS in states:
        return 1
    return 2 if states & {State.NOT_MEASURED, State.NO_CLAIM} else 0


def _measure(scale: Scale) -> tuple[list[Outcome], list[Verdict], Mapping[str, Any]]:
    """The groups, what is claimed of them, and what the agent says of its redirect at the end."""
    groups = plan(scale)
    minutes = sum(group.seconds() for group in groups) / 60
    report.say(f"{len(groups)} groups, about {minutes:.0f} minutes")
    allowed = sorted(os.sched_getaffinity(0))
    cpus = Cpus(allowed[-1], allowed[0])
    outcomes = []
    with Sites() as sites:
        for number, group in enumerate(groups, 1):
            report.say(f"{number}/{len(groups)}: {group.load.text}")
            outcomes.append(measure(group, sites, cpus))
        agent = sites.redirecting.agent if sites.redirecting else None
        redirect = agent.cli_json("status").get("socket_redirect", {}) if agent else {}
        verdicts = judge(outcomes, first_byte(agent))
        return outcomes, [*verdicts, tracepoint(sites, cpus)], redirect


def _write(run: Run, folder: Path) -> None:
    """Each file appears whole or not at all."""
    drawing = chart.draw(chart.panels(run.outcomes)).render()
    _replace(folder / JSON, compact(json.dumps(as_json(run), indent=1)) + "\n")
    _replace(folder / SVG, drawing + "\n")
    _replace(folder / HTML, page.render(run, drawing))
    try:
        png.render(folder / SVG, folder / PNG)
    except ToolMissing as error:
        (folder / PNG).unlink(missing_ok=True)  # it would be an earlier run's
        report.say(f"no {PNG}: {error}")


def compact(text: str) -> str:
    """JSON where lists of numbers have one line each."""
    return re.sub(r"\[[\d\s,.eE+-]*\]", lambda found: " ".join(found[0].split()), text)


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text)
    fresh.replace(path)
