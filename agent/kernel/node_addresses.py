# SPDX-License-Identifier: Apache-2.0
"""The node's own addresses, and word of changes to addresses and devices.

Both are about the network namespace of the thread that calls: the agent's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Network, ip_network

from agent.kernel import netlink as nl
from agent.kernel import vxlan
from agent.kernel.rtnl import NETLINK_ROUTE, Message, RtnlSocket, messages

RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100
_UNIQUE_LOCAL = IPv6Network("fc00::/7")
_BORROWERS = ("kube-ipvs0", vxlan.DEVICE)
"""Devices whose addresses are others': that of kube-proxy in mode ipvs bears those of all services,
the tunnel's the node's."""
_MAC_LENGTH = len("02:00:5e:00:53:01")
_BUFFER = 4 << 20
"""Bytes of notices that may wait: 110 pods make some 1,000 notices of about 1 KiB each."""


def node_addresses() -> frozenset[nl.IPAddress]:
    """All addresses of the node that others may reach: both families, every device, also `lo`.

    Left out are link-local and host scope (127.0.0.1, ::1), addresses that failed duplicate
    detection, and services' on kube-proxy's device: what goes there is not meant for the node.
    Tentative ones count: they will be ours in a second.
    """
    borrowers = _borrowers()
    with RtnlSocket() as netlink:
        return frozenset(
            entry.address
            for entry in nl.list_addresses(netlink)
            if _is_reachable(entry) and entry.index not in borrowers
        )


def connected_networks() -> frozenset[nl.IPNetwork]:
    """The networks that the node's devices are on, by their addresses. Of Ethernet devices alone:
    there a neighbour is asked for first, and what nobody has goes nowhere."""
    with RtnlSocket() as netlink:
        asking = {link.index for link in nl.list_links(netlink) if len(link.mac) == _MAC_LENGTH}
        return frozenset(
            ip_network((entry.address, entry.length), strict=False)
            for entry in nl.list_addresses(netlink)
            if _is_reachable(entry)
            and entry.length < entry.address.max_prefixlen
            and entry.index in asking
        )


def uplink_addresses(devices: Iterable[str]) -> dict[tuple[int, int], nl.IPAddress]:
    """What a device's own address is, for each of these that there are: {(ifindex, 4 or 6): it}.

    The global one that was added first, for that is what the kernel's own choice is without more
    particular wishes; of IPv6 rather a global unicast than a unique local one (RFC 4193). None that
    is tentative, temporary or about to go.
    """
    found: dict[tuple[int, int], nl.IPAddress] = {}
    with RtnlSocket() as netlink:
        listed = nl.list_addresses(netlink)
    for device in devices:
        try:
            index = socket.if_nametoindex(device)
        except OSError:
            continue  # it may come yet
        here = [one for one in listed if one.index == index and _is_lasting(one)]
        found |= {(index, one.version): one for one in _first(here)}
    return found


def devices_with(addresses: Iterable[str]) -> list[nl.Link]:
    """The devices, but `lo`, that bear any of these addresses, in the order of their numbers.
    Raises RtnlError, DumpInterrupted."""
    wanted, borrowers = frozenset(addresses), _borrowers()
    with RtnlSocket() as netlink:
        listed = nl.list_addresses(netlink)
        found = {one.index for one in listed if str(one.address) in wanted} - borrowers
        links = {link.index: link for link in nl.list_links(netlink) if link.name != "lo"}
    return [links[index] for index in sorted(found & links.keys())]


def _borrowers() -> set[int]:
    found = set()
    for name in _BORROWERS:
        with contextlib.suppress(OSError):
            found.add(socket.if_nametoindex(name))
    return found


def _first(addresses: list[nl.InterfaceAddress]) -> Iterator[nl.IPAddress]:
    """One of each family."""
    ipv4 = [one for one in addresses if one.address.version == 4]
    if ipv4:
        yield min(ipv4, key=lambda one: one.flags & nl.IFA_F_SECONDARY).address
    # The kernel lists the latest of them first.
    ipv6 = [one.address for one in reversed(addresses) if one.address.version == 6
            and not one.flags & nl.IFA_F_TEMPORARY]  # fmt: skip
    if ipv6:
        yield min(ipv6, key=lambda one: one in _UNIQUE_LOCAL)


def _is_lasting(entry: nl.InterfaceAddress) -> bool:
    passing = nl.IFA_F_DADFAILED | nl.IFA_F_TENTATIVE | nl.IFA_F_DEPRECATED
    return entry.scope == nl.SCOPE_UNIVERSE and not entry.flags & passing


def _is_reachable(entry: nl.InterfaceAddress) -> bool:
    return entry.scope < nl.SCOPE_LINK and not entry.flags & nl.IFA_F_DADFAILED


@dataclass(frozen=True, slots=True)
class AddressAdded:
    """A reachable address came (or was refreshed: say it twice, it means the same)."""

    ifindex: int
    address: nl.IPAddress


@dataclass(frozen=True, slots=True)
class AddressRemoved:
    """A reachable address went from a device. Another device may have it still."""

    ifindex: int
    address: nl.IPAddress


@dataclass(frozen=True, slots=True)
class LinkRemoved:
    """A device is gone from this namespace."""

    ifindex: int
    name: str


@dataclass(frozen=True, slots=True)
class NoticesLost:
    """More happened than the kernel could queue: list everything again."""


NetworkEvent = AddressAdded | AddressRemoved | LinkRemoved | NoticesLost


class NetworkMonitor:
    """A thread that reports changes to `emit`, which must be quick and raise nothing.

    Subscribes in the constructor: what changes after that is not missed, so list the addresses
    after making the monitor.
    """

    def __init__(self, emit: Callable[[NetworkEvent], None]) -> None:
        self._emit = emit
        flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, flags, NETLINK_ROUTE)
        with contextlib.suppress(OSError):
            force = getattr(socket, "SO_RCVBUFFORCE", 33)
            self._socket.setsockopt(socket.SOL_SOCKET, force, _BUFFER)
        self._socket.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="network-monitor", daemon=True)

    def start(self) -> None:
        """Begin to report."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close what it used. Call once."""
        os.eventfd_write(self._stop, 1)
        if self._thread.ident is not None:
            self._thread.join()
        self._socket.close()
        os.close(self._stop)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._stop in ready:
                return
            try:
                data = self._socket.recv(1 << 17)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._emit(NoticesLost())
                continue
            for kind, _, _, payload in messages(data):
                event = _event(Message(kind, payload))
                if event is not None:
                    self._emit(event)


def _event(message: Message) -> NetworkEvent | None:
    if message.kind == nl.RTM_DELLINK:
        if message.payload[0] != nl.AF_UNSPEC:  # it left a bridge; it is still there
            return None
        link = nl.read_link(message)
        return LinkRemoved(link.index, link.name)
    if message.kind not in (nl.RTM_NEWADDR, nl.RTM_DELADDR):
        return None
    entry = nl.read_address(message)
    if message.kind == nl.RTM_NEWADDR and _is_reachable(entry):
        return AddressAdded(entry.index, entry.address)
    if message.kind == nl.RTM_DELADDR and entry.scope < nl.SCOPE_LINK:
        return AddressRemoved(entry.index, entry.address)
    return None
