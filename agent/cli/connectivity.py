# SPDX-License-Identifier: Apache-2.0
"""`bristle connectivity test`."""

from __future__ import annotations

import secrets
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.output import print_json, print_table

if TYPE_CHECKING:
    from agent.connectivity.judge import Finding
    from agent.connectivity.runner import Report

# Small, and has a shell, wget, httpd and nslookup.
DEFAULT_IMAGE = "busybox:1.36"


@click.group()
def connectivity() -> None:
    """Check the network of a live cluster."""


@connectivity.command()
@click.option(
    "--kubeconfig",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    envvar="KUBECONFIG",
    show_envvar=True,
    help="How to reach the cluster. [default: as kubectl, or from within a pod]",
)
@click.option("--context", help="Context of the kubeconfig file.")
@click.option(
    "--image",
    default=DEFAULT_IMAGE,
    show_default=True,
    help="Image of the pods, with a shell, wget, httpd and nslookup.",
)
@click.option("--cluster-domain", default="cluster.local", show_default=True)
@click.option(
    "--timeout",
    type=click.FloatRange(1, 3600),
    default=120.0,
    show_default=True,
    help="Seconds until the pods are ready.",
)
@click.option("--keep", is_flag=True, help="Leave the namespaces of the test behind.")
@click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True
)
def test(
    kubeconfig: Path | None,
    context: str | None,
    image: str,
    cluster_domain: str,
    timeout: float,
    keep: bool,
    output: str,
) -> None:
    """Make pods on one or two nodes, and try who reaches whom.

    Without policy, with a default deny, with rules by label, namespace and address block, in both
    directions; by pod address, service address and name. Prints what failed where, with the
    likely reason, and exits 1 if anything did. Removes what it made.
    """
    from agent.connectivity.cluster import LiveCluster
    from agent.connectivity.judge import findings
    from agent.connectivity.runner import ClusterError, Runner

    # As by Ctrl-C, so that the namespaces are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    runner = None
    try:
        cluster = LiveCluster(kubeconfig, context, pod_seconds=timeout)
        runner = Runner(
            cluster, secrets.token_hex(3), image, domain=cluster_domain, say=_progress(output)
        )
        report = runner.run()
    except ClusterError as error:
        raise click.ClickException(str(error)) from None
    finally:
        if runner is not None and not keep:
            _close(runner)
    found = findings(report.results)
    if output == "json":
        print_json(_as_json(report, found))
    else:
        _print(report, found)
    sys.exit(1 if found else 0)


def _close(runner: Any) -> None:
    from agent.connectivity.runner import ClusterError

    try:
        runner.close()
    except ClusterError as error:
        click.echo(f"not everything was removed: {error}", err=True)


def _progress(output: str) -> Any:
    return lambda text: click.echo(text, err=output == "json")


def _print(report: Report, found: list[Finding]) -> None:
    for text in report.skipped:
        click.echo(f"skipped: {text}")
    if found:
        click.echo()
        print_table(
            ("WHEN", "FROM", "TO", "BY", "EXPECTED", "FOUND", "LIKELY REASON"),
            [
                (
                    one.result.phase,
                    one.result.probe.source,
                    one.result.probe.target,
                    f"{one.result.probe.way}, IPv{one.result.probe.family}",
                    "reached" if one.result.probe.reaches else "no answer",
                    str(one.result.outcome),
                    one.reason,
                )
                for one in found
            ],
        )
        click.echo()
    total = len(report.results)
    click.echo(f"{total} checks, {total - len(found)} as expected, {len(found)} not")


def _as_json(report: Report, found: list[Finding]) -> dict[str, Any]:
    reasons = {id(one.result): one.reason for one in found}
    return {
        "passed": not found,
        "skipped": list(report.skipped),
        "checks": [
            {
                "phase": one.phase,
                "source": one.probe.source,
                "target": one.probe.target,
                "way": str(one.probe.way),
                "family": one.probe.family,
                "between_nodes": one.probe.far,
                "expected": "reached" if one.probe.reaches else "no answer",
                "found": str(one.outcome),
                "passed": one.passed,
                "reason": reasons.get(id(one), ""),
            }
            for one in report.results
        ],
    }
