# SPDX-License-Identifier: Apache-2.0
"""Identities that the nodes of a cluster share: their numbers are told, not taken.

A number and its labels are published once and never change their meaning. Whoever needs labels
that have no number yet waits until somebody has published one (`IdentityPending`); two numbers for
one set are harmless, because policy selects by labels. Identities of CIDRs stay the node's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from identity.allocator import AllocatorError, IdentityAllocator
from identity.labels import CIDR_SOURCE, LabelSet
from identity.reserved import CLUSTER_FIRST, CLUSTER_LAST, Reserved, reserved_for

_SIZE: Final = CLUSTER_LAST - CLUSTER_FIRST + 1


class IdentityPending(AllocatorError):
    """No number of these labels is known yet."""

    def __init__(self, labels: LabelSet) -> None:
        super().__init__(f"no identity has the labels {labels.canonical()} yet")
        self.labels = labels


@dataclass(slots=True)
class _Published:
    """references: holds on this node. current: not withdrawn; unused: marked for deletion.

    successor: what the number means by now elsewhere, though it is held here with these labels.
    """

    labels: LabelSet
    references: int = 0
    current: bool = True
    unused: bool = False
    successor: tuple[LabelSet, bool] | None = None


class ClusterIdentities(IdentityAllocator):
    """What is published, and what this node holds of it.

    A number that was withdrawn while it is held keeps its meaning until nobody here holds it.
    """

    __slots__ = ("_published", "_sets")

    def __init__(self, grace: float = 300.0, rest: float = 3600.0) -> None:
        super().__init__(grace, rest)
        self._published: dict[int, _Published] = {}
        self._sets: dict[LabelSet, set[int]] = {}

    # ---- what the cluster says ---------------------------------------------------------------

    def publish(self, number: int, labels: LabelSet, unused: bool = False) -> None:
        """A number has a meaning, or another mark. Its labels are those of the first time."""
        known = self._published.get(number)
        if known is None or (known.labels != labels and not known.references):
            self._forget(number)
            self._published[number] = _Published(labels, unused=unused)
            self._sets.setdefault(labels, set()).add(number)
        elif known.labels == labels:
            known.current, known.unused, known.successor = True, unused, None
        else:
            # Deleted and given to others while it is held here: it must not mean two things. It
            # keeps the meaning that packets were judged by until nobody here holds it.
            known.current, known.successor = False, (labels, unused)

    def withdraw(self, number: int) -> None:
        """A number is not published any more. An unknown one is no error."""
        known = self._published.get(number)
        if known is not None:
            known.current, known.successor = False, None
            if not known.references:
                self._forget(number)

    def _forget(self, number: int) -> None:
        known = self._published.pop(number, None)
        if known is not None:
            numbers = self._sets[known.labels]
            numbers.discard(number)
            if not numbers:
                del self._sets[known.labels]

    # ---- what this node needs ----------------------------------------------------------------

    def acquire(self, labels: LabelSet) -> int:
        """A number of a label set, held once more. Raises IdentityPending where there is none."""
        if _is_cidr(labels) or reserved_for(labels) is not None:
            return super().acquire(labels)
        number = self.lookup(labels)
        if number is None:
            raise IdentityPending(labels)
        self._published[number].references += 1
        return number

    def hold(self, number: int) -> LabelSet | None:
        """Hold a number that another node uses; its labels, None (and no hold) if unknown."""
        known = self._published.get(number)
        if known is None:
            return super().hold(number)
        if known.successor is not None:
            return None  # which of its meanings the other node has in mind cannot be told
        known.references += 1
        return known.labels

    def release(self, number: int, now: float) -> None:
        """Give one hold back. Reserved and unknown numbers are no error."""
        known = self._published.get(number)
        if known is None:
            super().release(number, now)
            return
        known.references = max(known.references - 1, 0)
        if not known.references and not known.current:
            successor = known.successor
            self._forget(number)
            if successor is not None:
                self.publish(number, *successor)

    def labels(self, number: int) -> LabelSet | None:
        """The label set of a number; the one object that everybody should share."""
        known = self._published.get(number)
        return known.labels if known else super().labels(number)

    def lookup(self, labels: LabelSet) -> int | None:
        """The number that a holder of these labels would get now."""
        numbers = [one for one in self._sets.get(labels, ()) if self._published[one].current]
        if not numbers:
            return super().lookup(labels)
        # One that is about to be deleted only where there is no other: it must be unmarked first.
        return min(numbers, key=lambda one: (self._published[one].unused, one))

    def superseded(self, labels: LabelSet) -> list[int]:
        """Numbers that are held here with these labels, and mean others elsewhere by now."""
        return sorted(
            one for one in self._sets.get(labels, ()) if self._published[one].successor is not None
        )

    def items(self) -> dict[int, LabelSet]:
        """Every identity that is known, held or not."""
        known = {number: one.labels for number, one in sorted(self._published.items())}
        return known | super().items()

    def references(self, number: int) -> int:
        """How often a number is held on this node."""
        known = self._published.get(number)
        return known.references if known else super().references(number)

    # ---- what outlives the process -----------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Identities of CIDRs alone: the cluster keeps the others."""
        data = super().snapshot()
        return data | {
            "identities": [one for one in data["identities"] if _is_cidr(one["labels"])],
            "resting": [one for one in data["resting"] if one["labels"].startswith(CIDR_SOURCE)],
        }

    def restore(self, data: object, now: float) -> None:
        """As the base, but of numbers that a standalone agent gave to pods nothing is taken."""
        if isinstance(data, Mapping) and isinstance(data.get("identities"), list):
            kept = [
                one
                for one in data["identities"]
                if isinstance(one, Mapping) and _is_cidr(one.get("labels") or {})
            ]
            data = {**data, "identities": kept, "resting": []}
        super().restore(data, now)


def candidates(labels: LabelSet) -> Iterator[int]:
    """The numbers to try for a label set, all of the range: a hash of it, then its neighbours. So
    nodes that know nothing of each other try the same one."""
    digest = blake2b(labels.canonical().encode(), digest_size=8).digest()
    first = int.from_bytes(digest, "big") % _SIZE
    for step in range(_SIZE):
        yield CLUSTER_FIRST + (first + step) % _SIZE


def reserved_labels(number: int) -> LabelSet | None:
    """The labels of a reserved number."""
    return Reserved(number).labels if number in set(Reserved) else None


def _is_cidr(labels: Mapping[str, Any]) -> bool:
    return any(key.startswith(CIDR_SOURCE) for key in labels)
