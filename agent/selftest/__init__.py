# SPDX-License-Identifier: Apache-2.0
"""Does this kernel redirect as applications must be able to rely on? Asked of the very programs
that will be in force, with real sockets, in a namespace and a cgroup of its own.

Here belong the checks and the process that runs them. What follows from their outcome is decided in
`agent.redirect`; nothing here touches what is in force.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import agent

TIMEOUT: Final = 60.0
CGROUP: Final = "bristle-selftest-"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check found. blocking: it is about sockets that block in a call. detail: what is
    wrong; empty where all is well."""

    name: str
    blocking: bool
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}" if self.detail else self.name


class SelfTestError(Exception):
    """The checks could not be made; the message says why."""


def run_self_test(work_dir: Path, cgroup: Path, timeout: float = TIMEOUT) -> Sequence[Outcome]:
    """Every check, in a process that ends with it. Raises SelfTestError."""
    _tidy(cgroup)  # what a killed one left
    root = Path(agent.__file__).resolve().parents[1]
    try:
        child = subprocess.run(
            [sys.executable, "-m", "agent.selftest", str(work_dir), str(cgroup)],
            cwd=root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SelfTestError(f"not done after {timeout:g} s") from None
    except OSError as error:
        raise SelfTestError(str(error)) from error
    finally:
        _tidy(cgroup)
    if child.returncode:
        said = child.stderr.strip().splitlines()[-1:] or [f"status {child.returncode}"]
        raise SelfTestError(said[0])
    return _read(child.stdout)


def _tidy(cgroup: Path) -> None:
    for folder in cgroup.glob(f"{CGROUP}*"):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _read(text: str) -> Sequence[Outcome]:
    try:
        outcomes = [Outcome(**one) for one in json.loads(text)]
    except (ValueError, TypeError):
        outcomes = []
    if not outcomes or not all(
        (type(one.name), type(one.blocking), type(one.detail)) == (str, bool, str)
        for one in outcomes
    ):
        raise SelfTestError("its answer cannot be understood")
    return outcomes
