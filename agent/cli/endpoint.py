# SPDX-License-Identifier: Apache-2.0
"""`bristle endpoint`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.client import TIMEOUT, connect
from agent.cli.options import common
from agent.cli.output import enum_text, print_json, print_table, to_dict

if TYPE_CHECKING:
    from api.agent_pb2 import EndpointInfo


@click.group()
def endpoint() -> None:
    """Pods of this node."""


@endpoint.command("list")
@common
def list_(run_dir: Path, bpffs_dir: Path, output: str) -> None:
    """All endpoints."""
    with connect(run_dir) as agent:
        from api.agent_pb2 import ListEndpointsRequest

        found = agent.ListEndpoints(ListEndpointsRequest(), timeout=TIMEOUT).endpoints
    _print(sorted(found, key=lambda e: (e.namespace, e.pod, e.id)), output)


@endpoint.command()
@common
@click.argument("key")
def get(run_dir: Path, bpffs_dir: Path, output: str, key: str) -> None:
    """One endpoint, by id, NAMESPACE/POD or address."""
    with connect(run_dir) as agent:
        from api.agent_pb2 import GetEndpointRequest

        found = agent.GetEndpoint(GetEndpointRequest(key=key), timeout=TIMEOUT)
    if output == "json":
        print_json(to_dict(found))
    else:
        print_fields(to_dict(found))


def print_fields(fields: dict[str, Any]) -> None:
    """One object, one line per field, lists one line per item."""
    rows: list[tuple[str, object]] = []
    for name, value in fields.items():
        items = value if isinstance(value, list) else [value]
        title = name.replace("_", " ").capitalize()
        rows.append((title, items[0] if items else ""))
        rows.extend((" ", item) for item in items[1:])
    print_table(("FIELD", "VALUE"), rows)


def _print(found: list[EndpointInfo], output: str) -> None:
    if output == "json":
        print_json([to_dict(item) for item in found])
        return
    print_table(
        ("ID", "POD", "STATE", "IDENTITY", "INGRESS", "EGRESS", "IPV4", "IPV6", "STATUS"),
        [
            (
                item.id,
                f"{item.namespace}/{item.pod}",
                item.state,
                item.identity,
                _enforced(item.ingress_enforced),
                _enforced(item.egress_enforced),
                item.ipv4,
                item.ipv6,
                _status(item),
            )
            for item in found
        ],
    )


def _enforced(enforced: bool) -> str:
    return "enforced" if enforced else "open"


def _status(item: EndpointInfo) -> str:
    text = enum_text(item, "status")
    return f"{text}: {item.reason}" if item.reason else text
