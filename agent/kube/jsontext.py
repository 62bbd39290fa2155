# SPDX-License-Identifier: Apache-2.0
"""JSON text to plain objects, and the items of a large JSON list without decoding them."""

import json
import re
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

import msgspec

from agent.kube.text import MAX_DEPTH, DocumentError
from agent.kube.translate import is_list_kind


class RawList(NamedTuple):
    """A list object with its items as text."""

    kind: str
    api_version: str
    items: list[bytes]


def parse_json(text: bytes) -> object:
    """Strict JSON (RFC 8259) without repeated keys. Raises DocumentError."""
    try:
        value = _JSON.decode(text.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise DocumentError(error.msg, error.lineno) from None
    except RecursionError:
        raise DocumentError(f"nested more than {MAX_DEPTH} levels deep") from None
    except ValueError as error:
        raise DocumentError(str(error)) from None
    # Counting brackets first: hardly any object has more of them than it may have levels.
    if text.count(b"{") + text.count(b"[") > MAX_DEPTH and _deeper_than(value, MAX_DEPTH):
        raise DocumentError(f"nested more than {MAX_DEPTH} levels deep")
    if b"\\u" in text and _LONE_SURROGATE.search(json.dumps(value, ensure_ascii=False)):
        raise DocumentError("an escape such as \\ud800 stands for half a character")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f'key "{name}" is given twice')
            seen.add(name)
    return mapping


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _deeper_than(value: object, limit: int) -> bool:
    """Level by level, so that depth costs no recursion."""
    level: list[object] = [value]
    for _ in range(limit):
        level = [inner for outer in level for inner in _children(outer)]
        if not level:
            return False
    return True


def _children(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from (v for v in value.values() if isinstance(v, dict | list))
    elif isinstance(value, list):
        yield from (v for v in value if isinstance(v, dict | list))


# ---- lists -----------------------------------------------------------------------------------

_MEMBER = re.compile(rb'[ \t\r\n]*[{,][ \t\r\n]*("(?:[^"\\]|\\.)*")[ \t\r\n]*:[ \t\r\n]*')
_END = re.compile(rb"[ \t\r\n]*\{?[ \t\r\n]*\}[ \t\r\n]*")


def split_list(data: bytes) -> RawList | None:
    """The items of a list, or None for any other text, valid or not.

    Raises DocumentError when the list object itself has a key twice.
    """
    try:
        members = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        kind = msgspec.json.decode(members.get("kind", b'""'), type=str)
        api_version = msgspec.json.decode(members.get("apiVersion", b'""'), type=str)
        if not is_list_kind(kind) or "items" not in members or "spec" in members:
            return None
        items = msgspec.json.decode(members["items"], type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        return None  # to be decoded, and complained about, as a whole
    _refuse_repeated_member(data, members)
    return RawList(kind, api_version, [bytes(item) for item in items])


def _refuse_repeated_member(data: bytes, members: dict[str, msgspec.Raw]) -> None:
    """Walks over the members as decoded: were one given twice, they would not fill the text."""
    position = 0
    for name, raw in members.items():
        match = _MEMBER.match(data, position)
        value = bytes(raw)
        if match is None or json.loads(match[1]) != name or not data.startswith(value, match.end()):
            break
        position = match.end() + len(value)
    else:
        if _END.fullmatch(data, position):
            return
    raise DocumentError("a key of the list is given twice")
