# SPDX-License-Identifier: Apache-2.0
"""`bristle identity`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from agent.cli.client import TIMEOUT, connect
from agent.cli.options import common
from agent.cli.output import print_json, print_table, to_dict


@click.group()
def identity() -> None:
    """Security identities and their labels."""


@identity.command("list")
@common
def list_(run_dir: Path, bpffs_dir: Path, output: str) -> None:
    """All identities that this node knows."""
    _print(_fetch(run_dir), output)


@identity.command()
@common
@click.argument("number", type=click.IntRange(0, 2**32 - 1))
def get(run_dir: Path, bpffs_dir: Path, output: str, number: int) -> None:
    """One identity."""
    found = [item for item in _fetch(run_dir) if item.number == number]
    if not found:
        raise click.ClickException(
            f"identity {number} is not known here; `bristle identity list` shows those that are"
        )
    if output == "json":
        print_json(to_dict(found[0]))
    else:
        _print(found, output)


def _fetch(run_dir: Path) -> list[Any]:
    with connect(run_dir) as agent:
        from api.agent_pb2 import ListIdentitiesRequest

        answer = agent.ListIdentities(ListIdentitiesRequest(), timeout=TIMEOUT)
    return sorted(answer.identities, key=lambda item: item.number)


def _print(found: list[Any], output: str) -> None:
    if output == "json":
        print_json([to_dict(item) for item in found])
        return
    rows: list[tuple[object, ...]] = []
    for item in found:
        labels = list(item.labels) or [""]
        rows.append((item.number, item.type, item.references, labels[0]))
        rows.extend((" ", " ", " ", label) for label in labels[1:])
    print_table(("IDENTITY", "TYPE", "USED BY", "LABELS"), rows)
