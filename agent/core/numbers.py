# SPDX-License-Identifier: Apache-2.0
"""Numbers of peer classes, policy tables and rules, as the programs know them.

A number stands for a fingerprint of what it means. The fingerprints lie in the kernel beside the
numbers (map ``numbers``), so a new agent adopts the numbers in use: what is in force then needs no
rewriting, and no number changes its meaning while a packet may still carry it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from hashlib import blake2b
from typing import Final

from bpf.layouts import NumberKey, NumberKind
from identity.allocator import NumberAllocator, NumberConflict

FIRST: Final = 256
"""Smaller numbers are reserved (enum reserved_class, enum reserved_rule)."""
LAST: Final = 0x7FFFFFEF

FINGERPRINT_BYTES: Final = 32


def fingerprint(meaning: str | bytes) -> bytes:
    """A digest of 32 bytes that is the same in every process."""
    raw = meaning.encode() if isinstance(meaning, str) else meaning
    return blake2b(raw, digest_size=FINGERPRINT_BYTES).digest()


class Numbers:
    """One allocator per kind, and what of them the kernel has yet to be told.

    ``rest`` in seconds: how long a released number keeps its meaning.
    """

    __slots__ = ("_allocators", "_fresh", "_stale")

    def __init__(self, rest: float) -> None:
        self._allocators = {kind: NumberAllocator(FIRST, LAST, rest) for kind in NumberKind}
        self._fresh: dict[bytes, bytes] = {}
        self._stale: list[tuple[NumberKind, int, float]] = []

    def adopt(self, entries: Iterable[tuple[NumberKey, bytes]]) -> int:
        """Take what the kernel holds; gives how many entries could not be used."""
        unusable = 0
        for key, meaning in entries:
            try:
                self._allocators[NumberKind(key.kind)].adopt(meaning, key.number)
            except (ValueError, NumberConflict):
                unusable += 1
        return unusable

    def avoid(self, kind: NumberKind, numbers: Iterable[int]) -> None:
        """Hand none of these out before `release_unused` and the rest after it: the kernel has
        records under them, and nobody knows any more what they mean."""
        allocator = self._allocators[kind]
        taken = allocator.items()
        for number in numbers:
            if number not in taken and FIRST <= number <= LAST:
                allocator.adopt(f"unknown {number}", number)

    def release_unused(self, kind: NumberKind, used: Collection[int], now: float) -> None:
        """Let all numbers rest but these: what a former agent used, and this one does not."""
        for number in self._allocators[kind].items():
            if number not in used:
                self.release(kind, number, now)

    def entries(self) -> dict[bytes, bytes]:
        """The whole map ``numbers``: every number that has a meaning, those that rest too."""
        return {
            NumberKey(kind, number).pack(): meaning
            for kind, allocator in self._allocators.items()
            for number, meaning in allocator.items().items()
            if len(meaning) == FINGERPRINT_BYTES
        }

    def allocate(self, kind: NumberKind, meaning: bytes) -> int:
        """The number of a fingerprint, a new one if it has none."""
        allocator = self._allocators[kind]
        known = allocator.lookup(meaning)
        if known is not None:
            return known
        number = allocator.allocate(meaning)
        self._fresh[NumberKey(kind, number).pack()] = meaning
        return number

    def release(self, kind: NumberKind, number: int, now: float) -> None:
        """Nothing means this any more; it is free after its rest."""
        if number in self._allocators[kind]:
            self._allocators[kind].release(number, now)
            self._stale.append((kind, number, now))

    def in_use(self, kind: NumberKind) -> int:
        """How many numbers of a kind stand for something now."""
        return len(self._allocators[kind])

    def take_fresh(self) -> Mapping[bytes, bytes]:
        """Entries of the map ``numbers`` to write before anything uses these numbers."""
        fresh, self._fresh = self._fresh, {}
        return fresh

    def take_free(self, now: float) -> list[bytes]:
        """Keys of the map ``numbers`` to delete: numbers whose rest is over."""
        freed: list[bytes] = []
        waiting: list[tuple[NumberKind, int, float]] = []
        for allocator in self._allocators.values():
            allocator.expire(now)
        for kind, number, since in self._stale:
            allocator = self._allocators[kind]
            if number in allocator:
                continue  # taken up again with the same meaning
            if number in allocator.resting():
                waiting.append((kind, number, since))
            else:
                freed.append(NumberKey(kind, number).pack())
        self._stale = waiting
        return freed
