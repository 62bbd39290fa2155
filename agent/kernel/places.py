# SPDX-License-Identifier: Apache-2.0
"""The map ``places``, an array that programs read while it is written.

A hash gives its readers the old value or the new one; an array is overwritten under their eyes. So
who is in a slot is said last and unsaid first (an endpoint of 0 is nobody), and into a slot that
somebody was in another one comes only when all programs have ended that may still be reading it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from agent.core.delta import Writes
from agent.kernel.maps import PinnedMap
from agent.kernel.syscall import wait_for_programs
from bpf.layouts import Place
from bpf.maps import U32

_NOBODY: Final = bytes(Place.SIZE)
_ENDPOINT: Final = U32.SIZE  # the first field
_LONG: Final = 0.1  # s; a program runs for microseconds


def wait() -> None:
    """Until no program that reads a slot now does so any more."""
    if not wait_for_programs():
        time.sleep(_LONG)


class Places:
    """Slots with somebody in them, by index. Called by one thread.

    `wait` returns when every program has ended that was running when it was called.
    """

    def __init__(self, table: PinnedMap[Any, Any], wait: Callable[[], None] = wait) -> None:
        self._table = table
        self._wait = wait
        #: Slots that somebody is in, or was when programs that may still run began.
        self._used = set(self.content())
        self._left: set[bytes] = set()

    def content(self) -> Writes:
        """Slots that are not empty. Raises BpfError."""
        import numpy as np

        width = Place.SIZE // 8
        found: Writes = {}
        for keys, values in self._table.chunks():
            words = np.frombuffer(values, dtype=np.uint64).reshape(-1, width)
            for n in np.flatnonzero(words.any(axis=1)).tolist():
                key = keys[n * U32.SIZE : (n + 1) * U32.SIZE]
                found[key] = values[n * Place.SIZE : (n + 1) * Place.SIZE]
        return found

    def clear(self, keys: Collection[bytes]) -> None:
        """Nobody is in these slots any more. Raises BpfError."""
        if keys:
            self._table.update_packed(b"".join(keys), _NOBODY * len(keys))
            self._used.update(keys)
            self._left.update(keys)

    def put(self, writes: Mapping[bytes, bytes]) -> None:
        """Put pods into slots. Waits for programs where somebody was in one: the first to come into
        a slot again does it for all slots that were left, so once in thousands of pods. Raises
        BpfError."""
        if not writes:
            return
        again = writes.keys() & self._used
        if again:
            self.clear(again - self._left)
            self._wait()
            self._used -= self._left
            self._left.clear()
        keys = b"".join(writes)
        unsaid = (bytes(_ENDPOINT) + value[_ENDPOINT:] for value in writes.values())
        self._used.update(writes)
        self._table.update_packed(keys, b"".join(unsaid))
        self._table.update_packed(keys, b"".join(writes.values()))
