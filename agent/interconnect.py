# SPDX-License-Identifier: Apache-2.0
"""The way to other nodes, as far as it is not in maps: the tunnel's device with its programs, and
the routes of the node's own stack.

Maps are written first: a route leads to what is in force already, and what a route led to is still
known while it goes. Called in the loop's thread, but for `mtu` and `problems`, which only read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final

from agent.core.nodes import OVERHEAD, Network, NodeBook, NodeRoute
from agent.core.store import Store
from agent.kernel import node_routes, vxlan
from agent.kernel.datapath import Datapath
from agent.kernel.netlink import Route
from agent.kernel.rtnl import DumpInterrupted, RtnlError, RtnlSocket
from agent.mtu import DEFAULT_MTU
from agent.path_probe import Path as ProbedPath
from agent.path_probe import PathProbe
from agent.state_file import StateFileError, write_durably
from agent.surroundings import PROGRAMS, Deviation

log = logging.getLogger(__name__)

ROUTES_FILE: Final = "node-routes.json"
DEVICE: Final = "tunnel device"
ADDRESSES: Final = "addresses of the tunnel device"
ROUTES: Final = "routes to nodes"


class Interconnect:
    """Of one agent.

    underlay_mtu: of the network between the nodes now, 0: not known. mtu: as configured, 0: what
    the underlay leaves.
    """

    def __init__(
        self,
        book: NodeBook,
        datapath: Datapath,
        store: Store,
        *,
        mode: str,
        port: int,
        mtu: int,
        underlay_mtu: Callable[[], int],
        tag: str,
        state_dir: Path,
    ) -> None:
        self._book = book
        self._datapath = datapath
        self._store = store
        self._mode = mode
        self._port = port
        self._mtu = mtu
        self._read_underlay_mtu = underlay_mtu
        self._underlay_mtu = underlay_mtu() or DEFAULT_MTU
        self._alias = vxlan.alias_of(tag)
        self._record = state_dir / ROUTES_FILE
        self._probe = PathProbe()
        self._recorded = recorded_routes(state_dir)
        self._installed: Mapping[Network, NodeRoute] | None = None
        """The routes as `follow` last made them; None: unknown."""
        self._attached = False
        self._problems: dict[str, str] = {}

    @property
    def problems(self) -> dict[str, str]:
        """What does not work now, by what it concerns."""
        paths = {f"path to node {name}": text for name, text in self._probe.problems.items()}
        return {**self._problems, **paths, **self._mtu_problem()}

    def _mtu_problem(self) -> dict[str, str]:
        room = self._underlay_mtu - self.overhead
        if self._mode == "tunnel" and self._mtu > room:
            return {"mtu": f"{self._mtu} is more than the {room} bytes that the network between the"
                    f" nodes ({self._underlay_mtu}) leaves for pods"}  # fmt: skip
        if self._mode == "tunnel" and self.mtu < vxlan.MINIMUM_MTU:
            return {"mtu": f"{self.mtu} bytes are too few for IPv6, which needs"
                    f" {vxlan.MINIMUM_MTU}: raise the MTU of the network"}  # fmt: skip
        return {}

    @property
    def mtu(self) -> int:
        """Of pods' devices and of the tunnel's."""
        return self._mtu or self._underlay_mtu - self.overhead

    @property
    def overhead(self) -> int:
        """Bytes that a packet between nodes has more than the one within it."""
        if self._mode != "tunnel":
            return 0
        return self._book.overhead or OVERHEAD[4]

    # ---- life ------------------------------------------------------------------------------------

    def open(self) -> None:
        """Find or make the tunnel's device. Where that cannot be, the agent works without, and
        `deviations` goes on trying."""
        if self._mode != "tunnel":
            return
        try:
            self._store.set_tunnel_device(vxlan.make(self._wanted()))
        except OSError as error:
            log.error("%s", error)
            self._note(DEVICE, str(error))

    def start(self) -> None:
        """Probe paths from now on; `stop` ends it."""
        if self._mode != "none":
            self._probe.start()

    def stop(self) -> None:
        """Give the thread back; device, programs and routes stay."""
        self._probe.stop()

    def attach(self) -> None:
        """Programs first, then packets. May be repeated. What fails is left to `deviations`."""
        self._attached = True
        try:
            if self._mode != "tunnel":
                if vxlan.remove(self._alias):
                    log.info("device %s is no longer configured: removed", vxlan.DEVICE)
            elif self._store.tunnel_device:
                self._start(self._store.tunnel_device)
        except OSError as error:
            log.error("%s", error)
            self._note(DEVICE, str(error))

    def _start(self, index: int) -> None:
        self._datapath.attach_tunnel(index)
        vxlan.bring_up(index, self._port)

    def _wanted(self) -> vxlan.Vxlan:
        return vxlan.Vxlan(self._alias, self._port, self.mtu)

    # ---- routes ----------------------------------------------------------------------------------

    def follow(self) -> None:
        """Bring the routes in step with the facts, after the maps. Nothing is raised: what fails is
        a problem, and is tried again by `deviations`."""
        wanted = self._book.routes
        if not self._attached or wanted is self._installed:
            return
        self._adjust_mtu()
        self._adjust_addresses()
        self._probe.want(self._paths())
        if wanted == self._installed:
            self._installed = wanted
            return
        try:
            change, _ = self._plan()
            self._carry_out(change)
        except (OSError, StateFileError, DumpInterrupted) as error:
            self._installed = None
            self._note(ROUTES, str(error))
            log.error("routes to other nodes were not brought up to date: %s", error)

    def _paths(self) -> dict[str, ProbedPath]:
        """What full-sized packets of pods of this node have to get through."""
        found = {
            node: ProbedPath(node, local, remote, self.mtu + added, added)
            for node, (local, remote) in self._book.remotes.items()
            for added in (OVERHEAD[6 if ":" in remote else 4],)
        }
        for route in self._book.routes.values():
            if route.gateway:
                found[route.node] = ProbedPath(route.node, route.source, route.gateway, self.mtu, 0)
        return found

    def _plan(self) -> tuple[node_routes.Plan, Mapping[Network, Route]]:
        device = self._store.tunnel_device
        found = node_routes.present(device, self._recorded)
        return node_routes.plan(self._book.routes, found, device), found

    def _carry_out(self, change: node_routes.Plan) -> None:
        wanted = self._book.routes
        gateways = {one.destination for one in wanted.values() if one.gateway}
        # Written down before they are there: `cleanup` knows them without a configuration.
        self._write_record(self._recorded | gateways)
        failed = node_routes.carry_out(change, self._store.tunnel_device)
        if not failed:
            self._write_record(gateways)
        self._installed = wanted if not failed else None
        self._note(ROUTES, "; ".join(f"{k}: {v}" for k, v in {**change.problems, **failed}.items()))

    def _write_record(self, networks: Collection[Network]) -> None:
        wanted = frozenset(networks)
        if wanted != self._recorded:
            text = json.dumps(sorted(str(one) for one in wanted))
            write_durably(self._record, text.encode())
            self._recorded = wanted

    # ---- what others may have changed ------------------------------------------------------------

    def deviations(self) -> list[Deviation]:
        """Device, programs and routes that are not as they should be. Raises OSError."""
        if not self._attached:
            return []
        try:
            self._follow_underlay()
            return self._device() + self._routes()
        except DumpInterrupted as error:
            log.debug("%s", error)  # the next round tells
            return []

    def _follow_underlay(self) -> None:
        """Somebody may have changed the MTU of the network between the nodes."""
        found = self._read_underlay_mtu() or self._underlay_mtu
        if found == self._underlay_mtu:
            return
        former = self.mtu
        log.warning("the network between the nodes carries %d bytes now, and carried %d",
                    found, self._underlay_mtu)  # fmt: skip
        self._underlay_mtu = found
        if self.mtu != former:
            log.warning("pods have an MTU of %d from now on; those that are there keep theirs",
                        self.mtu)  # fmt: skip
            self._adjust_mtu()
            self._probe.want(self._paths())

    def _device(self) -> list[Deviation]:
        if self._mode != "tunnel":
            return []
        with RtnlSocket() as netlink:
            found = vxlan.find(netlink)
        expected = f"VXLAN, port {self._port}, MTU {self.mtu}, up"
        if found is None:
            return [Deviation(DEVICE, vxlan.DEVICE, expected, "no such device", self._restore)]
        if found.alias != self._alias:
            return [Deviation(DEVICE, vxlan.DEVICE, expected, "another's", self._restore)]
        wrong = self._wanted().differences(found)
        if found.index != self._store.tunnel_device:
            wrong.append("made anew")
        if wrong:
            text = ", ".join(wrong)
            return [Deviation(DEVICE, vxlan.DEVICE, expected, text, self._restore)]
        if self._datapath.tunnel_attached(found.index):
            self._note(DEVICE, "")
            return self._addresses(found.index)
        return [
            Deviation(
                PROGRAMS, f"{vxlan.DEVICE} ingress and egress", "from_tunnel, to_tunnel",
                "others, or none", lambda: self._start(found.index),
            )
        ]  # fmt: skip

    def _restore(self) -> None:
        index = 0
        try:
            index = vxlan.make(self._wanted())
            self._start(index)
        finally:
            # Another index is another value for every tunnel: the next transaction writes them.
            self._store.set_tunnel_device(index)
            self._installed = None
        self._adjust_addresses()
        self._note(DEVICE, "")

    def _adjust_mtu(self) -> None:
        """How much the tunnel adds is known once other nodes are."""
        if self._mode != "tunnel" or not self._store.tunnel_device:
            return
        try:
            with RtnlSocket() as netlink:
                found = vxlan.find(netlink)
            if found is not None and found.alias == self._alias and found.mtu != self.mtu:
                vxlan.make(self._wanted())
        except OSError as error:
            self._note(DEVICE, str(error))

    def _adjust_addresses(self) -> None:
        """Those that other nodes know this one by, for what is masqueraded on its way to them."""
        index = self._store.tunnel_device
        if self._mode != "tunnel" or not index:
            return
        try:
            vxlan.set_addresses(index, frozenset(map(ip_address, self._book.sources)))
            self._note(ADDRESSES, "")
        except (OSError, DumpInterrupted) as error:
            self._note(ADDRESSES, str(error))  # `deviations` goes on trying

    def _addresses(self, index: int) -> list[Deviation]:
        wanted = frozenset(map(ip_address, self._book.sources))
        with RtnlSocket() as netlink:
            found = vxlan.addresses(netlink, index)
        if found == wanted:
            self._note(ADDRESSES, "")
            return []
        expected, there = (", ".join(sorted(map(str, some))) or "none" for some in (wanted, found))

        def repair() -> None:
            try:
                vxlan.set_addresses(index, wanted)
            except DumpInterrupted as error:
                raise OSError(str(error)) from error
            self._note(ADDRESSES, "")

        return [Deviation(ADDRESSES, vxlan.DEVICE, expected, there, repair)]

    def _routes(self) -> list[Deviation]:
        change, found = self._plan()
        device = self._store.tunnel_device
        self._note(ROUTES, "; ".join(f"{k}: {v}" for k, v in change.problems.items()))
        if not change:
            self._installed = self._book.routes
            return []

        def repair() -> None:
            try:
                self._carry_out(change)
            except StateFileError as error:
                raise OSError(str(error)) from error
            if self._installed is None:
                raise RtnlError(0, self._problems.get(ROUTES, "a route could not be put"))

        differing = [
            Deviation(ROUTES, str(one.destination), node_routes.describe(one, device),
                      node_routes.describe(found.get(one.destination), device), repair)
            for one in change.put
        ]  # fmt: skip
        return differing + [
            Deviation(ROUTES, str(one), "none", node_routes.describe(found[one], device), repair)
            for one in change.remove
        ]

    def _note(self, about: str, problem: str) -> None:
        others = {name: text for name, text in self._problems.items() if name != about}
        self._problems = {**others, about: problem} if problem else others


def recorded_routes(state_dir: Path) -> frozenset[Network]:
    """Networks that an agent has installed routes by a gateway to."""
    try:
        found = json.loads((state_dir / ROUTES_FILE).read_bytes())
        return frozenset(ip_network(one) for one in found)
    except (FileNotFoundError, ValueError, TypeError):
        return frozenset()
