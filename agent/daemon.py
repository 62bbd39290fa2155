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
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent import runtime_config
from agent.applied_config import (
    check_masquerade,
    ifindex,
    ifindex_now,
    map_sizes,
    masquerading,
    node_book,
    with_uplinks,
)
from agent.cleanup import (
    LAST_GOOD,
    LOCK,
    MOUNT,
    StartError,
    cleanup,
    device_tag,
    only_agent,
    record_uplinks,
    recorded_uplinks,
)
from agent.cluster.hooks import Hooks, NoPodCidrs
from agent.config import Config
from agent.core.desired import Desired
from agent.core.ipam import AddressPool
from agent.core.masquerade import MasqueradeBook
from agent.core.numbers import Numbers
from agent.core.sockets import Mode, SocketBook
from agent.core.store import Store
from agent.endpoints import EndpointManager
from agent.interconnect import Interconnect
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
    uplink_addresses,
)
from agent.kernel.podnet import PodNetwork
from agent.kernel.rtnl import RtnlError
from agent.kernel.syscall import BpfError
from agent.kube.manifests import ManifestSource
from agent.log_ring import LogRing
from agent.loop import Loop, LoopStopped
from agent.mtu import oversized, underlay_mtu
from agent.protection import Protection
from agent.redirect import Redirect
from agent.rpc.cni_server import SOCKET_NAME as CNI_SOCKET
from agent.rpc.cni_server import CniServer, SocketBusy
from agent.rpc.server import AgentServer, SocketError
from agent.signals import set_on_signals
from agent.state_file import StateFileError, write_durably
from agent.surroundings import Surroundings
from agent.telemetry.flows import FlowHub
from agent.telemetry.progress import Progress
from agent.telemetry.reader import RingReader
from agent.view import View
from bpf.layouts import Counter
from cni.spool import Spool
from identity.allocator import IdentityAllocator, SnapshotError
from identity.cluster import ClusterIdentities
from identity.labels import DEFAULT, LabelFilter

if TYPE_CHECKING:
    from agent.cluster.membership import Membership
    from agent.telemetry.web import WebServer

__all__ = ["cleanup", "run"]

log = logging.getLogger("bristle")

MANIFESTS: Final = "manifests"
NUMBER_REST: Final = 60.0


def run(config: Config) -> int:
    """Run until SIGTERM or SIGINT. Gives the exit code."""
    ring = LogRing()
    logging.basicConfig(
        level=config.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[logging.StreamHandler(), ring],
    )
    stopping, failed = threading.Event(), threading.Event()
    set_on_signals(stopping)
    try:
        _run(config, stopping, failed, ring)
    except (StartError, BpffsError, MapError, BpfError, LoadError, LinkError, RtnlError,
            StateFileError, EndpointStoreError, SocketBusy, SocketError,
            sysctl.SysctlError) as error:  # fmt: skip
        log.error("cannot run: %s", error)
        return 1
    return 1 if failed.is_set() else 0


