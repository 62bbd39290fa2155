# SPDX-License-Identifier: Apache-2.0
"""`bristle agent` and `bristle cleanup` up to where the daemon takes over."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

import agent
from agent.cli.root import cli


class FakeDaemon(ModuleType):
    """Stands in for agent.daemon and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__("agent.daemon")
        self.config: Any = None
        self.folders: dict[str, Path] = {}

    def run(self, config: Any) -> int:
        self.config = config
        return 3

    def cleanup(self, **folders: Path) -> Iterator[str]:
        self.folders = folders
        yield "removed device bri0"


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    """In the place of the real one."""
    fake = FakeDaemon()
    monkeypatch.setitem(sys.modules, "agent.daemon", fake)
    monkeypatch.setattr(agent, "daemon", fake, raising=False)
    return fake


def run(*arguments: str) -> Result:
    """`bristle ARGUMENTS` without anything from the environment."""
    names = ("CONFIG", "RUN_DIR", "STATE_DIR", "BPFFS_DIR")
    return CliRunner().invoke(cli, arguments, env={f"BRISTLE_{name}": None for name in names})


def config(tmp_path: Path, more: str = "") -> Path:
    """A file with what is required."""
    file = tmp_path / "config.yaml"
    file.write_text(
        f"pod_cidrs: [10.0.0.0/24]\nsource: {{manifests: {tmp_path}/m}}\n"
        f"run_dir: {tmp_path}/run\n{more}"
    )
    return file


def test_agent_flags_win_over_the_file(daemon: FakeDaemon, tmp_path: Path) -> None:
    file = config(tmp_path, "mtu: 1400\nnode_name: from-file\n")
    result = run("agent", "--config", str(file), "--mtu", "1500")
    assert result.exit_code == 3, result.output
    assert (daemon.config.mtu, daemon.config.node_name) == (1500, "from-file")


def test_agent_names_the_wrong_key(daemon: FakeDaemon, tmp_path: Path) -> None:
    file = config(tmp_path, "mtux: 1400\n")
    result = run("agent", "--config", str(file))
    assert result.exit_code == 1
    assert f"{file}: mtux: unknown key" in result.stderr
    assert run("agent", "--config", str(tmp_path / "absent")).exit_code == 1
    assert daemon.config is None


def test_cleanup_takes_its_folders_from_flags_file_and_defaults(
    daemon: FakeDaemon, tmp_path: Path
) -> None:
    file = config(tmp_path)
    result = run("cleanup", "--config", str(file), "--state-dir", "/s")
    assert result.exit_code == 0, result.output
    assert "removed device bri0" in result.stdout
    assert daemon.folders == {
        "run_dir": tmp_path / "run",
        "state_dir": Path("/s"),
        "bpffs_dir": Path("/sys/fs/bpf/bristle"),
    }


def test_cleanup_with_a_bad_file_removes_nothing(daemon: FakeDaemon, tmp_path: Path) -> None:
    result = run("cleanup", "--config", str(config(tmp_path, "run_dirr: /x\n")))
    assert result.exit_code == 1
    assert "run_dirr" in result.stderr
    assert not daemon.folders
