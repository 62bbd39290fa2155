# SPDX-License-Identifier: Apache-2.0
"""What a folder of manifests says, as facts in force: the part of the source without any I/O.

The rules, for a source whose files come and go and break:

* Each document stands by itself: a valid one takes effect, whatever the others of its file are.
* The last good state of a resource stays in force while its document is invalid, and while the
  file contains any document that cannot be told to be about another resource (no valid YAML, no
  name) or cannot be read at all. A mistake never removes anything, nor does a start over one.
* A resource defined in several files is taken from the first of them by path. The others are
  rejected as duplicates, and the next one takes over, in one event, when the first is gone.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from agent.core.events import (
    EndpointSliceRemoved,
    EndpointSliceUpserted,
    Event,
    Fact,
    NamespaceRemoved,
    NamespaceUpserted,
    NodeRemoved,
    NodeUpserted,
    Origin,
    PodRemoved,
    PodUpserted,
    PolicyRemoved,
    PolicyUpserted,
    RejectionCleared,
    ResourceIgnored,
    ResourceKey,
    ResourceRejected,
    ServiceRemoved,
    ServiceUpserted,
    fact_key,
    removed,
    upserted,
)
from agent.kube.last_good import REMEMBERED, Definition
from agent.kube.translate import Ignored


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a document is invalid.

    key: the resource it is about, None when the document does not tell.
    syntax: it is no valid YAML or JSON, and the message names a line of the file.
    """

    field: str
    message: str
    key: ResourceKey | None = None
    syntax: bool = False


Outcome = Fact | Ignored | Refusal


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file, translated. The text itself is not kept, only its digest (16 bytes).

    outcomes: one, or none when it is empty, or one for each item when `listed`.
    item: index of this document in a JSON list, whose items are documents of their own.
    """

    number: int
    digest: bytes
    outcomes: tuple[Outcome, ...]
    item: int | None = None
    listed: bool = False


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file as read. `problem`: it could not be read or split, and there are no documents."""

    documents: tuple[Document, ...] = ()
    problem: Refusal | None = None


@dataclass(slots=True)
class _File:
    """claims: what this file contributes; those in `retained` are last good states."""

    claims: dict[ResourceKey, Definition] = field(default_factory=dict)
    retained: frozenset[ResourceKey] = frozenset()
    refusals: dict[Origin, Refusal] = field(default_factory=dict)
    ignored: dict[Origin, Ignored] = field(default_factory=dict)
    rejected: dict[Origin, ResourceRejected] = field(default_factory=dict)  # as last emitted


