# SPDX-License-Identifier: Apache-2.0
"""The last good states of an API server's objects, over a restart of the agent.

An object may be edited while no agent runs, so all that are in force are written down, not only
those that are refused by now. What was read at the start counts until the first list of its kind
is complete, and of an object that is refused there, with the same uid, until that is over. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from agent.core.events import Fact, ResourceKey, fact_key
from agent.kube.last_good import Definition


class Good(NamedTuple):
    """A valid state, and the uid of the object that was in it."""

    fact: Fact
    uid: str


class Memory:
    """What is known of objects that keep pods from others. Each kind has a thread that puts and
    drops, and any may read: a copy, which is made in one step."""

    def __init__(
        self, files: Mapping[str, Iterable[Definition]], changed: Callable[[], None]
    ) -> None:
        self._good = {
            fact_key(one.fact): Good(one.fact, file.rpartition("/")[2])
            for file, found in files.items()
            for one in found
        }
        self._changed = changed

    def get(self, key: ResourceKey) -> Good | None:
        """The last good state of an object."""
        return self._good.get(key)

    def put(self, key: ResourceKey, good: Good) -> None:
        """An object is valid, which may be nothing new."""
        if self._good.get(key) != good:
            self._good[key] = good
            self._changed()

    def drop(self, key: ResourceKey) -> None:
        """An object is gone; an unknown one is no error."""
        if key in self._good:
            del self._good[key]
            self._changed()

    def keys(self, kind: str) -> set[ResourceKey]:
        """Objects of a kind."""
        return {key for key in self._good.copy() if key.kind == kind}

    def files(self) -> dict[str, list[Definition]]:
        """For `LastGood`. An object without a uid cannot be told from its successor."""
        return {
            "/".join((*key, one.uid)): [Definition(one.fact)]
            for key, one in self._good.copy().items()
            if one.uid
        }
