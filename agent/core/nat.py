# SPDX-License-Identifier: Apache-2.0
"""Which mappings of masqueraded connections have ended.

A mapping is two entries: ``nat`` for the way out, ``nat_reverse`` for the way back. The programs
make the latter first, so the agent deletes it last: one round after its partner, so that a packet
that comes in between finds the port that the connection had. Whatever was left half, by whomever,
is ended too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from agent.core.conntrack import Lifetimes, limits
from agent.core.delta import matches
from bpf.layouts import CtFlag, NatReverseKey

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

REST_SECONDS: Final = 60
"""How long the port of a pod that is gone is not given out: late packets reach nobody then."""
HALF_SECONDS: Final = 5
"""How long an entry of the way back may be alone: one is made just before its partner."""
CROWDED: Final = 0.75
"""Fill from which connections that nobody has answered end early, so that a flood of new ones does
not keep others out for long."""
_EARLY: Final = 10.0
_SECOND: Final = 1_000_000_000
_WORDS: Final = NatReverseKey.SIZE // 4


@dataclass(frozen=True, slots=True)
class Ended:
    """Masks: entries of ``nat`` to delete; of ``nat_reverse`` to delete; of ``nat_reverse`` whose
    rest begins now."""

    out: NDArray[Any]
    back: NDArray[Any]
    resting: NDArray[Any]


def crowded(lifetimes: Lifetimes) -> Lifetimes:
    """Lifetimes while the table is nearly full."""
    return replace(
        lifetimes,
        tcp_opening=min(_EARLY, lifetimes.tcp_opening),
        unanswered=min(_EARLY, lifetimes.unanswered),
        icmp=min(_EARLY, lifetimes.icmp),
    )


def ended(
    keys: NDArray[numpy.void],
    entries: NDArray[numpy.void],
    back_keys: NDArray[numpy.void],
    origins: NDArray[numpy.void],
    now: int,
    endpoints: Collection[int],
    addresses: Iterable[bytes],
    lifetimes: Lifetimes,
) -> Ended:
    """Of all entries (CtKey, NatEntry, NatReverseKey, NatOrigin), the former two read first.

    ``now`` is CLOCK_MONOTONIC in ns, ``endpoints`` the ids of those that live, ``addresses`` those
    that the node has.
    """
    import numpy as np

    second = np.int64(now // _SECOND)
    alive = np.fromiter(endpoints, dtype=np.uint32, count=len(endpoints))
    partner = _partners(keys, entries, back_keys, origins)
    found = partner >= 0
    other = origins[partner] if len(origins) else np.zeros(len(keys), dtype=origins.dtype)
    # A packet in either direction keeps it.
    back_seen = np.where(found, other["seen"], 0)
    seen = np.maximum(entries["seen"], back_seen).astype(np.int64)
    back_flags = np.where(found, other["flags"], 0)
    # A pod that goes on did not take the reset for one: anybody can send it.
    ignored = entries["seen"] > back_seen
    back_flags = np.where(ignored, back_flags & ~np.uint16(CtFlag.CT_RST), back_flags)
    limit = limits(keys["protocol"], entries["flags"] | back_flags, lifetimes)
    gone = ~np.isin(keys["endpoint"], alive)
    moved = ~np.isin(_texts(entries["address"]), np.array([*addresses], dtype="V16"))
    out = (np.maximum(second - seen, 0) > limit) | gone | moved | ~found

    held = np.zeros(len(back_keys), dtype=bool)
    held[partner[found]] = True
    idle = np.maximum(second - origins["seen"].astype(np.int64), 0)
    rest = np.where(np.isin(origins["endpoint"], alive), HALF_SECONDS, REST_SECONDS)
    back = ~held & (idle > rest)
    resting = np.zeros(len(back_keys), dtype=bool)
    resting[partner[found & gone]] = True
    return Ended(out, back, resting)


def _partners(
    keys: NDArray[numpy.void],
    entries: NDArray[numpy.void],
    back_keys: NDArray[numpy.void],
    origins: NDArray[numpy.void],
) -> NDArray[numpy.int64]:
    """For each entry of ``nat`` the row of its partner, -1 where there is none of its own."""
    import numpy as np

    expected = np.zeros(len(keys), dtype=NatReverseKey.DTYPE)
    for name in ("remote", "remote_port", "protocol"):
        expected[name] = keys[name]
    expected["address"], expected["port"] = entries["address"], entries["port"]
    partner = matches(_rows(back_keys), _rows(expected))
    found = partner >= 0
    if found.any():
        mine = origins[partner[found]]
        found[found] = (mine["endpoint"] == keys["endpoint"][found]) & (
            mine["port"] == keys["local_port"][found]
        )
    return np.where(found, partner, -1)


def _rows(keys: NDArray[numpy.void]) -> NDArray[numpy.uint32]:
    import numpy as np

    return np.frombuffer(keys.tobytes(), dtype=np.uint32).reshape(len(keys), _WORDS)


def _texts(addresses: NDArray[Any]) -> NDArray[Any]:
    """Rows of 16 bytes as one value each."""
    import numpy as np

    return np.frombuffer(np.ascontiguousarray(addresses).tobytes(), dtype="V16")
