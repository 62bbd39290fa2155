# SPDX-License-Identifier: Apache-2.0
"""The part of JSON Schema (draft 7) that values.schema.json uses. Pure.

A keyword that is not known here is an error: nothing of a schema is passed over in silence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

_REMARKS: Final = frozenset({"$schema", "title", "description"})
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "object": (dict,),
    "string": (str,),
}


class SchemaError(Exception):
    """A schema with a keyword or type that is not supported."""


def problems(value: object, schema: Mapping[str, Any], place: str = "") -> list[str]:
    """What is wrong with `value`, a line each; empty if nothing is. Raises SchemaError."""
    found = [f"{place or 'values'}: {text}" for text in _own(value, schema)]
    if isinstance(value, dict):
        found += _members(value, schema, place)
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            found += problems(item, schema["items"], f"{place}[{index}]")
    return found


def _members(value: Mapping[str, Any], schema: Mapping[str, Any], place: str) -> list[str]:
    found: list[str] = []
    known = schema.get("properties", {})
    others = schema.get("additionalProperties", True)
    for key, member in value.items():
        name = f"{place}.{key}" if place else str(key)
        if key in known:
            found += problems(member, known[key], name)
        elif others is False:
            found.append(f"{name}: unknown value; known are {', '.join(sorted(known))}")
        elif isinstance(others, Mapping):
            found += problems(member, others, name)
    return found


def _own(value: object, schema: Mapping[str, Any]) -> Iterator[str]:
    """Faults of the value itself."""
    for keyword, wanted in schema.items():
        match keyword:
            case "type":
                names = [wanted] if isinstance(wanted, str) else list(wanted)
                if not any(_is(value, name) for name in names):
                    yield f"expected {' or '.join(names)}, not {value!r}"
            case "const":
                if value != wanted or type(value) is not type(wanted):
                    yield f"only {_shown(wanted)} is accepted{_because(schema)}"
            case "enum":
                if value not in wanted:
                    names = [_shown(one) for one in wanted]
                    yield f"expected one of {', '.join(names)}, not {value!r}{_because(schema)}"
            case "pattern":
                if isinstance(value, str) and re.search(wanted, value) is None:
                    yield f"{value!r} does not match {wanted}"
            case "minLength":
                if isinstance(value, str) and len(value) < wanted:
                    yield f"{value!r} is too short"
            case "minimum" | "maximum":
                if isinstance(value, int) and (value - wanted) * _sign(keyword) < 0:
                    yield f"{value} is beyond the {keyword} {wanted}"
            case "required":
                for key in wanted:
                    if isinstance(value, dict) and key not in value:
                        yield f"{key} is missing"
            case "properties" | "additionalProperties" | "items":
                pass
            case _ if keyword not in _REMARKS:
                raise SchemaError(f"keyword {keyword!r} is not supported")


def _is(value: object, name: str) -> bool:
    if name not in _TYPES:
        raise SchemaError(f"type {name!r} is not supported")
    return isinstance(value, _TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _sign(keyword: str) -> int:
    return 1 if keyword == "minimum" else -1


def _shown(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool) or value is None else str(value)


def _because(schema: Mapping[str, Any]) -> str:
    return f" ({schema['description']})" if "description" in schema else ""
