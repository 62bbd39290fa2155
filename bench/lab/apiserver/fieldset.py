# SPDX-License-Identifier: Apache-2.0
"""Sets of fields, as `managedFields` name them (pure).

A path is a tuple of `f:name` (field or map key), `k:{...}` (item of a map list, by its keys) and
`v:...` (item of a set). Lists without keys are one field, with all that is in them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bench.lab.apiserver.errors import Object
from bench.lab.apiserver.schema import ANYTHING, UNSET, Schema

Path = tuple[str, ...]
Fields = frozenset[Path]


@dataclass(frozen=True, slots=True)
class Difference:
    """Fields in which two objects differ."""

    added: Fields
    modified: Fields
    removed: Fields


def element(schema: Schema, item: Any) -> str:
    """How an item of a set or map list is called. Items without their keys have empty ones."""
    if schema.list_type == "map":
        known = schema.items.fields if schema.items else {}
        keys = {}
        for key in sorted(schema.list_keys):
            value = item.get(key) if isinstance(item, dict) else None
            if value is None and key in known and known[key].default is not UNSET:
                value = known[key].default
            # Ports are TCP where they say nothing.
            keys[key] = "TCP" if key == "protocol" and not isinstance(value, str) else value
        return "k:" + json.dumps(keys, separators=(",", ":"))
    return "v:" + json.dumps(item, separators=(",", ":"))


def parts(schema: Schema, value: Any) -> dict[str, tuple[Schema, Any]] | None:
    """What a value consists of, by path element; None: it is one field as a whole."""
    if isinstance(value, dict) and not schema.atomic:
        return {f"f:{key}": (schema.child(key) or ANYTHING, item) for key, item in value.items()}
    if isinstance(value, list) and schema.list_type != "atomic":
        inner = schema.items or ANYTHING
        return {element(schema, item): (inner, item) for item in value}
    return None


def collect(schema: Schema, value: Any, path: Path = ()) -> Iterator[Path]:
    """Every field that a value has: leaves, empty maps, items of lists, and keys of maps."""
    inner = parts(schema, value)
    if not inner:
        if path:
            yield path
        return
    if path and (schema.values is not None or path[-1][:2] != "f:"):
        yield path
    for name, (below, item) in inner.items():
        yield from collect(below, item, (*path, name))


def compare(schema: Schema, old: Any, new: Any) -> Difference:
    """In what `new` differs from `old`."""
    added: set[Path] = set()
    modified: set[Path] = set()
    removed: set[Path] = set()
    _compare(schema, old, new, (), added, modified, removed)
    return Difference(frozenset(added), frozenset(modified), frozenset(removed))


def _compare(
    schema: Schema,
    old: Any,
    new: Any,
    path: Path,
    added: set[Path],
    modified: set[Path],
    removed: set[Path],
) -> None:
    if old is new or old == new:
        return
    before, now = parts(schema, old), parts(schema, new)
    if before is None or now is None:
        modified.add(path)
        # What was below is no field of its own any more.
        removed.update(place for place in collect(schema, old, path) if place != path)
        added.update(place for place in collect(schema, new, path) if place != path)
        return
    for name, (below, item) in now.items():
        place = (*path, name)
        if name in before:
            _compare(below, before[name][1], item, place, added, modified, removed)
        else:
            added.update(collect(below, item, place))
    for name, (below, item) in before.items():
        if name not in now:
            removed.update(collect(below, item, (*path, name)))


def to_json(fields: Iterable[Path]) -> Object:
    """In the form of `fieldsV1`."""
    root: Object = {}
    for path in sorted(fields):
        node = root
        for name in path:
            node = node.setdefault(name, {})
        node["."] = {}
    _without_lonely_dots(root)
    return root


def _without_lonely_dots(node: Object) -> None:
    """A leaf is `{}`; a dot is only needed where there is more below."""
    if set(node) == {"."}:
        del node["."]
    for name, inner in node.items():
        if name != ".":
            _without_lonely_dots(inner)


def from_json(node: Object) -> Fields:
    """From the form of `fieldsV1`."""
    return frozenset(_read(node, ()))


def _read(node: Object, path: Path) -> Iterator[Path]:
    for name, inner in node.items():
        if name == ".":
            yield path
        elif not inner:
            yield (*path, name)
        else:
            yield from _read(inner, (*path, name))


def shown(path: Path) -> str:
    """As in messages: `.spec.ports[port=80,protocol="TCP"].name`."""
    text = ""
    for name in path:
        kind, rest = name[:2], name[2:]
        if kind == "f:":
            text += f".{rest}"
        elif kind == "v:":
            text += f"[={rest}]"
        else:
            keys = json.loads(rest)
            text += f"[{','.join(f'{key}={json.dumps(value)}' for key, value in keys.items())}]"
    return text


def is_key(path: Path) -> bool:
    """Whether it is a field that tells an item of a list from the others."""
    if len(path) < 2 or not path[-2].startswith("k:"):
        return False
    return path[-1][2:] in json.loads(path[-2][2:])


def without(value: Any, schema: Schema, path: Path) -> Any:
    """A copy of the value without the field at `path`; nothing there is fine."""
    inner = parts(schema, value)
    if inner is None or path[0] not in inner:
        return value
    below, item = inner[path[0]]
    if isinstance(value, dict):
        key = path[0][2:]
        if len(path) == 1:
            return {name: kept for name, kept in value.items() if name != key}
        return {**value, key: without(item, below, path[1:])}
    if len(path) == 1:
        return [kept for kept in value if element(schema, kept) != path[0]]
    return [
        without(kept, below, path[1:]) if element(schema, kept) == path[0] else kept
        for kept in value
    ]


def merge(schema: Schema, live: Any, applied: Any) -> Any:
    """The live value with the applied one laid over it."""
    before, over = parts(schema, live), parts(schema, applied)
    if before is None or over is None or type(live) is not type(applied):
        return applied
    if isinstance(live, dict):
        made = dict(live)
        for name, (below, item) in over.items():
            key = name[2:]
            made[key] = merge(below, live[key], item) if key in live else item
        return made
    # Items of the applied list in its order, with others between where they were.
    result = [
        merge(below, item, over[name][1]) if name in over else item
        for name, (below, item) in before.items()
    ]
    return result + [item for name, (_, item) in over.items() if name not in before]
