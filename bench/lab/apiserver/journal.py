# SPDX-License-Identifier: Apache-2.0
"""What was asked of the server: every request, with its answer."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

WRITES = ("create", "update", "patch", "delete", "deletecollection")


@dataclass(slots=True)
class Entry:
    """One request. Its last fields are filled when it has been answered.

    code: HTTP status, 0 while there is none. sent: bytes of the answer. changed: of a write:
    whether there is a new version because of it. resource: plural with subresource, "" for pages.
    """

    number: int
    time: float
    user: str
    agent: str
    verb: str
    method: str
    path: str
    query: dict[str, str]
    resource: str
    namespace: str = ""
    name: str = ""
    code: int = 0
    sent: int = 0
    changed: bool | None = None
    body: str = field(default="", repr=False)

    def plain(self) -> dict[str, Any]:
        """As a JSON object."""
        return {name: getattr(self, name) for name in self.__slots__}


class Journal:
    """All requests, oldest first; safe to use from several threads.

    limit: the latest so many are kept; counts are of all.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._entries: list[Entry] = []
        self._number = 0
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.Lock()

    def add(self, entry: Entry) -> None:
        """Writes down a request that has come, and gives it its number."""
        with self._lock:
            self._number += 1
            entry.number = self._number
            self._entries.append(entry)
            self._counts[entry.agent, entry.verb, entry.resource] += 1
            if len(self._entries) > self._limit * 11 // 10:
                del self._entries[: -self._limit]

    def counts(self) -> dict[tuple[str, str, str], int]:
        """How many requests there were of each (user agent, verb, resource)."""
        with self._lock:
            return dict(self._counts)

    def entries(
        self, *, agent: str = "", verb: str = "", resource: str = "", after: int = 0
    ) -> list[Entry]:
        """Those with these properties ("" for any); agent: a part of it; after: a number."""
        with self._lock:
            found = list(self._entries)
        return [
            entry
            for entry in found
            if entry.number > after
            and agent in entry.agent
            and verb in ("", entry.verb)
            and resource in ("", entry.resource)
        ]

    def useless(self, *, agent: str = "", after: int = 0) -> list[Entry]:
        """Writes that succeeded and changed nothing."""
        return [
            entry
            for entry in self.entries(agent=agent, after=after)
            if entry.verb in WRITES and entry.changed is False and 200 <= entry.code < 300
        ]

    def clear(self) -> None:
        """Forgets all requests; numbers go on."""
        with self._lock:
            self._entries.clear()
            self._counts.clear()
