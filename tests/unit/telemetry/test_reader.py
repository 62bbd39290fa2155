# SPDX-License-Identifier: Apache-2.0
"""The ring's memory, written here as the kernel writes it, and the thread that reads it."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.telemetry.reader import BATCH, Budget, RingReader
from agent.telemetry.ringbuf import BUSY, DISCARD, RingCorrupt, RingMemory

PAGE = mmap.PAGESIZE
RING = PAGE


class FakeKernel:
    """A ring buffer in a memory file. The doubled mapping is kept by writing twice."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("bristle-t-ring")
        os.ftruncate(self.fd, 2 * PAGE + 2 * RING)
        self.memory = mmap.mmap(self.fd, 0)
        self.produced = 0

    def close(self) -> None:
        """Gives it back."""
        self.memory.close()
        os.close(self.fd)

    @property
    def consumed(self) -> int:
        """The consumer's position."""
        return int.from_bytes(self.memory[:8], "little")

    def submit(self, data: bytes, flags: int = 0) -> bool:
        """bpf_ringbuf_output: False when there is no room."""
        size = (8 + len(data) + 7) & ~7
        if self.produced + size - self.consumed > RING:
            return False
        self._write(self.produced, pack("=II", len(data) | flags, 0) + data)
        self.produced += size
        self.memory[PAGE : PAGE + 8] = self.produced.to_bytes(8, "little")
        return True

    def _write(self, position: int, raw: bytes) -> None:
        for place, byte in enumerate(raw):
            offset = (position + place) % RING
            self.memory[2 * PAGE + offset] = byte
            self.memory[2 * PAGE + RING + offset] = byte


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    """A ring of one page."""
    made = FakeKernel()
    yield made
    made.close()


@pytest.fixture
def ring(kernel: FakeKernel) -> Iterator[RingMemory]:
    """The consumer's side of it."""
    made = RingMemory(kernel.fd, RING)
    yield made
    made.close()


def test_order_limit_and_space(kernel: FakeKernel, ring: RingMemory) -> None:
    for n in range(5):
        assert kernel.submit(bytes([n]) * (n + 1))
    assert ring.read(2) == [b"\0", b"\1\1"]
    assert kernel.consumed == 32
    assert ring.read(99) == [bytes([n]) * (n + 1) for n in (2, 3, 4)]
    assert ring.read(99) == []
    assert ring.pending == 0
    assert kernel.consumed == kernel.produced


def test_busy_stops_and_discarded_is_skipped(kernel: FakeKernel, ring: RingMemory) -> None:
    kernel.submit(b"one")
    kernel.submit(b"gone", DISCARD)
    at = kernel.produced
    kernel.submit(b"later", BUSY)
    kernel.submit(b"last")
    assert ring.read(99) == [b"one"]
    assert ring.read(99) == []
    kernel._write(at, pack("=I", 5))
    assert ring.read(99) == [b"later", b"last"]


def test_impossible_length_skips_the_ring(kernel: FakeKernel, ring: RingMemory) -> None:
    kernel.submit(b"one")
    kernel._write(0, pack("=I", 5000))
    with pytest.raises(RingCorrupt, match="5000 bytes"):
        ring.read(99)
    kernel.submit(b"two")
    assert ring.read(99) == [b"two"]


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.builds(
                lambda size, fill: bytes([fill]) * size, st.integers(0, 900), st.integers(0, 9)
            ),
            st.sampled_from([0, 0, 0, DISCARD]),
            st.integers(0, 4),
        ),
        min_size=20,
        max_size=60,
    )
)
def test_what_goes_in_comes_out(steps: list[tuple[bytes, int, int]]) -> None:
    kernel = FakeKernel()
    ring = RingMemory(kernel.fd, RING)
    sent: list[bytes] = []
    seen: list[bytes] = []
    for data, flags, take in steps:
        if kernel.submit(data, flags) and not flags:
            sent.append(data)
        if take:
            seen += ring.read(take)
    seen += ring.read(999)
    assert seen == sent
    assert kernel.consumed == kernel.produced
    ring.close()
    kernel.close()


@pytest.mark.parametrize("size", [0, PAGE - 1, 3 * PAGE])
def test_size_is_checked(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        RingMemory(-1, size)


class ScriptedRing:
    """Gives what was prepared; an exception in the list is raised."""

    def __init__(self, *script: list[bytes] | Exception) -> None:
        self.script = list(script)
        self.limits: list[int] = []
        self.closed = False

    def read(self, limit: int) -> list[bytes]:
        self.limits.append(limit)
        step = self.script.pop(0) if self.script else []
        if isinstance(step, Exception):
            raise step
        return step

    def close(self) -> None:
        self.closed = True


def test_nothing_stops_the_thread_but_stop() -> None:
    seen: list[list[bytes]] = []
    done = threading.Event()

    def on_records(records: list[bytes]) -> None:
        seen.append(records)
        if records == [b"last"]:
            done.set()
        if records == [b"bad"]:
            raise RuntimeError("planted")

    ring = ScriptedRing([b"bad"], RingCorrupt("planted"), [b"a", b"b"], [], [b"last"])
    readable = os.eventfd(1)
    reader = RingReader(readable, ring, on_records)
    reader.start()
    assert done.wait(30)
    reader.stop()
    os.close(readable)
    assert seen == [[b"bad"], [b"a", b"b"], [b"last"]]
    assert ring.closed
    counters = reader.counters
    assert (counters.records, counters.records_failed, counters.corruptions) == (4, 1, 1)
    assert max(ring.limits) == BATCH


def test_stop_without_start() -> None:
    ring = ScriptedRing()
    readable = os.eventfd(0)
    RingReader(readable, ring, lambda records: None).stop()
    os.close(readable)
    assert ring.closed


def test_budget() -> None:
    now = 100.0
    budget = Budget(100, lambda: now)
    assert budget.left() == 5
    budget.take(5)
    assert budget.left() == 0
    assert budget.pause() == pytest.approx(0.05)
    now += 0.05
    assert budget.left() == 5
    assert budget.pause() == pytest.approx(0.05)
