# SPDX-License-Identifier: Apache-2.0
"""Watches: from the history of a resource to lines of a stream (pure)."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from bench.lab.apiserver.cluster import Cluster
from bench.lab.apiserver.errors import ApiError, Object, expired
from bench.lab.apiserver.forms import Form
from bench.lab.apiserver.kinds import Kind
from bench.lab.apiserver.listing import ListQuery, matches
from bench.lab.apiserver.store import Change, Compacted, Record

_encode = msgspec.json.Encoder().encode
INITIAL_EVENTS_END = "k8s.io/initial-events-end"


def line(kind: str, encoded: bytes) -> bytes:
    """One event of a stream."""
    return b'{"type":"%s","object":%s}\n' % (kind.encode(), encoded)


def error_line(error: ApiError) -> bytes:
    """An event that says what went wrong."""
    return line("ERROR", _encode(error.status()))


class Watch:
    """One watch. Whoever calls its methods keeps writers away meanwhile.

    revision: up to where the watcher knows everything.
    """

    def __init__(
        self, cluster: Cluster, kind: Kind, namespace: str, query: ListQuery, form: Form
    ) -> None:
        self.kind = kind
        self.resource = kind.resource
        self._cluster = cluster
        self._collection = cluster.store.collection(kind.resource)
        self._prefix = f"{namespace}/" if namespace else ""
        self._query = query
        self._form = form
        # Waits for nothing: changes up to a version yet to come are not shown.
        self._floor = int(query.version or 0)
        self.revision = cluster.store.revision

    def begin(self) -> list[bytes]:
        """The first lines: the objects that there are, if the request means so.

        Raises ApiError 410 if the changes since its version are not known any more.
        """
        query = self._query
        state = query.initial is not False and (query.initial or not self._floor)
        if not state:
            if self._floor:
                self.revision = min(self._floor, self._cluster.store.revision)
            self._check()
            return []
        records = self._collection.range(self._prefix)
        lines = [
            line("ADDED", self._form.one(record))
            for record in records
            if matches(self.kind, query.selector, record)
        ]
        if query.initial and query.bookmarks:
            lines.append(self.bookmark({INITIAL_EVENTS_END: "true"}))
        return lines

    def _check(self) -> None:
        compacted = max(self._cluster.store.compacted, self._collection.forgotten)
        if self.revision < compacted:
            raise expired(f"too old resource version: {self.revision} ({compacted})")

    def poll(self) -> list[bytes]:
        """Lines for what changed since the last call. Raises ApiError 410."""
        try:
            changes = self._collection.after(self.revision)
        except Compacted as error:
            raise expired(str(error)) from None
        self.revision = max(self.revision, self._cluster.store.revision)
        return [shown for change in changes for shown in self._shown(change)]

    def pending(self) -> bool:
        """Whether the resource has changed since."""
        changes = self._collection.changes
        return bool(changes) and changes[-1].revision > self.revision

    def _shown(self, change: Change) -> Iterator[bytes]:
        record, previous = change.record, change.previous
        if not record.key.startswith(self._prefix) or change.revision <= self._floor:
            return
        if not self._query.selector:
            yield line(change.kind, self._form.one(record))
            return
        before = previous is not None and matches(self.kind, self._query.selector, previous)
        after = change.kind != "DELETED" and matches(self.kind, self._query.selector, record)
        if after:
            yield line("MODIFIED" if before else "ADDED", self._form.one(record))
        elif before:
            assert previous is not None
            yield line("DELETED", self._form.one(_at(previous, change.revision)))

    def bookmark(self, annotations: dict[str, str] | None = None) -> bytes:
        """A line that says up to where everything was sent, and nothing else."""
        meta: Object = {"resourceVersion": str(self.revision), "creationTimestamp": None}
        if annotations:
            meta["annotations"] = annotations
        return line("BOOKMARK", self._form.bookmark(meta))


def _at(record: Record, revision: int) -> Record:
    """The record as it was, under the version of the change that hid it."""
    meta = {**record.object["metadata"], "resourceVersion": str(revision)}
    return Record(record.key, {**record.object, "metadata": meta}, revision, record.created)
