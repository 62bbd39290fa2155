# SPDX-License-Identifier: Apache-2.0
"""Label and field selectors: the grammar of list and watch parameters, and what they match (pure).

A label selector is `key`, `!key`, `key=value`, `key==value`, `key!=value`, `key in (a,b)`,
`key notin (a,b)`, `key>1`, `key<1`, joined by commas. A field selector is `path=value`,
`path==value` or `path!=value`, joined by commas, with `\\`, `\\,` and `\\=` as escapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.lab.apiserver.errors import bad_request
from bench.lab.apiserver.validation import label_value, qualified_name

_TOKEN = re.compile(r"\s*(==|!=|[=!,()<>]|[^\s=!,()<>]+)")
_WORD = re.compile(r"[^\s=!,()<>]+\Z")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One part of a label selector. operator: in, notin, exists, absent, gt or lt."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether the labels of an object meet it."""
        value = labels.get(self.key)
        match self.operator:
            case "in":
                return value is not None and value in self.values
            case "notin":
                return value is None or value not in self.values
            case "exists":
                return value is not None
            case "absent":
                return value is None
        (bound,) = self.values
        number = _integer(value)
        if number is None:
            return False
        return number > int(bound) if self.operator == "gt" else number < int(bound)


@dataclass(frozen=True, slots=True)
class FieldTerm:
    """One part of a field selector."""

    field: str
    equal: bool
    value: str


@dataclass(frozen=True, slots=True)
class Selector:
    """Both selectors of a request."""

    labels: tuple[Requirement, ...] = ()
    fields: tuple[FieldTerm, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.labels or self.fields)

    def matches(self, labels: Mapping[str, str], field: Callable[[str], str]) -> bool:
        """Whether an object is selected. field: its value at a field selector's path."""
        return all(term.matches(labels) for term in self.labels) and all(
            (field(term.field) == term.value) is term.equal for term in self.fields
        )

    def only_name(self) -> str:
        """The one name that can be selected, "" if there is no such term."""
        return next((t.value for t in self.fields if t.field == "metadata.name" and t.equal), "")


def parse_labels(text: str) -> tuple[Requirement, ...]:
    """Reads a label selector. Raises ApiError 400."""
    try:
        return _Parser(text).parse()
    except _Refused as error:
        raise bad_request(f"unable to parse requirement: {error}") from None


def parse_fields(text: str, known: frozenset[str]) -> tuple[FieldTerm, ...]:
    """Reads a field selector; known: paths that the kind can be selected by. Raises ApiError."""
    terms: list[FieldTerm] = []
    for part in re.findall(r"(?:\\.|[^,\\])+|\\\Z", text):
        found = re.match(r"((?:\\.|[^=!\\])*)(==|!=|=)(.*)\Z", part, re.S)
        if not found:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        path, operator, value = found.groups()
        if path not in known:
            raise bad_request(f'"{path}" is not a known field selector: only {_listed(known)}')
        terms.append(FieldTerm(path, operator != "!=", _unescaped(value, text)))
    return tuple(terms)


def _listed(known: frozenset[str]) -> str:
    return ", ".join(f'"{path}"' for path in sorted(known))


def _unescaped(value: str, whole: str) -> str:
    if not re.fullmatch(r"(?:[^\\,=]|\\[\\,=])*", value, re.S):
        raise bad_request(f"invalid field selector: {whole}: invalid escape in value")
    return re.sub(r"\\([\\,=])", r"\1", value)


class _Refused(Exception):
    pass


class _Parser:
    """Recursive descent over the tokens of one label selector."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        position, end = 0, len(text.rstrip())
        while position < end:
            found = _TOKEN.match(text, position)
            assert found  # every character that is no space begins a token
            self._tokens.append(found[1])
            position = found.end()
        self._next = 0

    def parse(self) -> tuple[Requirement, ...]:
        if not self._tokens:
            return ()
        terms = [self._requirement()]
        while self._peek() == ",":
            self._take()
            terms.append(self._requirement())
        if self._peek():
            raise _Refused(f"found '{self._peek()}', expected: ',' or 'end of string'")
        return tuple(terms)

    def _peek(self) -> str:
        return self._tokens[self._next] if self._next < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self._next += 1
        return token

    def _key(self) -> str:
        key = self._take()
        if not _WORD.match(key):
            raise _Refused(f"found '{key}', expected: identifier")
        complaints = qualified_name(key)
        if complaints:
            raise _Refused(f'key: Invalid value: "{key}": {"; ".join(complaints)}')
        return key

    def _requirement(self) -> Requirement:
        if self._peek() == "!":
            self._take()
            return Requirement(self._key(), "absent")
        key = self._key()
        operator = self._peek()
        if operator in ("", ","):
            return Requirement(key, "exists")
        self._take()
        if operator in ("=", "=="):
            return Requirement(key, "in", frozenset({self._value()}))
        if operator == "!=":
            return Requirement(key, "notin", frozenset({self._value()}))
        if operator in (">", "<"):
            return Requirement(key, "gt" if operator == ">" else "lt", self._bound())
        if operator in ("in", "notin"):
            return Requirement(key, operator, self._set())
        raise _Refused(
            f"found '{operator}', expected: in, notin, =, ==, !=, gt, lt, or end of string"
        )

    def _value(self) -> str:
        """A value, which may be empty at the end or before a comma."""
        if self._peek() in ("", ","):
            return ""
        value = self._take()
        if not _WORD.match(value):
            raise _Refused(f"found '{value}', expected: identifier")
        return self._checked(value)

    def _bound(self) -> frozenset[str]:
        value = self._value()
        if _integer(value) is None:
            raise _Refused(f'values[0]: Invalid value: "{value}": must be an integer')
        return frozenset({value})

    def _set(self) -> frozenset[str]:
        if self._take() != "(":
            raise _Refused("found no '(', expected: '('")
        values = [""] if self._peek() in (",", ")") else [self._checked(self._word())]
        while self._peek() == ",":
            self._take()
            # An empty place between commas is the empty value.
            values.append("" if self._peek() in (",", ")") else self._checked(self._word()))
        if self._take() != ")":
            raise _Refused("found the end, expected: ',' or ')'")
        return frozenset(values)

    def _word(self) -> str:
        value = self._take()
        if not _WORD.match(value):
            raise _Refused(f"found '{value}', expected: ',', ')' or identifier")
        return value

    def _checked(self, value: str) -> str:
        complaints = label_value(value)
        if complaints:
            raise _Refused(f'values[0]: Invalid value: "{value}": {"; ".join(complaints)}')
        return value


def _integer(text: str | None) -> int | None:
    """As Go's ParseInt: decimal digits with a sign, 64 bits."""
    if text is None or not re.match(r"[-+]?[0-9]+\Z", text, re.ASCII):
        return None
    number = int(text)
    return number if -(1 << 63) <= number < 1 << 63 else None
