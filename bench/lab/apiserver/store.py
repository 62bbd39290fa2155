# SPDX-License-Identifier: Apache-2.0
"""Objects with their versions and history (pure: no lock, thread, socket or clock).

One revision counts every change of every resource, as in etcd. An object is never changed in
place: each version is a Record, and its JSON is written once, for whoever reads it. A past state is
found by undoing the changes that came after it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from bench.lab.apiserver.errors import Object

Resource = tuple[str, str]  # group, plural
Convert = Callable[[Object], Object]
_encode = msgspec.json.Encoder().encode


class Compacted(Exception):
    """The state or the changes that were asked for are no longer known."""

    def __init__(self, wanted: int, oldest: int) -> None:
        super().__init__(f"too old resource version: {wanted} ({oldest})")


class Record:
    """One version of one object, without `kind` and `apiVersion`. Not to be changed.

    revision: that of the change; also in the object's metadata. created: revision of the creation.
    """

    __slots__ = ("_body", "_views", "created", "key", "object", "revision")

    def __init__(self, key: str, content: Object, revision: int, created: int) -> None:
        self.key = key
        self.object = content
        self.revision = revision
        self.created = created
        self._body: bytes | None = None
        self._views: dict[str, Record] | None = None

    @property
    def body(self) -> bytes:
        """Its JSON without the opening brace: a prefix with the kind can come before it."""
        if self._body is None:
            self._body = _encode(self.object)[1:]
        return self._body

    @property
    def labels(self) -> dict[str, str]:
        """Its labels."""
        return self.object["metadata"].get("labels") or {}

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.object["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """Its namespace, "" for none."""
        return str(self.object["metadata"].get("namespace", ""))

    @property
    def uid(self) -> str:
        """Its UID."""
        return str(self.object["metadata"]["uid"])

    def view(self, version: str, convert: Convert) -> Record:
        """The same in another API version; converted once."""
        if self._views is None:
            self._views = {}
        if version not in self._views:
            made = Record(self.key, convert(self.object), self.revision, self.created)
            self._views[version] = made
        return self._views[version]


@dataclass(frozen=True, slots=True)
class Change:
    """What happened at one revision. kind: ADDED, MODIFIED or DELETED.

    record: the new version; of a deletion the last one, with the deletion's revision.
    """

    revision: int
    kind: str
    record: Record
    previous: Record | None


class Collection:
    """All objects of one resource, ordered by key, and its latest changes."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._keys: list[str] = []
        self.changes: list[Change] = []
        self.forgotten = 0  # changes up to this revision are not in `changes`

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: str) -> Record | None:
        """The current version, None if there is none."""
        return self._records.get(key)

    def range(self, prefix: str = "", start: str = "") -> list[Record]:
        """Current records in key order. prefix: of their keys. start: the least key."""
        first = bisect_left(self._keys, max(prefix, start))
        # No key has a character beyond this one.
        last = bisect_left(self._keys, prefix + "\U0010ffff") if prefix else len(self._keys)
        return [self._records[key] for key in self._keys[first:last]]

    def at(self, revision: int, prefix: str = "", start: str = "") -> list[Record]:
        """Records as they were after `revision`. Raises Compacted."""
        undone: dict[str, Record | None] = {}
        for change in reversed(self.after(revision)):
            undone[change.record.key] = change.previous
        if not undone:
            return self.range(prefix, start)
        found = {record.key: record for record in self.range(prefix, start)}
        for key, record in undone.items():
            if record is None:
                found.pop(key, None)
            elif key.startswith(prefix) and key >= start:
                found[key] = record
        return [found[key] for key in sorted(found)]

    def after(self, revision: int) -> list[Change]:
        """Changes that came after `revision`, oldest first. Raises Compacted."""
        if revision < self.forgotten:
            raise Compacted(revision, self.forgotten)
        return self.changes[bisect_right(self.changes, revision, key=lambda c: c.revision) :]

    def forget(self, revision: int) -> None:
        """Drops the changes up to `revision`."""
        if revision > self.forgotten:
            del self.changes[: bisect_right(self.changes, revision, key=lambda c: c.revision)]
            self.forgotten = revision

    def record(self, change: Change) -> None:
        """Puts a change into force."""
        key = change.record.key
        if change.kind == "DELETED":
            del self._records[key]
            del self._keys[bisect_left(self._keys, key)]
        else:
            if key not in self._records:
                insort(self._keys, key)
            self._records[key] = change.record
        self.changes.append(change)

    def load(self, records: list[Record]) -> None:
        """Adds many new records at once."""
        self._records.update((record.key, record) for record in records)
        self._keys = sorted(self._records)
        self.changes += [Change(r.revision, "ADDED", r, None) for r in records]


