# SPDX-License-Identifier: Apache-2.0
"""`bristle bpf`: the kernel's maps as they are, with or without an agent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from agent.cli import maps
from agent.cli.maps import MapNames, Row
from agent.cli.options import common
from agent.cli.output import print_json, print_table

Rows = Callable[[Path, MapNames], Iterator[Row]]
Columns = Sequence[tuple[str, Callable[[Row], object]]]


@click.group()
def bpf() -> None:
    """The kernel's maps themselves.

    Read from their pins, so that this works without an agent; an agent that answers lends
    its names for the numbers.
    """


def _field(name: str) -> Callable[[Row], object]:
    return lambda row: row[name]


def _named(number: str, name: str) -> Callable[[Row], object]:
    return lambda row: f"{row[number]} ({row[name]})" if row[name] else row[number]


def _ports(row: Row) -> object:
    first, last = row["first_port"], row["last_port"]
    if (first, last) == (0, 0xFFFF):
        return "any"
    return first if first == last else f"{first}-{last}"


def _peer(end: str) -> Callable[[Row], object]:
    return lambda row: (
        f"[{row[end]}]:{row[f'{end}_port']}"
        if ":" in row[end]
        else f"{row[end]}:{row[f'{end}_port']}"
    )


def _table(number: str, enforced: str) -> Callable[[Row], object]:
    return lambda row: row[number] if row[enforced] else "open"


def _add(name: str, text: str, rows: Rows, columns: Columns) -> None:
    """A group `name` with the command `list`."""

    @bpf.group(name, help=text, short_help=text)
    def group() -> None:
        pass

    @group.command("list", help=text)
    @common
    def list_(run_dir: Path, bpffs_dir: Path, output: str) -> None:
        found = list(rows(bpffs_dir, maps.ask_names(run_dir)))
        if output == "json":
            print_json(found)
        else:
            print_rows(found, columns)


def print_rows(found: Sequence[Row], columns: Columns) -> None:
    """A table of rows that all have the columns' fields."""
    print_table(
        [title for title, _ in columns],
        [[value(row) for _, value in columns] for row in found],
    )


_add(
    "policy",
    "Verdicts by policy table, peer class, protocol and port.",
    maps.policy_rows,
    (
        ("TABLE", _named("table", "table_name")),
        ("PEER CLASS", _named("peer_class", "peer")),
        ("PROTOCOL", _field("protocol")),
        ("PORT", _ports),
        ("ACTION", _field("action")),
        ("RULE", _named("rule", "rule_name")),
    ),
)
_add(
    "ct",
    "Tracked connections.",
    maps.ct_rows,
    (
        ("ENDPOINT", _named("endpoint", "endpoint_name")),
        ("DIRECTION", _field("direction")),
        ("PROTOCOL", _field("protocol")),
        ("LOCAL", _peer("local")),
        ("REMOTE", _peer("remote")),
        ("PACKETS", lambda row: f"{row['packets']}/{row['packets_reply']}"),
        ("BYTES", lambda row: f"{row['bytes']}/{row['bytes_reply']}"),
        ("RULE", _field("rule_name")),
        ("IDLE", lambda row: f"{row['idle_seconds']} s"),
        ("FLAGS", _field("flags")),
        ("OVERFLOW", _field("overflow")),
    ),
)
_add(
    "nat",
    "Masqueraded connections.",
    maps.nat_rows,
    (
        ("ENDPOINT", _named("endpoint", "endpoint_name")),
        ("PROTOCOL", _field("protocol")),
        ("POD", _peer("local")),
        ("NODE", _peer("node")),
        ("REMOTE", _peer("remote")),
        ("IDLE", lambda row: f"{row['idle_seconds']} s"),
        ("FLAGS", _field("flags")),
    ),
)
_add(
    "sock",
    "Sockets that take part in redirect: what each end sent, and how.",
    maps.socket_rows,
    (
        ("ENDPOINT", _named("endpoint", "endpoint_name")),
        ("SIDE", _field("side")),
        ("SOURCE", _peer("source")),
        ("DESTINATION", _peer("destination")),
        ("WAY", lambda row: f"{row['state']} ({row['reason']})" if row["reason"] else row["state"]),
        ("MESSAGES", _field("messages")),
        ("BYTES", _field("bytes")),
        ("BY STACK", _field("stack_messages")),
        ("UNREAD", _field("unread")),
    ),
)
_add(
    "ipcache",
    "Identity and peer class of address prefixes.",
    maps.ipcache_rows,
    (
        ("PREFIX", _field("prefix")),
        ("IDENTITY", _named("identity", "identity_name")),
        ("PEER CLASS", _named("peer_class", "peer")),
    ),
)
_add(
    "tunnel",
    "How other nodes and their pods are reached.",
    maps.tunnel_rows,
    (
        ("PREFIX", _field("prefix")),
        ("NODE", lambda row: row["remote"] or "along the route"),
        ("FROM", _field("local")),
        ("DEVICE", lambda row: row["ifindex"] or ""),
        ("USE", lambda row: "source only" if row["source_only"] else ""),
    ),
)
_add(
    "endpoint",
    "Policy in force per endpoint.",
    maps.endpoint_rows,
    (
        ("ENDPOINT", _named("endpoint", "endpoint_name")),
        ("IDENTITY", _field("identity")),
        ("ADDRESSES", _field("addresses")),
        ("IFINDEX", _field("ifindex")),
        ("INGRESS TABLE", _table("ingress_table", "ingress_enforced")),
        ("EGRESS TABLE", _table("egress_table", "egress_enforced")),
    ),
)


@bpf.group()
def metrics() -> None:
    """Exact counters of the datapath."""


@metrics.command("list")
@common
def metrics_list(run_dir: Path, bpffs_dir: Path, output: str) -> None:
    """Packets and bytes by direction and reason, and counters."""
    found = list(maps.metrics_rows(bpffs_dir, MapNames()))
    if output == "json":
        print_json(found)
        return
    print_rows(
        [row for row in found if "counter" not in row],
        (
            ("DIRECTION", _field("direction")),
            ("REASON", lambda row: f"{row['reason_text']} ({row['reason']})"),
            ("PACKETS", _field("packets")),
            ("BYTES", _field("bytes")),
        ),
    )
    click.echo()
    print_rows(
        [row for row in found if "counter" in row],
        (("COUNTER", _field("counter")), ("VALUE", _field("value"))),
    )
