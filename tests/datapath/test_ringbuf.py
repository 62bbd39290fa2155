# SPDX-License-Identifier: Apache-2.0
"""The reader on a ring buffer of the kernel, fed by a program of a few instructions."""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from agent.kernel import bpf
from agent.kernel.syscall import ProgramType
from agent.kernel.testrun import SkbContext, prog_test_run
from agent.telemetry.reader import RingReader
from agent.telemetry.ringbuf import RingMemory
from bpf.maps import MapType

pytestmark = pytest.mark.kernel

SIZE = 96
RING = mmap.PAGESIZE * 4
NO_WAKEUP, FORCE_WAKEUP = 1, 2
_PACKET = bytes(64)
_MARK_AT = 8


def _instruction(code: int, dst: int, src: int, offset: int, immediate: int) -> bytes:
    return struct.pack("=BBhi", code, dst | src << 4, offset, immediate)


def _program(map_fd: int, flags: int) -> bytes:
    """bpf_ringbuf_output(map, <SIZE bytes, all words the packet's mark>, SIZE, flags)."""
    return b"".join(
        (
            _instruction(0x61, 2, 1, _MARK_AT, 0),  # r2 = ctx->mark
            *(_instruction(0x63, 10, 2, -offset, 0) for offset in range(4, SIZE + 1, 4)),
            _instruction(0x18, 1, 1, 0, map_fd),  # r1 = map
            _instruction(0, 0, 0, 0, 0),
            _instruction(0xBF, 2, 10, 0, 0),  # r2 = stack
            _instruction(0x07, 2, 0, 0, -SIZE),
            _instruction(0xB7, 3, 0, 0, SIZE),
            _instruction(0xB7, 4, 0, 0, flags),
            _instruction(0x85, 0, 0, 0, 130),  # ringbuf_output
            _instruction(0x95, 0, 0, 0, 0),
        )
    )


@dataclass(frozen=True, slots=True)
class Feed:
    """A ring and a program that writes into it."""

    map_fd: int
    program_fd: int

    def send(self, mark: int, repeat: int = 1) -> bool:
        """Writes records that all words of are `mark`; False when the last found no room."""
        return prog_test_run(self.program_fd, _PACKET, SkbContext(mark=mark), repeat).retval == 0


@pytest.fixture(params=[NO_WAKEUP, FORCE_WAKEUP], ids=["no-wakeup", "wakeup"])
def feed(request: pytest.FixtureRequest) -> Iterator[Feed]:
    """Not pinned: gone with its descriptors."""
    map_fd = bpf.map_create(MapType.RINGBUF, 0, 0, RING, 0, "bristle_t_ring")
    program_fd = bpf.program_load(
        ProgramType.SCHED_CLS, _program(map_fd, request.param), "bristle_t_feed", licence="GPL"
    )
    yield Feed(map_fd, program_fd)
    os.close(program_fd)
    os.close(map_fd)


def _record(mark: int) -> bytes:
    return struct.pack("=I", mark) * (SIZE // 4)


def test_full_ring_wraps_and_goes_on(feed: Feed) -> None:
    ring = RingMemory(feed.map_fd, RING)
    mark = 0
    for _ in range(5):
        first = mark
        while feed.send(mark):
            mark += 1
        assert mark - first >= RING // 104 - 1
        seen = ring.read(10)
        while batch := ring.read(10):
            seen += batch
        assert seen == [_record(n) for n in range(first, mark)]
        assert ring.pending == 0
    ring.close()


def test_reading_while_the_kernel_writes(feed: Feed) -> None:
    total, seen = 20_000, 0
    lost = 0
    expected = 0
    complete = threading.Event()
    problems: list[str] = []

    def on_records(records: list[bytes]) -> None:
        nonlocal seen, expected
        for record in records:
            (mark,) = struct.unpack_from("=I", record)
            if record != _record(mark) or mark < expected:
                problems.append(f"after {expected}: {record!r}")
            expected = mark + 1
            seen += 1
        if expected > total:
            complete.set()

    reader = RingReader(feed.map_fd, RingMemory(feed.map_fd, RING), on_records,
                        records_per_second=10**9)  # fmt: skip
    reader.start()
    for mark in range(total):
        lost += not feed.send(mark)
    while not feed.send(total):
        pass
    assert complete.wait(60)
    reader.stop()
    assert not problems
    assert seen == total + 1 - lost
    assert reader.counters.corruptions == 0


def test_not_a_ring_buffer() -> None:
    fd = bpf.map_create(MapType.ARRAY, 4, 4, 1, 0, "bristle_t_array")
    with pytest.raises(OSError):
        RingMemory(fd, RING)
    os.close(fd)


def test_another_size_is_refused(feed: Feed) -> None:
    with pytest.raises(OSError):
        RingMemory(feed.map_fd, RING * 2)