def _run(config: Config, stopping: threading.Event, failed: threading.Event, ring: LogRing) -> None:
    with contextlib.ExitStack() as stack:
        # Folders, and the right to be the only agent on them.
        stack.enter_context(only_agent(config.run_dir, config.state_dir))
        boot_id = read_boot_id()
        progress = Progress(note=lambda reason: _note(config.run_dir, reason))
        progress.waits("")
        if config.health.address is not None:
            stack.callback(_serve_health(config.health.address, progress).stop)
        member = _member(config)
        try:
            cidrs = [str(one) for one in config.pod_cidrs]
            if member is not None:
                cidrs = list(member.pod_cidrs(stopping, progress.waits))
        except NoPodCidrs:
            return
        config = with_uplinks(
            config, member.addresses if member else (), recorded_uplinks(config.state_dir)
        )
        check_masquerade(config)
        uplinks = {device: ifindex(device) for device in config.devices}

        # The datapath, as it stands, and this agent's programs.
        datapath = Datapath(
            config.bpffs_dir,
            config.run_dir,
            map_sizes(config),
            masquerade=config.masquerade.enabled,
        )
        mounted = datapath.open()
        stack.callback(datapath.close)
        if mounted is not None:
            write_durably(config.state_dir / MOUNT, os.fsencode(mounted))
        tunnelled = config.routing.mode == "tunnel"
        datapath.load(config.trace, config.routing.tunnel_port if tunnelled else 0)

        # State that outlives the process.
        allocator = ClusterIdentities if member else IdentityAllocator
        identities = allocator(config.identity.grace, config.identity.rest)
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
        store = Store([member.source if member else MANIFESTS])
        label_filter = LabelFilter.of(config.labels) if config.labels else DEFAULT
        book = node_book(config, cidrs, datapath.capacity("tunnels"))
        masquerade = MasqueradeBook(masquerading(config, cidrs, datapath.masquerade_seed()))
        redirect = Redirect(
            config.socket_redirect,
            datapath,
            config.cgroup_root,
            bpffs_dir=config.bpffs_dir,
            work_dir=config.run_dir,
            state_dir=config.state_dir,
            boot_id=boot_id,
        )
        redirect.open()
        stack.callback(redirect.close)
        sockets = SocketBook(Mode(config.socket_redirect.default), redirect.ceiling)
        desired = Desired(identities, numbers, label_filter, book, masquerade, sockets)
        interconnect = Interconnect(
            book,
            datapath,
            store,
            mode=config.routing.mode,
            port=config.routing.tunnel_port,
            mtu=config.mtu,
            underlay_mtu=lambda: underlay_mtu(config.devices),
            tag=device_tag(config.state_dir),
            state_dir=config.state_dir,
        )
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
            surroundings=Surroundings(
                datapath, store, records, config.devices, further=interconnect.deviations
            ),
            follow=interconnect.follow,
            on_publish=member.changed if member else None,
        )

        # The pods' network: what is wired already, and how more is wired.
        pool = AddressPool(cidrs)
        network = PodNetwork(
            device_tag(config.state_dir),
            lambda ifindex, _name: datapath.attach_endpoint(0, ifindex),
        )
        endpoints = EndpointManager(loop, pool, records, network, lambda: interconnect.mtu)
        alive, gone = endpoints.adopt()
        log.info("endpoints: %d adopted, %d gone", alive, gone)
        settings = sysctl.SysctlJournal(config.state_dir / "sysctls.json", boot_id)
        settings.open()
        sysctl.enable_forwarding(settings, config.devices)
        protection = Protection(config.state_dir)
        protection.set_blocks(cidrs)
        interconnect.open()
        watch = _AddressWatch(loop, config.devices, protection.follow)
        monitor = NetworkMonitor(watch.on_event)
        watch.read()

        def attach() -> None:
            endpoints.reattach()
            for device in config.devices:
                datapath.attach_uplink(device, ifindex_now(device))
            interconnect.attach()

        def in_force() -> None:
            # The maps hold what they must: until now a former agent's programs and maps were in
            # force, and they go without a gap.
            former = recorded_uplinks(config.state_dir)
            record_uplinks(config.state_dir, former | uplinks)
            datapath.take_over(attach)
            redirect.attach()
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
        view.further_problems = lambda: {
            **interconnect.problems, **oversized(records, interconnect.mtu), **protection.problems
        }  # fmt: skip
        view.redirect = redirect
        view.failed_records = lambda: reader.counters.records_failed
        reader.start()
        stack.callback(reader.stop)
        thread = threading.Thread(target=_guarded(loop.run, stopping, failed), name="loop")
        thread.start()
        stack.callback(thread.join)
        stack.callback(loop.stop)
        redirect.start(loop)
        stack.callback(redirect.stop)
        monitor.start()
        stack.callback(monitor.stop)
        interconnect.start()
        stack.callback(interconnect.stop)
        if member is not None:
            view.more_problems = member.problems

            def set_blocks(wanted: Sequence[str]) -> None:
                pool.set_blocks(wanted)
                book.set_pod_cidrs([ip_network(one) for one in wanted])
                protection.set_blocks(wanted)

            member.start(loop, Hooks(set_blocks, view.healthy))
            stack.callback(member.stop)
        else:
            assert config.source.manifests is not None
            source = ManifestSource(
                config.source.manifests,
                loop.post,
                name=MANIFESTS,
                last_good=config.state_dir / LAST_GOOD,
            )
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
        progress.started(view.alive, view.healthy)
        stack.enter_context(_keep_runtime_file(config, loop))
        log.info("agent of node %s is up; %s", config.node_name, replayed)
        stopping.wait()
        log.info("stopping; the datapath stays in force")


# ---- parts -----------------------------------------------------------------------------------


def _note(run_dir: Path, reason: str) -> None:
    """What the start waits for, for `bristle status`: in the lock, so that it holds no longer than
    the agent lives."""
    try:
        (run_dir / LOCK).write_text(reason, errors="replace")
    except OSError as error:
        log.warning("%s: %s", run_dir / LOCK, error)


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

    def __init__(self, loop: Loop, uplinks: Sequence[str], then: Callable[[], None]) -> None:
        self._loop = loop
        self._uplinks = uplinks
        self._then = then
        self._asked = threading.Event()

    def on_event(self, event: NetworkEvent) -> None:
        """Called in the monitor's thread."""
        if not isinstance(event, LinkRemoved) and not self._asked.is_set():
            self._asked.set()
            self._loop.submit(self._read, in_force=False)

    def read(self) -> None:
        """Take down what addresses the node has. Raises OSError."""
        store, places = self._loop.store, uplink_addresses(self._uplinks)
        store.set_node_addresses(str(one) for one in node_addresses())
        store.set_uplink_addresses({place: str(one) for place, one in places.items()})

    def _read(self) -> None:
        self._asked.clear()  # first: what comes from now on is read by the next one
        try:
            self.read()
            self._then()
        except OSError as error:
            log.error("the node's addresses cannot be followed: %s", error)


def _serve_metrics(address: tuple[str, int], view: View) -> WebServer:
    from agent.telemetry.exposition import metrics_server

    with _listening("prometheus.address", address):
        server = metrics_server(*address, view.families, view.healthy)
    server.start()
    return server


def _serve_health(address: tuple[str, int], progress: Progress) -> WebServer:
    from agent.telemetry.health import health_server

    with _listening("health.address", address):
        server = health_server(*address, {"/healthz": progress.alive, "/readyz": progress.ready})
    server.start()
    return server


@contextlib.contextmanager
def _listening(key: str, address: tuple[str, int]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        host, port = address
        raise StartError(f"{key}: cannot listen on {host}:{port}: {error}") from error


def _keep_runtime_file(config: Config, loop: Loop) -> runtime_config.Keeper:
    def note(problem: str | None) -> None:
        with contextlib.suppress(LoopStopped, TimeoutError):
            loop.call(lambda: loop.note("runtime file", problem), in_force=False)

    return runtime_config.Keeper(
        config.cni, config.run_dir, config.state_dir, ready=loop.synced, note=note
    )


def _member(config: Config) -> Membership | None:
    """This node as a member of a cluster; None in standalone mode. What a cluster needs is only
    imported there: it costs memory."""
    if config.source.kubernetes is None:
        return None
    from agent.cluster.membership import Membership

    return Membership(config)


def _detach_former_uplinks(datapath: Datapath, config: Config, recorded: Mapping[str, int]) -> None:
    for name in datapath.detach_former_uplinks(config.devices, recorded):
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
