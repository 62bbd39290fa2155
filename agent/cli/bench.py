# SPDX-License-Identifier: Apache-2.0
"""`bristle bench`: for development trees, where the package `bench` lies beside the agent."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path

import click


@click.group()
def bench() -> None:
    """Measure this machine."""


@bench.command()
@click.option("--quick", "scale", flag_value="quick", help="About a minute: the headline alone.")
@click.option("--full", "scale", flag_value="full", help="The whole matrix: about 40 minutes.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the files. [default: bench/results of the source tree]",
)
def latency(scale: str | None, output: Path | None) -> None:
    """Round trips between two pods, beside UNIX sockets, plain TCP and proxies.

    Redirected or not, with one and two sidecars, on one core and on two, all in one run of about
    six minutes. Writes latency.json, .svg, .png and .html. Needs root, and touches only namespaces
    and control groups of its own. Exits 1 when a claim fails, 2 when one could not be measured.
    """
    # By name at run time: the agent is installed without it, and must not depend on it.
    try:
        command = importlib.import_module("bench.latency.command")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "bench":
            raise
        raise click.ClickException(
            "the benchmarks are not installed: they are the folder bench/ of the source tree, where"
            " `make bench-latency` runs this"
        ) from None
    if os.geteuid() != 0:
        raise click.ClickException(
            "this makes network namespaces and loads BPF programs: run as root"
        )
    # An orderly end by exception removes namespaces, control groups and processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        status = command.main(scale or "default", output)
    except command.FAILURES as error:
        raise click.ClickException(str(error)) from error
    sys.exit(status)
