# SPDX-License-Identifier: Apache-2.0
"""`bristle status`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.client import TIMEOUT, NoAgent, connect
from agent.cli.options import common
from agent.cli.output import print_json, print_table, printable, to_dict

if TYPE_CHECKING:
    from api.agent_pb2 import AgentStatus, SocketRedirectStatus


@click.command()
@common
@click.option("-v", "--verbose", is_flag=True, help="Also maps and address pools.")
def status(run_dir: Path, bpffs_dir: Path, output: str, verbose: bool) -> None:
    """Whether the agent is ready, and what ails it.

    Exits 0 when the agent is ready: its sources have delivered, and the policy they gave is
    in force. Otherwise 1, also when no agent listens.
    """
    try:
        with connect(run_dir) as agent:
            from api.agent_pb2 import StatusRequest

            answer = agent.Status(StatusRequest(), timeout=TIMEOUT)
    except NoAgent as error:
        if output == "json":
            print_json({"ready": False, "error": error.message})
            sys.exit(1)
        raise
    if output == "json":
        print_json(to_dict(answer))
    else:
        _print(answer, verbose)
    if not answer.ready:
        sys.exit(1)


def _print(answer: AgentStatus, verbose: bool) -> None:
    state = "ready" if answer.ready else "NOT READY"
    lines = [
        ("Agent", f"{state}, version {answer.version}, pid {answer.pid}, {_up(answer)}"),
        ("Node", answer.node_name),
        *(("Source", f"{s.name}: {_synced(s.synced, s.detail)}") for s in answer.sources),
        (
            "Policies",
            f"{answer.policies} at revision {answer.policy_revision}, "
            f"{answer.policies_failed} failed, {answer.rejected} documents rejected",
        ),
        (
            "Endpoints",
            f"{answer.endpoints}, {answer.endpoints_pending} pending, "
            f"{answer.endpoints_failed} failed",
        ),
        ("Identities", str(answer.identities)),
        (
            "Datapath",
            f"pods: clsact, uplinks: {answer.attach_mode or 'not attached'} "
            f"({', '.join(answer.devices) or 'none'}), epoch {answer.policy_epoch}, "
            f"{answer.events_lost} events lost",
        ),
        ("Sockets", _sockets(answer.socket_redirect)),
        *(("Problem", f"{problem.what}: {problem.message}") for problem in answer.problems),
    ]
    for name, text in lines:
        click.echo(f"{name + ':':<12}{printable(text)}")
    if verbose:
        click.echo()
        print_table(
            ("FAMILY", "POD CIDR", "USED", "CAPACITY"),
            [(p.family, p.cidr, p.used, f"{p.capacity:.0f}") for p in answer.pools],
        )
        click.echo()
        print_table(
            ("MAP", "ENTRIES", "CAPACITY", "PRESSURE"),
            [(m.name, m.entries, m.capacity, _share(m.entries, m.capacity)) for m in answer.maps],
        )


def _sockets(redirect: SocketRedirectStatus) -> str:
    if not redirect.enabled:
        return "redirect off"
    text = f"redirect {redirect.mode}, {redirect.endpoints} endpoints take part"
    if redirect.stalls:
        text += f", {redirect.stalls} stalled"
    return f"{text} ({redirect.detail})" if redirect.detail else text


def _up(answer: AgentStatus) -> str:
    minutes, seconds = divmod(int(answer.uptime_seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"up {hours}h{minutes:02}m{seconds:02}s"


def _synced(synced: bool, detail: str) -> str:
    state = "synced" if synced else "waiting for the first complete state"
    return f"{state} ({detail})" if detail else state


def _share(entries: int, capacity: int) -> str:
    return f"{100 * entries / capacity:.1f} %" if capacity else "-"
