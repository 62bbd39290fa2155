# SPDX-License-Identifier: Apache-2.0
"""How the demonstration looks: headings, facts, a grid; in colour where a person is watching."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_BOLD, _GREEN, _RED, _DIM, _CYAN = "1", "32", "31", "2", "36"


def _paint(words: str, colour: str) -> str:
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:  # https://no-color.org
        return words
    return f"\033[{colour}m{words}\033[0m"


def text(words: str) -> None:
    """A line as it is."""
    print(words, flush=True)


def title(words: str) -> None:
    """Begins a part."""
    text("\n" + _paint(f"== {words} " + "=" * max(76 - len(words), 3), _BOLD))


def fact(name: str, value: str) -> None:
    """A name with its value."""
    text(f"  {_paint(f'{name:<12}', _DIM)}{value}")


def command(words: str) -> None:
    """A command whose output follows."""
    text(_paint(f"  $ {words}", _CYAN))


def verdict(good: bool, right: str, wrong: str) -> bool:
    """Says which of the two it is, and gives it back."""
    text("  " + (_paint(f"ok: {right}", _GREEN) if good else _paint(f"WRONG: {wrong}", _RED)))
    return good


def grid(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table of who reaches whom; rows and columns have the same names."""
    first = max(map(len, names)) + 2
    widths = [max(len(name), *(len(row[i]) for row in rows)) + 2 for i, name in enumerate(names)]
    header = "".join(f"{name:<{width}}" for name, width in zip(names, widths, strict=True))
    text(" " * (first + 2) + _paint(header.rstrip(), _BOLD))
    for name, row in zip(names, rows, strict=True):
        fields = [
            _paint(f"{field:<{width}}", _RED if field == "·" else _GREEN)
            for field, width in zip(row, widths, strict=True)
        ]
        text(f"  {_paint(f'{name:<{first}}', _BOLD)}" + "".join(fields).rstrip())
