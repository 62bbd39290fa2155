# SPDX-License-Identifier: Apache-2.0
"""The agent put together, from the bottom up, and taken down in reverse. Reads top to bottom.

Nothing is decided here. What a stopped or killed agent leaves behind works on; `cleanup` removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.config import Config
from agent.core.desired import Desired
from agent.core.ipam import AddressPool
from agent.core.numbers import Numbers
from agent.core.store import Store
from agent.endpoints import EndpointManager
from agent.kernel import sysctl
from agent.kernel.bpffs import BpffsError
from agent.kernel.datapath import Datapath
from agent.kernel.endpoint_store import EndpointStore, EndpointStoreError, read_boot_id
from agent.kernel.links import LinkError
from agent.kernel.loader import LoadError
from agent.kernel.maps import MapError
from agent.kernel.node_addresses import (
    LinkRemoved,
    NetworkEvent,
    NetworkMonitor,
    node_addresses,
)
from agent.kernel.podnet import PodNetwork, protect_blocks
from agent.kernel.rtnl import RtnlError
from agent.kernel.syscall import BpfError
from agent.kube.manifests import ManifestSource
from agent.loop import Loop
from agent.rpc.cni_server import SOCKET_NAME as CNI_SOCKET
from agent.rpc.cni_server import CniServer, SocketBusy
from agent.rpc.server import AgentServer, SocketError
from agent.state_file import StateFileError, write_durably
from agent.telemetry.flows import FlowHub
from agent.telemetry.reader import RingReader
from agent.view import View
from bpf.layouts import Counter
from cni.spool import Spool
from identity.allocator import IdentityAllocator, SnapshotError
from identity.labels import DEFAULT, LabelFilter

log = logging.getLogger("bristle")

SOURCE: Final = "manifests"
LOCK: Final = "agent.lock"
NUMBER_REST: Final = 60.0
_TAG: Final = "tag"
_DEFAULT_MTU: Final = 1500


class StartError(Exception):
    """The agent cannot run; the message says why and what to do."""


def run(config: Config) -> int:
    """Run until SIGTERM or SIGINT. Gives the exit code."""
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        _run(config, stopping)
    except (StartError, BpffsError, MapError, BpfError, LoadError, LinkError, RtnlError,
            StateFileError, EndpointStoreError, SocketBusy, SocketError) as error:  # fmt: skip
        log.error("cannot run: %s", error)
        return 1
    return 0


def _run(config: Config, stopping: threading.Event) -> None:
    with contextlib.ExitStack() as stack:
        # Folders, and the right to be the only agent on them.
        stack.enter_context(_only_agent(config.run_dir))
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        boot_id = read_boot_id()
        uplinks = {device: _ifindex(device) for device in config.devices}

        # The datapath, as it stands, and this agent's programs.
        datapath = Datapath(config.bpffs_dir, config.run_dir, _map_sizes(config))
        datapath.open()
        stack.callback(datapath.close)
        datapath.load(config.trace)

        # State that outlives the process.
        identities = IdentityAllocator(config.identity.grace, config.identity.rest)
        identity_file = config.state_dir / "identities.json"
        _restore_identities(identities, identity_file)
        records = EndpointStore(config.state_dir / "endpoints.journal", boot_id)
        records.open()
        stack.callback(records.close)
        numbers = Numbers(NUMBER_REST)
        unusable = numbers.adopt(datapath.numbers())
        if unusable:
            log.warning("%d numbers in the kernel could not be adopted", unusable)

        # Facts, what they come to, and the loop that owns both.
        store = Store([SOURCE])
        label_filter = LabelFilter.of(config.labels) if config.labels else DEFAULT
        desired = Desired(identities, numbers, label_filter)
        hub = FlowHub(
            wall_ns=time.time_ns,
            monotonic_ns=time.monotonic_ns,
            kernel_lost=lambda: datapath.counters()[Counter.COUNTER_EVENTS_LOST],
        )
        loop = Loop(
            store,
            desired,
            datapath,
            identity_gc=config.identity.gc_interval,
            save_identities=lambda: write_durably(
                identity_file, json.dumps(identities.snapshot()).encode()
            ),
            on_first_sync=lambda: in_force(),
        )

        # The pods' network: what is wired already, and how more is wired.
        pool = AddressPool([str(network) for network in config.pod_cidrs])
        network = PodNetwork(
            _tag(config.state_dir), lambda ifindex, _name: datapath.attach_endpoint(0, ifindex)
        )
        endpoints = EndpointManager(loop, pool, records, network, _mtu(config))
        alive, gone = endpoints.adopt()
        log.info("endpoints: %d adopted, %d gone", alive, gone)
        settings = sysctl.SysctlJournal(config.state_dir / "sysctls.json", boot_id)
        settings.open()
        sysctl.enable_forwarding(settings, config.devices)
        protect_blocks(config.pod_cidrs, install=True)
        monitor = NetworkMonitor(lambda event: _on_network(loop, event))
        store.set_node_addresses(str(one) for one in node_addresses())

        def attach() -> None:
            endpoints.reattach()
            for device, ifindex in uplinks.items():
                datapath.attach_uplink(device, ifindex)

        def in_force() -> None:
            # The maps hold what they must: until now a former agent's programs and maps were in
            # force, and they go without a gap.
            datapath.take_over(attach)
            _detach_former_uplinks(datapath, config)

        # Everything runs; the socket for CNI comes last, so that nothing is asked too early.
        view = View(config, loop, pool, hub)
        hub.set_names(view.names())
        events = datapath.map("events")
        reader = RingReader.open(events.fd, events.capacity, hub.handle)
        reader.start()
        stack.callback(reader.stop)
        thread = threading.Thread(target=_guarded(loop.run, stopping), name="loop")
        thread.start()
        stack.callback(thread.join)
        stack.callback(loop.stop)
        monitor.start()
        stack.callback(monitor.stop)
        source = ManifestSource(config.source.manifests, loop.post, name=SOURCE)
        source.start()
        stack.callback(source.stop)
        api = AgentServer(view, config.run_dir)
        api.start()
        stack.callback(api.stop)
        cni = CniServer(
            config.run_dir / CNI_SOCKET, Spool(config.state_dir / "spool"), endpoints.handle
        )
        replayed = cni.start()
        stack.callback(cni.stop)
        log.info("agent of node %s is up; %s", config.node_name, replayed)
        stopping.wait()
        log.info("stopping; the datapath stays in force")


def cleanup(run_dir: Path, state_dir: Path, bpffs_dir: Path) -> Iterator[str]:
    """Remove everything that agents with these folders put on the host; a line for each thing.

    Raises StartError while an agent runs. Can be repeated.
    """
    import click

    try:
        lock = _only_agent(run_dir, make=False)
        with lock:
            yield from _cleanup(run_dir, state_dir, bpffs_dir)
    except StartError as error:
        raise click.ClickException(str(error)) from None


def _cleanup(run_dir: Path, state_dir: Path, bpffs_dir: Path) -> Iterator[str]:
    if (state_dir / _TAG).exists():
        network = PodNetwork(_tag(state_dir), lambda _ifindex, _name: None)
        for name in network.remove_devices():
            yield f"device {name}"
    for route in _remove_routes():
        yield route
    for pin in Datapath.remove(bpffs_dir):
        yield f"pin {pin}"
    journal = sysctl.SysctlJournal(state_dir / "sysctls.json", read_boot_id())
    journal.open()
    for name in journal.restore():
        yield f"sysctl {name} restored"
    for folder in (run_dir, state_dir):
        if folder.is_dir():
            # Only what is ours: the folder may be shared with others' files.
            for entry in ("programs", "headers", "spool", "endpoints.journal", "identities.json",
                          _TAG, "agent.sock", "cni.sock"):  # fmt: skip
                path = folder / entry
                if path.is_dir():
                    shutil.rmtree(path)
                    yield f"folder {path}"
                elif path.exists():
                    path.unlink()
                    yield f"file {path}"


# ---- parts -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _only_agent(run_dir: Path, make: bool = True) -> Iterator[None]:
    if make:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    elif not run_dir.is_dir():
        yield
        return
    path = run_dir / LOCK
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(
                f"another agent runs with run_dir {run_dir}: stop it, or give this one another"
            ) from None
        yield
    finally:
        os.close(fd)


def _map_sizes(config: Config) -> dict[str, int]:
    return {
        "ct": config.bpf.ct_max,
        "policy": config.bpf.policy_max,
        "peers": config.bpf.peers_max,
        "endpoints": config.bpf.endpoints_max,
        "devices": config.bpf.endpoints_max,
        # Two addresses for each pod, and the node's own.
        "addresses": 2 * config.bpf.endpoints_max + 1024,
    }


def _tag(state_dir: Path) -> str:
    """What tells this agent's devices from another's: random, made once."""
    path = state_dir / _TAG
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        tag = os.urandom(4).hex()
        write_durably(path, tag.encode())
        return tag


def _ifindex(device: str) -> int:
    try:
        return socket.if_nametoindex(device)
    except OSError:
        raise StartError(
            f"devices: there is no device {device!r} in this network namespace"
        ) from None


def _mtu(config: Config) -> int:
    if config.mtu:
        return config.mtu
    mtus = []
    for device in config.devices:
        with contextlib.suppress(OSError, ValueError):
            mtus.append(int(Path(f"/sys/class/net/{device}/mtu").read_text()))
    return min(mtus, default=_DEFAULT_MTU)


def _restore_identities(identities: IdentityAllocator, path: Path) -> None:
    try:
        identities.restore(json.loads(path.read_bytes()), time.monotonic())
    except FileNotFoundError:
        pass
    except (SnapshotError, ValueError) as error:
        aside = path.with_suffix(".unusable")
        path.rename(aside)
        log.error("%s: %s; numbers are handed out anew, the file is kept as %s", path, error, aside)


def _on_network(loop: Loop, event: NetworkEvent) -> None:
    if isinstance(event, LinkRemoved):
        return
    # Whatever it was, all addresses are read again: another device may have the same one.
    loop.submit(lambda: loop.store.set_node_addresses(str(one) for one in node_addresses()))


def _detach_former_uplinks(datapath: Datapath, config: Config) -> None:
    for name in datapath.foreign_uplinks(config.devices):
        log.info("uplink attachment %s is no longer configured: removed", name)
    for name in datapath.prune_links():
        log.info("attachment %s: its device is gone", name)


def _guarded(work: object, stopping: threading.Event) -> object:
    def guarded() -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException:
            log.exception("the loop failed: the agent ends, the datapath stays in force")
            stopping.set()

    return guarded


def _remove_routes() -> Iterator[str]:
    for family in ("-4", "-6"):
        done = subprocess.run(
            ["ip", family, "route", "flush", "proto", "178"], capture_output=True, check=False
        )
        if done.returncode == 0 and done.stdout.strip():
            yield f"routes {family}"
