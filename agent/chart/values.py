# SPDX-License-Identifier: Apache-2.0
"""Values: defaults, files and `--set`, merged as Helm does, and checked. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from agent.chart.schema import SchemaError, problems

_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)")
_CONSTANTS: Final = {"true": True, "false": False, "null": None}


class ValuesError(Exception):
    """Values that cannot be used; a line for each fault."""


def merge(base: Mapping[str, Any], *overlays: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key, all else is replaced; null takes a default away."""
    merged = dict(base)
    for overlay in overlays:
        for key, value in overlay.items():
            before = merged.get(key)
            if value is None:
                merged.pop(key, None)
            elif isinstance(value, Mapping):
                merged[key] = merge(before if isinstance(before, Mapping) else {}, value)
            else:
                merged[key] = value
    return merged


def parse_set(text: str) -> dict[str, Any]:
    """`a.b=c,d={x,y}` to a mapping. A backslash takes the meaning from a dot or comma.

    Values are true, false, null, whole numbers, or texts, as with Helm. Raises ValuesError.
    """
    found: dict[str, Any] = {}
    for part in _split(text, ","):
        key, equals, value = part.partition("=")
        names = [re.sub(r"\\(.)", r"\1", name) for name in _split(key.strip(), ".")]
        if not equals or not all(names):
            raise ValuesError(f"--set {part}: expected key.of.value=value")
        if any(re.search(r"\[[0-9]*\]", name) for name in names):
            raise ValuesError(f"--set {part}: give the whole list: key={{a,b}}")
        nested: Any = _value(value)
        for name in reversed(names):
            nested = {name: nested}
        found = _merge_keeping_null(found, nested)
    return found


def check(values: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """Raises ValuesError with every fault that the schema finds."""
    try:
        faults = problems(values, schema)
    except SchemaError as error:
        raise ValuesError(f"the chart's schema: {error}") from error
    if faults:
        raise ValuesError("\n".join(faults))


def _merge_keeping_null(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Several of `--set` together; null must reach `merge`."""
    merged = dict(base)
    for key, value in overlay.items():
        before = merged.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge_keeping_null(before, value) if both else value  # type: ignore[arg-type]
    return merged


def combine(files: Iterable[Mapping[str, Any]], sets: Iterable[str]) -> dict[str, Any]:
    """What a user gave: files in order, then the texts of `--set`. Raises ValuesError."""
    given: dict[str, Any] = {}
    for one in files:
        given = _merge_keeping_null(given, one)
    for text in sets:
        given = _merge_keeping_null(given, parse_set(text))
    return given


def _value(text: str) -> Any:
    if text.startswith("{") and text.endswith("}"):
        inner = text[1:-1]
        return [_value(part) for part in _split(inner, ",")] if inner else []
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _NUMBER.fullmatch(text):
        return int(text)
    return re.sub(r"\\(.)", r"\1", text)


def _split(text: str, sign: str) -> list[str]:
    """Parts between `sign`, which counts neither behind a backslash nor within braces."""
    parts, start, depth, at = [], 0, 0, 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] in "{}":
            depth += 1 if text[at] == "{" else -1
        elif text[at] == sign and depth == 0:
            parts.append(text[start:at])
            start = at + 1
        at += 1
    return [*parts, text[start:]]
