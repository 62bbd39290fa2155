# SPDX-License-Identifier: Apache-2.0
"""A tree of nodes and a context to text, as Go's text/template with Helm's functions. Pure.

A function or a value that Helm would print in another way than Python is refused, rather than
rendered differently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from agent.chart import yamlout
from agent.chart.syntax import Block, Call, Expression, Field, Literal, Node, Output, Text
from agent.chart.syntax import TemplateError as TemplateError

# Helm reads numbers as float64, and prints those from a million on as 1.048576e+06.
_PLAIN_NUMBERS: Final = 1_000_000


class WholeNumber(int):
    """A number that went through `int`, and so prints as one whatever its size."""


class Renderer:
    """Renders bodies with a set of named templates."""

    def __init__(self, defined: Mapping[str, tuple[Node, ...]]) -> None:
        self._defined = dict(defined)
        self._functions: dict[str, Callable[..., Any]] = {
            "default": lambda fallback, value=None: value if truth(value) else fallback,
            "eq": lambda one, *others: any(one == other for other in others),
            "int": _int,
            "ne": lambda one, other: one != other,
            "nindent": lambda width, text: "\n" + _indent(width, text),
            "not": lambda value: not truth(value),
            "quote": lambda value: yamlout.double_quoted(printed(value)),
            "sha256sum": lambda text: hashlib.sha256(text.encode()).hexdigest(),
            "toYaml": lambda value: yamlout.dump(value).removesuffix("\n"),
        }

    def render(self, body: tuple[Node, ...], context: object) -> str:
        """The text of `body`, `context` being both dot and root. Raises TemplateError."""
        return self._nodes(body, context, context)

    def _nodes(self, nodes: tuple[Node, ...], dot: object, root: object) -> str:
        parts: list[str] = []
        for node in nodes:
            match node:
                case Text(text):
                    parts.append(text)
                case Output(value, place):
                    parts.append(self._output(value, place, dot, root))
                case Block():
                    parts.append(self._block(node, dot, root))
        return "".join(parts)

    def _output(self, value: Expression, place: str, dot: object, root: object) -> str:
        return str(_at(place, lambda: printed(self._value(value, dot, root))))

    def _block(self, block: Block, dot: object, root: object) -> str:
        value = _at(block.place, lambda: self._value(block.value, dot, root))
        if not truth(value):
            return self._nodes(block.otherwise, dot, root)
        if block.kind == "range":
            if not isinstance(value, list):
                raise TemplateError(f"{block.place}: range goes over lists alone")
            return "".join(self._nodes(block.body, item, root) for item in value)
        return self._nodes(block.body, value if block.kind == "with" else dot, root)

    def _value(self, expression: Expression, dot: object, root: object) -> Any:
        match expression:
            case Literal(value):
                return value
            case Field(names, from_root):
                return _field(root if from_root else dot, names)
            case Call("and" | "or" as name, arguments):
                # The first that decides, as it is; what comes after it is not looked at.
                for argument in arguments[:-1]:
                    value = self._value(argument, dot, root)
                    if truth(value) == (name == "or"):
                        return value
                return self._value(arguments[-1], dot, root)
            case Call("include", arguments):
                name, context = (self._value(one, dot, root) for one in arguments)
                if name not in self._defined:
                    raise TemplateError(f"no template {name!r} is defined")
                return self._nodes(self._defined[name], context, context)
            case Call(name, arguments):
                if name not in self._functions:
                    raise TemplateError(f"function {name!r} is not supported")
                values = [self._value(argument, dot, root) for argument in arguments]
                return self._functions[name](*values)


def truth(value: object) -> bool:
    """What `if` makes of a value: nothing, false, zero and what is empty are false."""
    return bool(value)


def printed(value: object) -> str:
    """A value as text. Raises TemplateError where Helm would print something else."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, WholeNumber) or (isinstance(value, int) and abs(value) < _PLAIN_NUMBERS):
        return str(int(value))
    if value is None:
        return ""
    raise TemplateError(f"{value!r} has no plain text; use toYaml, or int for a number")


def _field(value: object, names: tuple[str, ...]) -> object:
    for index, name in enumerate(names):
        if value is None and index:
            raise TemplateError(f".{'.'.join(names)}: .{'.'.join(names[:index])} is nothing")
        if not isinstance(value, Mapping):
            raise TemplateError(f".{'.'.join(names)}: .{'.'.join(names[:index])} is no mapping")
        value = value.get(name)
    return value


def _int(value: object) -> WholeNumber:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TemplateError(f"int of {value!r}")
    return WholeNumber(value)


def _indent(width: int, text: str) -> str:
    return "\n".join(" " * width + line for line in text.split("\n"))


def _at(place: str, work: Callable[[], Any]) -> Any:
    """The place in front of the error's text."""
    try:
        return work()
    except TemplateError as error:
        raise TemplateError(f"{place}: {error}") from None
    except TypeError as error:
        raise TemplateError(f"{place}: wrong arguments: {error}") from error
