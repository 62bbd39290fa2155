# SPDX-License-Identifier: Apache-2.0
"""The life of CustomResourceDefinitions: from a definition to a kind that is served, and back
(pure)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bench.lab.apiserver import builtin
from bench.lab.apiserver.cluster import Cluster
from bench.lab.apiserver.customrules import DEFINITIONS, CustomStrategy
from bench.lab.apiserver.deletion import DeleteOptions, Remover
from bench.lab.apiserver.errors import Object
from bench.lab.apiserver.kinds import Kind, version_rank
from bench.lab.apiserver.schema import compile_schema
from bench.lab.apiserver.store import Record, Resource

CLEANUP = "customresourcecleanup.apiextensions.k8s.io"


def kinds_of(definition: Object) -> list[Kind]:
    """The kinds that a definition serves, one for each version."""
    spec = definition["spec"]
    names = spec["names"]
    made = []
    for version in sorted(spec["versions"], key=lambda v: version_rank(v["name"])):
        if not version.get("served"):
            continue
        raw: Object = version["schema"]["openAPIV3Schema"]
        properties = raw.get("properties") or {}
        own = {k: v for k, v in properties.items() if k not in ("metadata", "apiVersion", "kind")}
        # Required metadata is always there, and kept apart.
        needed = [k for k in raw.get("required") or () if k in own]
        schema = compile_schema({**raw, "properties": own, "required": needed}, builtin.metadata())
        status = (version.get("subresources") or {}).get("status") is not None
        made.append(
            Kind(
                spec["group"],
                version["name"],
                names["kind"],
                names["plural"],
                spec["scope"] == "Namespaced",
                schema,
                CustomStrategy(schema, raw, status=status),
                singular=names["singular"],
                list_name=names["listKind"],
                short_names=tuple(names.get("shortNames") or ()),
                categories=tuple(names.get("categories") or ()),
                status=status,
                custom=True,
            )
        )
    return made


class Definitions:
    """Serves the kinds of a cluster's definitions, and takes them away again.

    later: calls work after some seconds. delay: seconds between a definition and its kinds being
    served. withdrawn: told of resources whose watches must end.
    """

    def __init__(
        self,
        cluster: Cluster,
        remover: Remover,
        later: Callable[[float, Callable[[], None]], None],
        delay: float,
        withdrawn: Callable[[Resource], None],
    ) -> None:
        self.delay = delay
        self._cluster = cluster
        self._remover = remover
        self._later = later
        self._withdrawn = withdrawn
        cluster.after_write.append(self._after_write)
        remover.begun.append(self._deletion_begun)

    def _after_write(self, kind: Kind, old: Record | None, new: Record | None) -> None:
        if kind.resource != DEFINITIONS:
            if kind.custom and new is None:
                self._finish(f"{kind.plural}.{kind.group}")
            return
        if new is None:
            assert old is not None
            self._withdraw(old)
        elif old is None and self.delay:
            self._later(self.delay, lambda: self._establish(new.key, new.uid))
        elif old is None or old.object["spec"] != new.object["spec"] or not self._served(new):
            self._establish(new.key, new.uid)

    def _served(self, record: Record) -> bool:
        return self._cluster.registry.storing(_resource(record)) is not None

    def _establish(self, key: str, uid: str) -> None:
        kind = self._cluster.registry.storing(DEFINITIONS)
        record = self._cluster.store.collection(DEFINITIONS).get(key)
        if kind is None or record is None or record.uid != uid:
            return
        self._withdraw(record)
        ending = "deletionTimestamp" in record.object["metadata"]
        for made in kinds_of(record.object):
            self._cluster.registry.add(replace(made, ending=ending))
        meta = dict(record.object["metadata"])
        if CLEANUP not in meta.get("finalizers", ()) and not ending:
            meta["finalizers"] = [*meta.get("finalizers", ()), CLEANUP]
        status = self._status(record.object)
        changed = {**record.object, "metadata": meta, "status": status}
        if changed != record.object:
            self._cluster.amend(kind, record, changed)

    def _withdraw(self, record: Record) -> None:
        self._cluster.registry.remove(*_resource(record))
        self._withdrawn(_resource(record))

    # ---- the end -----------------------------------------------------------------------------

    def _deletion_begun(self, kind: Kind, record: Record) -> None:
        """The objects of a definition go before it does."""
        if kind.resource != DEFINITIONS:
            return
        resource = _resource(record)
        for made in self._cluster.registry:
            if made.resource == resource:
                self._cluster.registry.add(replace(made, ending=True))
        stored = self._cluster.registry.storing(resource)
        if stored is not None:
            for inner in self._cluster.store.collection(resource).range():
                if self._cluster.find(stored, inner.namespace, inner.name) is not None:
                    options = DeleteOptions()
                    self._remover.delete(stored, inner.namespace, inner.name, options)
        self._finish(record.key)

    def _finish(self, key: str) -> None:
        """Lets a definition go once the last of its objects has gone."""
        kind = self._cluster.registry.storing(DEFINITIONS)
        record = self._cluster.store.collection(DEFINITIONS).get(key)
        if kind is None or record is None:
            return
        meta = record.object["metadata"]
        if "deletionTimestamp" not in meta or len(
            self._cluster.store.collection(_resource(record))
        ):
            return
        left = [name for name in meta.get("finalizers", ()) if name != CLEANUP]
        kept = {name: value for name, value in meta.items() if name != "finalizers"}
        if left:
            kept["finalizers"] = left
        self._cluster.amend(kind, record, {**record.object, "metadata": kept})

    def _status(self, definition: Object) -> Object:
        old = definition.get("status") or {}
        now = self._cluster.now()
        kept = {entry["type"]: entry for entry in old.get("conditions") or []}
        for name, reason, text in (
            ("NamesAccepted", "NoConflicts", "no conflicts found"),
            ("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ):
            if kept.get(name, {}).get("status") != "True":
                kept[name] = {
                    "type": name,
                    "status": "True",
                    "lastTransitionTime": now,
                    "reason": reason,
                    "message": text,
                }
        spec = definition["spec"]
        stored = [v["name"] for v in spec["versions"] if v.get("storage")]
        known = [name for name in old.get("storedVersions") or [] if name not in stored]
        return {
            "conditions": list(kept.values()),
            "acceptedNames": spec["names"],
            "storedVersions": known + stored,
        }


def _resource(definition: Record) -> Resource:
    """Where the objects of a definition are stored."""
    spec = definition.object["spec"]
    return (spec["group"], spec["names"]["plural"])
