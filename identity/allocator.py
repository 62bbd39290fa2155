# SPDX-License-Identifier: Apache-2.0
"""Numbers for things: the same thing gets the same number, and a freed number rests.

A number that a packet or a cached verdict may still mention must not soon mean something else.
The candidate is a hash of the key, so that independent agents tend to agree; a number taken by
another key is passed over (probing), so one number never stands for two keys.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from identity.labels import CIDR_SOURCE, LabelSet
from identity.reserved import (
    CLUSTER_FIRST,
    CLUSTER_LAST,
    LOCAL_FIRST,
    LOCAL_LAST,
    reserved_for,
)

SNAPSHOT_VERSION: Final = 1


class AllocatorError(Exception):
    """Base of this module's errors."""


class NumbersExhausted(AllocatorError):
    """No number of a range is free."""

    def __init__(self, first: int, last: int, live: int, resting: int) -> None:
        super().__init__(
            f"all numbers from {first} to {last} are taken: {live} in use, {resting} resting; "
            "remove some of what uses them, or wait until the rest is over"
        )
        self.first, self.last, self.live, self.resting = first, last, live, resting


class IdentityExhausted(NumbersExhausted):
    """No identity number is free: fewer distinct label sets, or a label filter, is the way out."""


class NumberConflict(AllocatorError):
    """A number, or its key, that is to be adopted already belongs to something else."""


class SnapshotError(AllocatorError):
    """A durable snapshot that cannot be used; the message names the item."""


class NumberAllocator:
    """Numbers from `first` to `last` (both included) for byte or text keys.

    `rest` is in the seconds of the caller's clock. A key that comes back while its number rests
    gets that number again, since it still means the same.
    """

    __slots__ = ("_first", "_keys", "_last", "_numbers", "_rest", "_rested_at", "_resting")

    def __init__(self, first: int, last: int, rest: float = 0.0) -> None:
        if not 0 <= first <= last:
            raise ValueError(f"range from {first} to {last} holds no number")
        self._first, self._last, self._rest = first, last, rest
        self._numbers: dict[bytes, int] = {}  # of live and of resting keys
        self._keys: dict[int, bytes] = {}
        self._rested_at: dict[int, float] = {}
        self._resting: deque[tuple[float, int]] = deque()

    def __len__(self) -> int:
        """How many numbers are in use, those that rest left out."""
        return len(self._keys) - len(self._rested_at)

    def __contains__(self, number: object) -> bool:
        return number in self._keys and number not in self._rested_at

    def lookup(self, key: bytes | str) -> int | None:
        """The number in use for a key."""
        number = self._numbers.get(_key(key))
        return None if number is None or number in self._rested_at else number

    def allocate(self, key: bytes | str) -> int:
        """The key's number, a new one if it has none. Raises NumbersExhausted."""
        raw = _key(key)
        number = self._numbers.get(raw)
        if number is not None:
            self._rested_at.pop(number, None)
            return number
        size = self._last - self._first + 1
        if len(self._keys) >= size:
            raise NumbersExhausted(self._first, self._last, len(self), len(self._rested_at))
        offset = int.from_bytes(blake2b(raw, digest_size=8).digest(), "big") % size
        while self._first + offset in self._keys:
            offset = (offset + 1) % size
        self._take(raw, self._first + offset)
        return self._first + offset

    def adopt(self, key: bytes | str, number: int) -> None:
        """Take a key's number as given, from an earlier run. Raises NumberConflict."""
        raw = _key(key)
        if not self._first <= number <= self._last:
            raise NumberConflict(f"number {number} is outside {self._first} to {self._last}")
        if self._keys.get(number, raw) != raw or self._numbers.get(raw, number) != number:
            raise NumberConflict(
                f"number {number} or key {key!r} already belongs to something else"
            )
        self._rested_at.pop(number, None)
        self._take(raw, number)

    def release(self, number: int, now: float) -> None:
        """Let a number rest; after that it is free. One that is not in use is no error."""
        if number in self:
            self._rested_at[number] = now
            self._resting.append((now, number))
        self.expire(now)

    def expire(self, now: float) -> None:
        """Free the numbers whose rest is over."""
        while self._resting and self._resting[0][0] + self._rest <= now:
            since, number = self._resting.popleft()
            # A number that was taken up again, or released again since, has another record.
            if self._rested_at.get(number) == since:
                del self._rested_at[number]
                del self._numbers[self._keys.pop(number)]

    def items(self) -> dict[int, bytes]:
        """All numbers that have a meaning now, those that rest too, with their keys."""
        return dict(self._keys)

    def resting(self) -> dict[int, bytes]:
        """Numbers that rest, with the key that had them."""
        return {number: self._keys[number] for number in self._rested_at}

    def _take(self, raw: bytes, number: int) -> None:
        self._numbers[raw] = number
        self._keys[number] = raw


def _key(key: bytes | str) -> bytes:
    return key.encode() if isinstance(key, str) else key


@dataclass(slots=True)
class _Identity:
    labels: LabelSet
    references: int
    unused_since: float


