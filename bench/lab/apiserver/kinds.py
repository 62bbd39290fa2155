# SPDX-License-Identifier: Apache-2.0
"""What kinds there are, where they are served, and the rules that each adds (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from bench.lab.apiserver.errors import Object, Problem
from bench.lab.apiserver.schema import Schema
from bench.lab.apiserver.store import Record, Resource
from bench.lab.apiserver.validation import NameRule, subdomain

COMMON_FIELDS = frozenset({"metadata.name", "metadata.namespace"})


class Strategy:
    """Rules of one kind; this one has none. Objects are in their stored form, without `kind`.

    `prepare_*` may change the object that it is given (never `old`); `validate*` yield problems.
    """

    # Whether an update without a resourceVersion is taken, and whether it may create.
    unconditional = True
    create_on_update = False
    # Field selectors beside name and namespace.
    fields: frozenset[str] = frozenset()
    # Fields outside metadata and status count for metadata.generation.
    generation = False
    # Whether an update of the status subresource may change labels and annotations.
    status_metadata = True

    def complete(self, item: Object) -> None:
        """Adds defaults: what every stored object has."""

    def prepare_create(self, item: Object) -> None:
        """Defaults, and without what a creator may not set."""
        self.complete(item)

    def prepare_update(self, item: Object, old: Object) -> None:
        """Defaults, and what stays as it was."""
        self.complete(item)

    def prepare_status(self, item: Object) -> None:
        """Defaults of a status that was written by itself; nothing else may be changed."""

    def validate(self, item: Object) -> Iterator[Problem]:
        """Problems of the object alone; metadata has been checked."""
        return iter(())

    def validate_create(self, item: Object) -> Iterator[Problem]:
        """Problems at creation only."""
        return iter(())

    def validate_update(self, item: Object, old: Object) -> Iterator[Problem]:
        """Problems of a change."""
        return iter(())

    def validate_status(self, item: Object) -> Iterator[Problem]:
        """Problems of an update of the status subresource."""
        return iter(())

    def field_value(self, item: Object, path: str) -> str:
        """The value that a field selector compares; "" if there is none."""
        value: object = item
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, bool):
            return "true" if value else "false"
        return "" if value is None else str(value)

    def to_storage(self, item: Object) -> Object:
        """From the served version to the stored one."""
        return item

    def from_storage(self, item: Object) -> Object:
        """From the stored version to the served one."""
        return item


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind in one API version.

    storage: the resource that holds the objects, if it is another kind's. converted: stored
    objects have another form. status: there is a status subresource. custom: made by a
    CustomResourceDefinition; ending: which is being deleted. bookmark: fields that bookmarks have
    beside metadata.
    """

    group: str
    version: str
    name: str
    plural: str
    namespaced: bool
    schema: Schema
    strategy: Strategy = field(default_factory=Strategy)
    singular: str = ""
    list_name: str = ""
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    status: bool = False
    custom: bool = False
    ending: bool = False
    storage: Resource = ("", "")
    converted: bool = False
    name_rule: NameRule = subdomain
    bookmark: Object = field(default_factory=dict)

    @property
    def api_version(self) -> str:
        """`group/version`, or only the version for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> Resource:
        """Where the objects are stored."""
        return self.storage if self.storage[1] else (self.group, self.plural)

    @property
    def core(self) -> bool:
        """Whether the rules of the core kinds hold for its metadata: not for the generic ones."""
        return not self.custom and self.group not in ("coordination.k8s.io", "apiextensions.k8s.io")

    @property
    def list_kind(self) -> str:
        """The kind of a list of them."""
        return self.list_name or f"{self.name}List"

    @property
    def selectable(self) -> frozenset[str]:
        """Paths that a field selector may name."""
        return COMMON_FIELDS | self.strategy.fields

    def key(self, namespace: str, name: str) -> str:
        """The key of an object in its collection."""
        return f"{namespace}/{name}" if self.namespaced else name

    def view(self, record: Record) -> Record:
        """The record in this kind's version."""
        if not self.converted:
            return record
        return record.view(self.api_version, self.strategy.from_storage)

    @property
    def prefix(self) -> bytes:
        """What comes before a record's body to make it an object."""
        return f'{{"kind":"{self.name}","apiVersion":"{self.api_version}",'.encode()

    def encoded(self, record: Record) -> bytes:
        """The whole object as JSON."""
        return self.prefix + self.view(record).body

    def document(self, item: Object) -> Object:
        """The whole object, in this version's form, for an object in stored form."""
        shown = self.strategy.from_storage(item) if self.converted else item
        return {"kind": self.name, "apiVersion": self.api_version, **shown}


class Registry:
    """Every kind that is served."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self._kinds: dict[tuple[str, str, str], Kind] = {}
        for kind in kinds:
            self.add(kind)

    def add(self, kind: Kind) -> None:
        """Serves a kind, in place of the one that was served there."""
        self._kinds[(kind.group, kind.version, kind.plural)] = kind

    def remove(self, group: str, plural: str) -> None:
        """Serves no version of a resource any more."""
        for key in [k for k in self._kinds if (k[0], k[2]) == (group, plural)]:
            del self._kinds[key]

    def find(self, group: str, version: str, plural: str) -> Kind | None:
        """The kind at a path."""
        return self._kinds.get((group, version, plural))

    def by_name(self, api_version: str, name: str) -> Kind | None:
        """The kind that an object names."""
        for kind in self._kinds.values():
            if kind.name == name and kind.api_version == api_version:
                return kind
        return None

    def storing(self, resource: Resource) -> Kind | None:
        """A kind whose objects are stored there; the one in stored form if there are several."""
        found = [kind for kind in self._kinds.values() if kind.resource == resource]
        return min(found, key=lambda kind: kind.converted, default=None)

    def __iter__(self) -> Iterator[Kind]:
        return iter(list(self._kinds.values()))

    def groups(self) -> dict[str, list[str]]:
        """Versions of each group, the preferred one first; the core group is ""."""
        found: dict[str, list[str]] = {}
        for kind in self._kinds.values():
            versions = found.setdefault(kind.group, [])
            if kind.version not in versions:
                versions.append(kind.version)
        return {group: sorted(versions, key=version_rank) for group, versions in found.items()}


def version_rank(version: str) -> tuple[int, int, int, str]:
    """Sorts versions: v2, v1, v1beta1, v1alpha1, others."""
    found = re.fullmatch(r"v(\d+)(?:(alpha|beta)(\d+))?", version)
    if not found:
        return (3, 0, 0, version)
    stage = {None: 0, "beta": 1, "alpha": 2}[found[2]]
    return (stage, -int(found[1]), -int(found[3] or 0), version)
