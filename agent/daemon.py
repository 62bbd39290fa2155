# SPDX-License-Identifier: Apache-2.0
"""The agent put together, from the bottom up, and taken down in reverse. Reads top to bottom.

Nothing is decided here. What a stopped or killed agent leaves behind works on; `agent.cleanup`
removes it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent.cleanup import (
    MOUNT,
    NETWORKS,
    StartError,
    cleanup,
    device_tag,
    only_agent,
    record_uplinks,
    recorded_networks,
    recorded_uplinks,
)
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
from agent.kernel.netlink import default_route_mtu
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
from agent.log_ring import LogRing
from agent.loop import Loop
from agent.rpc.cni_server import SOCKET_NAME as CNI_SOCKET
from agent.rpc.cni_server import CniServer, SocketBusy
from agent.rpc.server import AgentServer, SocketError
from agent.state_file import StateFileError, write_durably
from agent.surroundings import Surroundings
from agent.telemetry.flows import FlowHub
from agent.telemetry.reader import RingReader
from agent.view import View
from bpf.layouts import Counter
from cni.spool import Spool
from identity.allocator import IdentityAllocator, SnapshotError
from identity.labels import DEFAULT, LabelFilter

if TYPE_CHECKING:
    from agent.telemetry.exposition import MetricsServer

__all__ = ["cleanup", "run"]

log = logging.getLogger("bristle")

SOURCE: Final = "manifests"
NUMBER_REST: Final = 60.0
_DEFAULT_MTU: Final = 1500


def run(config: Config) -> int:
    """Run until SIGTERM or SIGINT. Gives the exit code."""
    ring = LogRing()
    logging.basicConfig(
        level=config.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[logging.StreamHandler(), ring],
    )
    stopping, failed = threading.Event(), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        _run(config, stopping, failed, ring)
    except (StartError, BpffsError, MapError, BpfError, LoadError, LinkError, RtnlError,
            StateFileError, EndpointStoreError, SocketBusy, SocketError) as error:  # fmt: skip
        log.error("cannot run: %s", error)
        return 1
    return 1 if failed.is_set() else 0


def _run(config: Config, stopping: threading.Event, failed: threading.Event, ring: LogRing) -> None:
    with contextlib.ExitStack() as stack:
        # Folders, and the right to be the only agent on them.
        stack.enter_context(only_agent(config.run_dir, config.state_dir))
        boot_id = read_boot_id()
        uplinks = {device: _ifindex(device) for device in config.devices}

        # The datapath, as it stands, and this agent's programs.
        datapath = Datapath(config.bpffs_dir, config.run_dir, _map_sizes(config))
        mounted = datapath.open()
        stack.callback(datapath.close)
        if mounted is not None:
            write_durably(config.state_dir / MOUNT, os.fsencode(mounted))
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
        for kind, found in datapath.policy_numbers().items():
            numbers.avoid(kind, found)

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
            surroundings=Surroundings(datapath, store, records, config.devices),
        )

        # The pods' network: what is wired already, and how more is wired.
        pool = AddressPool([str(network) for network in config.pod_cidrs])
        network = PodNetwork(
            device_tag(config.state_dir),
            lambda ifindex, _name: datapath.attach_endpoint(0, ifindex),
        )
        endpoints = EndpointManager(loop, pool, records, network, _mtu(config))
        alive, gone = endpoints.adopt()
        log.info("endpoints: %d adopted, %d gone", alive, gone)
        settings = sysctl.SysctlJournal(config.state_dir / "sysctls.json", boot_id)
        settings.open()
        sysctl.enable_forwarding(settings, config.devices)
        _protect_blocks(config)
        watch = _AddressWatch(loop)
        monitor = NetworkMonitor(watch.on_event)
        store.set_node_addresses(str(one) for one in node_addresses())

        def attach() -> None:
            endpoints.reattach()
            for device in config.devices:
                datapath.attach_uplink(device, _ifindex_now(device))

        def in_force() -> None:
            # The maps hold what they must: until now a former agent's programs and maps were in
            # force, and they go without a gap.
            former = recorded_uplinks(config.state_dir)
            record_uplinks(config.state_dir, former | uplinks)
            datapath.take_over(attach)
            _detach_former_uplinks(datapath, config, former)
            record_uplinks(config.state_dir, uplinks)
            # What has been made by now stays: the collector need not walk over it again, which
            # would cost a change some milliseconds once in a while.
            gc.collect()
            gc.freeze()

        # Everything runs; the socket for CNI comes last, so that nothing is asked too early.
        view = View(config, loop, pool, hub, ring.lines)
        hub.set_names(view.names())
        events = datapath.map("events")
        reader = RingReader.open(events.fd, events.capacity, hub.handle)
        view.failed_records = lambda: reader.counters.records_failed
        reader.start()
        stack.callback(reader.stop)
        thread = threading.Thread(target=_guarded(loop.run, stopping, failed), name="loop")
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
        if config.prometheus.address is not None:
            stack.callback(_serve_metrics(config.prometheus.address, view).stop)
        cni = CniServer(
            config.run_dir / CNI_SOCKET, Spool(config.state_dir / "spool"), endpoints.handle
        )
        replayed = cni.start()
        stack.callback(cni.stop)
        view.serving.set()
        log.info("agent of node %s is up; %s", config.node_name, replayed)
        stopping.wait()
        log.info("stopping; the datapath stays in force")


# ---- parts -----------------------------------------------------------------------------------


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


def _ifindex(device: str) -> int:
    try:
        return socket.if_nametoindex(device)
    except OSError:
        raise StartError(
            f"devices: there is no device {device!r} in this network namespace"
        ) from None


def _ifindex_now(device: str) -> int:
    """As `_ifindex`, in the loop, which tries again."""
    try:
        return _ifindex(device)
    except StartError as error:
        raise LinkError(str(error)) from None


def _mtu(config: Config) -> int:
    if config.mtu:
        return config.mtu
    mtus = []
    for device in config.devices:
        with contextlib.suppress(OSError, ValueError):
            mtus.append(int(Path(f"/sys/class/net/{device}/mtu").read_text()))
    return min(mtus, default=0) or default_route_mtu() or _DEFAULT_MTU


def _restore_identities(identities: IdentityAllocator, path: Path) -> None:
    try:
        identities.restore(json.loads(path.read_bytes()), time.monotonic())
    except FileNotFoundError:
        pass
    except (SnapshotError, ValueError) as error:
        aside = path.with_suffix(".unusable")
        path.rename(aside)
        log.error("%s: %s; numbers are handed out anew, the file is kept as %s", path, error, aside)


class _AddressWatch:
    """Has the loop read the node's addresses again after a change: all of them, because another
    device may have the same one, and once for however many changes came together."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._asked = threading.Event()

    def on_event(self, event: NetworkEvent) -> None:
        """Called in the monitor's thread."""
        if not isinstance(event, LinkRemoved) and not self._asked.is_set():
            self._asked.set()
            self._loop.submit(self._read, in_force=False)

    def _read(self) -> None:
        self._asked.clear()  # first: what comes from now on is read by the next one
        try:
            self._loop.store.set_node_addresses(str(one) for one in node_addresses())
        except OSError as error:
            log.error("the node's addresses cannot be read: %s", error)


