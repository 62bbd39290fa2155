# SPDX-License-Identifier: Apache-2.0
"""What a story has shown: lines while it runs, and a table at its end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tools.cri.node import Failure


class Report:
    """Collects what was shown with one runtime."""

    def __init__(self, title: str) -> None:
        self._title = title
        self.chapter = ""
        self.shown: list[tuple[str, str]] = []
        """What, and a figure for it or nothing."""

    def say(self, text: str) -> None:
        """A line that is no proof."""
        print(f"{self._title}: {text}", flush=True)

    def check(self, holds: object, what: str, said: object = "") -> None:
        """A proof, or Failure with what was seen instead."""
        self.check_only(holds, what, said)
        self.note(what)

    def check_only(self, holds: object, what: str, said: object = "") -> None:
        """The same without a line: one of many."""
        if not holds:
            raise Failure(f"not so: {what}{f': {said}' if said != '' else ''}")

    def note(self, what: str, figure: str = "") -> None:
        """A proof that has been given, and a figure that may differ from run to run."""
        whole = f"{self.chapter}: {what}"
        self.say(f"ok: {whole}{f' ({figure})' if figure else ''}")
        self.shown.append((whole, figure))

    def save(self, file: Path) -> None:
        """For `table`."""
        file.write_text(json.dumps([self._title, self.shown]))


def table(files: Sequence[Path]) -> str:
    """One line for each thing that was shown, and a column for each runtime."""
    columns = [json.loads(file.read_text()) for file in files]
    rows: dict[str, None] = {}
    for _, shown in columns:
        rows.update(dict.fromkeys(what for what, _ in shown))
    cells = [dict(shown) for _, shown in columns]
    titles = [title for title, _ in columns]
    widths = [
        max(map(len, (title, *cell.values()))) for title, cell in zip(titles, cells, strict=True)
    ]
    heads = [title.ljust(width) for title, width in zip(titles, widths, strict=True)]
    lines = ["  ".join([*heads, "shown"])]
    for what in rows:
        row = [
            ("-" if what not in cell else cell[what] or "ok").ljust(width)
            for cell, width in zip(cells, widths, strict=True)
        ]
        lines.append("  ".join([*row, what]))
    return "\n".join(lines)
