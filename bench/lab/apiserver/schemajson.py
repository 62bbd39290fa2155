# SPDX-License-Identifier: Apache-2.0
"""How a CustomResourceDefinition's schema is read from JSON: types, nulls, unknown keys (pure).

Whether it is a structural schema is another question: structural.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.lab.apiserver.decode import Mismatch
from bench.lab.apiserver.errors import Object

Reader = Callable[[Any, str, list[str]], Any]


def read(node: Any, path: str, unknown: list[str]) -> Object:
    """A copy without nulls and unknown keys, whose paths go to `unknown`. Raises Mismatch."""
    if not isinstance(node, dict):
        raise _wrong(path, "JSONSchemaProps")
    kept: Object = {}
    for key, value in node.items():
        reader = READERS.get(key)
        place = f"{path}.{key}"
        if reader is None:
            unknown.append(place)
        elif value is not None or key == "default":
            kept[key] = reader(value, place, unknown)
    return kept


def _wrong(path: str, wanted: str) -> Mismatch:
    return Mismatch(f"json: cannot unmarshal value into Go struct field {path} of type {wanted}")


def _plain(wanted: str, *types: type) -> Reader:
    def reader(value: Any, path: str, unknown: list[str]) -> Any:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise _wrong(path, wanted)
        return value

    return reader


def _anything(value: Any, path: str, unknown: list[str]) -> Any:
    return value


def _list(inner: Reader) -> Reader:
    def reader(value: Any, path: str, unknown: list[str]) -> Any:
        if not isinstance(value, list):
            raise _wrong(path, "[]")
        return [inner(item, f"{path}[{number}]", unknown) for number, item in enumerate(value)]

    return reader


def _map(inner: Reader) -> Reader:
    def reader(value: Any, path: str, unknown: list[str]) -> Any:
        if not isinstance(value, dict):
            raise _wrong(path, "map")
        return {key: inner(item, f"{path}[{key}]", unknown) for key, item in value.items()}

    return reader


def _schema_or_bool(value: Any, path: str, unknown: list[str]) -> Any:
    return value if isinstance(value, bool) else read(value, path, unknown)


def _rule(value: Any, path: str, unknown: list[str]) -> Any:
    if not isinstance(value, dict):
        raise _wrong(path, "ValidationRule")
    for key, item in value.items():
        if key not in ("optionalOldSelf",) and not isinstance(item, str):
            raise _wrong(f"{path}.{key}", "string")
    return value


_TEXT, _FLAG = _plain("string", str), _plain("bool", bool)
_COUNT, _NUMBER = _plain("int64", int), _plain("float64", int, float)
READERS: dict[str, Reader] = {
    **dict.fromkeys(("$ref", "$schema", "id", "type", "format", "title"), _TEXT),
    **dict.fromkeys(("description", "pattern"), _TEXT),
    **dict.fromkeys(("x-kubernetes-list-type", "x-kubernetes-map-type"), _TEXT),
    **dict.fromkeys(("nullable", "uniqueItems", "exclusiveMaximum", "exclusiveMinimum"), _FLAG),
    "x-kubernetes-preserve-unknown-fields": _FLAG,
    "x-kubernetes-embedded-resource": _FLAG,
    "x-kubernetes-int-or-string": _FLAG,
    **dict.fromkeys(("maxLength", "minLength", "maxItems", "minItems"), _COUNT),
    **dict.fromkeys(("maxProperties", "minProperties"), _COUNT),
    **dict.fromkeys(("maximum", "minimum", "multipleOf"), _NUMBER),
    **dict.fromkeys(("default", "example"), _anything),
    "enum": _list(_anything),
    "required": _list(_TEXT),
    "x-kubernetes-list-map-keys": _list(_TEXT),
    "x-kubernetes-validations": _list(_rule),
    "externalDocs": _map(_TEXT),
    "properties": _map(read),
    "patternProperties": _map(read),
    "definitions": _map(read),
    "dependencies": _map(_anything),
    "items": read,
    "not": read,
    "additionalProperties": _schema_or_bool,
    "additionalItems": _schema_or_bool,
    **dict.fromkeys(("allOf", "anyOf", "oneOf"), _list(read)),
}