def _serve_metrics(address: tuple[str, int], view: View) -> MetricsServer:
    from agent.telemetry.exposition import MetricsServer

    try:
        server = MetricsServer(*address, view.families, view.healthy)
    except OSError as error:
        host, port = address
        raise StartError(f"prometheus.address: cannot listen on {host}:{port}: {error}") from error
    server.start()
    return server


def _protect_blocks(config: Config) -> None:
    """Unreachable routes for the pod CIDRs; those of CIDRs no longer configured go. They are
    written down, so that `cleanup` knows them without a configuration."""
    path = config.state_dir / NETWORKS
    former = recorded_networks(config.state_dir)
    write_durably(path, json.dumps([str(one) for one in config.pod_cidrs]).encode())
    protect_blocks([one for one in former if one not in config.pod_cidrs], install=False)
    protect_blocks(config.pod_cidrs, install=True)


def _detach_former_uplinks(datapath: Datapath, config: Config, recorded: Mapping[str, int]) -> None:
    for name in datapath.uplinks.detach_others(config.devices, recorded):
        log.info("uplink attachment %s is no longer configured: removed", name)
    for name in datapath.uplinks.prune():
        log.info("attachment %s: its device is gone", name)


def _guarded(
    work: Callable[[], None], stopping: threading.Event, failed: threading.Event
) -> Callable[[], None]:
    def guarded() -> None:
        try:
            work()
        except BaseException:
            log.exception("the loop failed: the agent ends, the datapath stays in force")
            failed.set()
            stopping.set()

    return guarded
