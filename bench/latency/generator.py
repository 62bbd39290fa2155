# SPDX-License-Identifier: Apache-2.0
"""The native load generator's two ends (bench/native/latency.c), each a process at its seat."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from bench.areas.measure import build
from bench.lab.netns import LabError, Namespace
from bench.latency.matrix import Load, Turn

STALL_MS = 2000
"""Longer for one exchange is a failure, not a figure."""

Nanoseconds = NDArray[np.uint32]


class GeneratorError(LabError):
    """A wrong byte, a stall, or an end that is gone; the message is the generator's own."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a process runs: in a network namespace, and in a control group where it is to be
    seen by socket hooks. `folder`: of the group, None for none."""

    namespace: Namespace
    group: Path | None = None

    def argv(self, command: Sequence[str]) -> list[str]:
        """The command line; it enters the group before it can open a socket, and the process id
        is the command's own."""
        inside = self.namespace.argv(command)
        if self.group is None:
            return inside
        enter = 'echo 0 >"$0" && exec "$@"'
        return ["sh", "-c", enter, str(self.group / "cgroup.procs"), *inside]


@dataclass(frozen=True, slots=True)
class Taken:
    """What a run gave. samples: ns of each exchange, of a stream one that means nothing;
    bytes: of payload, both ways; wall_ns, cpu_ns: of the client."""

    samples: Nanoseconds
    bytes: int
    wall_ns: int
    cpu_ns: int


class _End:
    """One process of the generator, ready when the constructor returns."""

    def __init__(self, seat: Seat, words: Sequence[str]) -> None:
        self._what = f"latency {' '.join(words[:2])}"
        self._process = subprocess.Popen(
            seat.argv([str(build("latency")), *words]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid
        try:
            answer = self._line()
            if answer != "ready":
                raise GeneratorError(f"{self._what}: {answer}")
        except BaseException:
            self.close()
            raise

    def _pipe(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _line(self) -> str:
        line = self._pipe().readline()
        if not line:
            raise GeneratorError(f"{self._what}: ended, status {self._process.wait()}")
        return line.decode().strip()

    def _ask(self, line: str) -> list[int]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then it has said why
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()
        answer = self._line()
        try:
            return [int(word) for word in answer.split()]
        except ValueError:
            raise GeneratorError(f"{self._what}: {answer}") from None

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Server(_End):
    """Answers at `address` (unix:PATH or tcp:HOST:PORT). corrupt: which answer is to be wrong."""

    def __init__(self, seat: Seat, address: str, load: Load, cpu: int, corrupt: int = 0) -> None:
        words = ["serve", f"at={address}", f"how={load.how}", f"cpu={cpu}"]
        super().__init__(seat, [*words, f"corrupt={corrupt}"])

    def cpu_ns(self) -> int:
        """User and system time so far. Raises GeneratorError."""
        return self._ask("usage")[0]

    def last_word(self) -> str:
        """Why it has ended, to go behind the client's complaint; empty if it has not."""
        try:
            self.cpu_ns()
        except GeneratorError as error:
            return f"; {error}"
        return ""

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Client(_End):
    """Has all its connections through to a server. corrupt: which chunk of a stream is to be
    wrong. Raises GeneratorError."""

    def __init__(
        self, seat: Seat, address: str, load: Load, cpu: int, stall_ms: int = STALL_MS,
        corrupt: int = 0,
    ) -> None:  # fmt: skip
        self._size = load.size
        words = ["drive", f"at={address}", f"how={load.how}", f"cpu={cpu}", f"what={load.what}"]
        words += [f"size={load.size}", f"connections={load.connections}", f"stall={stall_ms}"]
        super().__init__(seat, [*words, f"corrupt={corrupt}"])

    def run(self, turn: Turn) -> Taken:
        """Takes exchanges. Raises GeneratorError."""
        count, size, wall, cpu = self._ask(f"run {turn.count} {turn.milliseconds}")
        data = self._pipe().read(4 * count)
        if len(data) != 4 * count:
            raise GeneratorError(f"{self._what}: {len(data)} bytes instead of {count} samples")
        return Taken(np.frombuffer(data, dtype="=u4"), size, wall, cpu)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
