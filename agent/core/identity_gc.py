# SPDX-License-Identifier: Apache-2.0
"""Which published identities are to go: marked first, deleted after a while, unmarked if used.

Ages are judged by one observer's clock alone, from when it first saw the mark: clocks of nodes
differ, and whoever takes over as collector waits the whole time again. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from agent.core.events import PublishedIdentity


@dataclass(frozen=True, slots=True)
class Collection:
    """Numbers to be marked as unused, to be unmarked, and to be deleted; sorted."""

    mark: tuple[int, ...] = ()
    unmark: tuple[int, ...] = ()
    delete: tuple[int, ...] = ()


class IdentityCollector:
    """One observer. ``grace``: seconds that a number stays unused before it is marked, and again
    from its mark to its deletion."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._unused: dict[int, float] = {}
        self._marked: dict[int, tuple[str, float]] = {}

    def collect(
        self, identities: Mapping[int, PublishedIdentity], used: Set[int], now: float
    ) -> Collection:
        """What is to be done now. ``used``: numbers that a published endpoint has."""
        mark, unmark, delete = [], [], []
        for number, one in sorted(identities.items()):
            if number in used:
                self._unused.pop(number, None)
                self._marked.pop(number, None)
                if one.unused_since:
                    unmark.append(number)
            elif not one.unused_since:
                self._marked.pop(number, None)
                if self._unused.setdefault(number, now) + self._grace <= now:
                    mark.append(number)
            else:
                self._unused.pop(number, None)
                since = self._marked.get(number)
                if since is None or since[0] != one.unused_since:
                    since = self._marked[number] = (one.unused_since, now)
                if since[1] + self._grace <= now:
                    delete.append(number)
        for known in (self._unused, self._marked):
            for number in known.keys() - identities.keys():
                del known[number]
        return Collection(tuple(mark), tuple(unmark), tuple(delete))
