# SPDX-License-Identifier: Apache-2.0
"""`bristle init`: what a node needs before its agent runs; the init containers of the DaemonSet."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from agent.cli.options import DEFAULT_BPFFS_DIR


@click.group()
def init() -> None:
    """Steps on a node before its agent runs, each from a container of its own."""


@init.command()
@click.option(
    "--host-proc",
    type=click.Path(path_type=Path),
    default="/proc",
    show_default=True,
    help="Where the host's /proc is mounted.",
)
@click.option(
    "--bpffs-dir", type=click.Path(path_type=Path), default=DEFAULT_BPFFS_DIR, show_default=True
)
def bpffs(host_proc: Path, bpffs_dir: Path) -> None:
    """Mount a BPF file system on the host where there is none.

    Known by its magic number, not by its path. Pinned maps then outlive the agent's container.
    """
    from agent.kernel.bpffs import BpffsError
    from agent.kernel.hostmount import HostMountError, ensure_on_host

    try:
        mounted = ensure_on_host(host_proc, bpffs_dir)
    except (HostMountError, BpffsError) as error:
        raise click.ClickException(str(error)) from None
    what = "is on a BPF file system" if mounted is None else f"mounted one at {mounted}"
    click.echo(f"{bpffs_dir}: {what}")


@init.command()
@click.option(
    "--bin-dir",
    type=click.Path(path_type=Path),
    default="/opt/cni/bin",
    show_default=True,
    help="Folder of the host's CNI plugins, as mounted here.",
)
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    default=Path(sys.prefix, "bin", "bristle-cni"),
    help="The relay's executable.",
)
@click.option("--remove", is_flag=True, help="Take the relay away instead.")
def relay(bin_dir: Path, source: Path, remove: bool) -> None:
    """Install the CNI relay on the host.

    Copied, synced and renamed. The relay alone: the agent writes the CNI configuration once the
    datapath is in force.
    """
    from agent import relay as host_relay

    target = bin_dir / host_relay.NAME
    try:
        if remove:
            done = host_relay.remove(bin_dir)
            click.echo(f"{target}: {'removed' if done else 'was not there'}")
        else:
            done = host_relay.install(source, bin_dir)
            click.echo(f"{target}: {'installed' if done else 'up to date'}")
    except host_relay.RelayError as error:
        raise click.ClickException(str(error)) from None
