# SPDX-License-Identifier: Apache-2.0
"""YAML text to plain objects: what Kubernetes tools accept, no more.

Objects are composed from libyaml's events and not by PyYAML's loaders, for three reasons: duplicate
keys are refused, depth and alias expansion are bounded, and it takes half the time. Plain scalars
mean what they mean to kubectl (sigs.k8s.io/yaml): `on`, `yes` and `y` are booleans, timestamps
and `12:30` are text, `010` is eight.
"""

import re
from collections.abc import Callable
from typing import Any, NoReturn

import yaml
from yaml._yaml import CParser
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from agent.kube.text import MAX_DEPTH, DocumentError

MAX_ALIASED_NODES = 100_000  # nodes that aliases may add to one document


def parse_yaml(text: bytes, first_line: int = 1) -> object:
    """The one document in `text`. Raises DocumentError with the line in the file."""
    try:
        return _Composer(text, first_line).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        message = " ".join(part for part in (error.context, error.problem) if part)
        raise DocumentError(message, first_line + mark.line if mark else first_line) from None
    except (yaml.YAMLError, ValueError) as error:
        raise DocumentError(str(error).partition("\n")[0], first_line) from None


class _Composer:
    """Builds plain objects from libyaml's events; nodes are counted with aliases expanded."""

    def __init__(self, text: bytes, first_line: int) -> None:
        self._first_line = first_line
        self._next: Callable[[], Any] = CParser(text).get_event
        self._anchors: dict[str, tuple[object, int]] = {}
        self._nodes = 0
        self._aliased = 0

    def document(self) -> object:
        self._next()  # StreamStart
        event = self._next()
        if type(event) is StreamEndEvent:
            return None
        assert type(event) is DocumentStartEvent
        value = self._node(self._next(), 0)
        self._next()  # DocumentEnd
        event = self._next()
        if type(event) is not StreamEndEvent:
            self._fail(event, "a second document begins here; separate documents with ---")
        return value

    def _node(self, event: Any, depth: int) -> object:
        kind = type(event)
        self._nodes += 1
        if kind is ScalarEvent:
            value = self._scalar(event)
            if event.anchor:
                self._anchors[event.anchor] = value, 1
            return value
        if kind is AliasEvent:
            return self._alias(event)
        if depth >= MAX_DEPTH:
            self._fail(event, f"nested more than {MAX_DEPTH} levels deep")
        before = self._nodes
        anchor = event.anchor
        if anchor:
            self._anchors.pop(anchor, None)  # an alias inside the node itself is refused
        if kind is MappingStartEvent:
            self._check_tag(event, "map")
            value = self._mapping(depth + 1)
        else:
            assert kind is SequenceStartEvent
            self._check_tag(event, "seq")
            value = self._sequence(depth + 1)
        if anchor:
            self._anchors[anchor] = value, self._nodes - before + 1
        return value

    def _mapping(self, depth: int) -> dict[object, object]:
        mapping: dict[object, object] = {}
        merged: list[dict[object, object]] = []
        while type(event := self._next()) is not MappingEndEvent:
            key = self._node(event, depth)
            is_merge = key == "<<" and type(event) is ScalarEvent and event.implicit[0]
            value_event = self._next()
            value = self._node(value_event, depth)
            if is_merge:
                merged.extend(self._merge_sources(value_event, value))
                continue
            if isinstance(key, dict | list):
                self._fail(event, "a mapping or list cannot be a key")
            if key in mapping:
                self._fail(event, f'key "{key}" is given twice')
            mapping[key] = value
        for source in merged:
            for key, value in source.items():
                mapping.setdefault(key, value)
        return mapping

    def _sequence(self, depth: int) -> list[object]:
        sequence = []
        while type(event := self._next()) is not SequenceEndEvent:
            sequence.append(self._node(event, depth))
        return sequence

    def _merge_sources(self, event: Any, value: object) -> list[dict[object, object]]:
        """What `<<` refers to; each counts as an expanded alias, for merging copies it."""
        sources: list[dict[object, object]] = []
        for source in value if isinstance(value, list) else [value]:
            if not isinstance(source, dict):
                self._fail(event, "<< must refer to a mapping or a list of mappings")
            self._count_aliased(event, len(source))
            sources.append(source)
        return sources

    def _alias(self, event: Any) -> object:
        found = self._anchors.get(event.anchor)
        if found is None:
            self._fail(event, f"alias *{event.anchor} refers to nothing before it")
        value, size = found
        self._nodes += size - 1
        self._count_aliased(event, size)
        return value

    def _count_aliased(self, event: Any, size: int) -> None:
        self._aliased += size
        if self._aliased > MAX_ALIASED_NODES:
            self._fail(event, f"aliases expand to more than {MAX_ALIASED_NODES} nodes")

    def _scalar(self, event: Any) -> object:
        text: str = event.value
        if event.implicit[0]:  # plain, without a tag
            return resolve(text) if len(text) < 64 else text
        tag = event.tag
        if tag is None or event.implicit[1] or tag == _TAG + "str":
            return text
        value = resolve(text)
        if tag not in _TAGS or type(value) not in _TAGS[tag]:
            self._fail(event, f"tag {tag} is not supported for {text[:40]!r}")
        return float(value) if tag == _TAG + "float" and type(value) is int else value

    def _check_tag(self, event: Any, name: str) -> None:
        if event.tag not in (None, "!", _TAG + name):
            self._fail(event, f"tag {event.tag} is not supported")

    def _fail(self, event: Any, message: str) -> NoReturn:
        raise DocumentError(message, self._first_line + event.start_mark.line)


# ---- plain scalars ---------------------------------------------------------------------------

_TAG = "tag:yaml.org,2002:"
_TAGS: dict[str, tuple[type, ...]] = {
    _TAG + "bool": (bool,),
    _TAG + "int": (int,),
    _TAG + "float": (float, int),
    _TAG + "null": (type(None),),
}
_WORDS: dict[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "off", "Off", "OFF"), False),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}
_MAYBE_NUMBER = frozenset("0123456789+-.")
_INT = re.compile(r"([-+]?)(?:0b([01]+)|0x([0-9a-fA-F]+)|0o?([0-7]+)|(0|[1-9][0-9]*))", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII)


def resolve(text: str) -> object:
    """What an untagged plain scalar means (goyaml.v2 resolve.go, as in sigs.k8s.io/yaml)."""
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in _MAYBE_NUMBER:
        return text
    plain = text.replace("_", "")
    if match := _INT.fullmatch(plain):
        sign, *digits = match.groups()
        base, number = next(
            (base, d) for base, d in zip((2, 16, 8, 10), digits, strict=True) if d is not None
        )
        return int(sign + number, base)
    return float(plain) if _FLOAT.fullmatch(plain) else text
