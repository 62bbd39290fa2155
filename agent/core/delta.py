# SPDX-License-Identifier: Apache-2.0
"""Differences between what is wanted and what is there, and the order in which they are written.

A delta is what one transaction writes: numbers first, so that every number in the kernel can be
explained; then policy columns, peers, tunnels, services, endpoints, so that nothing points to what
is not there yet; addresses, devices and places last, because they open the door. The epoch moves
after all of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

Writes = dict[bytes, bytes]
Packed = bytes | bytearray


@dataclass(slots=True)
class MapDelta:
    """Entries to write and keys to delete of one map, packed."""

    upserts: Writes = field(default_factory=dict)
    deletes: set[bytes] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.upserts or self.deletes)

    def put(self, key: bytes, value: bytes) -> None:
        """Write an entry, whatever was planned for it."""
        self.deletes.discard(key)
        self.upserts[key] = value

    def drop(self, key: bytes) -> None:
        """Delete an entry, whatever was planned for it."""
        self.upserts.pop(key, None)
        self.deletes.add(key)


@dataclass(slots=True)
class PolicyDelta:
    """Records of the policy map, packed back to back: it has too many for a dict."""

    keys: bytearray = field(default_factory=bytearray)
    values: bytearray = field(default_factory=bytearray)
    deletes: bytearray = field(default_factory=bytearray)

    def __bool__(self) -> bool:
        return bool(self.keys or self.deletes)


@dataclass(slots=True)
class Delta:
    """One transaction. ``verdicts`` says that a cached verdict may differ, so the epoch moves."""

    numbers: MapDelta = field(default_factory=MapDelta)
    policy: PolicyDelta = field(default_factory=PolicyDelta)
    peers: MapDelta = field(default_factory=MapDelta)
    tunnels: MapDelta = field(default_factory=MapDelta)
    service_peers: MapDelta = field(default_factory=MapDelta)
    endpoints: MapDelta = field(default_factory=MapDelta)
    addresses: MapDelta = field(default_factory=MapDelta)
    devices: MapDelta = field(default_factory=MapDelta)
    places: MapDelta = field(default_factory=MapDelta)
    socket_endpoints: MapDelta = field(default_factory=MapDelta)
    namespaces: MapDelta = field(default_factory=MapDelta)
    masquerade: MapDelta = field(default_factory=MapDelta)
    masquerade_exclude: MapDelta = field(default_factory=MapDelta)

    def __bool__(self) -> bool:
        return bool(
            self.numbers
            or self.policy
            or self.peers
            or self.tunnels
            or self.service_peers
            or self.endpoints
            or self.addresses
            or self.devices
            or self.places
            or self.socket_endpoints
            or self.namespaces
            or self.masquerade
            or self.masquerade_exclude
        )

    @property
    def verdicts(self) -> bool:
        """Whether a verdict that was cached before may be another now. Columns that are written
        or deleted alone change none: nothing points to them. What is redirected looks at its
        endpoints' modes when the epoch has moved."""
        return bool(self.peers or self.service_peers or self.endpoints or self.socket_endpoints)


_LENGTH: Final = struct.Struct("=I")  # of a prefix, the first field of struct peer_key


def peer_upserts(upserts: Mapping[bytes, bytes]) -> Writes:
    """Entries of ``peers`` or ``tunnels`` in the order of writing: longest first.

    So an address goes from its old class to its new one, never by way of the class of a shorter
    prefix that it is about to leave again.
    """
    return {key: upserts[key] for key in sorted(upserts, key=_prefix_length, reverse=True)}


def peer_deletes(deletes: Iterable[bytes]) -> list[bytes]:
    """Keys of ``peers`` or ``tunnels`` in the order in which they must be deleted, after upserts:
    shortest first, so that no address falls back to a prefix that is about to go too."""
    return sorted(deletes, key=_prefix_length)


def _prefix_length(key: bytes) -> int:
    length: int = _LENGTH.unpack_from(key)[0]
    return length


def differences(wanted: Mapping[bytes, bytes], actual: Mapping[bytes, bytes]) -> MapDelta:
    """What makes ``actual`` equal to ``wanted``; nothing that is equal already."""
    upserts = {key: value for key, value in wanted.items() if actual.get(key) != value}
    return MapDelta(upserts, {key for key in actual if key not in wanted})


def record_differences(
    wanted_keys: Packed,
    wanted_values: Packed,
    actual_keys: Packed,
    actual_values: Packed,
    key_size: int,
    value_size: int,
) -> PolicyDelta:
    """As ``differences`` for packed records, each key once: millions in a second, without objects.

    Key and value sizes are multiples of 4 bytes.
    """
    import numpy as np

    wanted = _rows(wanted_keys, wanted_values, key_size, value_size)
    actual = _rows(actual_keys, actual_values, key_size, value_size)
    words = key_size // 4
    match = matches(wanted[:, :words], actual[:, :words])
    found = match >= 0
    # Where a wanted key is present, whether its value is the same.
    rewritten = np.ones(len(wanted), dtype=bool)
    rewritten[match[found]] = (wanted[match[found], words:] != actual[found, words:]).any(axis=1)
    return PolicyDelta(
        bytearray(np.ascontiguousarray(wanted[rewritten, :words]).tobytes()),
        bytearray(np.ascontiguousarray(wanted[rewritten, words:]).tobytes()),
        bytearray(np.ascontiguousarray(actual[~found, :words]).tobytes()),
    )


def matches(wanted: NDArray[numpy.uint32], actual: NDArray[numpy.uint32]) -> NDArray[numpy.int64]:
    """For each actual key the row of the wanted key that equals it, -1 for none.

    Sorts 64-bit hashes, an order of magnitude faster than whole keys. A hash only proposes; keys
    that share one are told apart by a second pass over whole keys, which almost never runs.
    """
    import numpy as np

    match = np.full(len(actual), -1, dtype=np.int64)
    if not len(wanted) or not len(actual):
        return match
    hashes = _hashes(wanted)
    order = np.argsort(hashes)
    ordered = hashes[order]
    if (ordered[1:] == ordered[:-1]).any():
        rows = {row.tobytes(): number for number, row in enumerate(wanted)}
        match[:] = [rows.get(row.tobytes(), -1) for row in actual]
        return match
    place = np.minimum(np.searchsorted(ordered, _hashes(actual)), len(wanted) - 1)
    proposed = order[place]
    same = (wanted[proposed] == actual).all(axis=1)
    match[same] = proposed[same]
    return match


def _hashes(keys: NDArray[numpy.uint32]) -> NDArray[numpy.uint64]:
    """A 64-bit hash of each row: multiply and add, with the high half folded into the low one."""
    import numpy as np

    found = np.zeros(len(keys), dtype=np.uint64)
    for column in keys.T:
        found ^= found >> np.uint64(29)
        found = (found + column) * np.uint64(0x9E3779B97F4A7C15)
    return found


def _rows(keys: Packed, values: Packed, key_size: int, value_size: int) -> NDArray[numpy.uint32]:
    import numpy as np

    count = len(keys) // key_size
    rows = np.empty((count, (key_size + value_size) // 4), dtype=np.uint32)
    rows[:, : key_size // 4] = np.frombuffer(keys, dtype=np.uint32).reshape(count, key_size // 4)
    rows[:, key_size // 4 :] = np.frombuffer(values, dtype=np.uint32).reshape(
        count, value_size // 4
    )
    return rows