class IdentityAllocator:
    """Label sets to identity numbers: reserved, of the cluster, or (labels `cidr:`) of this node.

    Every `acquire` wants a `release`. A number nobody holds is kept for `grace` seconds, deleted by
    `collect`, and then rests for `rest` seconds. `revision` changes with every change that the
    durable file must show.
    """

    __slots__ = ("_by_labels", "_cluster", "_grace", "_identities", "_local", "revision")

    def __init__(
        self,
        grace: float = 300.0,
        rest: float = 3600.0,
        cluster: tuple[int, int] = (CLUSTER_FIRST, CLUSTER_LAST),
        local: tuple[int, int] = (LOCAL_FIRST, LOCAL_LAST),
    ) -> None:
        self._grace = grace
        self._cluster = NumberAllocator(*cluster, rest=rest)
        self._local = NumberAllocator(*local, rest=rest)
        self._identities: dict[int, _Identity] = {}
        self._by_labels: dict[LabelSet, int] = {}
        self.revision = 0

    def acquire(self, labels: LabelSet) -> int:
        """The number of a label set, held once more. Raises IdentityExhausted, changing nothing."""
        known = self._by_labels.get(labels)
        if known is not None:
            self._identities[known].references += 1
            return known
        reserved = reserved_for(labels)
        if reserved is not None:
            return int(reserved)
        try:
            number = self._range(labels).allocate(labels.canonical())
        except NumbersExhausted as error:
            raise IdentityExhausted(error.first, error.last, error.live, error.resting) from None
        self._identities[number] = _Identity(labels, 1, 0.0)
        self._by_labels[labels] = number
        self.revision += 1
        return number

    def hold(self, number: int) -> LabelSet | None:
        """Hold a number that is known already; its labels, None (and no hold) if it is not."""
        held = self._identities.get(number)
        if held is None:
            return None
        held.references += 1
        return held.labels

    def release(self, number: int, now: float) -> None:
        """Give one hold back. Reserved and unknown numbers are no error."""
        held = self._identities.get(number)
        if held is not None and held.references:
            held.references -= 1
            held.unused_since = now

    def collect(self, now: float) -> list[int]:
        """Delete what nobody has held for the grace time; gives the numbers, sorted."""
        self._cluster.expire(now)
        self._local.expire(now)
        dead = [
            number
            for number, held in self._identities.items()
            if not held.references and held.unused_since + self._grace <= now
        ]
        for number in dead:
            labels = self._identities.pop(number).labels
            del self._by_labels[labels]
            self._range(labels).release(number, now)
            self.revision += 1
        return sorted(dead)

    def labels(self, number: int) -> LabelSet | None:
        """The label set of a number; the one object that everybody should share."""
        held = self._identities.get(number)
        return held.labels if held else None

    def lookup(self, labels: LabelSet) -> int | None:
        """The number of a label set, if it has one now."""
        reserved = reserved_for(labels)
        return self._by_labels.get(labels) if reserved is None else int(reserved)

    def items(self) -> dict[int, LabelSet]:
        """Every allocated identity, held or not."""
        return {number: held.labels for number, held in sorted(self._identities.items())}

    def references(self, number: int) -> int:
        """How often a number is held."""
        held = self._identities.get(number)
        return held.references if held else 0

    def snapshot(self) -> dict[str, Any]:
        """All of it as plain data for JSON; `restore` takes it back."""
        resting = self._cluster.resting() | self._local.resting()
        return {
            "version": SNAPSHOT_VERSION,
            "identities": [
                {"number": number, "labels": dict(labels)}
                for number, labels in self.items().items()
            ],
            "resting": [
                {"number": number, "labels": key.decode()}
                for number, key in sorted(resting.items())
            ],
        }

    def restore(self, data: object, now: float) -> None:
        """Take a snapshot into an empty allocator.

        What it held is unheld until it is acquired, and collected after the grace time; rests begin
        again at `now`. Raises SnapshotError and takes nothing.
        """
        if self._identities or len(self._cluster) or len(self._local):
            raise SnapshotError("identities can only be restored into an empty allocator")
        if not isinstance(data, Mapping) or data.get("version") != SNAPSHOT_VERSION:
            raise SnapshotError(f"identity snapshot is not of version {SNAPSHOT_VERSION}")
        identities = _numbered(data, "identities", Mapping)
        resting = _numbered(data, "resting", str)
        try:
            for number, labels in identities:
                self._restore(number, LabelSet(_texts(labels)), now)
            for number, key in resting:
                owner = self._range(key.split(";"))
                owner.adopt(key, number)
                owner.release(number, now)
        except (NumberConflict, ValueError, TypeError) as error:
            self._reset()
            raise SnapshotError(f"identity snapshot cannot be used: {error}") from error

    def _restore(self, number: int, labels: LabelSet, now: float) -> None:
        if reserved_for(labels) is not None:
            raise NumberConflict(f"identity {number} has reserved labels {labels.canonical()}")
        self._range(labels).adopt(labels.canonical(), number)
        self._identities[number] = _Identity(labels, 0, now)
        self._by_labels[labels] = number

    def _reset(self) -> None:
        self._identities.clear()
        self._by_labels.clear()
        for one in ("_cluster", "_local"):
            old: NumberAllocator = getattr(self, one)
            setattr(self, one, NumberAllocator(old._first, old._last, old._rest))

    def _range(self, labels: Iterable[str]) -> NumberAllocator:
        is_cidr = any(key.startswith(CIDR_SOURCE) for key in labels)
        return self._local if is_cidr else self._cluster


def _numbered(data: Mapping[str, Any], name: str, kind: type) -> list[tuple[int, Any]]:
    items = data.get(name, [])
    if not isinstance(items, list):
        raise SnapshotError(f"identity snapshot: {name} must be a list")
    found = []
    for index, item in enumerate(items):
        number = item.get("number") if isinstance(item, Mapping) else None
        if type(number) is not int or not isinstance(item.get("labels"), kind):
            raise SnapshotError(f"identity snapshot: {name}[{index}] needs number and labels")
        found.append((number, item["labels"]))
    return found


def _texts(labels: Mapping[Any, Any]) -> dict[str, str]:
    if not all(isinstance(text, str) for pair in labels.items() for text in pair):
        raise TypeError(f"labels {dict(labels)!r} are not text")
    return dict(labels)
