# SPDX-License-Identifier: Apache-2.0
"""What an API server says of one kind, as facts in force: the part of the source without any I/O.

* A list says what there is: what differs is put in force, what it does not name is removed. So a
  second list, after the server has forgotten what changed, disturbs nothing that stayed the same.
* An object that differs only in what the agent does not use changes nothing.
* The last good state of an object stays in force while it is invalid. A mistake removes nothing,
  nor does a start over one. It is of the object with this uid, not of another with its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec import Raw

from agent.core.events import (
    Event,
    Fact,
    Origin,
    RejectionCleared,
    ResourceKey,
    ResourceRejected,
    fact_key,
    removed,
    upserted,
)
from agent.kube.fields import TranslateError
from agent.kube.kinds import Kind
from agent.kube.memory import Good, Memory
from agent.kube.translate_wire import translate_raw
from agent.kube.wire import Meta, WireError, decode_head


class Following:
    """All objects of one kind. Every change returns its events.

    source: name in these events. memory: knows the last good states, also those that a former agent
        saw; None: only those in force here count.
    """

    def __init__(self, source: str, kind: Kind, memory: Memory | None = None) -> None:
        self._source = source
        self._kind = kind
        self._memory = memory
        self._facts: dict[ResourceKey, Fact] = {}
        self._rejected: dict[ResourceKey, ResourceRejected] = {}
        self._listed: set[ResourceKey] = set()

    @property
    def facts(self) -> Mapping[ResourceKey, Fact]:
        """What is in force."""
        return self._facts

    # ---- lists: begin, any number of pages, end --------------------------------------------------

    def begin_list(self) -> None:
        """A list begins; one that was not ended is void, and what it said is only news."""
        self._listed = set()

    def page(self, items: Iterable[Raw]) -> list[Event]:
        """A part of the list."""
        events: list[Event] = []
        for raw in items:
            self._listed.add(self._put(raw, events))
        return events

    def end_list(self) -> list[Event]:
        """The list is complete: what it does not name is gone."""
        events: list[Event] = []
        known = self._facts.keys() | self._rejected.keys()
        if self._memory is not None:
            known |= self._memory.keys(self._kind.name)
        for key in sorted(known - self._listed):
            self._drop(key, events)
        self._listed = set()
        return events

    # ---- single changes --------------------------------------------------------------------------

    def put(self, raw: bytes | Raw) -> list[Event]:
        """An object is new or has changed."""
        events: list[Event] = []
        self._put(raw, events)
        return events

    def delete(self, meta: Meta) -> list[Event]:
        """The object with this metadata is gone, or is none of those followed any more."""
        events: list[Event] = []
        self._drop(self._key(meta), events)
        return events

    def _put(self, raw: bytes | Raw, events: list[Event]) -> ResourceKey:
        try:
            fact = translate_raw(self._kind, raw)
        except TranslateError as error:
            meta = _meta_of(raw)
            key = self._key(meta)
            self._recall(key, meta.uid or "", events)
            rejection = ResourceRejected(
                self._source, self._origin(key), error.field, error.message, key
            )
            if self._rejected.get(key) != rejection:
                self._rejected[key] = rejection
                events.append(rejection)
            return key
        key = fact_key(fact)
        if self._memory is not None:
            self._memory.put(key, Good(fact, _meta_of(raw).uid or ""))
        self._put_in_force(key, fact, events)
        self._clear(key, events)
        return key

    def _recall(self, key: ResourceKey, uid: str, events: list[Event]) -> None:
        """Of an object that is refused now: its last good state, and not another object's."""
        good = self._memory.get(key) if self._memory is not None else None
        if good is None:
            return
        if good.uid == uid:
            self._put_in_force(key, good.fact, events)
        else:
            self._drop(key, events)

    def _put_in_force(self, key: ResourceKey, fact: Fact, events: list[Event]) -> None:
        if self._facts.get(key) != fact:
            self._facts[key] = fact
            events.append(upserted(self._source, fact))

    def _drop(self, key: ResourceKey, events: list[Event]) -> None:
        if self._memory is not None:
            self._memory.drop(key)
        if self._facts.pop(key, None) is not None:
            events.append(removed(self._source, key))
        self._clear(key, events)

    def _clear(self, key: ResourceKey, events: list[Event]) -> None:
        if self._rejected and self._rejected.pop(key, None) is not None:
            events.append(RejectionCleared(self._source, self._origin(key)))

    def _key(self, meta: Meta) -> ResourceKey:
        namespace = (meta.namespace or "") if self._kind.namespaced else ""
        return ResourceKey(self._kind.name, namespace, meta.name or "")

    def _origin(self, key: ResourceKey) -> Origin:
        """Written as a path, so that each object has its own."""
        parts = (self._source, self._kind.plural, key.namespace, key.name)
        return Origin("/".join(part for part in parts if part))


def _meta_of(raw: bytes | Raw) -> Meta:
    try:
        return decode_head(raw)
    except WireError:
        return Meta()
