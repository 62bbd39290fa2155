# SPDX-License-Identifier: Apache-2.0
"""What a source that follows several kinds has to say of itself. Pure: the time is passed in."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from agent.core.events import SourceFailed, SourceStale, SourceSynced

Report = SourceSynced | SourceStale | SourceFailed

# Of the patience: how long trouble of several kinds is gathered before the first word of it.
_GATHERED: Final = 0.1


class Health:
    """How each kind fares, and the report that follows from all of them.

    source: its name in reports. kinds: their names, each of which must deliver.
    patience: seconds that a kind may be out of touch before the source is called stale, and between
        two reports of trouble: kinds fail and recover one after the other, and that is one story.
        Before the first full delivery a tenth of it is enough.
    """

    def __init__(self, source: str, kinds: Iterable[str], patience: float) -> None:
        self._source = source
        self._missing = set(kinds)
        self._patience = patience
        self._troubles: dict[str, tuple[float, str]] = {}  # kind -> since when, why
        self._last: Report | None = None
        self._said_at = 0.0

    @property
    def synced(self) -> bool:
        """Whether every kind has delivered its first list."""
        return not self._missing

    def delivered(self, kind: str) -> None:
        """A whole list of this kind has been passed on."""
        self._missing.discard(kind)

    def followed(self, kind: str) -> None:
        """Changes of this kind are heard of again."""
        self._troubles.pop(kind, None)

    def failed(self, kind: str, reason: str, now: float) -> None:
        """An attempt has failed; how long that has been so counts from the first one."""
        since, _ = self._troubles.get(kind, (now, ""))
        self._troubles[kind] = (since, reason)

    def report(self, now: float) -> Report | None:
        """What is to be said now; None if it has been said."""
        wanted = self._wanted(now)
        if wanted is None or wanted == self._last:
            return None
        goes_on = type(wanted) is type(self._last)
        if goes_on and now < self._said_at + self._patience:
            return None
        self._last, self._said_at = wanted, now
        return wanted

    def due(self, now: float) -> float | None:
        """Seconds until `report` may have something to say without anything new; None: never."""
        if not self._troubles:
            return None
        begun = min(since for since, _ in self._troubles.values())
        times = (begun + self._tolerated, self._said_at + self._patience)
        return min((time - now for time in times if time > now), default=None)

    @property
    def _tolerated(self) -> float:
        return self._patience if self.synced else self._patience * _GATHERED

    def _wanted(self, now: float) -> Report | None:
        if self._troubles:
            begun = min(since for since, _ in self._troubles.values())
            if now < begun + self._tolerated:
                return None
            return (SourceStale if self.synced else SourceFailed)(self._source, self._reasons())
        return SourceSynced(self._source) if self.synced else None

    def _reasons(self) -> str:
        """Each reason once, with the kinds that it concerns."""
        concerned: dict[str, list[str]] = {}
        for kind, (_, reason) in sorted(self._troubles.items()):
            concerned.setdefault(reason, []).append(kind)
        return "; ".join(f"{', '.join(names)}: {why}" for why, names in concerned.items())
