# SPDX-License-Identifier: Apache-2.0
"""Server-side apply: who applies says what it wants, and owns that (pure)."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from bench.lab.apiserver import fieldset, managed
from bench.lab.apiserver.cluster import Cluster, Outcome
from bench.lab.apiserver.codec import Options, read, whole_schema
from bench.lab.apiserver.errors import ApiError, Object, bad_request, conflict, not_found
from bench.lab.apiserver.fieldset import Fields, Path
from bench.lab.apiserver.kinds import Kind
from bench.lab.apiserver.managed import Manager, Owned
from bench.lab.apiserver.schema import Schema
from bench.lab.apiserver.store import Record


def apply(
    cluster: Cluster,
    kind: Kind,
    namespace: str,
    name: str,
    document: Object,
    options: Options,
    subresource: str = "",
) -> Outcome:
    """Makes the object hold what `document` says. Raises ApiError: 400, 404, 409, 422."""
    if not isinstance(document.get("kind"), str) or not document.get("apiVersion"):
        raise bad_request(
            "error decoding YAML: Object 'Kind' is missing: apply needs kind and apiVersion"
        )
    meta = document.get("metadata")
    if not isinstance(meta, dict):
        raise bad_request("error decoding YAML: metadata is missing")
    if meta.get("managedFields"):
        raise bad_request("metadata.managedFields must be nil")
    if meta.get("name", name) != name:
        raise bad_request(
            f"the name of the object ({meta['name']}) does not match the name on the URL ({name})"
        )
    meta = document["metadata"] = {**meta, "name": name}
    if kind.namespaced:
        meta.setdefault("namespace", namespace)
    # Defaults are not what was applied: they are found by comparing afterwards.
    decoded = read(kind, copy.deepcopy(document), options, [])
    stored = cluster.registry.storing(kind.resource) or kind
    schema = whole_schema(stored)
    applied = _as_sent(kind, document, decoded.item)
    manager = Manager(options.manager, "Apply", kind.api_version, subresource)
    reset = "status" if kind.status and not subresource else ""
    wanted = managed.everything(schema, applied, reset=reset)
    old = cluster.find(kind, namespace, name)
    if old is None:
        return _create(cluster, kind, namespace, applied, options, manager, wanted, subresource)
    if meta.get("uid", old.uid) != old.uid:
        raise conflict(
            kind.group, kind.plural, name, "uid mismatch: the provided object specified uid"
        )
    owners = managed.read(old.object["metadata"])
    merged: Object = fieldset.merge(schema, managed.plain(old.object), applied)
    owners = _take_over(owners, manager, schema, old.object, merged, wanted, options, kind)
    last = owners.get(manager)
    if last is not None:
        merged = _prune(schema, merged, last.fields - wanted, wanted, _others(owners, manager))
    merged["metadata"] = {**merged["metadata"]}
    if "resourceVersion" not in meta:
        merged["metadata"]["resourceVersion"] = str(old.revision)
    outcome = _finish(cluster, kind, old, merged, options, subresource, owners, manager, wanted)
    return Outcome(outcome.code, outcome.record, outcome.changed, decoded.warnings)


def _as_sent(kind: Kind, document: Object, item: Object) -> Object:
    """The decoded object without defaults that the sender did not write."""
    if not kind.custom:
        return item
    sent = {key: value for key, value in document.items() if key not in ("kind", "apiVersion")}
    return _common(sent, item)


def _common(sent: Object, item: Object) -> Object:
    made: Object = {}
    for key, value in item.items():
        if key not in sent:
            continue
        below = sent[key]
        both = isinstance(value, dict) and isinstance(below, dict)
        made[key] = _common(below, value) if both and key != "metadata" else value
    return made


def _create(
    cluster: Cluster,
    kind: Kind,
    namespace: str,
    applied: Object,
    options: Options,
    manager: Manager,
    wanted: Fields,
    subresource: str,
) -> Outcome:
    name = applied["metadata"]["name"]
    if subresource:
        raise not_found(kind.group, kind.plural, name)
    if applied["metadata"].get("uid"):
        raise conflict(kind.group, kind.plural, name, "uid mismatch: the object does not exist")
    item = _defaulted(kind, applied, options)
    managed.write(item["metadata"], [Owned(manager, wanted, cluster.now())])
    return cluster.create(kind, namespace, item, options, "Apply")


def _defaulted(kind: Kind, item: Object, options: Options) -> Object:
    """Decoded again: defaults added, and what is empty dropped."""
    document = {**kind.document(item), "kind": kind.name, "apiVersion": kind.api_version}
    quiet = Options("Ignore", options.dry_run, options.manager, options.force)
    return read(kind, copy.deepcopy(document), quiet, []).item


def _take_over(
    owners: dict[Manager, Owned],
    manager: Manager,
    schema: Schema,
    old: Object,
    merged: Object,
    wanted: Fields,
    options: Options,
    kind: Kind,
) -> dict[Manager, Owned]:
    """Finds fields that others own and this changes. Raises ApiError 409 without force."""
    difference = fieldset.compare(schema, managed.plain(old), managed.plain(merged))
    changed = (difference.added | difference.modified) & wanted
    conflicts = [
        (owned, sorted(owned.fields & changed))
        for owned in owners.values()
        if owned.manager != manager and owned.fields & changed
    ]
    if conflicts and not options.force:
        raise _conflict(kind, conflicts)
    lost = {owned.manager: frozenset(paths) for owned, paths in conflicts}
    return {
        key: Owned(key, owned.fields - lost.get(key, frozenset()), owned.time)
        for key, owned in owners.items()
    }


def _conflict(kind: Kind, conflicts: list[tuple[Owned, list[Path]]]) -> ApiError:
    causes, lines = [], []
    for owned, paths in conflicts:
        manager = owned.manager
        text = f'conflict with "{manager.name}"'
        if manager.subresource:
            text += f' with subresource "{manager.subresource}"'
        text += f" using {manager.api_version}"
        for path in paths:
            shown = fieldset.shown(path)
            causes.append({"reason": "FieldManagerConflict", "message": text, "field": shown})
        places = "".join(f"\n- {fieldset.shown(path)}" for path in paths)
        one = len(paths) == 1
        lines.append(f"{text}: {fieldset.shown(paths[0])}" if one else f"{text}:{places}")
    count = len(causes)
    plural = "" if count == 1 else "s"
    message = f"Apply failed with {count} conflict{plural}: " + "\n".join(lines)
    return ApiError(409, "Conflict", message, {"causes": causes})


def _others(owners: dict[Manager, Owned], manager: Manager) -> Fields:
    return frozenset().union(*(o.fields for key, o in owners.items() if key != manager))


def _prune(
    schema: Schema, item: Object, dropped: Iterable[Path], wanted: Fields, others: Fields
) -> Object:
    """Removes what was applied before, is not any more, and nobody else owns."""
    kept = wanted | others
    # Whole items first: without its key an item could not be found any more.
    for path in sorted(dropped, key=len):
        owned = any(other[: len(path)] == path for other in kept)
        if not owned and not fieldset.is_key(path):
            item = fieldset.without(item, schema, path)
    return item


def _finish(
    cluster: Cluster,
    kind: Kind,
    old: Record,
    merged: Object,
    options: Options,
    subresource: str,
    owners: dict[Manager, Owned],
    manager: Manager,
    wanted: Fields,
) -> Outcome:
    item = _defaulted(kind, merged, options)
    last = owners.get(manager)
    same = last is not None and last.fields == wanted
    time = last.time if same and last else cluster.now()
    entries = [*(o for key, o in owners.items() if key != manager), Owned(manager, wanted, time)]
    owned: Object = {}
    managed.write(owned, entries)
    return cluster.update(
        kind,
        old.namespace,
        old.name,
        item,
        options,
        subresource,
        "Apply",
        owned.get("managedFields"),
    )
