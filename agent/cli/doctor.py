# SPDX-License-Identifier: Apache-2.0
"""`bristle doctor`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.options import common
from agent.cli.output import print_json, print_table

if TYPE_CHECKING:
    from agent.kernel.features import Feature


@click.command()
@common
def doctor(run_dir: Path, bpffs_dir: Path, output: str) -> None:
    """What this kernel offers, and what bristle will use.

    Each ability is tried, nothing is changed. Exits 1 when something is missing without
    which the agent cannot work.
    """
    from agent.kernel.features import missing, probe

    found = probe(bpffs_dir)
    if output == "json":
        print_json([as_dict(feature) for feature in found])
    else:
        print_table(
            ("FEATURE", "AVAILABLE", "DETAIL", "USED FOR"),
            [(f.name, _available(f), f.detail, f.used_for) for f in found],
        )
    if lacking := missing(found):
        names = ", ".join(feature.name for feature in lacking)
        click.echo(f"the agent cannot work here: {names}", err=True)
        sys.exit(1)


def as_dict(feature: Feature) -> dict[str, object]:
    """For JSON output and bug reports."""
    return {
        "name": feature.name,
        "available": feature.available,
        "needed": feature.needed,
        "detail": feature.detail,
        "used_for": feature.used_for,
    }


def _available(feature: Feature) -> str:
    if feature.available:
        return "yes"
    return "MISSING" if feature.needed else "no"
