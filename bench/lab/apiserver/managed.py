# SPDX-License-Identifier: Apache-2.0
"""Who manages which fields: `metadata.managedFields` (pure)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench.lab.apiserver import fieldset
from bench.lab.apiserver.errors import Object
from bench.lab.apiserver.fieldset import Fields, Path
from bench.lab.apiserver.schema import Schema

# Fields of the server, which nobody manages.
_NOBODYS = frozenset(
    ("f:metadata", f"f:{name}")
    for name in (
        "name",
        "namespace",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "uid",
        "generation",
        "managedFields",
        "resourceVersion",
    )
)


@dataclass(frozen=True, slots=True)
class Manager:
    """Who writes: a name, how (Apply or Update), in which version, through which subresource."""

    name: str
    operation: str
    api_version: str
    subresource: str = ""


@dataclass(frozen=True, slots=True)
class Owned:
    """The fields of one manager and when they last changed."""

    manager: Manager
    fields: Fields
    time: str


def read(meta: Object) -> dict[Manager, Owned]:
    """The managers of an object."""
    found: dict[Manager, Owned] = {}
    for entry in meta.get("managedFields") or []:
        manager = Manager(
            entry.get("manager", ""),
            entry.get("operation", ""),
            entry.get("apiVersion", ""),
            entry.get("subresource", ""),
        )
        fields = fieldset.from_json(entry.get("fieldsV1") or {})
        found[manager] = Owned(manager, fields, entry.get("time", ""))
    return found


def write(meta: Object, owners: Iterable[Owned]) -> None:
    """Sets `managedFields`; those who own nothing are left out."""
    entries = []
    order = {"Apply": 0, "Update": 1}
    for owned in sorted(owners, key=lambda o: (order[o.manager.operation], o.time)):
        if owned.fields:
            manager = owned.manager
            entry: Object = {
                "manager": manager.name,
                "operation": manager.operation,
                "apiVersion": manager.api_version,
                "time": owned.time,
                "fieldsType": "FieldsV1",
                "fieldsV1": fieldset.to_json(owned.fields),
            }
            if manager.subresource:
                entry["subresource"] = manager.subresource
            entries.append(entry)
    if entries:
        meta["managedFields"] = entries
    else:
        meta.pop("managedFields", None)


def plain(item: Object) -> Object:
    """The object without managedFields, which nobody manages."""
    meta = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
    return {**item, "metadata": meta}


def everything(schema: Schema, item: Object, *, reset: str = "") -> Fields:
    """All fields of an object that somebody can manage. reset: a field that is not written."""
    return managed(fieldset.collect(schema, plain(item)), reset)


def managed(fields: Iterable[Path], reset: str = "") -> Fields:
    """Those of the fields that somebody can manage."""
    return frozenset(
        path
        for path in fields
        if path[:2] not in _NOBODYS
        and path[0] not in ("f:kind", "f:apiVersion", f"f:{reset}")
        and path != ("f:metadata",)
    )


def after_update(
    owners: dict[Manager, Owned],
    manager: Manager,
    schema: Schema,
    old: Object | None,
    new: Object,
    time: str,
    reset: str = "",
) -> list[Owned]:
    """Managers after `manager` made `new` out of `old`: it owns what it changed."""
    before = plain(old) if old is not None else {"metadata": {}}
    difference = fieldset.compare(schema, before, plain(new))
    taken = managed(difference.added | difference.modified, reset)
    result = []
    for owned in owners.values():
        if owned.manager != manager:
            result.append(_less(owned, taken | difference.removed))
    own = owners.get(manager)
    held = own.fields if own else frozenset()
    fields = (held | taken) - difference.removed
    result.append(Owned(manager, fields, own.time if own and fields == held else time))
    return result


def _less(owned: Owned, lost: Fields) -> Owned:
    return Owned(owned.manager, owned.fields - lost, owned.time)
