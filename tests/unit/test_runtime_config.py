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
from agent.runtime_config import ASIDE, FILE_NAME, Keeper, RuntimeConfigError, install, remove
from cni.config import Command, parse_config

RUN, OTHER = Path("/run/b"), "10-other.conflist"


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
    config = CniConfig(folder, False, "1.0.0")
    assert install(config, RUN, state) == [f"{folder / FILE_NAME} written"]
    whole = json.loads((folder / FILE_NAME).read_bytes())
    # As libcni makes the plugin's configuration of a list.
    (plugin,) = whole["plugins"]
    text = json.dumps({**plugin, "name": whole["name"], "cniVersion": whole["cniVersion"]})
    parsed = parse_config(text.encode(), Command.ADD)
    assert (parsed.run_dir, parsed.state_dir, parsed.type) == (str(RUN), str(state), "bristle-cni")
    before = (folder / FILE_NAME).stat()
    assert install(config, RUN, state) == []
    assert (folder / FILE_NAME).stat().st_mtime_ns == before.st_mtime_ns
    assert names(folder) == sorted([FILE_NAME, OTHER, "20-bridge.conf", "README"])


def test_others_are_set_aside_and_put_back(folder: Path, state: Path) -> None:
    before = names(folder)
    config = CniConfig(folder, True, "1.0.0")
    install(config, RUN, state)
    hidden = [f"20-bridge.conf{ASIDE}", f"{OTHER}{ASIDE}"]
    assert names(folder) == sorted([FILE_NAME, *hidden, "README"])
    # One that comes later goes too, and what was set aside before is not forgotten.
    (folder / "99-late.conf").write_text("{}")
    install(config, RUN, state)
    assert len(list(remove(state))) == 4
    assert names(folder) == sorted([*before, "99-late.conf"])
    assert list(remove(state)) == []


def test_what_others_did_meanwhile_is_left_alone(folder: Path, state: Path) -> None:
    install(CniConfig(folder, True, "1.0.0"), RUN, state)
    (folder / OTHER).write_text("of another version")
    (folder / FILE_NAME).unlink()
    (folder / f"20-bridge.conf{ASIDE}").unlink()
    list(remove(state))
    assert (folder / OTHER).read_text() == "of another version"
    assert (folder / f"{OTHER}{ASIDE}").exists()


def test_no_longer_exclusive_gives_the_others_back(folder: Path, state: Path) -> None:
    before = names(folder)
    install(CniConfig(folder, True, "1.0.0"), RUN, state)
    (folder / "20-bridge.conf").write_text("made anew")
    shared = CniConfig(folder, False, "1.0.0")
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
            install(CniConfig(folder, True, "1.0.0"), RUN, state)
        monkeypatch.setattr(os, "replace", real)
        assert FILE_NAME in names(folder)
        list(remove(state))
        assert names(folder) == before


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, state: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RuntimeConfigError, match=r"cni\.conf_dir"):
        install(CniConfig(blocked / "net.d", False, "1.0.0"), RUN, state)


def test_the_keeper_waits_until_ready_and_repairs(folder: Path, state: Path) -> None:
    ready, noted = threading.Event(), threading.Event()
    problems: list[str | None] = []

    def note(problem: str | None) -> None:
        problems.append(problem)
        noted.set()

    path = folder / FILE_NAME
    with Keeper(CniConfig(folder, False, "1.0.0"), RUN, state, ready, note, pause=0.01):
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


def _until(condition: object) -> None:
    done = threading.Event()
    for _ in range(1000):
        if condition():  # type: ignore[operator]
            return
        done.wait(0.01)
    raise AssertionError("it did not happen in 10 s")
