# SPDX-License-Identifier: Apache-2.0
"""Kernel settings under /proc/sys that the agent changes on devices not its own, and takes back.

Each first change is written to a durable journal, old value and ours, before it is made.
`restore` puts an old value back only where ours still stands: what an administrator set since is
theirs. Settings do not outlive a boot, so a journal of another boot is void.

Names use slashes ("net/ipv6/conf/eth0/accept_ra"), because device names may contain dots. They
are those of the network namespace of the calling thread.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from agent.state_file import write_durably

# In a container that is not privileged /proc/sys is read-only; net/ of it is mounted elsewhere.
ROOT = Path(os.environ.get("BRISTLE_PROC_SYS") or "/proc/sys")


class SysctlError(OSError):
    """A setting could not be read or written; the message names it."""


def read(name: str, root: Path = ROOT) -> str | None:
    """A value, or None where this kernel or namespace has no such setting."""
    try:
        return (root / name).read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SysctlError(error.errno, f"cannot read {name}: {error.strerror}") from error


def write(name: str, value: str, root: Path = ROOT) -> bool:
    """Set a value, unrecorded (our own devices); False where there is no such setting."""
    try:
        # Unbuffered: the kernel judges each write(2) by itself, at close it would go unnoticed.
        with open(root / name, "r+b", buffering=0) as stream:
            stream.write(value.encode())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise SysctlError(error.errno, f"cannot set {name} to {value}: {error.strerror}") from error
    return True


def local_ports(root: Path = ROOT) -> tuple[int, int]:
    """First and last port that the node's own connections are given (ip-sysctl)."""
    first, last = (read("net/ipv4/ip_local_port_range", root) or "32768 60999").split()
    return int(first), int(last)


def reserved_ports(root: Path = ROOT) -> frozenset[int]:
    """Ports that are not given out by themselves, though they may be in that range."""
    found: set[int] = set()
    for part in (read("net/ipv4/ip_local_reserved_ports", root) or "").split(","):
        first, _, last = part.strip().partition("-")
        if first:
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


class SysctlJournal:
    """Recorded changes. Owned by one thread."""

    def __init__(self, path: Path, boot_id: str, root: Path = ROOT) -> None:
        self._path = path
        self._boot_id = boot_id
        self.root = root
        self._changes: dict[str, tuple[str, str]] = {}  # name -> (old, ours), oldest first

    def open(self) -> None:
        """Read the changes of this boot that are not taken back yet. Raises ValueError, OSError."""
        try:
            content = json.loads(self._path.read_text())
        except FileNotFoundError:
            return
        if content["boot"] == self._boot_id:
            self._changes = {name: (old, ours) for name, old, ours in content["changes"]}

    @property
    def changes(self) -> Mapping[str, tuple[str, str]]:
        """Name -> (old value, ours)."""
        return dict(self._changes)

    def set(self, name: str, value: str) -> bool:
        """Change a setting and remember the old value; False where there is no such setting.

        A setting that has the value already is left alone and not recorded.
        Raises SysctlError, StateFileError.
        """
        current = read(name, self.root)
        if current is None or current == value:
            return current is not None
        self._record({name: (current, value)})
        return write(name, value, self.root)

    def set_ipv6_forwarding(self) -> None:
        """Turn on net.ipv6.conf.all.forwarding, which sets it for every device too.

        All these values are recorded first, so that `restore` puts each back, not just `all`.
        """
        folder = self.root / "net/ipv6/conf"
        names = [f"net/ipv6/conf/{entry.name}/forwarding" for entry in sorted(folder.iterdir())]
        names.sort(key=lambda name: name != "net/ipv6/conf/all/forwarding")  # all: first back
        values = {name: read(name, self.root) for name in names}
        if values["net/ipv6/conf/all/forwarding"] == "1":
            return
        self._record({name: (old, "1") for name, old in values.items() if old is not None})
        write("net/ipv6/conf/all/forwarding", "1", self.root)

    def restore(self) -> tuple[str, ...]:
        """Take every change back and forget it; the names that were set back, in order.

        Settings of devices that are gone, and ones changed by others since, are left alone.
        """
        restored: list[str] = []
        # All at once decided before anything is written: `all` cascades to the others.
        ours = {
            name: old
            for name, (old, mine) in self._changes.items()
            if read(name, self.root) == mine
        }
        for name, old in ours.items():
            if write(name, old, self.root):
                restored.append(name)
        self._changes.clear()
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        return tuple(restored)

    def _record(self, changes: Mapping[str, tuple[str, str]]) -> None:
        for name, (old, ours) in changes.items():
            first = self._changes.get(name, (old, ours))[0]
            self._changes[name] = (first, ours)
        content = {
            "boot": self._boot_id,
            "changes": [[name, old, ours] for name, (old, ours) in self._changes.items()],
        }
        write_durably(self._path, json.dumps(content, indent=1).encode())


def enable_forwarding(journal: SysctlJournal, uplinks: Iterable[str]) -> None:
    """Let packets from these devices be forwarded to pods, changing as little as the kernel allows.

    IPv4: `forwarding` counts on the device a packet comes in by, so it is set there alone and
    ip_forward stays. IPv6: since 6.17 `force_forwarding` does the same. Older kernels forward only
    with net.ipv6.conf.all.forwarding, which makes the node deaf to router advertisements; uplinks
    that listened to them get accept_ra=2 first, else the node would lose its own default route.
    Without devices nothing is changed.
    """
    names = tuple(uplinks)
    if not names:
        return
    for name in names:
        journal.set(f"net/ipv4/conf/{name}/forwarding", "1")
    if read("net/ipv6/conf/all/forwarding", journal.root) is None:
        return
    if read("net/ipv6/conf/all/force_forwarding", journal.root) is not None:
        for name in names:
            journal.set(f"net/ipv6/conf/{name}/force_forwarding", "1")
        return
    for entry in sorted((journal.root / "net/ipv6/conf").iterdir()):
        accept = f"net/ipv6/conf/{entry.name}/accept_ra"
        if entry.name not in ("all", "default", "lo") and read(accept, journal.root) == "1":
            journal.set(accept, "2")
    journal.set_ipv6_forwarding()
