# SPDX-License-Identifier: Apache-2.0
"""Entries of connection tracking that have ended: found by numpy, removed in batches."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from typing import Any

from agent.core.conntrack import Lifetimes, expired, records
from agent.kernel.maps import PinnedMap
from bpf.layouts import CtEntry, CtKey


def collect(
    tables: Iterable[PinnedMap[Any, Any]],
    endpoints: Collection[int],
    lifetimes: Lifetimes,
    idle_since: int,
) -> tuple[int, int]:
    """Remove what has ended from ``ct`` and ``ct_overflow``; how many entries were there, and how
    many were removed.

    idle_since: CLOCK_MONOTONIC, ns; no entry counts as idle for longer. Raises BpfError.
    """
    import numpy as np

    seen = removed = 0
    for one in tables:
        dead: list[bytes] = []
        for raw_keys, raw_values in one.chunks():
            keys = np.frombuffer(raw_keys, dtype=CtKey.DTYPE)
            values = np.frombuffer(raw_values, dtype=CtEntry.DTYPE)
            if idle_since:
                values = values.copy()
                values["seen"] = np.maximum(values["seen"], idle_since // 1_000_000_000)
            seen += len(keys)
            # CLOCK_MONOTONIC_COARSE, as the programs read it, never runs ahead of this.
            mask = expired(keys, values, time.monotonic_ns(), endpoints, lifetimes)
            if mask.any():
                dead.append(records(keys, mask))
        for batch in dead:
            removed += one.delete_packed(batch)
    return seen, removed
