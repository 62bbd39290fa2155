# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

DEFAULT_RUN_DIR = "/var/run/bristle"
DEFAULT_BPFFS_DIR = "/sys/fs/bpf/bristle"


def run_dir_option(function: Function) -> Function:
    """--run-dir: which agent is meant; its sockets are in there."""
    return click.option(
        "--run-dir",
        type=click.Path(path_type=Path),
        default=DEFAULT_RUN_DIR,
        envvar="BRISTLE_RUN_DIR",
        show_default=True,
        show_envvar=True,
        help="Folder of the agent's sockets.",
    )(function)


def bpffs_dir_option(function: Function) -> Function:
    """--bpffs-dir: where the maps are pinned."""
    return click.option(
        "--bpffs-dir",
        type=click.Path(path_type=Path),
        default=DEFAULT_BPFFS_DIR,
        envvar="BRISTLE_BPFFS_DIR",
        show_default=True,
        show_envvar=True,
        help="Folder of the pinned maps.",
    )(function)


def output_option(function: Function) -> Function:
    """-o: table for people, JSON for programs."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="Format of the output.",
    )(function)


def common(function: Function) -> Function:
    """The options that every command takes, so that one set of flags serves them all."""
    return run_dir_option(bpffs_dir_option(output_option(function)))
