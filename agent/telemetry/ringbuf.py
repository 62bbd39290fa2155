# SPDX-License-Identifier: Apache-2.0
"""The memory of a BPF ring buffer, as the kernel lays it out (kernel/bpf/ringbuf.c).

Page 0 of the map holds the consumer's position and is ours to write; from page 1 on,
read-only: the producer's position, then the data twice in a row, so that a record which
wraps is contiguous. A record is a header (u32 length with the bits BUSY and DISCARD, u32
page offset) and its bytes, padded to 8. Positions only grow; their low bits are offsets.
"""

from __future__ import annotations

import mmap
from threading import Lock
from typing import Final

BUSY: Final = 1 << 31
DISCARD: Final = 1 << 30
HEADER: Final = 8
_LENGTH: Final = DISCARD - 1


class RingCorrupt(Exception):
    """A header that cannot be: the ring was skipped to its end, what it held is lost."""


class RingMemory:
    """Maps a ring buffer of `size` bytes. One consumer per ring: nothing else may read it.

    Not thread-safe. Raises OSError when the descriptor is no ring buffer of that size.
    """

    def __init__(self, map_fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        if size < page or size & (size - 1):
            raise ValueError(f"ring size {size} is not a power of two of at least {page}")
        self._mask = size - 1
        self._consumer_map = mmap.mmap(map_fd, page, mmap.MAP_SHARED)
        try:
            self._producer_map = mmap.mmap(
                map_fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
            )
        except BaseException:
            self._consumer_map.close()
            raise
        # 64-bit elements: an access of one is one aligned load or store, where
        # struct.pack_into would be free to write byte by byte.
        self._consumer = memoryview(self._consumer_map).cast("Q")
        producer = memoryview(self._producer_map)
        self._producer = producer[:page].cast("Q")
        self._data = producer[page:]
        self._headers = self._data.cast("I")
        self._views = (self._headers, self._data, self._producer, producer, self._consumer)
        self._fence = Lock()

    def close(self) -> None:
        """Unmaps. The ring itself lives as long as its map."""
        for view in self._views:
            view.release()
        self._producer_map.close()
        self._consumer_map.close()

    @property
    def pending(self) -> int:
        """Bytes that wait to be read."""
        return self._producer[0] - self._consumer[0]

    def read(self, limit: int) -> list[bytes]:
        """Copies out up to `limit` records and gives their space back to the kernel.

        Stops at a record that is still being written. Discarded ones are skipped without
        being counted against `limit`. Raises RingCorrupt.
        """
        position = self._consumer[0]
        end = self._producer[0]
        spans: list[tuple[int, int]] = []
        self._barrier()
        while position < end and len(spans) < limit:
            offset = position & self._mask
            word = self._headers[offset // 4]
            if word & BUSY:
                break
            length = word & _LENGTH
            step = (length + HEADER + 7) & ~7
            if step > end - position:
                self._consumer[0] = end
                raise RingCorrupt(f"record of {length} bytes with {end - position} in the ring")
            if not word & DISCARD:
                spans.append((offset + HEADER, length))
            position += step
        self._barrier()
        data = self._data
        records = [data[start : start + length].tobytes() for start, length in spans]
        self._barrier()
        self._consumer[0] = position
        return records

    def _barrier(self) -> None:
        # Orders what stands before against what stands after: a release, then an acquire.
        # On amd64 the processor does that by itself, on arm64 it does not, and Python has
        # no fence; taking a lock that nobody else takes contains both.
        with self._fence:
            pass
        with self._fence:
            pass
