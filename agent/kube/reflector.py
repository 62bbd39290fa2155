# SPDX-License-Identifier: Apache-2.0
"""Follows one kind on an API server: list, watch from there, and list again when the server has
forgotten what came in between (Kubernetes API Concepts, "Efficient detection of changes")."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from agent.core.events import Event
from agent.kube.access import Access, Answer, Query
from agent.kube.backoff import Backoff
from agent.kube.errors import ApiError, Gone, Malformed, NotFound, Unavailable, error_from
from agent.kube.following import Following
from agent.kube.kinds import Kind
from agent.kube.wire import ListPage, WireError, decode_event, decode_head, decode_page

_log: Final = logging.getLogger(__name__)

# After these answers to a watch, its version may still be good; after any other it is not trusted.
_KEEP_VERSION: Final = frozenset((0, 401, 403, 429, 502, 503))


@dataclass(frozen=True, slots=True)
class Timing:
    """In seconds, but for `page`.

    watch: the server ends a watch after this time; each is drawn between this and its double.
    silence: a watch on which nothing comes for so long is dead. Servers send bookmarks about once
        a minute.
    settled: a watch that has lived for so long went well.
    first_wait, longest_wait: before another attempt.
    patience: how long a kind may be out of touch before the source is stale.
    remember: after a change, until what is now the last good state is written down;
        remember_again: after that has failed.
    page: objects in one answer.
    """

    watch: float = 300.0
    silence: float = 90.0
    settled: float = 1.0
    first_wait: float = 0.25
    longest_wait: float = 30.0
    patience: float = 10.0
    remember: float = 1.0
    remember_again: float = 60.0
    page: int = 500


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a reflector tells, in its own thread, and what it gets from outside.

    emit: an event. delivered: a list is complete. followed: a watch stands. failed: an attempt has
    not worked, with the reason. wait: for seconds, or until the end; true at the end.
    clock: seconds, monotonic. random: 0 to 1.
    """

    emit: Callable[[Event], None]
    delivered: Callable[[], None]
    followed: Callable[[], None]
    failed: Callable[[str], None]
    wait: Callable[[float], bool]
    clock: Callable[[], float]
    random: Callable[[], float]


class Reflector:
    """One kind, followed by `run` in a thread of the caller's until `stop`.

    query: selectors, the same for list and watch.
    """

    def __init__(
        self,
        access: Access,
        kind: Kind,
        following: Following,
        hooks: Hooks,
        timing: Timing,
        query: Mapping[str, str] | None = None,
    ) -> None:
        self._access = access
        self._kind = kind
        self._following = following
        self._hooks = hooks
        self._timing = timing
        self._query = dict(query or {})
        self._backoff = Backoff(timing.first_wait, timing.longest_wait, hooks.random)
        self._version = ""  # from which to watch; empty: list first
        self._answer: Answer | None = None
        self._stopping = threading.Event()

    def run(self) -> None:
        """Follow the kind; ends soon after `stop`. Trouble is reported and never ends it."""
        while not self._stopping.is_set():
            try:
                if not self._version:
                    self._list()
                self._watch()
                continue
            except ApiError as error:
                wait = self._backoff.next(error.retry_after)
                self._note(error)
            except Exception as error:
                # A fault of ours must not silently end the source: start over.
                _log.exception("following %s", self._kind.plural)
                self._version = ""
                wait = self._backoff.next()
                self._hooks.failed(f"internal error: {error!r}")
            if not self._stopping.is_set() and self._hooks.wait(wait):
                return

    def stop(self) -> None:
        """Make `run` return; from any thread. A connection that is just being made ends by its
        own time limit."""
        self._stopping.set()
        answer = self._answer
        if answer is not None:
            answer.cut_off()

    def _note(self, error: ApiError) -> None:
        if self._stopping.is_set():
            return
        if isinstance(error, Gone):
            _log.info("%s: listing again: %s", self._kind.plural, error.message)
            self._version = ""
        elif isinstance(error, NotFound):
            self._version = ""
            kind = self._kind
            self._hooks.failed(
                f"the API server has no kind {kind.name} ({kind.api_version}); is it installed?"
            )
        else:
            self._hooks.failed(error.message)

    # ---- list ------------------------------------------------------------------------------------

    def _list(self) -> None:
        """All objects, in chunks of one and the same version. Raises ApiError."""
        following, emit = self._following, self._hooks.emit
        query: dict[str, str | int] = {**self._query, "limit": self._timing.page}
        following.begin_list()
        while True:
            try:
                page = self._page(query)
            except Gone:
                if "continue" not in query:
                    raise
                # The version in which we began is compacted away. From the beginning, and in one
                # answer: that cannot be overtaken.
                query = dict(self._query)
                following.begin_list()
                continue
            meta = page.metadata
            if meta is None or not meta.resourceVersion:
                raise Malformed(f"list {self._kind.plural}: an answer without resourceVersion")
            _emit_all(emit, following.page(page.items or ()))
            if not meta.continue_:
                break
            query["continue"] = meta.continue_
        _emit_all(emit, following.end_list())
        self._version = meta.resourceVersion
        self._hooks.delivered()

    def _page(self, query: Query) -> ListPage:
        answer = self._open(query)
        with answer:
            body = answer.body()
        try:
            return decode_page(body)
        except WireError as error:
            raise Malformed(f"list {self._kind.plural}: {error}") from None

    # ---- watch -----------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Changes from the version on, until the server ends the watch. Raises ApiError."""
        seconds = self._timing.watch * (1 + self._hooks.random())
        query: dict[str, str | int | bool] = {
            **self._query,
            "watch": True,
            "allowWatchBookmarks": True,
            "resourceVersion": self._version,
            "timeoutSeconds": max(1, round(seconds)),
        }
        try:
            answer = self._open(query, self._timing.silence)
        except ApiError as error:
            if error.status not in _KEEP_VERSION:
                self._version = ""
            raise
        begun = self._hooks.clock()
        heard = False
        try:
            with answer:
                self._hooks.followed()
                for line in answer.lines():
                    self._take(line)
                    heard = True
        finally:
            settled = heard or self._hooks.clock() - begun >= self._timing.settled
            if settled:
                self._backoff.reset()
        if not settled and not self._stopping.is_set():
            raise Unavailable(f"watch {self._kind.plural}: the server ends it at once")

    def _take(self, line: bytes) -> None:
        """One event of a watch."""
        try:
            event = decode_event(line)
            if event.type == "ERROR":
                self._version = ""
                raise error_from(0, bytes(event.object), verb="watch", resource=self._kind.plural)
            meta = decode_head(event.object)
        except WireError as error:
            # What it said is lost: only a list can tell.
            self._version = ""
            raise Malformed(f"watch {self._kind.plural}: {error}") from None
        if event.type in ("ADDED", "MODIFIED"):
            _emit_all(self._hooks.emit, self._following.put(event.object))
        elif event.type == "DELETED":
            _emit_all(self._hooks.emit, self._following.delete(meta))
        elif event.type != "BOOKMARK":
            self._version = ""
            raise Malformed(f"watch {self._kind.plural}: an event of unknown type {event.type!r}")
        if meta.resourceVersion:
            self._version = meta.resourceVersion

    def _open(self, query: Query, read_timeout: float | None = None) -> Answer:
        """An answer that `stop` can cut off."""
        path = self._kind.collection
        answer = self._access.open("GET", path, query=query, read_timeout=read_timeout)
        self._answer = answer
        if self._stopping.is_set():
            answer.cut_off()
        return answer


def _emit_all(emit: Callable[[Event], None], events: Iterable[Event]) -> None:
    for event in events:
        emit(event)
