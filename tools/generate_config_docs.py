#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the table of keys in docs/configuration.md from `agent.config.KEYS`.

    python -m tools.generate_config_docs            write the table
    python -m tools.generate_config_docs --check    exit 1 where the page is out of date

Only what stands between the two marks is written; the rest of the page is by hand.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from agent.config import KEYS, Key

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
BEGIN: Final = "<!-- keys: written by tools/generate_config_docs.py -->"
END: Final = "<!-- keys: end -->"
HEADINGS: Final = ("key", "flag", "value", "default", "meaning")


class PageError(Exception):
    """The page has no place for the table."""


def table(keys: Sequence[Key] = KEYS) -> str:
    """The keys as a Markdown table, in the order of the file's reference."""
    rows = [HEADINGS, ("---",) * len(HEADINGS), *map(_row, keys)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n"
                   for row in rows)  # fmt: skip


def filled(page: str) -> str:
    """The page with the table of now. Raises PageError where a mark is missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise PageError(f"the lines {BEGIN!r} and {END!r} must both be in {PAGE.name}, in order")
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


def _row(key: Key) -> tuple[str, ...]:
    flag = f"`{key.flag}`"
    if key.kind.flag:
        flag += f", `{key.flag.replace('--', '--no-', 1)}`"
    return f"`{key.name}`", flag, key.kind.expected, _default(key), key.help


def _default(key: Key) -> str:
    if key.required:
        return "required"
    value = key.default
    if value is None or callable(value):
        return "see meaning"
    if value == ():
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or compare; gives the exit status."""
    parser = argparse.ArgumentParser(prog="generate_config_docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare and do not write")
    options = parser.parse_args(arguments)
    page = PAGE.read_text()
    try:
        wanted = filled(page)
    except PageError as error:
        print(f"generate_config_docs: {error}", file=sys.stderr)
        return 2
    if page == wanted:
        return 0
    if options.check:
        print(f"{PAGE} is out of date: run python -m tools.generate_config_docs", file=sys.stderr)
        return 1
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
