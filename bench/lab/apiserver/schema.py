# SPDX-License-Identifier: Apache-2.0
"""What a kind's objects look like: one form for built-in and for custom kinds (pure).

Here: the form, pruning of unknown fields, and defaults. What a custom resource's values must be is
in rules.py, how JSON of a built-in kind is read in decode.py.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from bench.lab.apiserver.errors import Object

UNSET: Final = object()


@dataclass(frozen=True, slots=True)
class Schema:
    """A node of a schema.

    type: object, array, string, integer, number, boolean; "" for anything.
    fields: of an object with known fields. values: of a map. items: of a list.
    open: unknown fields stay. embedded: is an object with kind and metadata itself.
    list_type: atomic, set or map; list_keys: what identifies an item of a map list.
    merge_key: of a strategic merge patch: "" replaces the list, "=" makes a union of plain values.
    atomic: an object that has one owner as a whole.
    name: of the type, in messages about built-in kinds. rules: value checks, as in OpenAPI.
    """

    type: str = ""
    fields: Mapping[str, Schema] = field(default_factory=dict)
    values: Schema | None = None
    items: Schema | None = None
    open: bool = False
    int_or_string: bool = False
    nullable: bool = False
    embedded: bool = False
    format: str = ""
    default: Any = UNSET
    list_type: str = "atomic"
    list_keys: tuple[str, ...] = ()
    merge_key: str = ""
    atomic: bool = False
    name: str = ""
    rules: Mapping[str, Any] = field(default_factory=dict)

    def child(self, key: str) -> Schema | None:
        """The schema of a field or map value; None: it is not known."""
        found = self.fields.get(key)
        if found is None:
            found = self.values
        return ANYTHING if found is None and self.open else found

    def has_rules(self) -> bool:
        """Whether there are CEL rules, here or deeper."""
        inner = (*self.fields.values(), self.values, self.items)
        return "x-kubernetes-validations" in self.rules or any(
            one.has_rules() for one in inner if one is not None
        )


ANYTHING = Schema(open=True)


def compile_schema(node: Mapping[str, Any], meta: Schema) -> Schema:
    """A structural OpenAPI v3 schema, as in a CustomResourceDefinition.

    meta: the schema of `metadata` where an embedded resource has one.
    """
    embedded = bool(node.get("x-kubernetes-embedded-resource"))
    fields = {
        key: compile_schema(value, meta) for key, value in (node.get("properties") or {}).items()
    }
    if embedded:
        text = Schema(type="string")
        fields = {**fields, "apiVersion": text, "kind": text, "metadata": meta}
    extra, items = node.get("additionalProperties"), node.get("items")
    values = None
    if isinstance(extra, Mapping):
        values = compile_schema(extra, meta)
    elif extra is True:
        values = ANYTHING
    return Schema(
        type=node.get("type", ""),
        fields=fields,
        values=values,
        items=compile_schema(items, meta) if isinstance(items, Mapping) else None,
        open=bool(node.get("x-kubernetes-preserve-unknown-fields")),
        int_or_string=bool(node.get("x-kubernetes-int-or-string")),
        nullable=bool(node.get("nullable")),
        embedded=embedded,
        format=node.get("format", ""),
        default=node.get("default", UNSET),
        list_type=node.get("x-kubernetes-list-type", "atomic"),
        list_keys=tuple(node.get("x-kubernetes-list-map-keys") or ()),
        atomic=node.get("x-kubernetes-map-type") == "atomic",
        rules=node,
    )


def prune(schema: Schema, value: Any, path: str, unknown: list[str]) -> Any:
    """A copy without fields that the schema does not know; their paths are added to `unknown`."""
    if isinstance(value, dict):
        kept: Object = {}
        for key, item in value.items():
            inner = schema.child(key)
            place = f"{path}.{key}" if path else key
            if inner is None:
                if schema.type in ("object", ""):
                    unknown.append(place)
                    continue
                inner = ANYTHING  # the type is wrong anyhow: validation says so
            kept[key] = prune(inner, item, place, unknown)
        return kept
    if isinstance(value, list):
        inner = schema.items or ANYTHING
        return [prune(inner, item, f"{path}[{n}]", unknown) for n, item in enumerate(value)]
    return value


def add_defaults(schema: Schema, value: Any) -> None:
    """Puts defaults where fields are missing, or null without being nullable; in place."""
    if isinstance(value, dict):
        for key, inner in schema.fields.items():
            if inner.default is not UNSET and (
                key not in value or (value[key] is None and not inner.nullable)
            ):
                value[key] = copy.deepcopy(inner.default)
            if key in value:
                add_defaults(inner, value[key])
        if schema.values is not None:
            for key, item in value.items():
                if key not in schema.fields:
                    add_defaults(schema.values, item)
    elif isinstance(value, list) and schema.items is not None:
        for item in value:
            add_defaults(schema.items, item)
