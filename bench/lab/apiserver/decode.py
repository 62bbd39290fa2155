# SPDX-License-Identifier: Apache-2.0
"""How JSON of a built-in kind is read: as Go reads it into a struct (pure).

Unknown fields and nulls fall away, empty lists and maps too, a value of a wrong type is an error,
and times and quantities are brought into their one form.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from bench.lab.apiserver import times
from bench.lab.apiserver.errors import ApiError, Object, bad_request
from bench.lab.apiserver.schema import Schema

_decode = msgspec.json.Decoder().decode
_QUANTITY = re.compile(
    r"[-+]?(\d+(\.\d*)?|\.\d+)(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]|[eE][-+]?\d+)?\Z", re.ASCII
)
_GO = {"string": "string", "boolean": "bool", "number": "float64"}
# Not `omitempty` in the Go type: written even when empty.
KEPT_EMPTY = {"endpoints"}
MAX_DEPTH = 300


class Mismatch(Exception):
    """A value that its Go type cannot hold; the message is Go's."""


def parse_json(data: bytes, duplicates: list[str] | None = None) -> Any:
    """JSON as a value; paths of repeated fields go to `duplicates`. Raises ValueError."""
    try:
        value = _decode(data)
        if duplicates is not None:
            json.loads(data, object_pairs_hook=lambda pairs: _unique(pairs, duplicates))
    except RecursionError:
        raise ValueError("exceeded max depth") from None
    # Fewer brackets than that cannot be nested deeper.
    if data.count(b"{") + data.count(b"[") > MAX_DEPTH:
        _check_depth(value)
    return value


def parse_object(data: bytes, duplicates: list[str] | None = None) -> Object:
    """JSON that must be an object. Raises ApiError 400."""
    try:
        value = parse_json(data, duplicates)
    except ValueError as error:  # msgspec's errors are ValueErrors
        raise bad_request(f"invalid JSON: {error}") from None
    if not isinstance(value, dict):
        shown = data[:40].decode(errors="replace")
        raise bad_request(
            "couldn't get version/kind; json parse error: json: cannot unmarshal "
            f"{_kind(value)} into Go value of type struct (from {shown!r})"
        )
    return value


def _unique(pairs: list[tuple[str, Any]], duplicates: list[str]) -> Object:
    found: Object = {}
    for key, value in pairs:
        if key in found:
            duplicates.append(key)
        found[key] = value
    return found


def _check_depth(value: Any) -> None:
    """Walkers of objects call themselves: what is nested deeper would end them."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError("exceeded max depth")
        inner = [item.values() if isinstance(item, dict) else item for item in level]
        level = [child for group in inner for child in group if isinstance(child, dict | list)]


def read(schema: Schema, value: Object, kind: str, version: str, unknown: list[str]) -> Object:
    """An object of a built-in kind, with a copy of everything. Raises ApiError 400."""
    try:
        found: Object = _read(schema, value, "", unknown, schema.name)
    except Mismatch as error:
        raise cannot_be_handled(kind, version, str(error)) from None
    return found


def cannot_be_handled(kind: str, version: str, why: str) -> ApiError:
    """400 for a body that is no such object."""
    return bad_request(f'{kind} in version "{version}" cannot be handled as a {kind}: {why}')


def _read(schema: Schema, value: Any, path: str, unknown: list[str], owner: str) -> Any:
    if schema.open and not schema.fields:
        return value
    if schema.int_or_string:
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise Mismatch(f"json: cannot unmarshal {_kind(value)} into Go value of type string")
    if schema.format == "quantity":
        return _quantity(value)
    match schema.type:
        case "object":
            if not isinstance(value, dict):
                raise _mismatch(value, owner, path, "map" if schema.values else schema.name)
            return _read_object(schema, value, path, unknown)
        case "array":
            if not isinstance(value, list):
                raise _mismatch(value, owner, path, "[]")
            assert schema.items
            return [
                _read(schema.items, item, f"{path}[{number}]", unknown, owner)
                for number, item in enumerate(value)
            ]
        case "integer":
            return _read_integer(schema, value, path, owner)
        case "string":
            if not isinstance(value, str):
                raise _mismatch(value, owner, path, "string")
            return _time(schema.format, value) if schema.format else value
        case "boolean":
            if not isinstance(value, bool):
                raise _mismatch(value, owner, path, "bool")
        case "number":
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise _mismatch(value, owner, path, "float64")
    return value


def _read_object(schema: Schema, value: Object, path: str, unknown: list[str]) -> Object:
    kept: Object = {}
    for key, item in value.items():
        place = f"{path}.{key}" if path else key
        inner = schema.fields.get(key) or schema.values
        if inner is None:
            unknown.append(place)
        elif item is not None:
            found = _read(inner, item, place, unknown, schema.name)
            empty = found in ([], {}) and (inner.type == "array" or inner.values is not None)
            if not empty or key in KEPT_EMPTY:
                kept[key] = found
    return kept


def _read_integer(schema: Schema, value: Any, path: str, owner: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _mismatch(value, owner, path, schema.format)
    bits = 63 if schema.format == "int64" else 31
    if not -(1 << bits) <= value < 1 << bits:
        raise Mismatch(
            f"json: cannot unmarshal number {value} into Go struct field {owner}.{path} of type "
            f"{schema.format}"
        )
    return value


def _mismatch(value: Any, owner: str, path: str, wanted: str) -> Mismatch:
    return Mismatch(
        f"json: cannot unmarshal {_kind(value)} into Go struct field {owner}.{path} of type "
        f"{wanted}"
    )


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "bool"
        case str():
            return "string"
        case list():
            return "array"
        case dict():
            return "object"
        case None:
            return "null"
    return "number"


def _quantity(value: Any) -> str:
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not _QUANTITY.match(text):
        raise Mismatch(
            "quantities must match the regular expression "
            "'^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        )
    return text


def _time(form: str, text: str) -> str:
    micro = form == "micro-time"
    try:
        moment = times.parse(text, micro=micro)
    except (ValueError, OverflowError):
        layout = "2006-01-02T15:04:05.000000Z07:00" if micro else "2006-01-02T15:04:05Z07:00"
        raise Mismatch(f'parsing time "{text}" as "{layout}": cannot parse') from None
    return times.micros(moment) if micro else times.seconds(moment)
