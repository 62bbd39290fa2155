# SPDX-License-Identifier: Apache-2.0
"""Reading and writing objects as a real server does it: the meaning of every verb but list and
watch (pure: the clock is passed in, and whoever calls keeps others away meanwhile)."""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from bench.lab.apiserver import managed, times, validation
from bench.lab.apiserver.codec import Options, whole_schema
from bench.lab.apiserver.errors import (
    ApiError,
    Object,
    Problem,
    already_exists,
    bad_request,
    conflict,
    forbidden,
    invalid,
    modified,
    not_found,
)
from bench.lab.apiserver.kinds import Kind, Registry
from bench.lab.apiserver.managed import Manager
from bench.lab.apiserver.store import Change, Record, Resource, Store

MAX_OBJECT_BYTES = 3 << 19  # 1.5 MiB, what etcd takes
NAMESPACES: Resource = ("", "namespaces")
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a write did. code: HTTP status. changed: whether there is a new version."""

    code: int
    record: Record
    changed: bool
    warnings: list[str] = field(default_factory=list)


class Cluster:
    """Objects of all kinds and the rules between them.

    clock: seconds since 1970. after_write: called with the kind and old and new record of every
    write that changed something; old is None for a creation, new for a removal.
    """

    def __init__(
        self, store: Store, registry: Registry, clock: Callable[[], float], seed: int | None = None
    ) -> None:
        self.store = store
        self.registry = registry
        self.clock = clock
        self.unchanged_writes = 0
        self.after_write: list[Callable[[Kind, Record | None, Record | None], None]] = []
        self._random = random.Random(seed)
        self._owners: dict[str, set[tuple[Resource, str]]] = {}
        self._uids: dict[str, tuple[Resource, str]] = {}
        store.listen(self._index)

    def now(self) -> str:
        """The time as a timestamp."""
        return times.from_epoch(self.clock())

    def _index(self, resource: Resource, change: Change) -> None:
        """Keeps who owns whom."""
        place = (resource, change.record.key)
        for record, add in ((change.previous, False), (change.record, change.kind != "DELETED")):
            if record is None:
                continue
            for owner in record.object["metadata"].get("ownerReferences") or []:
                owned = self._owners.setdefault(owner["uid"], set())
                (owned.add if add else owned.discard)(place)
                if not owned:
                    del self._owners[owner["uid"]]
            if add:
                self._uids[record.uid] = place
            else:
                self._uids.pop(record.uid, None)

    def dependants(self, uid: str) -> list[tuple[Kind, Record]]:
        """Objects that name this owner."""
        found = []
        for resource, key in sorted(self._owners.get(uid, ())):
            kind, record = self.registry.storing(resource), self.store.collection(resource).get(key)
            if kind is not None and record is not None:
                found.append((kind, record))
        return found

    def is_absent(self, owner: Object) -> bool:
        """Whether an owner reference leads nowhere. Of kinds that are not served nobody knows."""
        known = self.registry.by_name(owner["apiVersion"], owner["kind"]) is not None
        return known and owner["uid"] not in self._uids

    # ---- reading -----------------------------------------------------------------------------

    def find(self, kind: Kind, namespace: str, name: str) -> Record | None:
        """The current version, None if there is none."""
        return self.store.collection(kind.resource).get(kind.key(namespace, name))

    def get(self, kind: Kind, namespace: str, name: str) -> Record:
        """The current version. Raises ApiError 404."""
        record = self.find(kind, namespace, name)
        if record is None:
            raise not_found(kind.group, kind.plural, name)
        return record

    # ---- writing -----------------------------------------------------------------------------

    def create(
        self, kind: Kind, namespace: str, item: Object, options: Options, operation: str = "Update"
    ) -> Outcome:
        """Adds an object. Raises ApiError: 400, 404 without namespace, 409, 422."""
        meta = item["metadata"] = dict(item["metadata"])
        self._place(kind, namespace, meta)
        if kind.ending:
            text = "create not allowed while custom resource definition is terminating"
            raise ApiError(405, "MethodNotAllowed", text)
        if meta.get("resourceVersion"):
            # Without a reason, as a real one.
            text = "resourceVersion should not be set on objects to be created"
            raise ApiError(500, "", text)
        if meta.get("generateName") and not meta.get("name"):
            meta["name"] = self._generated(kind, namespace, meta["generateName"])
        self._check_namespace(kind, namespace, str(meta.get("name", "")))
        for key in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"):
            meta.pop(key, None)
        meta["uid"] = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        meta["creationTimestamp"] = self.now()
        if kind.strategy.generation:
            meta["generation"] = 1
        kind.strategy.prepare_create(item)
        problems = list(
            validation.metadata(
                meta, namespaced=kind.namespaced, rule=kind.name_rule, core=kind.core
            )
        )
        if not problems:
            problems += kind.strategy.validate(item)
            problems += kind.strategy.validate_create(item)
        self._refuse(kind, meta.get("name", ""), problems)
        name = meta["name"]
        if self.find(kind, namespace, name):
            raise already_exists(kind.group, kind.plural, name)
        if operation == "Update":
            meta.pop("managedFields", None)
            self._manage(kind, None, item, options, "")
        record = self._store(kind, kind.key(namespace, name), item, options)
        return Outcome(201, self._wrote(kind, None, record, options), True)

    def _place(self, kind: Kind, namespace: str, meta: Object) -> None:
        """An object goes where the path says."""
        if not kind.namespaced:
            return
        if meta.get("namespace", namespace) != namespace:
            raise bad_request(
                "the namespace of the provided object does not match the namespace sent on the "
                "request"
            )
        meta["namespace"] = namespace

    def _generated(self, kind: Kind, namespace: str, prefix: str) -> str:
        while True:
            name = prefix[:58] + "".join(self._random.choices(_LETTERS, k=5))
            if not self.find(kind, namespace, name):
                return name

    def _check_namespace(self, kind: Kind, namespace: str, name: str) -> None:
        if not kind.namespaced:
            return
        home = self.store.collection(NAMESPACES).get(namespace)
        if home is None:
            raise not_found("", "namespaces", namespace)
        if home.object["metadata"].get("deletionTimestamp"):
            text = (
                f"unable to create new content in namespace {namespace} because it is being "
                "terminated"
            )
            error = forbidden(kind.group, kind.plural, name, text)
            cause = {
                "reason": "NamespaceTerminating",
                "message": f"namespace {namespace} is being terminated",
                "field": "metadata.namespace",
            }
            error.details["causes"] = [cause]
            raise error

    def update(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        item: Object,
        options: Options,
        subresource: str = "",
        operation: str = "Update",
        owners: list[Object] | None = None,
    ) -> Outcome:
        """Replaces an object, or its status. Raises ApiError: 400, 404, 409, 422.

        operation: Update, or Apply with the managedFields that it found.
        """
        meta = item["metadata"] = dict(item["metadata"])
        self._place(kind, namespace, meta)
        given = meta.get("name", "")
        if not given:
            raise bad_request(
                f"the name of the object ({name} based on URL) was undeterminable: name must be "
                "provided"
            )
        if given != name:
            raise bad_request(
                f"the name of the object ({given}) does not match the name on the URL ({name})"
            )
        old = self.find(kind, namespace, name)
        if old is None:
            if kind.strategy.create_on_update and not subresource:
                if meta.get("resourceVersion"):
                    raise modified(kind.group, kind.plural, name)
                return self.create(kind, namespace, item, options, operation)
            raise not_found(kind.group, kind.plural, name)
        self._check_version(kind, old, meta)
        item = self._prepared(kind, item, old.object, subresource)
        rule = kind.strategy
        before = old.object["metadata"]
        problems = list(validation.metadata_update(item["metadata"], before, core=kind.core))
        if subresource:
            problems += rule.validate_status(item)
        else:
            problems += rule.validate(item)
            problems += rule.validate_update(item, old.object)
        self._refuse(kind, name, problems)
        if operation == "Update":
            self._manage(kind, old.object, item, options, subresource)
        elif owners:
            item["metadata"]["managedFields"] = owners
        return self._replace(kind, old, item, options)

    def _check_version(self, kind: Kind, old: Record, meta: Object) -> None:
        given = meta.get("resourceVersion", "")
        if given and not re.match(r"[0-9]+\Z", given, re.ASCII):
            problem = Problem(
                "metadata.resourceVersion",
                "FieldValueInvalid",
                f'Invalid value: "{given}": must be an unsigned integer',
            )
            raise invalid(kind.group, kind.name, old.name, [problem])
        if given and int(given) and int(given) != old.revision:
            raise modified(kind.group, kind.plural, old.name)
        if (not given or not int(given)) and not kind.strategy.unconditional:
            problem = Problem(
                "metadata.resourceVersion",
                "FieldValueInvalid",
                "Invalid value: 0x0: must be specified for an update",
            )
            raise invalid(kind.group, kind.name, old.name, [problem])
        if meta.get("uid", old.uid) != old.uid:
            raise conflict(
                kind.group,
                kind.plural,
                old.name,
                f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: "
                f"{old.uid}",
            )

    def _prepared(self, kind: Kind, item: Object, old: Object, subresource: str) -> Object:
        """The new object, with what this request may not change taken from the old one."""
        before = old["metadata"]
        meta = item["metadata"]
        if subresource:
            status = item.get("status")
            if kind.strategy.status_metadata:
                meta["ownerReferences"] = before.get("ownerReferences")
            else:
                meta = dict(before)
            item = {**old, "metadata": {k: v for k, v in meta.items() if v is not None}}
            item.pop("status", None)
            if status is not None:
                item["status"] = status
            kind.strategy.prepare_status(item)
        else:
            kind.strategy.prepare_update(item, old)
        meta = item["metadata"]
        meta.setdefault("uid", before["uid"])
        for key in (
            "creationTimestamp",
            "generation",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "managedFields",
            "selfLink",
        ):
            meta.pop(key, None)
            if key in before:
                meta[key] = before[key]
        grown = _desired(kind, item) != _desired(kind, old)
        if kind.strategy.generation and not subresource and grown:
            meta["generation"] = before.get("generation", 0) + 1
        return item

    def _manage(
        self, kind: Kind, old: Object | None, item: Object, options: Options, subresource: str
    ) -> None:
        stored = self.registry.storing(kind.resource) or kind
        owners = managed.read(old["metadata"]) if old else {}
        manager = Manager(options.manager, "Update", kind.api_version, subresource)
        reset = "status" if kind.status and not subresource else ""
        schema = whole_schema(stored)
        found = managed.after_update(owners, manager, schema, old, item, self.now(), reset)
        managed.write(item["metadata"], found)

    def _replace(
        self, kind: Kind, old: Record, item: Object, options: Options, *, may_end: bool = True
    ) -> Outcome:
        """Stores a new version if it is one; the last finalizer takes the object with it.

        may_end: False: there will be this version in any case.
        """
        item["metadata"]["resourceVersion"] = str(old.revision)
        if item == old.object:
            self.unchanged_writes += 1
            return Outcome(200, old, False)
        meta, before = item["metadata"], old.object["metadata"]
        waits = meta.get("finalizers") or meta.get("deletionGracePeriodSeconds")
        # Namespaces wait for more: for their contents.
        ends = before.get("deletionTimestamp") and not waits and kind.resource != NAMESPACES
        if may_end and ends and not options.dry_run:
            self.remove(kind, old)  # of what was changed there is no version
            return Outcome(200, Record(old.key, item, old.created, old.revision), True)
        record = self._store(kind, old.key, item, options)
        self._wrote(kind, old, record, options)
        return Outcome(200, record, True)

    def amend(self, kind: Kind, old: Record, item: Object, *, may_end: bool = True) -> Record:
        """Stores a version that the server itself made."""
        return self._replace(kind, old, item, Options(), may_end=may_end).record

    def remove(self, kind: Kind, record: Record) -> Record:
        """Deletes at once; the last version."""
        if self.store.collection(kind.resource).get(record.key) is None:
            return record
        last = self.store.delete(kind.resource, record.key)
        for told in self.after_write:
            told(kind, last, None)
        return last

    def _store(self, kind: Kind, key: str, item: Object, options: Options) -> Record:
        if options.dry_run:
            return Record(key, item, self.store.revision, self.store.revision)
        size = len(Record(key, item, 0, 0).body)
        if size > MAX_OBJECT_BYTES:
            raise ApiError(500, "", "etcdserver: request is too large")
        return self.store.put(kind.resource, key, item)

    def _wrote(self, kind: Kind, old: Record | None, record: Record, options: Options) -> Record:
        if not options.dry_run:
            for told in self.after_write:
                told(kind, old, record)
        return record

    def _refuse(self, kind: Kind, name: str, problems: list[Problem]) -> None:
        if problems:
            raise invalid(kind.group, kind.name, name, problems)

    # ---- for whom the lab stands in ----------------------------------------------------------

    def load(self, kind: Kind, items: Iterator[Object]) -> int:
        """Adds or replaces objects with all they hold, status too, and without checks.

        This is what controllers, kubelets and time would have made. Returns how many there were.
        """
        fresh: list[tuple[str, Object]] = []
        count = 0
        collection = self.store.collection(kind.resource)
        stamp = self.now()
        for item in items:
            count += 1
            meta = item["metadata"]
            key = kind.key(meta.get("namespace", ""), meta["name"])
            kind.strategy.complete(item)
            old = collection.get(key)
            known = old.object["metadata"] if old else {}
            meta.setdefault("uid", known.get("uid") or str(self._uuid()))
            meta.setdefault("creationTimestamp", known.get("creationTimestamp", stamp))
            if kind.strategy.generation:
                before = _desired(kind, old.object) if old else None
                grown = before is not None and _desired(kind, item) != before
                meta.setdefault("generation", int(known.get("generation", 1)) + grown)
            if old is None and kind.group != EXTENSIONS:
                fresh.append((key, item))
            else:
                record = self.store.put(kind.resource, key, item)
                self._wrote(kind, old, record, Options())
        if fresh:
            self.store.load(kind.resource, fresh)
        return count

    def _uuid(self) -> uuid.UUID:
        return uuid.UUID(int=self._random.getrandbits(128), version=4)


EXTENSIONS = "apiextensions.k8s.io"


def _desired(kind: Kind, item: Object) -> Object:
    """What counts for metadata.generation."""
    others = ("metadata", "status") if kind.status else ("metadata",)
    return {key: value for key, value in item.items() if key not in others}
