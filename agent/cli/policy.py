# SPDX-License-Identifier: Apache-2.0
"""`bristle policy`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.client import CHECK_TIMEOUT, TIMEOUT, connect
from agent.cli.explain import explain
from agent.cli.options import common
from agent.cli.output import enum_text, print_json, print_table, printable, to_dict

if TYPE_CHECKING:
    from api.agent_pb2 import CheckDifference, CheckReport, PolicyInfo, PolicyList


@click.group()
def policy() -> None:
    """Policies, what they select, and why."""


policy.add_command(explain)


@policy.command()
@common
@click.argument("name", required=False)
def get(run_dir: Path, bpffs_dir: Path, output: str, name: str | None) -> None:
    """Policies and rejected documents; with NAME (NAMESPACE/NAME) one policy in full."""
    with connect(run_dir) as agent:
        from api.agent_pb2 import ListPoliciesRequest

        answer = agent.ListPolicies(ListPoliciesRequest(), timeout=TIMEOUT)
    if name is not None:
        _get_one(answer, name, output)
    elif output == "json":
        print_json(
            {
                "revision": answer.revision,
                "policies": [_policy_dict(item) for item in _sorted(answer)],
                "rejected": [to_dict(item) for item in answer.rejected],
            }
        )
    else:
        _print_all(answer)


@policy.command()
@common
def selectors(run_dir: Path, bpffs_dir: Path, output: str) -> None:
    """Selectors in use, the identities they select now, and who uses them."""
    with connect(run_dir) as agent:
        from api.agent_pb2 import SelectorsRequest

        found = agent.Selectors(SelectorsRequest(), timeout=TIMEOUT).selectors
    if output == "json":
        print_json([to_dict(item) for item in found])
        return
    print_table(
        ("SELECTOR", "POLICIES", "IDENTITIES"),
        [(item.selector, list(item.policies), list(item.identities)) for item in found],
    )


@policy.command()
@common
@click.option("--repair", is_flag=True, help="Also have the differences repaired.")
def check(run_dir: Path, bpffs_dir: Path, output: str, repair: bool) -> None:
    """Compare model and kernel exhaustively.

    Every direction, peer class, protocol and port interval is evaluated in both. Exits 1
    when they differ anywhere.
    """
    with connect(run_dir) as agent:
        from api.agent_pb2 import CheckRequest

        report = agent.Check(CheckRequest(repair=repair), timeout=CHECK_TIMEOUT)
    if output == "json":
        print_json(to_dict(report))
    else:
        _print_report(report)
    if report.difference_count:
        sys.exit(1)


def _sorted(answer: PolicyList) -> list[PolicyInfo]:
    return sorted(answer.policies, key=lambda p: (p.namespace, p.name, p.kind))


def _text(item: PolicyInfo) -> str:
    return f"{item.namespace}/{item.name}" if item.namespace else item.name


def _get_one(answer: PolicyList, name: str, output: str) -> None:
    found = [item for item in _sorted(answer) if _text(item) == name]
    if not found:
        raise click.ClickException(f"no policy {name!r} is loaded; `bristle policy get` lists all")
    if output == "json":
        print_json(_policy_dict(found[0]) if len(found) == 1 else [*map(_policy_dict, found)])
        return
    for item in found:
        from agent.cli.endpoint import print_fields

        fields = _policy_dict(item)
        spec = fields.pop("spec")
        print_fields(fields)
        click.echo()
        click.echo(json.dumps(spec, indent=2))


def _policy_dict(item: PolicyInfo) -> dict[str, Any]:
    fields = to_dict(item)
    text = fields.pop("spec_json")
    return {**fields, "spec": json.loads(text) if text else None}


def _print_all(answer: PolicyList) -> None:
    click.echo(f"Revision {answer.revision}")
    print_table(
        ("POLICY", "KIND", "TYPES", "RULES IN", "RULES OUT", "ENDPOINTS", "STATUS"),
        [
            (
                _text(item),
                item.kind,
                list(item.types),
                item.ingress_rules,
                item.egress_rules,
                item.endpoints,
                _status(item),
            )
            for item in _sorted(answer)
        ],
    )
    if answer.rejected:
        click.echo("\nRejected:")
        print_table(
            ("ORIGIN", "DOCUMENT", "RESOURCE", "FIELD", "ERROR", "IN FORCE"),
            [
                (
                    item.origin,
                    item.document,
                    item.resource,
                    item.field,
                    item.message,
                    "last good state" if item.last_good else "nothing",
                )
                for item in answer.rejected
            ],
        )


def _status(item: PolicyInfo) -> str:
    text = enum_text(item, "status")
    return f"{text}: {item.reason}" if item.reason else text


def _scope(item: CheckDifference, name: Callable[[int], str]) -> tuple[str, str]:
    """Protocol and ports, which only verdicts have."""
    if not (item.protocol or item.last_port):
        return "", ""
    protocol = name(item.protocol) if item.protocol else "any"
    return protocol, f"{item.first_port}-{item.last_port}"


def _print_report(report: CheckReport) -> None:
    click.echo(
        f"{report.tables} tables × {report.classes} peer classes, "
        f"{report.intervals} intervals compared: "
        + (f"{report.difference_count} DIFFER" if report.difference_count else "no difference")
    )
    if not report.differences:
        return
    from agent.core.flow import protocol_name

    print_table(
        ("WHERE", "DIRECTION", "PEER", "PROTOCOL", "PORTS", "EXPECTED", "IN KERNEL"),
        [
            (
                item.where,
                enum_text(item, "direction"),
                item.peer,
                *_scope(item, protocol_name),
                item.expected,
                item.actual,
            )
            for item in report.differences
        ],
    )
    if (more := report.difference_count - len(report.differences)) > 0:
        click.echo(printable(f"and {more} more"))
