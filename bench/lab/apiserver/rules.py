# SPDX-License-Identifier: Apache-2.0
"""Whether the values of a custom resource are what its schema says (pure).

Not here: x-kubernetes-validations beyond the comparison of a value with the old one. structural.py
refuses a definition that has others, so that nothing passes unchecked.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import math
import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from bench.lab.apiserver import times
from bench.lab.apiserver.errors import (
    Problem,
    duplicate,
    invalid_value,
    required,
    too_many,
    type_invalid,
    unsupported,
)
from bench.lab.apiserver.schema import Schema

OWN_RULES = ("self == oldSelf", "oldSelf == self")


def validate(schema: Schema, value: Any, path: str) -> Iterator[Problem]:
    """Problems of a value that was pruned and has its defaults."""
    if value is None:
        if not schema.nullable and schema.type:
            yield type_invalid(path, "null", f'{_in_body(path)} of type {schema.type}: "null"')
        return
    if schema.int_or_string:
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield type_invalid(path, _type(value), f"{_in_body(path)} of type integer,string")
        return
    if schema.type and not _fits(schema.type, value):
        found = _type(value)
        yield type_invalid(path, found, f'{_in_body(path)} of type {schema.type}: "{found}"')
        return
    yield from _checks(schema.rules, value, path)
    if schema.embedded:
        for key in ("apiVersion", "kind"):
            if not value.get(key):
                yield required(f"{path}.{key}", "must not be empty")
    if isinstance(value, dict):
        for key, item in value.items():
            inner = schema.child(key)
            if inner is not None:
                yield from validate(inner, item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and schema.items is not None:
        for number, item in enumerate(value):
            yield from validate(schema.items, item, f"{path}[{number}]")
        yield from _unique(schema, value, path)


def validate_transition(schema: Schema, value: Any, old: Any, path: str) -> Iterator[Problem]:
    """Problems of a new value against the old one: `self == oldSelf` and nothing else."""
    for rule in schema.rules.get("x-kubernetes-validations") or ():
        if rule["rule"] in OWN_RULES and value != old:
            text = rule.get("message") or f"failed rule: {rule['rule']}"
            yield invalid_value(path, _type(value), text)
    if isinstance(value, dict) and isinstance(old, dict):
        for key in value.keys() & old.keys():
            inner = schema.child(key)
            if inner is not None:
                place = f"{path}.{key}" if path else key
                yield from validate_transition(inner, value[key], old[key], place)


def _in_body(path: str) -> str:
    return f"{path} in body must be"


def _type(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"


def _fits(kind: str, value: Any) -> bool:
    found = _type(value)
    if kind == "number":
        return found in ("integer", "number")
    if kind == "integer" and found == "number":
        return bool(value == math.floor(value))
    return found == kind


def _unique(schema: Schema, items: list[Any], path: str) -> Iterator[Problem]:
    """Lists that are sets or maps have no item twice."""
    if schema.list_type == "atomic":
        return
    seen: set[str] = set()
    for number, item in enumerate(items):
        shown = item
        if schema.list_type == "map":
            shown = {key: item.get(key) for key in schema.list_keys} if _is_map(item) else None
        identity = json.dumps(shown, sort_keys=True)
        if identity in seen:
            yield duplicate(f"{path}[{number}]", shown)
        seen.add(identity)


def _is_map(item: Any) -> bool:
    return isinstance(item, dict)


# ---- the checks of OpenAPI -------------------------------------------------------------------


def _checks(rules: Any, value: Any, path: str) -> Iterator[Problem]:
    """Checks of one value alone, and allOf, anyOf, oneOf and not, which hold checks only."""
    if "enum" in rules and value not in rules["enum"]:
        yield unsupported(path, value, [str(item) for item in rules["enum"]])
    match value:
        case str():
            yield from _text(rules, value, path)
        case bool():
            pass
        case int() | float():
            yield from _number(rules, value, path)
        case list():
            yield from _list(rules, value, path)
        case dict():
            yield from _map(rules, value, path)
    yield from _combined(rules, value, path)


def _text(rules: Any, value: str, path: str) -> Iterator[Problem]:
    if "maxLength" in rules and len(value) > rules["maxLength"]:
        limit = rules["maxLength"]
        text = f"Too long: may not be more than {limit} bytes"
        yield Problem(path, "FieldValueTooLong", text)
    if "minLength" in rules and len(value) < rules["minLength"]:
        limit = rules["minLength"]
        yield invalid_value(path, value, f"{path} in body should be at least {limit} chars long")
    if "pattern" in rules and not re.search(_python_pattern(rules["pattern"]), value):
        text = f"{path} in body should match '{rules['pattern']}'"
        yield invalid_value(path, value, text)
    check = FORMATS.get(rules.get("format", ""))
    if check is not None and not _passes(check, value):
        text = f'{_in_body(path)} of type {rules["format"]}: "{value}"'
        yield type_invalid(path, value, text)


def _python_pattern(pattern: str) -> str:
    """Go's $ without flags is the very end; Python's lets a newline follow."""
    return re.sub(r"(?<!\\)((?:\\\\)*)\$\Z", r"\1\\Z", pattern)


def _number(rules: Any, value: float, path: str) -> Iterator[Problem]:
    bits = {"int32": 31, "int64": 63}.get(rules.get("format", ""))
    if bits is not None and not -(1 << bits) <= value < 1 << bits:
        text = f'{_in_body(path)} of type {rules["format"]}: "{value}"'
        yield type_invalid(path, value, text)
    if (top := rules.get("maximum")) is not None:
        strict = rules.get("exclusiveMaximum")
        if value > top or (strict and value == top):
            word = "less than" if strict else "less than or equal to"
            yield invalid_value(path, value, f"{path} in body should be {word} {top}")
    if (least := rules.get("minimum")) is not None:
        strict = rules.get("exclusiveMinimum")
        if value < least or (strict and value == least):
            word = "greater than" if strict else "greater than or equal to"
            yield invalid_value(path, value, f"{path} in body should be {word} {least}")
    if (step := rules.get("multipleOf")) and value % step != 0:
        yield invalid_value(path, value, f"{path} in body should be a multiple of {step}")


def _list(rules: Any, value: list[Any], path: str) -> Iterator[Problem]:
    if "maxItems" in rules and len(value) > rules["maxItems"]:
        yield too_many(path, len(value), rules["maxItems"])
    if "minItems" in rules and len(value) < rules["minItems"]:
        text = f"{path} in body should have at least {rules['minItems']} items"
        yield invalid_value(path, len(value), text)


def _map(rules: Any, value: dict[str, Any], path: str) -> Iterator[Problem]:
    for key in rules.get("required") or ():
        if key not in value:
            yield required(f"{path}.{key}" if path else key)
    if "maxProperties" in rules and len(value) > rules["maxProperties"]:
        yield too_many(path, len(value), rules["maxProperties"])
    if "minProperties" in rules and len(value) < rules["minProperties"]:
        text = f"{path} in body should have at least {rules['minProperties']} properties"
        yield invalid_value(path, len(value), text)


def _combined(rules: Any, value: Any, path: str) -> Iterator[Problem]:
    for inner in rules.get("allOf") or ():
        yield from deep(inner, value, path)
    choices = rules.get("anyOf")
    if choices and not any(_good(inner, value, path) for inner in choices):
        yield invalid_value(
            path, _type(value), f"{_in_body(path)} valid against one schema of anyOf"
        )
    choices = rules.get("oneOf")
    if choices and sum(_good(inner, value, path) for inner in choices) != 1:
        text = f"{path} in body must validate one and only one schema (oneOf)"
        yield invalid_value(path, _type(value), text)
    if rules.get("not") is not None and _good(rules["not"], value, path):
        text = f"{path} in body must not validate the schema (not)"
        yield invalid_value(path, _type(value), text)


def _good(rules: Any, value: Any, path: str) -> bool:
    return next(deep(rules, value, path), None) is None


def deep(rules: Any, value: Any, path: str) -> Iterator[Problem]:
    """Checks of a schema that has no structure of its own, such as a branch of allOf."""
    if rules.get("type") and not _fits(rules["type"], value):
        yield type_invalid(path, _type(value), f"{_in_body(path)} of type {rules['type']}")
        return
    yield from _checks(rules, value, path)
    if isinstance(value, dict):
        for key, inner in (rules.get("properties") or {}).items():
            if key in value:
                yield from deep(inner, value[key], f"{path}.{key}" if path else key)
    elif isinstance(value, list) and rules.get("items"):
        for number, item in enumerate(value):
            yield from deep(rules["items"], item, f"{path}[{number}]")


def _passes(check: Callable[[str], object], value: str) -> bool:
    try:
        return check(value) is not False
    except (ValueError, OverflowError, binascii.Error):
        return False


FORMATS: dict[str, Callable[[str], object]] = {
    "byte": lambda text: base64.b64decode(text, validate=True),
    "cidr": lambda text: "/" in text and ipaddress.ip_network(text, strict=False),
    "date": lambda text: times.parse(f"{text}T00:00:00Z"),
    "date-time": times.parse,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "mac": lambda text: re.match(r"([0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}\Z", text) is not None,
    "uri": lambda text: re.match(r"[A-Za-z][A-Za-z0-9+.-]*:\S+\Z|/\S*\Z", text) is not None,
    "uuid": lambda text: len(text) in (32, 36) and uuid.UUID(text),
}
