# SPDX-License-Identifier: Apache-2.0
"""Events on objects (events.k8s.io/v1), by which users learn what `kubectl describe` shows.

Not to be mixed up with the agent's own events, `agent.core.events`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agent.kube.errors import NotFound
from agent.kube.objects import Event, EventSeries, Metadata, ObjectReference
from agent.kube.resources import Collection
from agent.kube.times import micro_timestamp

CONTROLLER: Final = "bristle.io/agent"
_MAX_NOTE: Final = 1024  # bytes, by the API
_MAX_NAME: Final = 253
_REMEMBERED: Final = 1000  # different events; the oldest are forgotten
# The server forgets events after an hour; a series that rested for so long is a new one.
_SERIES_REST: Final = 30 * 60.0
_QUIET: Final = 10.0  # between two writes of one series


@dataclass(slots=True)
class _Series:
    name: str
    namespace: str
    count: int
    seen: float
    written: float


class Notices:
    """Writes events of one agent. Synchronous; not safe for several threads at once.

    instance: the node. clock: seconds since 1970, for what is written. monotonic: seconds.
    """

    def __init__(
        self,
        events: Collection[Event],
        instance: str,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._events = events
        self._instance = instance
        self._clock = clock
        self._monotonic = monotonic
        self._stamp = 0
        self._known: OrderedDict[tuple[str, ...], _Series] = OrderedDict()

    def write(
        self,
        regarding: ObjectReference,
        reason: str,
        note: str,
        *,
        action: str,
        warning: bool = True,
    ) -> None:
        """Says something about an object. Raises ApiError; then it counts as not said.

        reason, action: in CamelCase, for machines. note: for people, cut to 1024 bytes. The same
        again within half an hour is counted on the first event, written at most every ten seconds.
        """
        note = _cut(note)
        key = (regarding.kind, regarding.namespace, regarding.name, regarding.uid, reason, note)
        now = self._monotonic()
        series = self._known.get(key)
        if series is not None and now - series.seen < _SERIES_REST and self._again(series, now):
            self._known.move_to_end(key)
            return
        self._known[key] = self._first(regarding, reason, note, action, warning, now)
        self._known.move_to_end(key)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def _first(
        self,
        regarding: ObjectReference,
        reason: str,
        note: str,
        action: str,
        warning: bool,
        now: float,
    ) -> _Series:
        wall = self._clock()
        # As everybody names them; two in one tick of the clock must differ.
        self._stamp = max(self._stamp + 1, round(wall * 1e9))
        suffix = f".{self._stamp:x}"
        name = regarding.name[: _MAX_NAME - len(suffix)].rstrip(".-") + suffix
        # What lives in no namespace has its events in this one.
        namespace = regarding.namespace or "default"
        self._events.create(
            Event(
                metadata=Metadata(name=name, namespace=namespace),
                eventTime=micro_timestamp(wall),
                reportingController=CONTROLLER,
                reportingInstance=self._instance,
                action=action,
                reason=reason,
                type="Warning" if warning else "Normal",
                note=note,
                regarding=regarding,
            )
        )
        return _Series(name, namespace, 1, now, now)

    def _again(self, series: _Series, now: float) -> bool:
        """Counts; False if the server has forgotten the event."""
        series.count += 1
        series.seen = now
        # The second one makes a series of it, and is written at once.
        if series.count > 2 and now - series.written < _QUIET:
            return True
        told = EventSeries(series.count, micro_timestamp(self._clock()))
        change = {"series": {"count": told.count, "lastObservedTime": told.lastObservedTime}}
        try:
            self._events.patch(series.name, change, series.namespace)
        except NotFound:
            return False
        series.written = now
        return True


def _cut(note: str) -> str:
    data = note.encode("utf-8", "replace")
    if len(data) <= _MAX_NOTE:
        return data.decode("utf-8")
    return data[: _MAX_NOTE - 3].decode("utf-8", "ignore") + "…"
