# SPDX-License-Identifier: Apache-2.0
"""Mappings of masqueraded connections in the kernel: read, and ended in the order that keeps their
two entries together (agent/core/nat.py decides which)."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from agent.core.conntrack import Lifetimes, records
from agent.core.nat import CROWDED, crowded, ended
from agent.kernel.maps import PinnedMap

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

_SECOND = 1_000_000_000


def collect(
    out: PinnedMap[Any, Any],
    back: PinnedMap[Any, Any],
    endpoints: Collection[int],
    addresses: Iterable[bytes],
    lifetimes: Lifetimes,
    idle_since: int = 0,
) -> tuple[int, int]:
    """Remove what has ended; gives how many connections there were and how many were removed.

    idle_since: ns; no packet of before was noted in these maps. Raises BpfError.
    """
    import numpy as np

    keys, entries = _read(out)
    back_keys, origins = _read(back)
    for values in (entries, origins):
        values["seen"] = np.maximum(values["seen"], idle_since // _SECOND)
    if len(keys) > CROWDED * out.capacity:
        lifetimes = crowded(lifetimes)
    now = time.monotonic_ns()
    found = ended(keys, entries, back_keys, origins, now, endpoints, addresses, lifetimes)
    removed = out.delete_packed(records(keys, found.out)) if found.out.any() else 0
    if found.resting.any():
        origins["seen"] = now // _SECOND
        back.update_packed(records(back_keys, found.resting), records(origins, found.resting))
    if found.back.any():
        back.delete_packed(records(back_keys, found.back))
    return len(keys), removed


def _read(one: PinnedMap[Any, Any]) -> tuple[NDArray[numpy.void], NDArray[numpy.void]]:
    """All entries, in arrays that may be changed."""
    import numpy as np

    chunks = list(one.chunks())
    keys: NDArray[numpy.void] = np.frombuffer(
        b"".join(keys for keys, _ in chunks), dtype=_dtype(one.spec.key)
    )
    values: NDArray[numpy.void] = np.frombuffer(
        b"".join(values for _, values in chunks), dtype=_dtype(one.spec.value)
    )
    return keys, values.copy()


def _dtype(layout: Any) -> numpy.dtype[numpy.void]:
    found: numpy.dtype[numpy.void] = layout.DTYPE
    return found
