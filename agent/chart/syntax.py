# SPDX-License-Identifier: Apache-2.0
"""Text of a template to a tree of nodes. Pure.

Source: the documentation of Go's text/template. Known here: `if`, `else`, `else if`, `with`,
`range`, `define`, `end`, comments, trim markers, pipelines, parentheses, fields, strings and whole
numbers. No variables but `$`, no `block`, no `template`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final


class TemplateError(Exception):
    """A template that cannot be read or rendered; names the file and line."""


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant of an expression."""

    value: str | int | bool | None


@dataclass(frozen=True, slots=True)
class Field:
    """`.a.b`, or `$.a.b` from the root. No names: the dot itself."""

    names: tuple[str, ...]
    root: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A function and its arguments; a pipeline's value is the last argument."""

    function: str
    arguments: tuple[Expression, ...]


Expression = Literal | Field | Call


@dataclass(frozen=True, slots=True)
class Text:
    """What is copied as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class Output:
    """An expression whose value is written."""

    value: Expression
    place: str


@dataclass(frozen=True, slots=True)
class Block:
    """`if`, `with` or `range`; `otherwise` is its else part."""

    kind: str
    value: Expression
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...]
    place: str


Node = Text | Output | Block


@dataclass(frozen=True, slots=True)
class Template:
    """One file: its nodes, and the named templates that it defines."""

    body: tuple[Node, ...]
    defined: Mapping[str, tuple[Node, ...]] = field(default_factory=dict)


_ACTION: Final = re.compile(r"\{\{(- )?\s*(/\*.*?\*/|[^\n]*?)\s*( -)?\}\}", re.S)
_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<number>-?[0-9]+)\b"""
    r"""|(?P<field>\$?(?:\.[A-Za-z_][A-Za-z0-9_]*)+|\$|\.)"""
    r"""|(?P<word>[A-Za-z][A-Za-z0-9]*)|(?P<sign>[()|]))"""
)
_CONSTANTS: Final = {"true": True, "false": False, "nil": None}


def parse(text: str, name: str) -> Template:
    """The tree of one file. `name` is for messages. Raises TemplateError."""
    parser = _Parser(_pieces(text, name))
    body, closing = parser.nodes(top=True)
    assert closing == "" and isinstance(body, tuple)
    return Template(body, parser.defined)


def _pieces(text: str, name: str) -> list[tuple[str, str, str]]:
    """(kind, contents, place): "text" and "action" in turn, white space trimmed as marked."""
    # The markers are "{{- " and " -}}": white space belongs to them.
    pieces: list[tuple[str, str, str]] = []
    at, trim = 0, False
    for match in _ACTION.finditer(text):
        before = text[at : match.start()]
        before = before.lstrip() if trim else before
        pieces.append(("text", before.rstrip() if match[1] else before, ""))
        place = f"{name}:{text.count(chr(10), 0, match.start()) + 1}"
        if not match[2].startswith("/*"):
            pieces.append(("action", match[2].strip(), place))
        at, trim = match.end(), match[3] is not None
    rest = text[at:]
    if "{{" in rest:
        raise TemplateError(
            f"{name}: an action that does not end: {rest[rest.index('{{') :][:60]!r}"
        )
    pieces.append(("text", rest.lstrip() if trim else rest, ""))
    return [piece for piece in pieces if piece[0] == "action" or piece[1]]


