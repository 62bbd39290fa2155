# SPDX-License-Identifier: Apache-2.0
"""Tables, and messages as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from google.protobuf.message import Message


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as their contents; control characters are shown, not obeyed."""
    cells = [list(headers), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "   ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def printable(text: str) -> str:
    """`text` with control characters escaped: names may come from elsewhere."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_json(value: Any) -> None:
    """Indented, keys in the order of the message."""
    click.echo(json.dumps(value, indent=2))


def to_dict(message: Message) -> dict[str, Any]:
    """All fields under their own names, also unset ones. 64-bit numbers are numbers, enums
    are their names in lower case without the prefix, unset sub-messages null."""
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def enum_text(message: Message, name: str) -> str:
    """The value of an enum field: `policy-verdict` for FLOW_TYPE_POLICY_VERDICT; the number
    if it is not known."""
    return _enum(message.DESCRIPTOR.fields_by_name[name].enum_type, getattr(message, name))


# Descriptors are Any: they are of another class in each of protobuf's implementations.
def _enum(descriptor: Any, number: int) -> str:
    value = descriptor.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = "".join(f"_{c}" if c.isupper() else c.upper() for c in descriptor.name)
    text = value.name.removeprefix(prefix.lstrip("_").upper() + "_")
    return str(text).lower().replace("_", "-")


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.is_repeated:
        return [_value(item, field) for item in value]
    if field.message_type is not None and not message.HasField(field.name):
        return None
    return _value(value, field)


def _value(value: Any, field: Any) -> Any:
    if field.message_type is not None:
        return to_dict(value)
    if field.enum_type is not None:
        return _enum(field.enum_type, value)
    if isinstance(value, bytes):
        return value.hex()
    return value


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == "":
        return "-"
    if isinstance(value, (list, tuple)):
        return printable(", ".join(map(str, value))) or "-"
    return printable(str(value)) or "-"
