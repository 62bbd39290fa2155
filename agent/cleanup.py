# SPDX-License-Identifier: Apache-2.0
"""What an agent's folders hold, who may use them, and the removal of everything an agent made."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final

from agent import runtime_config
from agent.interconnect import ROUTES_FILE, recorded_routes
from agent.kernel import bpffs, node_routes, sysctl, vxlan
from agent.kernel import netlink as nl
from agent.kernel.datapath import Datapath
from agent.kernel.endpoint_store import read_boot_id
from agent.kernel.podnet import PodNetwork, protect_blocks
from agent.kernel.rtnl import RtnlSocket
from agent.state_file import write_durably

LOCK: Final = "agent.lock"
UPLINKS: Final = "uplinks.json"
NETWORKS: Final = "networks.json"
MOUNT: Final = "bpffs-mount"
LAST_GOOD: Final = "manifests.json"
POD_CIDRS: Final = "pod-cidrs.json"
_SYSCTLS: Final = "sysctls.json"
_TAG: Final = "tag"
_OURS: Final = (ROUTES_FILE, "programs", "headers", "spool", "endpoints.journal", "identities.json",
                "identities.unusable", LAST_GOOD, POD_CIDRS, NETWORKS, UPLINKS, MOUNT, _TAG,
                runtime_config.RECORD, "agent.sock", "cni.sock", "selftest.json")  # fmt: skip


class StartError(Exception):
    """The agent cannot run; the message says why and what to do."""


@contextlib.contextmanager
def only_agent(run_dir: Path, state_dir: Path, make: bool = True) -> Iterator[None]:
    """The right to be the only agent on these folders; each alone would let a second agent have
    the other one. Raises StartError where another has it."""
    folders = {path.resolve(): name for path, name in ((state_dir, "state_dir"),
                                                       (run_dir, "run_dir"))}  # fmt: skip
    with contextlib.ExitStack() as stack:
        for folder, name in reversed(folders.items()):
            if make:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.is_dir():
                stack.enter_context(_locked(folder, name))
        yield


@contextlib.contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    fd = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(
                f"another agent runs with {name} {folder}: stop it, or give this one another"
            ) from None
        yield
    finally:
        os.close(fd)


def device_tag(state_dir: Path) -> str:
    """What tells this agent's devices from another's: random, made once."""
    path = state_dir / _TAG
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        tag = os.urandom(4).hex()
        write_durably(path, tag.encode())
        return tag


def recorded_networks(state_dir: Path) -> list[IPv4Network | IPv6Network]:
    """The pod CIDRs that an agent has installed routes for."""
    try:
        return [ip_network(one) for one in json.loads((state_dir / NETWORKS).read_bytes())]
    except (FileNotFoundError, ValueError, TypeError):
        return []


def recorded_uplinks(state_dir: Path) -> dict[str, int]:
    """Devices that an agent has attached its uplink program to, with their numbers then."""
    try:
        found = json.loads((state_dir / UPLINKS).read_bytes())
        return {str(device): int(index) for device, index in found.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}


def record_uplinks(state_dir: Path, uplinks: Mapping[str, int]) -> None:
    """Write these down, before attaching. Raises StateFileError."""
    if recorded_uplinks(state_dir) != uplinks:
        write_durably(state_dir / UPLINKS, json.dumps(dict(uplinks)).encode())


def cleanup(run_dir: Path, state_dir: Path, bpffs_dir: Path) -> Iterator[str]:
    """Remove everything that agents with these folders put on the host; a line for each thing.

    Raises StartError while an agent runs. Can be repeated.
    """
    import click

    try:
        lock = only_agent(run_dir, state_dir, make=False)
        with lock:
            yield from _cleanup(run_dir, state_dir, bpffs_dir)
    except StartError as error:
        raise click.ClickException(str(error)) from None


def _cleanup(run_dir: Path, state_dir: Path, bpffs_dir: Path) -> Iterator[str]:
    if (state_dir / _TAG).exists():
        network = PodNetwork(device_tag(state_dir), lambda _ifindex, _name: None)
        for name in network.remove_devices():
            yield f"device {name}"
        if vxlan.remove(vxlan.alias_of(device_tag(state_dir))):
            yield f"device {vxlan.DEVICE}"
    for destination in node_routes.remove_recorded(recorded_routes(state_dir)):
        yield f"route to {destination}"
    networks = recorded_networks(state_dir)
    protect_blocks(networks, install=False)
    for block in networks:
        yield f"route to {block}"
    for pin in Datapath.remove(bpffs_dir, recorded_uplinks(state_dir)):
        yield f"pin {pin}"
    yield from runtime_config.remove(state_dir)
    yield from _unmount(state_dir / MOUNT)
    yield from _restore_sysctls(state_dir / _SYSCTLS)
    for folder in (run_dir, state_dir):
        # Only what is ours: the folder may be shared with others' files.
        for entry in _OURS:
            path = folder / entry
            if path.is_dir():
                shutil.rmtree(path)
                yield f"folder {path}"
            elif path.exists():
                path.unlink()
                yield f"file {path}"
    # Last, and still held: whoever waits for it finds that there is nothing left.
    for folder in (run_dir, state_dir):
        (folder / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def _unmount(record: Path) -> Iterator[str]:
    """A BPF file system that an agent had to mount goes, unless others have pins there."""
    try:
        point = Path(os.fsdecode(record.read_bytes()))
    except FileNotFoundError:
        return
    with contextlib.suppress(OSError, bpffs.BpffsError):
        if not any(point.iterdir()):
            bpffs.unmount(point)
            yield f"mount {point}"


def _restore_sysctls(record: Path) -> Iterator[str]:
    """Two agents on one node need the same settings, and only the first one has changed them."""
    journal = sysctl.SysctlJournal(record, read_boot_id())
    journal.open()
    if journal.changes and _others_here():
        yield (
            f"left alone, because another bristle agent works here: {', '.join(journal.changes)};"
            " repeat this after the other one's cleanup"
        )
        return
    for name in journal.restore():
        yield f"sysctl {name} restored"


def _others_here() -> bool:
    """Whether another agent has routes in this network namespace: each has some for its blocks."""
    with RtnlSocket() as node:
        return any(
            (route.protocol, route.kind) == (nl.ROUTE_PROTOCOL, nl.RTN_UNREACHABLE)
            for family in (nl.AF_INET, nl.AF_INET6)
            for route in nl.list_routes(node, family)
        )
