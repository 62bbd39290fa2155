# SPDX-License-Identifier: Apache-2.0
"""`bristle monitor`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.client import connect
from agent.cli.options import common
from agent.cli.output import printable, to_dict

if TYPE_CHECKING:
    from api.agent_pb2 import Flow, FlowParty, MonitorEvent, MonitorRequest

TYPES = {"drop": 1, "trace": 4, "policy-verdict": 5}
VERDICTS = {"forwarded": 1, "dropped": 2, "allowed": 1, "denied": 2}
_ICMP = frozenset({1, 58})


@click.command()
@common
@click.option(
    "-t", "--type", "types", multiple=True, type=click.Choice(list(TYPES)), help="Repeatable."
)
@click.option(
    "--pod", "pods", multiple=True, help="NAMESPACE/PREFIX, or NAMESPACE/; either end. Repeatable."
)
@click.option(
    "--verdict", "verdicts", multiple=True, type=click.Choice(list(VERDICTS)), help="Repeatable."
)
@click.option(
    "--last",
    type=click.IntRange(0, 65536),
    default=0,
    help="Begin with so many recorded events.",
)
@click.option(
    "-f/-F", "--follow/--no-follow", default=True, help="Go on with new events, or end here."
)
def monitor(
    run_dir: Path,
    bpffs_dir: Path,
    output: str,
    types: tuple[str, ...],
    pods: tuple[str, ...],
    verdicts: tuple[str, ...],
    last: int,
    follow: bool,
) -> None:
    """Drops, policy verdicts and new connections as they happen, one line each.

    With -o json, one object per line. Lost events are told where they are missing.
    """
    with connect(run_dir) as agent:
        from api.agent_pb2 import MonitorRequest

        request = MonitorRequest(
            types=[*map(TYPES.__getitem__, types)],  # type: ignore[list-item]
            verdicts=[*map(VERDICTS.__getitem__, verdicts)],  # type: ignore[list-item]
            pods=pods,
            last=last,
            no_follow=not follow,
        )
        _show(agent, request, output)


def _show(agent: Any, request: MonitorRequest, output: str) -> None:
    try:
        for batch in agent.Monitor(request):
            lines = map(_json if output == "json" else _line, batch.events)
            click.echo("\n".join(lines))
    except KeyboardInterrupt:
        # The way out of a live view is no failure.
        return


def _json(event: MonitorEvent) -> str:
    if event.WhichOneof("event") == "lost":
        return json.dumps({"lost": to_dict(event.lost)})
    return json.dumps({"flow": to_dict(event.flow)})


def _line(event: MonitorEvent) -> str:
    if event.WhichOneof("event") == "lost":
        return f"EVENTS LOST: {event.lost.source} {event.lost.count}"
    return format_flow(event.flow)


def format_flow(flow: Flow) -> str:
    """`time: source (identity) -> destination (identity) type VERDICT by policy (summary)`."""
    seconds, nanoseconds = divmod(flow.time_unix_ns, 1_000_000_000)
    time = datetime.fromtimestamp(seconds, UTC).astimezone()
    left, arrow, right = flow.source, "->", flow.destination
    if flow.is_reply:
        left, arrow, right = right, "<-", left
    what, verdict = _type_and_verdict(flow)
    by = f" by {flow.decided_by}" if flow.decided_by else ""
    return printable(
        f"{time:%b %d %H:%M:%S}.{nanoseconds // 1_000_000:03}: "
        f"{_end(left)} {arrow} {_end(right)} {what} {verdict}{by} ({_summary(flow)})"
    )


def _type_and_verdict(flow: Flow) -> tuple[str, str]:
    direction = {1: " INGRESS", 2: " EGRESS"}.get(flow.direction, "")
    forwarded = flow.verdict == VERDICTS["forwarded"]
    if flow.type == TYPES["policy-verdict"]:
        return f"policy-verdict{direction}", "ALLOWED" if forwarded else "DENIED"
    if flow.type == TYPES["drop"]:
        return f"{flow.drop_reason_text}{direction}", "DROPPED"
    return flow.observation_text, "FORWARDED"


def _end(party: FlowParty) -> str:
    name = f"{party.namespace}/{party.pod}" if party.pod else party.address or party.mac
    if party.port:
        bare_ipv6 = not party.pod and ":" in party.address
        name = f"[{name}]:{party.port}" if bare_ipv6 else f"{name}:{party.port}"
    if not party.address:
        return name
    from agent.core.flow import RESERVED_IDENTITY_NAMES

    return f"{name} ({RESERVED_IDENTITY_NAMES.get(party.identity, f'ID:{party.identity}')})"


def _summary(flow: Flow) -> str:
    if not flow.source.address:
        return "not IP"
    parts = [flow.protocol_text]
    if flow.tcp_flags:
        parts.append(f"flags {', '.join(flow.tcp_flags)}")
    if flow.protocol in _ICMP:
        parts.append(f"type {flow.icmp_type} code {flow.icmp_code}")
    if flow.is_fragment:
        parts.append("fragment")
    return ", ".join(parts)
