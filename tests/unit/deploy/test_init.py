# SPDX-License-Identifier: Apache-2.0
"""The steps before an agent: what they leave on the host, and what they say when they cannot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent import relay
from agent.cli.root import cli
from agent.kernel.hostmount import HostMountError, enter_host


def test_the_relay_is_replaced_whole(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "opt/cni/bin"
    source.write_bytes(b"first")
    assert relay.install(source, folder) is True
    target = folder / relay.NAME
    running = os.open(target, os.O_RDONLY)
    os.umask(os.umask(0o077))
    source.write_bytes(b"second")
    assert relay.install(source, folder) is True
    # Whoever runs the old one keeps it: it was replaced, not written over.
    assert os.read(running, 10) == b"first"
    os.close(running)
    assert target.read_bytes() == b"second"
    assert target.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in folder.iterdir()] == [relay.NAME]
    before = target.stat().st_ino
    assert relay.install(source, folder) is False
    assert target.stat().st_ino == before


def test_what_a_killed_installation_left_is_no_obstacle(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"relay")
    (tmp_path / f".{relay.NAME}.new").write_bytes(b"rel")
    assert relay.install(source, tmp_path) is True
    assert (tmp_path / relay.NAME).read_bytes() == b"relay"


def test_lost_rights_are_put_right(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"relay")
    relay.install(source, tmp_path)
    (tmp_path / relay.NAME).chmod(0o644)
    assert relay.install(source, tmp_path) is True
    assert (tmp_path / relay.NAME).stat().st_mode & 0o777 == 0o755


def test_removing_and_missing_sources(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"relay")
    arguments = ["init", "relay", "--bin-dir", str(tmp_path / "bin"), "--source", str(source)]
    assert "installed" in CliRunner().invoke(cli, arguments).output
    assert "up to date" in CliRunner().invoke(cli, arguments).output
    assert "removed" in CliRunner().invoke(cli, [*arguments, "--remove"]).output
    assert "was not there" in CliRunner().invoke(cli, [*arguments, "--remove"]).output
    source.unlink()
    failed = CliRunner().invoke(cli, arguments)
    assert failed.exit_code == 1 and "No such file" in failed.output


def test_without_the_hosts_proc_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(HostMountError, match=r"1/ns/mnt.*the host's /proc"):
        enter_host(tmp_path)
