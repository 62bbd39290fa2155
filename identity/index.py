# SPDX-License-Identifier: Apache-2.0
"""Two indexes that spare matching every selector against every label set.

Each selector is filed under one requirement that any match must satisfy (a pivot), so only those
under labels that are present are tried. What has no positive requirement is always tried.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Generic, TypeVar

from identity.selectors import Operator, Selector

_T = TypeVar("_T", bound=Hashable)
_Place = tuple[str, str | None]  # label key, and its value where the pivot asks for one


class SelectorIndex(Generic[_T]):
    """Items filed by a selector: which of them select these labels?"""

    __slots__ = ("_places", "_places_of", "_rest", "_selectors")

    def __init__(self) -> None:
        self._selectors: dict[_T, Selector] = {}
        self._places: dict[_Place, dict[_T, None]] = {}
        self._places_of: dict[_T, tuple[_Place, ...]] = {}
        self._rest: dict[_T, None] = {}

    def __len__(self) -> int:
        return len(self._selectors)

    def add(self, item: _T, selector: Selector) -> None:
        """File an item, in place of what it was filed under before."""
        self.discard(item)
        places = self._pivot(selector)
        self._selectors[item] = selector
        self._places_of[item] = places
        for place in places:
            self._places.setdefault(place, {})[item] = None
        if not places:
            self._rest[item] = None

    def discard(self, item: _T) -> None:
        """Take an item out; one that is not there is no error."""
        if self._selectors.pop(item, None) is None:
            return
        self._rest.pop(item, None)
        for place in self._places_of.pop(item):
            bucket = self._places[place]
            del bucket[item]
            if not bucket:
                del self._places[place]

    def matching(self, labels: Mapping[str, str]) -> Iterator[_T]:
        """Items whose selector matches, each once, in no particular order."""
        selectors = self._selectors
        for item in self._candidates(labels):
            if selectors[item].matches(labels):
                yield item

    def _candidates(self, labels: Mapping[str, str]) -> Iterator[_T]:
        places = self._places
        for pair in labels.items():
            yield from places.get(pair, ())
            yield from places.get((pair[0], None), ())
        yield from self._rest

    def _pivot(self, selector: Selector) -> tuple[_Place, ...]:
        """The places of the requirement with the fewest items so far; a named value before none."""
        best: tuple[int, tuple[_Place, ...]] | None = None
        for requirement in selector.requirements:
            if not requirement.is_positive:
                continue
            key = requirement.key
            wanted: tuple[_Place, ...] = tuple((key, value) for value in requirement.values)
            places = wanted or ((key, None),)
            # An Exists pivot is tried for every value: count it as worse than any equality.
            cost = sum(len(self._places.get(place, ())) for place in places)
            cost = 2 * cost + (1 if wanted else 1000)
            if best is None or cost < best[0]:
                best = (cost, places)
        return best[1] if best else ()


class LabelIndex(Generic[_T]):
    """Items filed by their labels: which of them does this selector select?"""

    __slots__ = ("_by_key", "_by_pair", "_labels")

    def __init__(self) -> None:
        self._labels: dict[_T, Mapping[str, str]] = {}
        self._by_pair: dict[tuple[str, str], dict[_T, None]] = {}
        self._by_key: dict[str, dict[_T, None]] = {}

    def __len__(self) -> int:
        return len(self._labels)

    def add(self, item: _T, labels: Mapping[str, str]) -> None:
        """File an item, in place of what it was filed under before."""
        self.discard(item)
        self._labels[item] = labels
        for pair in labels.items():
            self._by_pair.setdefault(pair, {})[item] = None
            self._by_key.setdefault(pair[0], {})[item] = None

    def discard(self, item: _T) -> None:
        """Take an item out; one that is not there is no error."""
        for pair in self._labels.pop(item, {}).items():
            _drop(self._by_pair, pair, item)
            _drop(self._by_key, pair[0], item)

    def matching(self, selector: Selector) -> Iterator[_T]:
        """Items that the selector matches, each once, in no particular order."""
        labels = self._labels
        best: list[Mapping[_T, object]] = [labels]
        for requirement in selector.requirements:
            if requirement.operator is Operator.IN:
                found: list[Mapping[_T, object]] = [
                    self._by_pair.get((requirement.key, value), {}) for value in requirement.values
                ]
            elif requirement.operator is Operator.EXISTS:
                found = [self._by_key.get(requirement.key, {})]
            else:
                continue
            if sum(map(len, found)) < sum(map(len, best)):
                best = found
        for bucket in best:
            for item in bucket:
                if selector.matches(labels[item]):
                    yield item


_K = TypeVar("_K", bound=Hashable)


def _drop(index: dict[_K, dict[_T, None]], place: _K, item: _T) -> None:
    bucket = index[place]
    del bucket[item]
    if not bucket:
        del index[place]