class Store:
    """Every resource under one revision.

    history: how many changes of each resource are kept at least; older ones are forgotten, and
    asking for them raises Compacted.
    """

    def __init__(self, history: int = 20_000, revision: int = 1000) -> None:
        self.revision = revision
        self.compacted = 0
        self._history = history
        self._collections: dict[Resource, Collection] = {}
        self._listeners: list[Callable[[Resource, Change], None]] = []

    def listen(self, listener: Callable[[Resource, Change], None]) -> None:
        """Has `listener` called after every change."""
        self._listeners.append(listener)

    def collection(self, resource: Resource) -> Collection:
        """The objects of one resource; empty if there never was one."""
        found = self._collections.get(resource)
        if found is None:
            found = self._collections[resource] = Collection()
            found.forgotten = self.compacted
        return found

    def resources(self) -> Iterator[tuple[Resource, Collection]]:
        """Every resource that has or had objects."""
        yield from list(self._collections.items())

    def put(self, resource: Resource, key: str, content: Object) -> Record:
        """Stores a new version and gives it a revision."""
        collection = self.collection(resource)
        previous = collection.get(key)
        self.revision += 1
        created = previous.created if previous else self.revision
        record = Record(key, _stamped(content, self.revision), self.revision, created)
        kind = "MODIFIED" if previous else "ADDED"
        self._commit(resource, collection, Change(self.revision, kind, record, previous))
        return record

    def delete(self, resource: Resource, key: str) -> Record:
        """Removes an object that is there; its last version, with the deletion's revision."""
        collection = self.collection(resource)
        previous = collection.get(key)
        assert previous is not None
        self.revision += 1
        content = _stamped(previous.object, self.revision)
        record = Record(key, content, self.revision, previous.created)
        self._commit(resource, collection, Change(self.revision, "DELETED", record, previous))
        return record

    def load(self, resource: Resource, contents: list[tuple[str, Object]]) -> None:
        """Stores many new objects; each gets a revision of its own."""
        collection = self.collection(resource)
        records = []
        for key, content in contents:
            self.revision += 1
            made = Record(key, _stamped(content, self.revision), self.revision, self.revision)
            records.append(made)
        collection.load(records)
        for record in records:
            for listener in self._listeners:
                listener(resource, Change(record.revision, "ADDED", record, None))
        self._trim(collection)

    def compact(self, revision: int) -> None:
        """Forgets the changes up to `revision` of every resource."""
        self.compacted = max(self.compacted, min(revision, self.revision))
        for collection in self._collections.values():
            collection.forget(self.compacted)

    def _commit(self, resource: Resource, collection: Collection, change: Change) -> None:
        collection.record(change)
        self._trim(collection)
        for listener in self._listeners:
            listener(resource, change)

    def _trim(self, collection: Collection) -> None:
        # By a tenth at a time: removing the head of a list moves all the rest.
        if len(collection.changes) > self._history * 11 // 10 + 10:
            collection.forget(collection.changes[-self._history - 1].revision)


def _stamped(content: Object, revision: int) -> Object:
    metadata = {**content["metadata"], "resourceVersion": str(revision)}
    return {**content, "metadata": metadata}
