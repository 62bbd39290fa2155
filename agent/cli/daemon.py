# SPDX-License-Identifier: Apache-2.0
"""`bristle agent` and `bristle cleanup`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from agent.config import Config, ConfigError, click_options, load, parse


@click.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    envvar="BRISTLE_CONFIG",
    show_envvar=True,
    help="YAML file; every key is also a flag, and flags win.",
)
@click_options
def agent(config_file: Path | None, **flags: Any) -> None:
    """Run the node agent, until SIGTERM or SIGINT.

    Stopping it leaves the datapath in force; `bristle cleanup` removes it.
    """
    config = _load(config_file, flags)
    from agent import daemon

    sys.exit(daemon.run(config))


@click.command()
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    envvar="BRISTLE_CONFIG",
    show_envvar=True,
    help="The agent's configuration, for its folders.",
)
@click.option("--run-dir", type=click.Path(path_type=Path), envvar="BRISTLE_RUN_DIR")
@click.option("--state-dir", type=click.Path(path_type=Path), envvar="BRISTLE_STATE_DIR")
@click.option("--bpffs-dir", type=click.Path(path_type=Path), envvar="BRISTLE_BPFFS_DIR")
def cleanup(
    config_file: Path | None,
    run_dir: Path | None,
    state_dir: Path | None,
    bpffs_dir: Path | None,
) -> None:
    """Remove everything bristle put on this host, and only that.

    Devices, routes, programs, maps, state; sysctls get back the values they had. Refuses
    while an agent runs on the same folders. Running it again is harmless.
    """
    from agent import daemon

    folders = _folders(config_file)
    given = {"run_dir": run_dir, "state_dir": state_dir, "bpffs_dir": bpffs_dir}
    folders.update({name: path for name, path in given.items() if path is not None})
    for line in daemon.cleanup(**folders):
        click.echo(line)


def _load(config_file: Path | None, flags: dict[str, Any]) -> Config:
    try:
        return load(config_file, flags)
    except ConfigError as error:
        where = f"{config_file}: " if config_file is not None else ""
        raise click.ClickException(f"{where}{error}") from None


def _folders(config_file: Path | None) -> dict[str, Path]:
    """The folders of the file, or the usual ones; required keys may be missing here."""
    folders = {
        "run_dir": Path("/var/run/bristle"),
        "state_dir": Path("/var/lib/bristle"),
        "bpffs_dir": Path("/sys/fs/bpf/bristle"),
    }
    if config_file is None:
        return folders
    try:
        values = parse(config_file.read_bytes())
    except OSError as error:
        raise click.ClickException(f"{config_file}: {error.strerror}") from None
    except ConfigError as error:
        raise click.ClickException(f"{config_file}: {error}") from None
    folders.update({name: values[name] for name in folders if name in values})
    return folders
