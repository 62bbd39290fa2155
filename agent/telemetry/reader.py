# SPDX-License-Identifier: Apache-2.0
"""The thread that empties the kernel's ring buffer of events.

It hands lists of raw records to a callback and nothing ever stops it but `stop`. It is
paced: beyond a rate it leaves records in the ring, where the kernel counts what does not
fit, rather than take the processor from the thread that enforces policy.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from agent.telemetry.ringbuf import RingCorrupt, RingMemory

BATCH: Final = 256
RECORDS_PER_SECOND: Final = 10_000
_SLICES: Final = 20
"""The rate is kept per slice of a second, so that a burst does not idle for a second."""
POLL_SECONDS: Final = 0.1
"""Longest time a record waits: the programs wake the reader only when much has come."""
_BUSY_WAIT: Final = 0.001
"""Seconds to wait for a record that is being written: epoll calls it readable already."""

log = logging.getLogger(__name__)


class Ring(Protocol):
    """Where records come from; RingMemory is the real one."""

    def read(self, limit: int) -> list[bytes]:
        """Up to `limit` records; may raise RingCorrupt."""
        ...

    def close(self) -> None:
        """Gives the memory back."""
        ...


@dataclass(slots=True)
class ReaderCounters:
    """Written by the reader's thread alone; monotonic."""

    records: int = 0
    records_failed: int = 0  # in batches that `on_records` raised for
    corruptions: int = 0


class Budget:
    """Records that may still be taken in this slice of time."""

    def __init__(self, per_second: int, clock: Callable[[], float]) -> None:
        self._per_slice = max(per_second // _SLICES, 1)
        self._clock = clock
        self._end = 0.0
        self._left = 0

    def left(self) -> int:
        """Records allowed now; a new slice begins where the old one has passed."""
        now = self._clock()
        if now >= self._end:
            self._end = now + 1 / _SLICES
            self._left = self._per_slice
        return self._left

    def take(self, count: int) -> None:
        """`count` records were taken."""
        self._left -= count

    def pause(self) -> float:
        """Seconds until the next slice."""
        return max(self._end - self._clock(), 0.0)


class RingReader:
    """Reads the ring behind `map_fd` in a thread of its own.

    `on_records` is called in that thread with 1 to BATCH records; what it raises is
    logged, counted and otherwise ignored. The descriptor stays the caller's.
    """

    def __init__(
        self,
        map_fd: int,
        ring: Ring,
        on_records: Callable[[list[bytes]], None],
        *,
        records_per_second: int = RECORDS_PER_SECOND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = ReaderCounters()
        self._ring = ring
        self._on_records = on_records
        self._budget = Budget(records_per_second, clock)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(map_fd, select.EPOLLIN)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    @classmethod
    def open(cls, map_fd: int, size: int, on_records: Callable[[list[bytes]], None]) -> RingReader:
        """For a ring buffer map with max_entries `size`. Raises OSError or ValueError."""
        return cls(map_fd, RingMemory(map_fd, size), on_records)

    def start(self) -> None:
        """Begins reading."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, after the batch it is at, and unmaps the ring."""
        self._stopping.set()
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join()
        self._epoll.close()
        os.close(self._wake)
        self._ring.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            ready = self._epoll.poll(POLL_SECONDS)
            while (count := self.read_once()) == BATCH and not self._stopping.is_set():
                pass
            if ready and not count:
                # Readable and yet nothing to read: a record is being written.
                self._stopping.wait(_BUSY_WAIT)

    def read_once(self) -> int:
        """One batch, after a pause when the rate is exhausted; the number of records read."""
        if self._budget.left() <= 0:
            self._stopping.wait(self._budget.pause())
        limit = min(BATCH, max(self._budget.left(), 1))
        try:
            records = self._ring.read(limit)
        except RingCorrupt as error:
            self.counters.corruptions += 1
            log.error("event ring: %s", error)
            return 0
        if records:
            self._budget.take(len(records))
            self.counters.records += len(records)
            self._deliver(records)
        return len(records)

    def _deliver(self, records: list[bytes]) -> None:
        try:
            self._on_records(records)
        except Exception:
            self.counters.records_failed += len(records)
            log.exception("a batch of %d events was lost", len(records))
