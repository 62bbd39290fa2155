# SPDX-License-Identifier: Apache-2.0
"""JSON patch (RFC 6902), merge patch (RFC 7396) and strategic merge patch (pure)."""

from __future__ import annotations

import copy
import re
from typing import Any

from bench.lab.apiserver.errors import ApiError, Object, bad_request
from bench.lab.apiserver.schema import ANYTHING, Schema

MAX_OPERATIONS = 10_000
MAX_COPIED = 3 << 20


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7396: null removes, objects are merged, anything else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


# ---- JSON patch ------------------------------------------------------------------------------


def json_patch(target: Object, patch: Any) -> Any:
    """RFC 6902. Raises ApiError: 400 for no patch, 413 for a long one, 422 if it cannot be done."""
    if not isinstance(patch, list) or not all(isinstance(step, dict) for step in patch):
        raise bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    if len(patch) > MAX_OPERATIONS:
        text = (
            f"The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len(patch)}"
        )
        raise ApiError(413, "RequestEntityTooLarge", text)
    result: Any = copy.deepcopy(target)
    for step in patch:
        try:
            result = _step(result, step)
        except _CannotPatch as error:
            text = "the server rejected our request due to an error in our request"
            raise ApiError(422, "Invalid", f"{text}: {error}") from None
    return result


class _CannotPatch(Exception):
    pass


def _step(target: Any, step: Object) -> Any:
    operation, path = step.get("op"), _pointer(step.get("path"))
    match operation:
        case "add" | "replace" | "test":
            if "value" not in step:
                raise _CannotPatch(f"{operation} operation misses its value")
            return _put(target, path, step["value"], operation)
        case "remove":
            return _remove(target, path)[0]
        case "move" | "copy":
            source = _pointer(step.get("from"))
            value = copy.deepcopy(_get(target, source))
            if operation == "move":
                target = _remove(target, source)[0]
            return _put(target, path, value, "add")
    raise _CannotPatch(f"unexpected kind: {operation}")


def _pointer(text: Any) -> list[str]:
    if not isinstance(text, str) or (text and not text.startswith("/")):
        raise _CannotPatch(f"no JSON pointer: {text!r}")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _index(items: list[Any], part: str, *, end: bool) -> int:
    if part == "-" and end:
        return len(items)
    if not re.match(r"(0|[1-9][0-9]*)\Z", part, re.ASCII):
        raise _CannotPatch(f"no array index: {part!r}")
    index = int(part) if len(part) < 10 else len(items) + 1
    if index > len(items) - (not end):
        raise _CannotPatch(f"index {part} is out of bounds")
    return index


def _get(target: Any, path: list[str]) -> Any:
    for part in path:
        if isinstance(target, dict) and part in target:
            target = target[part]
        elif isinstance(target, list):
            target = target[_index(target, part, end=False)]
        else:
            raise _CannotPatch(f"doc is missing path: {part!r}: missing value")
    return target


def _put(target: Any, path: list[str], value: Any, operation: str) -> Any:
    if operation == "test":
        if _get(target, path) != value:
            raise _CannotPatch(f"testing value /{'/'.join(path)} failed: test failed")
        return target
    if not path:
        return value
    parent, last = _get(target, path[:-1]), path[-1]
    if isinstance(parent, dict):
        if operation == "replace" and last not in parent:
            raise _CannotPatch(f"replace operation does not apply: doc is missing key: {last}")
        parent[last] = value
    elif isinstance(parent, list):
        index = _index(parent, last, end=operation == "add")
        if operation == "add":
            parent.insert(index, value)
        else:
            parent[index] = value
    else:
        raise _CannotPatch(f"doc is missing path: {last!r}")
    return target


def _remove(target: Any, path: list[str]) -> tuple[Any, Any]:
    if not path:
        raise _CannotPatch("the whole document cannot be removed")
    parent, last = _get(target, path[:-1]), path[-1]
    if isinstance(parent, dict) and last in parent:
        return target, parent.pop(last)
    if isinstance(parent, list):
        return target, parent.pop(_index(parent, last, end=False))
    raise _CannotPatch(f"remove operation does not apply: doc is missing key: {last}")


# ---- strategic merge patch -------------------------------------------------------------------


def strategic_patch(schema: Schema, target: Any, patch: Any) -> Any:
    """Kubernetes' own: lists with merge keys are merged by them. Raises ApiError 400."""
    if not isinstance(patch, dict):
        raise bad_request("a strategic merge patch must be an object")
    return _merge_map(schema, target if isinstance(target, dict) else {}, patch)


def _merge_map(schema: Schema, target: Object, patch: Object) -> Object:
    directive = patch.get("$patch")
    if directive == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise bad_request(f"invalid value for $patch directive: {directive!r}")
    retained = patch.get("$retainKeys")
    result = dict(target)
    if isinstance(retained, list):
        result = {key: value for key, value in result.items() if key in retained}
    for key, value in patch.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.partition("/")[2]
            kept = [item for item in result.get(name) or [] if item not in (value or [])]
            result[name] = kept
        elif key.startswith("$"):
            continue
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = _merge_value(schema.child(key) or ANYTHING, result.get(key), value)
    for key, value in patch.items():
        if key.startswith("$setElementOrder/") and isinstance(value, list):
            name = key.partition("/")[2]
            inner = schema.child(name) or ANYTHING
            if isinstance(result.get(name), list):
                result[name] = _ordered(inner.merge_key, result[name], value)
    return result


def _merge_value(schema: Schema, target: Any, patch: Any) -> Any:
    if isinstance(patch, dict):
        return _merge_map(schema, target if isinstance(target, dict) else {}, patch)
    if isinstance(patch, list) and schema.merge_key:
        return _merge_list(schema, target if isinstance(target, list) else [], patch)
    return patch


def _merge_list(schema: Schema, target: list[Any], patch: list[Any]) -> list[Any]:
    key = schema.merge_key
    if key == "=":
        return target + [item for item in patch if item not in target]
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [item for item in patch if not (isinstance(item, dict) and "$patch" in item)]
    result = list(target)
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        same = [n for n, old in enumerate(result) if old.get(key) == item[key]]
        if item.get("$patch") == "delete":
            result = [old for old in result if old.get(key) != item[key]]
        elif same:
            result[same[0]] = _merge_map(schema.items or ANYTHING, result[same[0]], item)
        else:
            result.append(_merge_map(schema.items or ANYTHING, {}, item))
    return result


def _ordered(key: str, items: list[Any], order: list[Any]) -> list[Any]:
    """The items that `order` names in its order; others stay where they are."""

    def identity(item: Any) -> Any:
        return item.get(key) if isinstance(item, dict) and key else item

    wanted = [identity(entry) for entry in order]
    named = [item for item in items if identity(item) in wanted]
    named.sort(key=lambda item: wanted.index(identity(item)))
    return [named.pop(0) if identity(item) in wanted else item for item in items]
