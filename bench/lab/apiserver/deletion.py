# SPDX-License-Identifier: Apache-2.0
"""Deletion: grace, finalizers, owners and dependants, namespaces with their contents (pure)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.lab.apiserver import times
from bench.lab.apiserver.cluster import NAMESPACES, Cluster
from bench.lab.apiserver.errors import (
    Object,
    bad_request,
    conflict,
    invalid,
    unsupported,
)
from bench.lab.apiserver.kinds import Kind
from bench.lab.apiserver.store import Record

POLICIES = ("Background", "Foreground", "Orphan")


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """How to delete. uid, version: preconditions, "" for none. grace: seconds, None: the usual."""

    grace: int | None = None
    uid: str = ""
    version: str = ""
    policy: str = "Background"
    dry_run: bool = False


def read_options(body: Object | None, query: dict[str, str]) -> DeleteOptions:
    """From a DeleteOptions object or the query. Raises ApiError: 400 or 422."""
    found: dict[str, Any] = dict(body or {})
    if found.get("kind", "DeleteOptions") != "DeleteOptions":
        raise bad_request(
            f"no kind {found['kind']!r} is registered for DeleteOptions: a DeleteOptions object "
            "is expected as the body"
        )
    if not body:
        for key in ("gracePeriodSeconds", "propagationPolicy"):
            if query.get(key):
                found[key] = query[key]
        if query.get("dryRun"):
            found["dryRun"] = [query["dryRun"]]
    conditions = found.get("preconditions")
    conditions = {} if conditions is None else conditions
    policy = found.get("propagationPolicy") or "Background"
    try:
        seconds = found.get("gracePeriodSeconds")
        grace = None if seconds is None else int(seconds)
    except (TypeError, ValueError):
        raise bad_request("gracePeriodSeconds must be an integer") from None
    if not isinstance(conditions, dict) or not all(
        isinstance(value, str) for value in conditions.values()
    ):
        raise bad_request("preconditions must be an object of strings")
    problems = []
    if policy not in POLICIES:
        problems.append(unsupported("propagationPolicy", policy, POLICIES))
    dry = found.get("dryRun") or []
    if dry not in ([], ["All"]):
        problems.append(unsupported("dryRun", dry, ("All",)))
    if grace is not None and grace < 0:
        grace = 1
    if problems:
        raise invalid("meta.k8s.io", "DeleteOptions", "", problems)
    return DeleteOptions(
        grace,
        conditions.get("uid", ""),
        conditions.get("resourceVersion", ""),
        policy,
        bool(dry),
    )


@dataclass(frozen=True, slots=True)
class Deleted:
    """record: the last version, or the one that waits. gone: it is no more."""

    record: Record
    gone: bool


class Remover:
    """Deletes for a cluster, and takes along what must not outlive what is deleted.

    kubelet: pods whose grace has begun end at once, as if their kubelet had answered; without it
    somebody must delete them again with gracePeriodSeconds 0. begun: told of every
    object that has been marked and waits for its finalizers.
    """

    def __init__(self, cluster: Cluster, *, kubelet: bool) -> None:
        self.kubelet = kubelet
        self.begun: list[Callable[[Kind, Record], None]] = []
        self._cluster = cluster
        cluster.after_write.append(self._after_write)

    def delete(self, kind: Kind, namespace: str, name: str, options: DeleteOptions) -> Deleted:
        """Deletes one object, or begins to. Raises ApiError: 404, 409."""
        record = self._cluster.get(kind, namespace, name)
        self._check(kind, record, options)
        if options.dry_run:
            return Deleted(record, True)
        if kind.resource == NAMESPACES:
            return self._end_namespace(kind, record)
        meta = record.object["metadata"]
        grace = self._grace(kind, record, options.grace)
        finalizers = list(meta.get("finalizers") or [])
        if options.policy == "Orphan":
            self._orphan(record)
        elif options.policy == "Foreground":
            # Dependants first, then the owner.
            for inner_kind, inner in self._cluster.dependants(record.uid):
                self._delete_dependant(inner_kind, inner, record.uid)
        if grace == 0 and not finalizers:
            return Deleted(self._cluster.remove(kind, self._last_mark(kind, record)), True)
        marked = self._mark(kind, record, grace)
        if grace and self.kubelet:
            return self._delete_now(kind, marked)
        for told in self.begun:
            told(kind, marked)
        return Deleted(marked, False)

    def _delete_now(self, kind: Kind, record: Record) -> Deleted:
        """What a kubelet does once the containers of a pod have ended."""
        if record.object["metadata"].get("finalizers"):
            return Deleted(self._mark(kind, record, 0), False)
        self._cluster.remove(kind, self._last_mark(kind, record))
        return Deleted(record, False)

    def _last_mark(self, kind: Kind, record: Record) -> Record:
        """Watches see a pod once more, without any time left, before it is gone."""
        if kind.resource != ("", "pods"):
            return record
        return self._mark(kind, record, 0)

    def _check(self, kind: Kind, record: Record, options: DeleteOptions) -> None:
        if options.uid and options.uid != record.uid:
            text = (
                f"Precondition failed: UID in precondition: {options.uid}, UID in object meta: "
                f"{record.uid}"
            )
            raise conflict(kind.group, kind.plural, record.name, text)
        if options.version and options.version != str(record.revision):
            text = (
                f"Precondition failed: ResourceVersion in precondition: {options.version}, "
                f"ResourceVersion in object meta: {record.revision}"
            )
            raise conflict(kind.group, kind.plural, record.name, text)

    def _grace(self, kind: Kind, record: Record, wanted: int | None) -> int:
        """Only pods that run somewhere are given time."""
        spec = record.object.get("spec") or {}
        if kind.resource != ("", "pods") or not spec.get("nodeName"):
            return 0
        if (record.object.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            return 0
        usual = int(spec.get("terminationGracePeriodSeconds", 30))
        grace = usual if wanted is None else wanted
        # A running period can only be shortened.
        left = record.object["metadata"].get("deletionGracePeriodSeconds")
        return grace if left is None else min(grace, int(left))

    def _mark(self, kind: Kind, record: Record, grace: int) -> Record:
        """Sets deletionTimestamp, or brings it nearer."""
        meta = dict(record.object["metadata"])
        if "deletionTimestamp" in meta and meta.get("deletionGracePeriodSeconds", 0) <= grace:
            return record
        begun = "deletionTimestamp" in meta
        meta["deletionTimestamp"] = times.from_epoch(self._cluster.clock() + grace)
        meta["deletionGracePeriodSeconds"] = grace
        if kind.strategy.generation and not begun:
            meta["generation"] = meta.get("generation", 0) + 1
        changed = {**record.object, "metadata": meta}
        return self._cluster.amend(kind, record, changed, may_end=False)

    # ---- owners ------------------------------------------------------------------------------

    def _after_write(self, kind: Kind, old: Record | None, new: Record | None) -> None:
        if new is None:
            assert old is not None
            for inner_kind, inner in self._cluster.dependants(old.uid):
                self._delete_dependant(inner_kind, inner, old.uid)
            self._continue_namespace(old.namespace)
            return
        if kind.resource == NAMESPACES:
            self._continue_namespace(new.name)
        owners = new.object["metadata"].get("ownerReferences") or []
        orphaned = owners and all(self._cluster.is_absent(owner) for owner in owners)
        if orphaned and self._cluster.find(kind, new.namespace, new.name):
            # The collector finds such objects and removes them.
            self.delete(kind, new.namespace, new.name, DeleteOptions())

    def _delete_dependant(self, kind: Kind, record: Record, owner: str) -> None:
        meta = record.object["metadata"]
        others = [entry for entry in meta["ownerReferences"] if entry["uid"] != owner]
        if not all(self._cluster.is_absent(entry) for entry in others):
            changed = {**record.object, "metadata": {**meta, "ownerReferences": others}}
            self._cluster.amend(kind, record, changed)
        elif self._cluster.find(kind, record.namespace, record.name):
            self.delete(kind, record.namespace, record.name, DeleteOptions())

    def _orphan(self, record: Record) -> None:
        for kind, inner in self._cluster.dependants(record.uid):
            meta = dict(inner.object["metadata"])
            others = [entry for entry in meta["ownerReferences"] if entry["uid"] != record.uid]
            meta.pop("ownerReferences")
            if others:
                meta["ownerReferences"] = others
            self._cluster.amend(kind, inner, {**inner.object, "metadata": meta})

    # ---- namespaces --------------------------------------------------------------------------

    def _end_namespace(self, kind: Kind, record: Record) -> Deleted:
        meta = record.object["metadata"]
        if not meta.get("deletionTimestamp"):
            ended = {**meta, "deletionTimestamp": self._cluster.now()}
            status = {**record.object.get("status", {}), "phase": "Terminating"}
            changed = {**record.object, "metadata": ended, "status": status}
            # Its finalizer is in the spec: only the emptying below removes it.
            self._cluster.store.put(kind.resource, record.key, changed)
        for inner_kind in self._cluster.registry:
            if inner_kind.namespaced and not inner_kind.converted:
                collection = self._cluster.store.collection(inner_kind.resource)
                for inner in collection.range(f"{record.name}/"):
                    if collection.get(inner.key) is not None:
                        self.delete(inner_kind, record.name, inner.name, DeleteOptions())
        self._continue_namespace(record.name)
        left = self._cluster.find(kind, "", record.name)
        return Deleted(left or record, False)

    def _continue_namespace(self, name: str) -> None:
        """Removes an ending namespace once it is empty."""
        kind = self._cluster.registry.storing(NAMESPACES)
        record = self._cluster.store.collection(NAMESPACES).get(name) if name else None
        if kind is None or record is None or not record.object["metadata"].get("deletionTimestamp"):
            return
        for inner in self._cluster.registry:
            if inner.namespaced:
                collection = self._cluster.store.collection(inner.resource)
                if collection.range(f"{name}/"):
                    return
        if not record.object["metadata"].get("finalizers"):
            self._cluster.remove(kind, record)
