# SPDX-License-Identifier: Apache-2.0
"""The file by which runtimes find bristle: written, kept, and taken back with all that it moved."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path

import pytest

from agent.config_model import CniConfig
from agent.runtime_config import (
    ASIDE,
    FILE_NAME,
    Keeper,
    RuntimeConfigError,
    install,
    missing_plugin,
    remove,
)
from cni.config import Command, parse_config

RUN, OTHER = Path("/run/b"), "10-other.conflist"


def config(folder: Path, *, exclusive: bool = False, chain: Path | None = None) -> CniConfig:
    """chain: where portmap is to be."""
    mode = "portmap" if chain else "none"
    return CniConfig(folder, exclusive, "1.0.0", mode, chain or Path("/nonexistent"))


def types(folder: Path) -> list[str]:
    return [one["type"] for one in json.loads((folder / FILE_NAME).read_bytes())["plugins"]]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    made.mkdir()
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "net.d"
    made.mkdir()
    (made / OTHER).write_text("{}")
    (made / "20-bridge.conf").write_text("{}")
    (made / "README").write_text("not read by runtimes")
    return made


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def test_the_file_is_one_that_the_plugin_takes(folder: Path, state: Path) -> None:
    wanted = config(folder)
    assert install(wanted, RUN, state) == [f"{folder / FILE_NAME} written"]
    whole = json.loads((folder / FILE_NAME).read_bytes())
    # As libcni makes the plugin's configuration of a list.
    (plugin,) = whole["plugins"]
    text = json.dumps({**plugin, "name": whole["name"], "cniVersion": whole["cniVersion"]})
    parsed = parse_config(text.encode(), Command.ADD)
    assert (parsed.run_dir, parsed.state_dir, parsed.type) == (str(RUN), str(state), "bristle-cni")
    before = (folder / FILE_NAME).stat()
    assert install(wanted, RUN, state) == []
    assert (folder / FILE_NAME).stat().st_mtime_ns == before.st_mtime_ns
    assert names(folder) == sorted([FILE_NAME, OTHER, "20-bridge.conf", "README"])


def test_others_are_set_aside_and_put_back(folder: Path, state: Path) -> None:
    before = names(folder)
    wanted = config(folder, exclusive=True)
    install(wanted, RUN, state)
    hidden = [f"20-bridge.conf{ASIDE}", f"{OTHER}{ASIDE}"]
    assert names(folder) == sorted([FILE_NAME, *hidden, "README"])
    # One that comes later goes too, and what was set aside before is not forgotten.
    (folder / "99-late.conf").write_text("{}")
    install(wanted, RUN, state)
    assert len(list(remove(state))) == 4
    assert names(folder) == sorted([*before, "99-late.conf"])
    assert list(remove(state)) == []


def test_what_others_did_meanwhile_is_left_alone(folder: Path, state: Path) -> None:
    install(config(folder, exclusive=True), RUN, state)
    (folder / OTHER).write_text("of another version")
    (folder / FILE_NAME).unlink()
    (folder / f"20-bridge.conf{ASIDE}").unlink()
    list(remove(state))
    assert (folder / OTHER).read_text() == "of another version"
    assert (folder / f"{OTHER}{ASIDE}").exists()


def test_no_longer_exclusive_gives_the_others_back(folder: Path, state: Path) -> None:
    before = names(folder)
    install(config(folder, exclusive=True), RUN, state)
    (folder / "20-bridge.conf").write_text("made anew")
    shared = config(folder)
    assert install(shared, RUN, state) == [f"file {folder / OTHER} put back"]
    assert install(shared, RUN, state) == []
    assert (folder / "20-bridge.conf").read_text() == "made anew"
    (folder / f"20-bridge.conf{ASIDE}").unlink()
    assert names(folder) == sorted([*before, FILE_NAME])
    assert list(remove(state)) == [f"file {folder / FILE_NAME}"]
    assert names(folder) == before


def test_killed_between_any_two_steps_nothing_is_lost(
    folder: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace
    for steps in range(3):
        left = steps

        def replace(source: Path, target: Path) -> None:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)
        before = names(folder)
        with contextlib.suppress(KeyboardInterrupt):
            install(config(folder, exclusive=True), RUN, state)
        monkeypatch.setattr(os, "replace", real)
        assert FILE_NAME in names(folder)
        list(remove(state))
        assert names(folder) == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, state: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RuntimeConfigError, match=r"cni\.conf_dir"):
        install(config(blocked / "net.d"), RUN, state)


def test_the_keeper_waits_until_ready_and_repairs(folder: Path, state: Path) -> None:
    ready, noted = threading.Event(), threading.Event()
    problems: list[str | None] = []

    def note(problem: str | None) -> None:
        problems.append(problem)
        noted.set()

    path = folder / FILE_NAME
    with Keeper(config(folder), RUN, state, ready, note, pause=0.01):
        assert not path.exists()
        ready.set()
        _until(path.exists)
        path.unlink()
        _until(path.exists)
        path.unlink()
        path.mkdir()  # in the way
        assert noted.wait(10)
        path.rmdir()
        _until(path.is_file)
        _until(lambda: problems[-1] is None)
    assert path.exists()
    assert problems[0] is not None and str(path) in problems[0]


def test_portmap_is_named_only_while_it_is_there(folder: Path, state: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "portmap"
    wanted = config(folder, chain=tmp_path)
    for text in ("No such file", "no executable file", "no executable file"):
        install(wanted, RUN, state)
        assert types(folder) == ["bristle-cni"]
        complaint = missing_plugin(wanted)
        assert complaint is not None and text in complaint and str(plugin) in complaint
        if plugin.is_dir():
            plugin.rmdir()
            plugin.touch(0o644)
        elif not plugin.exists():
            plugin.mkdir()
    plugin.chmod(0o755)
    assert missing_plugin(wanted) is None
    install(wanted, RUN, state)
    whole = json.loads((folder / FILE_NAME).read_bytes())
    assert whole["plugins"][1] == {
        "type": "portmap", "capabilities": {"portMappings": True}, "snat": True
    }  # fmt: skip
    plugin.unlink()
    assert install(wanted, RUN, state) == [f"{folder / FILE_NAME} written"]
    assert types(folder) == ["bristle-cni"]
    assert missing_plugin(config(folder)) is None


def test_the_keeper_tells_of_a_missing_portmap_and_takes_it_when_it_comes(
    folder: Path, state: Path, tmp_path: Path
) -> None:
    ready, problems = threading.Event(), list[str | None]()
    ready.set()
    wanted = config(folder, chain=tmp_path)
    with Keeper(wanted, RUN, state, ready, problems.append, pause=0.01):
        _until(lambda: problems)
        assert types(folder) == ["bristle-cni"]
        (tmp_path / "portmap").touch(0o755)
        _until(lambda: problems[-1] is None)
        assert types(folder) == ["bristle-cni", "portmap"]


def _until(condition: object) -> None:
    done = threading.Event()
    for _ in range(1000):
        if condition():  # type: ignore[operator]
            return
        done.wait(0.01)
    raise AssertionError("it did not happen in 10 s")
