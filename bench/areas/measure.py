# SPDX-License-Identifier: Apache-2.0
"""Statistics of paired rounds, and native helpers that are built when they are needed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.kernel.syscall import Command, call
from bench.lab.netns import LabError, Namespace
from bench.report import REPOSITORY

NATIVE = REPOSITORY / "bench" / "native"
BUILT = REPOSITORY / ".cache" / "bench"
_RESAMPLES = 2000


@contextlib.contextmanager
def run_statistics() -> Iterator[None]:
    """Meanwhile the kernel counts runs of programs and their time (BPF_ENABLE_STATS). Raises
    BpfError."""
    held = call(Command.ENABLE_STATS, struct.pack("=I", 0), "run statistics")
    try:
        yield
    finally:
        os.close(held)


def returning(value: int) -> bytes:
    """Instructions of a program that does nothing else: r0 = value; exit."""
    return struct.pack("<BBhi", 0xB7, 0, 0, value) + struct.pack("<BBhi", 0x95, 0, 0, 0)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` per cent of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(share * 100) // 10000) - 1)]


def median(values: Sequence[float]) -> float:
    """The median; the mean of the two in the middle."""
    return float(np.median(np.asarray(values)))


def summary(values: Sequence[float]) -> dict[str, float]:
    """The figures that belong into `raw`."""
    return {
        "count": len(values),
        "minimum": min(values),
        "median": median(values),
        "p90": percentile(values, 90),
        "p99": percentile(values, 99),
        "maximum": max(values),
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, dict[str, Any]]:
    """Median of ours over median of theirs; one of each per round.

    The interval (95 %) comes from resampling rounds, so what disturbs a whole round cancels.
    """
    a, b = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} and {len(b)} rounds do not pair")
    drawn = np.random.default_rng(1).integers(0, len(a), size=(_RESAMPLES, len(a)))
    ratios = np.median(a[drawn], axis=1) / np.median(b[drawn], axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(np.median(a) / np.median(b)), {
        "ours": summary(ours),
        "theirs": summary(theirs),
        "interval95": [float(low), float(high)],
    }


def build(name: str) -> Path:
    """Compiles bench/native/NAME.c, unless it was compiled before; gives the executable."""
    source = NATIVE / f"{name}.c"
    text = b"".join(one.read_bytes() for one in (source, *sorted(NATIVE.glob("*.h"))))
    digest = hashlib.sha256(text).hexdigest()[:16]
    target = BUILT / f"{name}-{digest}"
    if not target.exists():
        BUILT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILT) as folder:
            made = Path(folder, name)
            command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", str(made), str(source)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise LabError(f"{' '.join(command)}: {done.stderr}")
            os.replace(made, target)
    return target


class Helper:
    """A native helper in a namespace, asked by lines. It says `ready` when it is."""

    def __init__(
        self, name: str, arguments: Sequence[object], namespace: Namespace,
        pass_fds: Sequence[int] = (),
    ) -> None:  # fmt: skip
        command = [str(build(name)), *map(str, arguments)]
        self._what = " ".join([name, *command[1:4]])
        self._process = subprocess.Popen(
            namespace.argv(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )
        self.pid = self._process.pid
        answer = self._read()
        if answer != "ready":
            self.close()
            raise LabError(f"{self._what}: {answer or 'ended at once'}")

    def ask(self, *words: object) -> list[float]:
        """Sends a line; gives the numbers of the answer. Raises LabError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(" ".join(map(str, words)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise LabError(f"{self._what}: it has ended") from None
        answer = self._read()
        try:
            return [float(word) for word in answer.split()]
        except ValueError:
            raise LabError(f"{self._what}: {answer}") from None

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LabError(f"{self._what}: it has ended, status {self._process.wait()}")
        return line.strip()

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def rounds(count: int, *sides: Callable[[], float]) -> list[list[float]]:
    """Measures every side once in each round, the order turning; values by side."""
    values: list[list[float]] = [[] for _ in sides]
    for turn in range(count):
        for step in range(len(sides)):
            side = (turn + step) % len(sides)
            values[side].append(sides[side]())
    return values


def last_cpu() -> int:
    """The CPU that measurements are pinned to: the last one we may use."""
    return max(os.sched_getaffinity(0))