class _Parser:
    def __init__(self, pieces: list[tuple[str, str, str]]) -> None:
        self._pieces: Iterator[tuple[str, str, str]] = iter(pieces)
        self.defined: dict[str, tuple[Node, ...]] = {}

    def nodes(self, *, top: bool = False, opened: str = "") -> tuple[tuple[Node, ...], str]:
        """Nodes up to `end` or `else`, and that closing action with its condition."""
        found: list[Node] = []
        for kind, contents, place in self._pieces:
            if kind == "text":
                found.append(Text(contents))
                continue
            word, _, rest = contents.partition(" ")
            if word in ("end", "else"):
                if top:
                    raise TemplateError(f"{place}: {word} without a beginning")
                return tuple(found), contents
            if word == "define":
                self._define(rest, place, top)
            elif word in ("if", "with", "range"):
                found.append(self._block(word, rest, place))
            elif word in ("block", "template", "break", "continue") or ":=" in contents:
                raise TemplateError(f"{place}: {contents!r} is not supported")
            else:
                found.append(Output(_expression(contents, place), place))
        if not top:
            raise TemplateError(f"{opened}: has no end")
        return tuple(found), ""

    def _define(self, rest: str, place: str, top: bool) -> None:
        name = _expression(rest, place)
        if not top or not isinstance(name, Literal) or not isinstance(name.value, str):
            raise TemplateError(f"{place}: define wants a name, outside of everything else")
        body, closing = self.nodes(opened=place)
        if closing != "end":
            raise TemplateError(f"{place}: {closing} in a define")
        self.defined[name.value] = body

    def _block(self, kind: str, condition: str, place: str) -> Block:
        value = _expression(condition, place)
        body, closing = self.nodes(opened=place)
        otherwise: tuple[Node, ...] = ()
        if closing.startswith("else if "):
            otherwise = (self._block("if", closing.removeprefix("else if "), place),)
        elif closing == "else":
            otherwise, closing = self.nodes(opened=place)
            if closing != "end":
                raise TemplateError(f"{place}: {closing} after else")
        elif closing != "end":
            raise TemplateError(f"{place}: {closing!r} is not supported")
        return Block(kind, value, body, otherwise, place)


def _expression(text: str, place: str) -> Expression:
    """A pipeline. Each stage gets the value of the one before as its last argument."""
    tokens: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.end() == at:
            raise TemplateError(f"{place}: cannot read {text[at:]!r}")
        assert match.lastgroup is not None
        tokens.append((match.lastgroup, match[match.lastgroup]))
        at = match.end()
    value, rest = _pipeline(tokens, place)
    if rest:
        raise TemplateError(f"{place}: {rest[0][1]!r} is not expected in {text!r}")
    return value


def _pipeline(
    tokens: list[tuple[str, str]], place: str
) -> tuple[Expression, list[tuple[str, str]]]:
    value: Expression | None = None
    while True:
        terms: list[Expression | str] = []
        while tokens and tokens[0][1] not in ("|", ")"):
            term, tokens = _term(tokens, place)
            terms.append(term)
        value = _command(terms, value, place)
        if not tokens or tokens[0][1] != "|":
            return value, tokens
        tokens = tokens[1:]


def _term(
    tokens: list[tuple[str, str]], place: str
) -> tuple[Expression | str, list[tuple[str, str]]]:
    (kind, text), rest = tokens[0], tokens[1:]
    if kind == "string":
        return Literal(text[1:-1].replace('\\"', '"').replace("\\n", "\n")), rest
    if kind == "number":
        return Literal(int(text)), rest
    if kind == "field":
        return Field(tuple(text.lstrip("$").split(".")[1:]) if text not in (".", "$") else (),
                     text.startswith("$")), rest  # fmt: skip
    if kind == "word":
        return (Literal(_CONSTANTS[text]) if text in _CONSTANTS else text), rest
    value, rest = _pipeline(rest, place)
    if not rest or rest[0][1] != ")":
        raise TemplateError(f"{place}: a parenthesis is not closed")
    return value, rest[1:]


def _command(terms: list[Expression | str], piped: Expression | None, place: str) -> Expression:
    if not terms:
        raise TemplateError(f"{place}: a value is missing")
    first, *others = terms
    arguments = [term for term in others if not isinstance(term, str)]
    if len(arguments) != len(others):
        raise TemplateError(f"{place}: a function as an argument needs parentheses")
    if isinstance(first, str):
        return Call(first, tuple(arguments if piped is None else [*arguments, piped]))
    if others or piped is not None:
        raise TemplateError(f"{place}: a value takes no arguments")
    return first
