# SPDX-License-Identifier: Apache-2.0
"""The machine and the versions that figures were made with, and what changes between runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.cli.version import version as bristle_version
from bench.latency import idle, proxies

PROXIES = ("envoy", "nginx", "haproxy")
_QUIET = 0.25
"""Load average for each core up to which a machine is taken for quiet."""
CHANGES = ("load_average", "time", "python")
"""Of report.environment(): what two runs on one machine may differ in and still be compared."""


def fingerprint(
    facts: Mapping[str, Any], sysfs: Path = Path("/sys/devices/system")
) -> dict[str, Any]:
    """What has to be equal for two runs to be compared."""
    return {
        **{name: value for name, value in facts.items() if name not in CHANGES},
        "clocksource": _read(sysfs / "clocksource/clocksource0/current_clocksource"),
        "governor": _read(sysfs / "cpu/cpu0/cpufreq/scaling_governor") or "none (no cpufreq)",
        "idle": idle.description(),
        "smt": _read(sysfs / "cpu/smt/control"),
        "preemption": _preemption(),
        "mitigations": mitigations(sysfs / "cpu/vulnerabilities"),
        "bristle": bristle_version(),
        "proxies": {name: proxies.version(name) or "missing" for name in PROXIES},
    }


def circumstances(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs may differ in."""
    return {name: facts[name] for name in CHANGES if name in facts}


def unrest(facts: Mapping[str, Any]) -> str:
    """What speaks against the figures from the start; empty if nothing does."""
    load, cores = facts["load_average"][0], facts["cores"]
    if load <= _QUIET * cores:
        return ""
    return f"the machine was busy before the run: load average {load:.1f} on {cores} cores"


def mitigations(folder: Path) -> dict[str, str]:
    """Vulnerabilities that the kernel does something about, by name; those not affected go
    without saying."""
    try:
        files = sorted(folder.iterdir())
    except OSError:
        return {}
    found = {file.name: _read(file) for file in files}
    return {name: text for name, text in found.items() if text and text != "Not affected"}


def _preemption() -> str:
    """As the kernel names it in its version: PREEMPT_DYNAMIC, PREEMPT or nothing."""
    words = _read(Path("/proc/sys/kernel/version")).split()
    return next((word for word in words if word.startswith("PREEMPT")), "")


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
