# SPDX-License-Identifier: Apache-2.0
"""Names and places of one lab, all of which carry the process id and go when the lab ends.

tools/cleanup.py knows these names: it removes what a killed process left.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from agent.kernel.features import cgroup2_mounts
from bench.lab.netns import LabError, Namespace, mount, unmount

_TRIES, _PAUSE = 40, 0.05


class Scope:
    """A context manager: a folder with run, state and manifest directories, a bpffs of its own, a
    cgroup, and network namespaces. `prefix` begins the name of everything in it."""

    def __init__(self) -> None:
        self.prefix = f"bristle-t-{os.getpid()}-{secrets.token_hex(3)}"
        self.root = Path("/tmp", self.prefix)
        self.run_dir = self.root / "run"
        self.state_dir = self.root / "state"
        self.manifests = self.root / "manifests"
        self.bpffs = self.root / "bpf"
        self.cgroup = cgroup2() / self.prefix
        self._namespaces: dict[str, Namespace] = {}

    def __enter__(self) -> Scope:
        self.root.mkdir(mode=0o700)
        try:
            for folder in (self.run_dir, self.state_dir, self.manifests, self.bpffs):
                folder.mkdir()
            mount("bpf", self.bpffs)
            self.cgroup.mkdir()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def inhabited(self) -> Iterator[None]:
        """This process, and what it starts, is in the lab's cgroup meanwhile: sockets belong to
        the cgroup that they are made in."""
        own = Path("/proc/self/cgroup").read_text().splitlines()
        former = next(line for line in own if line.startswith("0::"))[3:]
        _enter(self.cgroup)
        try:
            yield
        finally:
            _enter(cgroup2() / former.lstrip("/"))

    def namespace(self, name: str) -> Namespace:
        """Makes a network namespace; it goes with the scope, or earlier by `drop`."""
        made = Namespace(f"{self.prefix}-{name}")
        self._namespaces[made.name] = made
        return made

    def drop(self, namespace: Namespace) -> None:
        """Removes a namespace."""
        namespace.delete()
        self._namespaces.pop(namespace.name, None)

    def close(self) -> None:
        """Removes everything; what is not there is no error."""
        for namespace in list(self._namespaces.values()):
            self.drop(namespace)
        unmount(self.bpffs)
        shutil.rmtree(self.root, ignore_errors=True)
        with contextlib.suppress(OSError):
            for folder in sorted(self.cgroup.rglob("*/"), reverse=True):
                folder.rmdir()
        # Who was killed leaves it a moment later.
        for _ in range(_TRIES):
            try:
                self.cgroup.rmdir()
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(_PAUSE)


def _enter(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))


def cgroup2() -> Path:
    """Where cgroup v2 is mounted, alone or beside v1. Raises LabError."""
    for folder in cgroup2_mounts():
        return folder
    raise LabError("cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
