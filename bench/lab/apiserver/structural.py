# SPDX-License-Identifier: Apache-2.0
"""Whether the schema of a CustomResourceDefinition is structural, as a real server demands (pure).

Stricter in one place: CEL rules other than `self == oldSelf` are refused, since nothing here could
check them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from bench.lab.apiserver.errors import (
    Problem,
    forbidden_field,
    invalid_value,
    required,
    unsupported,
)
from bench.lab.apiserver.rules import OWN_RULES, validate
from bench.lab.apiserver.schema import ANYTHING, compile_schema

TYPES = ("object", "array", "string", "integer", "number", "boolean")
SHAPE = {
    "type",
    "title",
    "description",
    "default",
    "nullable",
    "example",
    "externalDocs",
    "additionalProperties",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
}
REFUSED = {
    "$ref",
    "$schema",
    "id",
    "definitions",
    "dependencies",
    "patternProperties",
    "additionalItems",
}


def check(root: Mapping[str, Any], path: str) -> Iterator[Problem]:
    """Problems of `openAPIV3Schema`; path: where it is."""
    if root.get("type") != "object":
        yield invalid_value(f"{path}.type", root.get("type", ""), "must be object at the root")
    if root.get("nullable"):
        yield forbidden_field(f"{path}.nullable", "nullable cannot be true at the root")
    yield from _node(root, path, root=True)
    meta = (root.get("properties") or {}).get("metadata")
    if isinstance(meta, Mapping):
        extra = set(meta) - {"type", "properties", "description", "title"}
        named = set(meta.get("properties") or {}) - {"name", "generateName"}
        if extra or named:
            yield forbidden_field(
                f"{path}.properties[metadata]",
                "must not specify anything other than name and generateName, but metadata is "
                "implicitly specified",
            )


def _node(node: Any, path: str, *, root: bool = False) -> Iterator[Problem]:
    if not isinstance(node, Mapping):
        yield invalid_value(path, str(node), "must be a schema")
        return
    yield from _shape(node, path, root=root)
    yield from _values(node, path)
    for key, inner in (node.get("properties") or {}).items():
        yield from _node(inner, f"{path}.properties[{key}]")
    if isinstance(node.get("additionalProperties"), Mapping):
        yield from _node(node["additionalProperties"], f"{path}.additionalProperties")
    if isinstance(node.get("items"), Mapping):
        yield from _node(node["items"], f"{path}.items")
    for key in ("allOf", "anyOf", "oneOf"):
        for number, inner in enumerate(node.get(key) or ()):
            yield from _branch(node, inner, f"{path}.{key}[{number}]")
    if node.get("not") is not None:
        yield from _branch(node, node["not"], f"{path}.not")


def _shape(node: Mapping[str, Any], path: str, *, root: bool) -> Iterator[Problem]:
    kind = node.get("type", "")
    either = node.get("x-kubernetes-int-or-string")
    free = node.get("x-kubernetes-preserve-unknown-fields")
    for key in REFUSED & set(node):
        yield forbidden_field(f"{path}.{key}", f"{key} is not supported")
    if either and kind:
        text = "type must be empty if x-kubernetes-int-or-string is specified"
        yield invalid_value(f"{path}.type", kind, text)
    if not kind and not either and not free and not root:
        yield required(f"{path}.type", "must not be empty for specified object fields")
    if kind and kind not in TYPES:
        yield unsupported(f"{path}.type", kind, TYPES)
    if free is False:
        yield invalid_value(f"{path}.x-kubernetes-preserve-unknown-fields", False, "must be true")
    if node.get("properties") and node.get("additionalProperties") not in (None, False):
        text = "additionalProperties and properties are mutual exclusive"
        yield forbidden_field(f"{path}.additionalProperties", text)
    if node.get("uniqueItems"):
        text = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic"
        yield forbidden_field(f"{path}.uniqueItems", text)
    if kind == "array" and not isinstance(node.get("items"), Mapping):
        yield required(f"{path}.items", "must be specified")
    if node.get("x-kubernetes-embedded-resource") and kind != "object":
        yield invalid_value(
            f"{path}.type", kind, "must be object if x-kubernetes-embedded-resource"
        )
    yield from _list_shape(node, path, kind)


def _list_shape(node: Mapping[str, Any], path: str, kind: str) -> Iterator[Problem]:
    list_type = node.get("x-kubernetes-list-type")
    keys = node.get("x-kubernetes-list-map-keys") or ()
    if list_type is None:
        if keys:
            text = "must be map if x-kubernetes-list-map-keys is non-empty"
            yield required(f"{path}.x-kubernetes-list-type", text)
        return
    if kind != "array":
        yield invalid_value(f"{path}.type", kind, "must be array if x-kubernetes-list-type is set")
    if list_type not in ("atomic", "set", "map"):
        yield unsupported(f"{path}.x-kubernetes-list-type", list_type, ("atomic", "set", "map"))
    if list_type != "map":
        return
    if not keys:
        text = "must not be empty if x-kubernetes-list-type is map"
        yield required(f"{path}.x-kubernetes-list-map-keys", text)
    items = node.get("items") or {}
    known = items.get("properties") or {}
    needed = items.get("required") or ()
    for number, key in enumerate(keys):
        if key not in known:
            text = "entries must all be names of item properties"
            yield invalid_value(f"{path}.x-kubernetes-list-map-keys[{number}]", key, text)
        elif key not in needed and "default" not in known[key]:
            text = (
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be "
                "required"
            )
            yield required(f"{path}.items.properties[{key}].default", text)


def _values(node: Mapping[str, Any], path: str) -> Iterator[Problem]:
    if "pattern" in node:
        try:
            re.compile(str(node["pattern"]))
        except re.error as error:
            text = f"must be a valid regular expression, but isn't: {error}"
            yield invalid_value(f"{path}.pattern", node["pattern"], text)
    if "default" in node:
        schema = compile_schema({k: v for k, v in node.items() if k != "default"}, ANYTHING)
        yield from validate(schema, node["default"], f"{path}.default")
    for number, rule in enumerate(node.get("x-kubernetes-validations") or ()):
        if rule.get("rule") not in OWN_RULES:
            text = "this test server checks no rule but `self == oldSelf`"
            yield invalid_value(f"{path}.x-kubernetes-validations[{number}].rule", rule, text)


def _branch(parent: Mapping[str, Any], node: Any, path: str) -> Iterator[Problem]:
    """A schema in allOf and its like: checks only, on fields that the structure knows."""
    if not isinstance(node, Mapping):
        yield invalid_value(path, str(node), "must be a schema")
        return
    either = parent.get("x-kubernetes-int-or-string")
    for key in SHAPE & set(node):
        if not (either and key == "type"):
            yield forbidden_field(f"{path}.{key}", "must be empty to be structural")
    known = parent.get("properties") or {}
    for key, inner in (node.get("properties") or {}).items():
        if key not in known and not isinstance(parent.get("additionalProperties"), Mapping):
            place = f"{path}.properties[{key}]"
            yield required(place, "must be specified in the structure as well")
        else:
            yield from _branch(known.get(key, {}), inner, f"{path}.properties[{key}]")
    if node.get("items"):
        yield from _branch(parent.get("items") or {}, node["items"], f"{path}.items")
    for key in ("allOf", "anyOf", "oneOf"):
        for number, inner in enumerate(node.get(key) or ()):
            yield from _branch(parent, inner, f"{path}.{key}[{number}]")
