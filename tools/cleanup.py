#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Removes what killed tests left on this machine: everything named ``bristle-t-*``.

Network namespaces, network devices, mounts, cgroups, folders of bpffs and of run directories, and
the processes inside of such namespaces and cgroups. Nothing with another name is touched.

Several test runs may share a machine, so only strays go. ``bristle-t-<pid>-...`` is stray when
that process is gone; a name without a process id is stray when it is older than ten minutes and no
process is inside. ``--all`` takes every one, for machines where nobody else is working.

Standard library only: it also serves where the environment could not be made.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PREFIX = "bristle-t-"
NETNS = Path("/run/netns")
PLACES = (Path("/run"), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))
REST_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Found:
    """One thing of a test: where it is, how to remove it, who is inside of it."""

    kind: str
    path: Path
    remove: Callable[[], None]
    inside: frozenset[int] = frozenset()

    @property
    def name(self) -> str:
        """The part of the path that carries the prefix."""
        return next(part for part in self.path.parts if part.startswith(PREFIX))


def owner(name: str) -> int | None:
    """Process id in ``bristle-t-<pid>-...``; None if there is none."""
    match = re.match(rf"{PREFIX}(\d+)(?:-|$)", name)
    return int(match[1]) if match else None


def is_stray(found: Found, now: float, alive: Callable[[int], bool]) -> bool:
    """Whether nobody can be using it any more (see the module's text)."""
    pid = owner(found.name)
    if pid is not None:
        return not alive(pid)
    try:
        age = now - found.path.stat().st_mtime
    except OSError:
        return True  # a mount whose file is gone, or gone meanwhile
    return age > REST_SECONDS and not found.inside


def namespaces(folder: Path = NETNS) -> Iterator[Found]:
    """Named network namespaces, with the processes that are in them."""
    members: dict[tuple[int, int], set[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            stat = (process / "ns/net").stat()
        except OSError:
            continue
        members.setdefault((stat.st_dev, stat.st_ino), set()).add(int(process.name))
    own = Path("/proc/self/ns/net").stat()
    for path in entries(folder):
        try:
            stat = path.stat()
        except OSError:
            continue  # its test has just removed it
        if (stat.st_dev, stat.st_ino) == (own.st_dev, own.st_ino):
            continue  # a name for the namespace we are in: its processes are the machine's
        inside = frozenset(members.get((stat.st_dev, stat.st_ino), ()))

        def remove(path: Path = path) -> None:
            unmount(path)
            path.unlink(missing_ok=True)

        yield Found("network namespace", path, remove, inside)


def devices() -> Iterator[Found]:
    """Network devices of this namespace."""
    for _, name in socket.if_nameindex():
        if name.startswith(PREFIX):

            def remove(name: str = name) -> None:
                run("ip", "link", "delete", name)

            yield Found("network device", Path("/sys/class/net", name), remove)


def mounts(table: str | None = None) -> Iterator[Found]:
    """Mounts below a folder of a test, innermost first."""
    text = Path("/proc/self/mounts").read_text() if table is None else table
    for line in reversed(text.splitlines()):
        escaped = line.split()[1]
        path = Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), escaped))
        if path.parent != NETNS and any(part.startswith(PREFIX) for part in path.parts):
            yield Found("mount", path, lambda path=path: unmount(path))  # type: ignore[misc]


def cgroups() -> Iterator[Found]:
    """Control groups in every hierarchy, up to four levels down, innermost first."""
    # A hierarchy may be mounted several times.
    roots = {identity(root): root for root in [*mounted("cgroup2"), *mounted("cgroup")]}
    for root in roots.values():
        for path in reversed(list(below(root, 4))):
            groups = [path, *(p for p in path.rglob("*") if p.is_dir())]
            inside = frozenset(
                int(pid) for group in groups for pid in read(group / "cgroup.procs").split()
            )

            def remove(groups: list[Path] = groups) -> None:
                for group in sorted(groups, reverse=True):  # children first
                    group.rmdir()

            yield Found("cgroup", path, remove, inside)


def folders() -> Iterator[Found]:
    """Folders and files of tests: pins in bpffs, run and state directories."""
    for root in [*mounted("bpf"), *PLACES]:
        for path in entries(root):
            yield Found("folder", path, lambda path=path: delete_tree(path))  # type: ignore[misc]


def entries(folder: Path) -> list[Path]:
    """What in a folder bears the prefix; nothing if there is no such folder."""
    try:
        return sorted(path for path in folder.iterdir() if path.name.startswith(PREFIX))
    except OSError:
        return []


def below(folder: Path, levels: int) -> Iterator[Path]:
    """Folders with the prefix down to so many levels; none inside another."""
    try:
        children = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return
    for child in children:
        if child.name.startswith(PREFIX):
            yield child
        elif levels > 1:
            yield from below(child, levels - 1)


def mounted(kind: str) -> list[Path]:
    """Mount points of a file system type."""
    lines = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(fields[1]) for fields in lines if fields[2] == kind]


def identity(path: Path) -> tuple[int, int]:
    """Device and inode: the same for the same folder, wherever it is mounted."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def read(path: Path) -> str:
    """A small file's text; empty if it cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""


def run(*command: str) -> None:
    """Runs a command; OSError if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def unmount(path: Path) -> None:
    """Detaches a mount, also one in use; fine when it is none."""
    subprocess.run(["umount", "-l", str(path)], capture_output=True, check=False)


def delete_tree(path: Path) -> None:
    """Deletes a folder without leaving its file system and without following links."""
    if path.is_dir() and not path.is_symlink():
        device = path.stat().st_dev
        for child in list(path.iterdir()):
            if child.lstat().st_dev != device:
                raise OSError(f"{child} is another file system")
            delete_tree(child)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def end(pids: Iterable[int]) -> None:
    """Kills processes and waits up to two seconds until they are gone."""
    left = {pid for pid in pids if pid != os.getpid()}
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + 2
    while any(is_alive(pid) for pid in left) and time.monotonic() < deadline:
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    state = read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return bool(state) and state[0] not in "ZX"


def main() -> int:
    """Removes the strays. Exit status: 1 if something was found and that was not expected."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--all", action="store_true", help="not only strays")
    parser.add_argument("--expect-none", action="store_true", help="exit 1 if there was any")
    parser.add_argument("--dry-run", action="store_true", help="only say")
    options = parser.parse_args()
    if os.geteuid() != 0:
        return 0  # without root nothing of the kind can have been made
    count = failures = 0
    # Processes and namespaces first: they hold the mounts and devices.
    for kind in (namespaces, cgroups, devices, mounts, folders):
        for found in list(kind()):
            if not (options.all or is_stray(found, time.time(), is_alive)):
                continue
            count += 1
            print(f"cleanup: left over by a test: {found.kind} {found.path}", file=sys.stderr)
            if options.dry_run:
                continue
            end(found.inside)
            try:
                found.remove()
            except OSError as error:
                failures += 1
                print(f"cleanup: could not remove it: {error}", file=sys.stderr)
    return int(failures > 0 or (options.expect_none and count > 0))


if __name__ == "__main__":
    sys.exit(main())
