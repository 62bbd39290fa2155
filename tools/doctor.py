#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""``make doctor``: what this kernel offers, and what bristle will use of it.

The probing is agent.kernel.features; here is only the table.
"""

from __future__ import annotations

import platform
import shutil
import sys
import textwrap
from collections.abc import Sequence

from agent.kernel.features import Feature, missing, probe


def mark(feature: Feature) -> str:
    """The word of the second column."""
    if feature.available:
        return "yes"
    if feature.detail.startswith("not tried"):
        return "?"
    return "MISSING" if feature.needed else "no"


def table(features: Sequence[Feature], width: int) -> str:
    """One row per feature: name, whether it is there, what it serves, what was found."""
    head = ("feature", "here", "used for", "found")
    rows = [(f.name, mark(f), f.used_for, f.detail) for f in features]
    columns = [max(len(row[i]) for row in [head, *rows]) for i in range(3)]
    columns[2] = min(columns[2], 44)
    last = max(width - sum(columns) - 6, 24)
    lines = []
    for row in [head, tuple("-" * n for n in (*columns, min(last, 40))), *rows]:
        uses = textwrap.wrap(row[2], columns[2]) or [""]
        details = textwrap.wrap(row[3], last) or [""]
        for i in range(max(len(uses), len(details))):
            cells = (
                row[0] if i == 0 else "",
                row[1] if i == 0 else "",
                uses[i] if i < len(uses) else "",
                details[i] if i < len(details) else "",
            )
            padded = [cell.ljust(n) for cell, n in zip(cells[:3], columns, strict=True)]
            lines.append("  ".join([*padded, cells[3]]).rstrip())
    return "\n".join(lines)


def summary(features: Sequence[Feature]) -> str:
    """Whether the agent would start here, and what it will use of what is there."""
    lacking = [f.name for f in missing(features)]
    if "root" in lacking:
        return "Most can be tried by root alone: sudo make doctor"
    if lacking:
        return f"Bristle cannot run here. Needed and missing: {', '.join(lacking)}."
    unused = ("not used", "nothing")
    used = [f.name for f in features if f.available and not f.used_for.startswith(unused)]
    return "\n".join(textwrap.wrap(f"Bristle runs here. It will use: {', '.join(used)}.", 100))


def main() -> int:
    """Prints the table. Exit status: 1 if the agent would not start here."""
    width = min(shutil.get_terminal_size((120, 24)).columns, 160)
    print(f"Linux {platform.release()} {platform.machine()}, Python {platform.python_version()}\n")
    features = probe()
    print(table(features, width))
    print(f"\n{summary(features)}")
    return int(bool(missing(features)))


if __name__ == "__main__":
    sys.exit(main())
