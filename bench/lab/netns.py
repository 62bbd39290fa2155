# SPDX-License-Identifier: Apache-2.0
"""Named network namespaces, as `ip netns` and container runtimes make them (bind mounts)."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from agent.kernel.netns import CLONE_NEWNET, own_identity, run_in

FOLDER = Path("/run/netns")
MS_BIND = 4096
MNT_DETACH = 2

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


class LabError(Exception):
    """The lab cannot do what it was asked for; the message holds the command's own words."""


class Namespace:
    """A network namespace with a name in /run/netns, its loopback device up.

    Made by the constructor, removed by `delete`. `fd` keeps it alive in between.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = FOLDER / name
        FOLDER.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
        try:
            _in_thread(self._make)
        except BaseException:
            self.path.unlink(missing_ok=True)
            raise
        self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        self.ip("link set lo up")

    def _make(self) -> None:
        before = own_identity()
        if _libc.unshare(CLONE_NEWNET) != 0:
            raise _error(f"cannot make network namespace {self.name}")
        assert own_identity() != before
        source = b"/proc/thread-self/ns/net"
        if _libc.mount(source, os.fsencode(self.path), None, MS_BIND, None) != 0:
            raise _error(f"cannot name network namespace {self.name}")

    def run(self, work: Callable[[], T]) -> T:
        """Calls `work` in this namespace; sockets that it opens stay here."""
        return run_in(self.fd, work)

    def ip(self, *commands: str) -> None:
        """iproute2 commands, without the leading `ip`, all in one process. Raises LabError."""
        self.command(["ip", "-batch", "-"], text="\n".join(commands) + "\n")

    def nft(self, rules: str) -> None:
        """Loads an nftables rule set. Raises LabError."""
        self.command(["nft", "-f", "-"], text=rules)

    def sysctl(self, settings: dict[str, str | int]) -> None:
        """Writes settings below /proc/sys/net, by names such as `ipv4.ip_forward`."""

        def write() -> None:
            for name, value in settings.items():
                # Device names may hold dots; those of labs do not.
                Path("/proc/sys/net", *name.split(".")).write_text(str(value))

        self.run(write)

    def argv(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` in here; the process id is the command's own.

        The command is killed when the thread that started it ends: nothing outlives a killed test.
        """
        mortal = ["setpriv", "--pdeathsig", "KILL", "--"]
        return ["nsenter", f"--net={self.path}", "--", *mortal, *command]

    def command(self, command: Sequence[str], text: str = "", timeout: float = 30) -> str:
        """Runs a command in here and returns what it printed. Raises LabError if it fails."""
        return execute(self.argv(command), text, timeout)

    def delete(self) -> None:
        """Removes the name; the namespace goes with its last user. Absent is success."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        _libc.umount2(os.fsencode(self.path), MNT_DETACH)
        self.path.unlink(missing_ok=True)


def execute(command: Sequence[str], text: str = "", timeout: float = 30) -> str:
    """Runs a command and returns what it printed. Raises LabError if it fails."""
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=timeout, check=False
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise LabError(f"{' '.join(command)}: exit status {done.returncode}: {said}")
    return done.stdout


def mount(kind: str, folder: Path) -> None:
    """Mounts a virtual file system. Raises LabError."""
    if _libc.mount(kind.encode(), os.fsencode(folder), kind.encode(), 0, None) != 0:
        raise _error(f"cannot mount {kind} on {folder}")


def unmount(folder: Path) -> None:
    """Detaches a mount; fine when it is none."""
    _libc.umount2(os.fsencode(folder), MNT_DETACH)


def _error(what: str) -> LabError:
    return LabError(f"{what}: {os.strerror(ctypes.get_errno())}")


def _in_thread(work: Callable[[], None]) -> None:
    """Like run_in, for work that leaves its thread in another namespace."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
