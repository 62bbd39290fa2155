# SPDX-License-Identifier: Apache-2.0
"""The top of the command tree."""

from __future__ import annotations

import click

from agent.cli.lazy import LazyGroup


def _version(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    # importlib.metadata alone takes as long as click: only for those who ask.
    from agent.cli.version import version

    click.echo(f"bristle {version()}")
    context.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    lazy={
        "agent": ("agent.cli.daemon:agent", "Run the node agent."),
        "cleanup": ("agent.cli.daemon:cleanup", "Remove everything bristle put on this host."),
        "doctor": ("agent.cli.doctor:doctor", "What this kernel offers, and what will be used."),
        "status": ("agent.cli.status:status", "Whether the agent is ready, and what ails it."),
        "endpoint": ("agent.cli.endpoint:endpoint", "Pods of this node."),
        "identity": ("agent.cli.identity:identity", "Security identities and their labels."),
        "policy": ("agent.cli.policy:policy", "Policies, what they select, and why."),
        "bpf": ("agent.cli.bpf:bpf", "The kernel's maps themselves."),
        "monitor": ("agent.cli.monitor:monitor", "Drops, verdicts and connections, live."),
        "install": ("agent.cli.install:install", "Print the manifests of a cluster's agents."),
        "init": ("agent.cli.init:init", "Steps on a node before its agent: relay, bpffs."),
        "connectivity": ("agent.cli.connectivity:connectivity", "Check a live cluster's network."),
        "bench": ("agent.cli.bench:bench", "Measure this machine (development trees)."),
        "bugtool": ("agent.cli.bugtool:bugtool", "Pack state, maps and facts for a bug report."),
    },
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Bristle: network and policy of Kubernetes pods in the kernel."""
