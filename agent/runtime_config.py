# SPDX-License-Identifier: Apache-2.0
"""The file by which container runtimes find bristle: `05-bristle.conflist` in `cni.conf_dir`.

Written only once the datapath is in force, because a node counts as ready for pods from then on
(kubelet: NetworkReady). Other networks' files in the folder are set aside when told to, by a
suffix that runtimes do not read; what was done is written down first, so that clean-up takes back
exactly that. A plugin that chains is named in the file only while its executable is there: without
it every ADD would fail, of pods that have no use for it, too. Source: CNI spec 1.1.0, section 1;
libcni reads `.conf`, `.conflist`, `.json` in the order of their names.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from agent.config_model import CniConfig
from agent.state_file import write_durably

log = logging.getLogger(__name__)

FILE_NAME: Final = "05-bristle.conflist"
RECORD: Final = "cni-files.json"
ASIDE: Final = ".bristle-aside"
PORTMAP: Final = "portmap"
"""The value of `cni.chaining_mode`, the plugin's type and the name of its executable."""
_READ_BY_RUNTIMES: Final = (".conf", ".conflist", ".json")


class RuntimeConfigError(OSError):
    """The folder cannot be written; the message names the file and the key."""


class Keeper:
    """Writes the file once ``ready`` is set, and again when somebody changed it.

    note: takes what is wrong with the folder, None once nothing is. A context manager; the file
    stays when the agent ends, because the datapath does, too.
    """

    def __init__(
        self,
        config: CniConfig,
        run_dir: Path,
        state_dir: Path,
        ready: threading.Event,
        note: Callable[[str | None], None],
        pause: float = 5.0,
    ) -> None:
        self._arguments = (config, run_dir, state_dir)
        self._ready = ready
        self._note = note
        self._pause = pause
        self._stopped = threading.Event()
        self._wanted = config.conf_dir is not None
        self._thread = threading.Thread(target=self._run, name="runtime-file", daemon=True)

    def __enter__(self) -> None:
        if self._wanted:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._ready.wait(1.0):
            if self._stopped.is_set():
                return
        problem: str | None = None
        while not self._stopped.is_set():
            before = problem
            try:
                for line in install(*self._arguments):
                    log.info("%s", line)
                problem = missing_plugin(self._arguments[0])
            except OSError as error:
                problem = str(error)
            if problem != before:
                if problem is not None:
                    log.warning("%s", problem)
                self._note(problem)
            self._stopped.wait(self._pause)


def document(config: CniConfig, run_dir: Path, state_dir: Path) -> bytes:
    """The file's content, as things are now."""
    plugins: list[dict[str, object]] = [
        {"type": "bristle-cni", "runDir": str(run_dir), "stateDir": str(state_dir)}
    ]
    if config.chaining_mode == PORTMAP and missing_plugin(config) is None:
        # snat: a pod also reaches itself by its hostPort, and the node does by 127.0.0.1.
        plugins.append({"type": PORTMAP, "capabilities": {"portMappings": True}, "snat": True})
    whole = {"cniVersion": config.version, "name": "bristle", "plugins": plugins}
    return json.dumps(whole, indent=2).encode() + b"\n"


def missing_plugin(config: CniConfig) -> str | None:
    """What is wrong with the executable that is to come after bristle's; None: nothing, or there
    is to be none."""
    if config.chaining_mode != PORTMAP:
        return None
    path = config.bin_dir / PORTMAP
    try:
        mode = path.stat().st_mode
        wrong = "" if stat.S_ISREG(mode) and mode & 0o111 else "is no executable file"
    except OSError as error:
        wrong = f"cannot be used: {error.strerror}"
    if not wrong:
        return None
    return f"cni.chaining_mode: {path} {wrong}; pods' hostPorts have no effect until it is there"


def install(config: CniConfig, run_dir: Path, state_dir: Path) -> list[str]:
    """Write the file, and set others aside where `exclusive` says so, else give back those that
    an agent before has set aside; gives what was done.

    May be repeated: what is as it should be is left alone. Raises RuntimeConfigError.
    """
    folder = config.conf_dir
    if folder is None:
        return []
    try:
        return _install(folder, config, run_dir, state_dir)
    except OSError as error:
        raise RuntimeConfigError(
            error.errno, f"cni.conf_dir: {error.strerror}", error.filename or str(folder)
        ) from error


def _install(folder: Path, config: CniConfig, run_dir: Path, state_dir: Path) -> list[str]:
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    record = _read(state_dir)
    record["folder"] = str(folder)
    done: list[str] = []
    others = _others(folder) if config.exclusive else []
    aside = [name for name in record.get("aside", []) if (folder / f"{name}{ASIDE}").exists()]
    record["aside"] = sorted({*aside, *others})
    _write(state_dir, record)
    path, wanted = folder / FILE_NAME, document(config, run_dir, state_dir)
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == wanted:
            wanted = b""
    if wanted:
        # Ours first: at no moment is the folder without a network.
        write_durably(path, wanted)
        path.chmod(0o600)
        done.append(f"{path} written")
    for name in others:
        os.replace(folder / name, folder / f"{name}{ASIDE}")
        done.append(f"{folder / name} set aside")
    if not config.exclusive:
        done.extend(_put_back(folder, record["aside"]))
    return done


def remove(state_dir: Path) -> Iterator[str]:
    """Take back what `install` did; a line for each thing. What is gone already is no error."""
    record = _read(state_dir)
    folder = Path(record.get("folder", "/nonexistent"))
    yield from _put_back(folder, record.get("aside", []))
    path = folder / FILE_NAME
    if record and path.exists():
        path.unlink()
        yield f"file {path}"


def _put_back(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """Files that were set aside, but for those that somebody has made anew meanwhile."""
    for name in names:
        hidden, path = folder / f"{name}{ASIDE}", folder / name
        if hidden.exists() and not path.exists():
            os.replace(hidden, path)
            yield f"file {path} put back"


def _others(folder: Path) -> list[str]:
    return sorted(
        one.name
        for one in folder.iterdir()
        if one.suffix in _READ_BY_RUNTIMES and one.name != FILE_NAME and one.is_file()
    )


def _read(state_dir: Path) -> dict[str, Any]:
    try:
        found = json.loads((state_dir / RECORD).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(state_dir: Path, record: dict[str, Any]) -> None:
    if _read(state_dir) != record:
        write_durably(state_dir / RECORD, json.dumps(record).encode())