class Folder:
    """All files of one source, and the facts in force. Every change returns its events.

    remembered: the last good state of files that have not been read yet, as `last_good` gave it to
        a former agent. It counts where the file is invalid now, and in no other way.
    """

    def __init__(
        self, source: str, remembered: Mapping[str, Iterable[Definition]] | None = None
    ) -> None:
        self._source = source
        self._remembered = dict(remembered or {})
        self.to_remember = False
        """Whether `last_good` gives something else than before. To be taken back by the caller."""
        self._files: dict[str, _File] = {}
        self._owners: dict[ResourceKey, tuple[str, ...]] = {}  # paths that claim it, in order
        self._facts: dict[ResourceKey, Fact] = {}

    @property
    def facts(self) -> Mapping[ResourceKey, Fact]:
        """What is in force."""
        return self._facts

    @property
    def remembered(self) -> Iterable[str]:
        """Files of which no more is known than their last good state."""
        return self._remembered.keys()

    def forget(self, present: Container[str]) -> None:
        """Of files that are not present nothing need be remembered: they are gone."""
        for path in [path for path in self._remembered if path not in present]:
            del self._remembered[path]

    def last_good(self) -> dict[str, list[Definition]]:
        """What is to be remembered: what keeps pods from others, and all that is in force although
        its document is invalid."""
        return {
            path: found
            for path, file in self._files.items()
            if (
                found := [
                    claim
                    for key, claim in file.claims.items()
                    if key.kind in REMEMBERED or key in file.retained
                ]
            )
        }

    def rejections(self) -> list[ResourceRejected]:
        """What is rejected at present, by place."""
        return [
            rejection
            for path in sorted(self._files)
            for rejection in self._files[path].rejected.values()
        ]

    def apply(self, changes: Mapping[str, FileContent | None]) -> list[Event]:
        """Takes over files as now read (None: gone), all at once, and says what that changes.

        Upserts come before removals: namespaces, policies, pods, and then the other way round.
        """
        touched: set[ResourceKey] = set()
        notes: list[Event] = []
        for path, content in changes.items():
            known = self._files.pop(path, None)
            remembered = self._remembered.pop(path, ())
            old, new = known or _File(), _File()
            if content is None:
                notes += [RejectionCleared(self._source, origin) for origin in old.rejected]
            else:
                last_good = old.claims
                if known is None:
                    last_good = {fact_key(one.fact): one for one in remembered}
                new = self._files[path] = _evaluate(path, content, old, last_good)
                notes += self._newly_ignored(old, new)
            changed = _difference(old, new)
            self._note_owners(path, changed, new)
            touched |= changed
            self.to_remember |= old.retained != new.retained or any(
                key.kind in REMEMBERED or key in new.retained for key in changed
            )
        settled = (self._settle(key) for key in sorted(touched))
        events = [event for event in settled if event is not None]
        events.sort(key=lambda event: _ORDER[type(event)])
        affected = {owner for key in touched for owner in self._owners.get(key, ())}
        for path in sorted((affected | changes.keys()) & self._files.keys()):
            notes += self._update_rejections(path)
        return [*events, *notes]

    def _note_owners(self, path: str, keys: set[ResourceKey], file: _File) -> None:
        for key in keys:
            others = tuple(owner for owner in self._owners.get(key, ()) if owner != path)
            owners = tuple(sorted((*others, path))) if key in file.claims else others
            if owners:
                self._owners[key] = owners
            else:
                self._owners.pop(key, None)

    def _settle(self, key: ResourceKey) -> Event | None:
        """Puts the winner's definition in force; the event, if that changes anything."""
        owners = self._owners.get(key)
        if not owners:
            return removed(self._source, key) if self._facts.pop(key, None) else None
        fact = self._files[owners[0]].claims[key].fact
        if self._facts.get(key) == fact:
            return None
        self._facts[key] = fact
        return upserted(self._source, fact)

    def _newly_ignored(self, old: _File, new: _File) -> list[Event]:
        return [
            ResourceIgnored(self._source, origin, ignored.key, ignored.note)
            for origin, ignored in new.ignored.items()
            if old.ignored.get(origin) != ignored
        ]

    def _update_rejections(self, path: str) -> list[Event]:
        """Emits the difference between what is to be rejected in this file and what was."""
        file = self._files[path]
        wanted = {
            origin: ResourceRejected(self._source, origin, r.field, r.message, r.key)
            for origin, r in (*file.refusals.items(), *self._duplicates(path, file))
        }
        events: list[Event] = [
            RejectionCleared(self._source, origin)
            for origin in file.rejected
            if origin not in wanted
        ]
        events += [r for origin, r in wanted.items() if file.rejected.get(origin) != r]
        file.rejected = wanted
        return events

    def _duplicates(self, path: str, file: _File) -> list[tuple[Origin, Refusal]]:
        found = []
        for key, claim in file.claims.items():
            winner = self._owners[key][0]
            if winner == path or key in file.retained:
                continue
            place = _place(winner, self._files[winner].claims[key])
            message = f"also defined in {place}, which counts because its path is first"
            found.append((_place(path, claim), Refusal("metadata.name", message, key)))
        return found


def _place(path: str, claim: Definition) -> Origin:
    return Origin(path, claim.number, claim.item)


def _evaluate(
    path: str, content: FileContent, old: _File, last_good: dict[ResourceKey, Definition]
) -> _File:
    """The file's contribution, given its last good state."""
    if content.problem is not None:
        return _File(
            claims=last_good,
            retained=frozenset(last_good),
            refusals={Origin(path): content.problem},
            ignored=old.ignored,
            rejected=old.rejected,
        )
    file = _File(rejected=old.rejected)
    invalid: set[ResourceKey | None] = set()  # None: of a resource that we cannot tell
    for document in content.documents:
        for index, outcome in enumerate(document.outcomes):
            item = index if document.listed else document.item
            if isinstance(outcome, Ignored):
                file.ignored[Origin(path, document.number, item)] = outcome
            elif isinstance(outcome, Refusal):
                file.refusals[Origin(path, document.number, item)] = outcome
                invalid.add(outcome.key)
            elif first := file.claims.get(key := fact_key(outcome)):
                message = f"also defined in {_place(path, first)}, which counts because it is first"
                origin = Origin(path, document.number, item)
                file.refusals[origin] = Refusal("metadata.name", message, key)
            else:
                file.claims[key] = Definition(outcome, document.number, item)
    if invalid:
        file.retained = frozenset(
            key
            for key in last_good.keys() - file.claims.keys()
            if None in invalid or key in invalid
        )
        file.claims.update((key, last_good[key]) for key in file.retained)
    return file


def _difference(old: _File, new: _File) -> set[ResourceKey]:
    """Keys whose definition, or its place, differs."""
    return {
        key
        for key in old.claims.keys() | new.claims.keys()
        if old.claims.get(key) != new.claims.get(key)
    }


_ORDER = {
    kind: rank
    for rank, kind in enumerate(
        (
            NodeUpserted,
            NamespaceUpserted,
            PolicyUpserted,
            ServiceUpserted,
            EndpointSliceUpserted,
            PodUpserted,
            PodRemoved,
            EndpointSliceRemoved,
            ServiceRemoved,
            PolicyRemoved,
            NamespaceRemoved,
            NodeRemoved,
        )
    )
}
