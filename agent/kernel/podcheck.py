# SPDX-License-Identifier: Apache-2.0
"""Is a pod still wired as it was recorded (CNI CHECK)?

Plugins that come later in the chain may have changed what ADD made (CNI spec, CHECK). Of what they
do in the pod two things are known to do no harm: a smaller MTU (tuning), and routes that have gone
to a table of their own (sbr).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from agent.kernel import netlink as nl
from agent.kernel import netns
from agent.kernel.endpoint_store import EndpointRecord
from agent.kernel.podnet import GATEWAY4, GATEWAY6
from agent.kernel.rtnl import RtnlError, RtnlSocket


@dataclass(frozen=True, slots=True)
class Difference:
    """What CHECK found other than recorded."""

    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.what}: expected {self.expected}, found {self.found}"


def check_wiring(netns_fd: int, record: EndpointRecord) -> tuple[Difference, ...]:
    """Compare a pod's wiring with its record; empty when all is as it was made.

    Raises OSError where the namespace cannot be entered.
    """
    with RtnlSocket() as node:
        found = list(_check_host(node, record))
    found += netns.run_in(netns_fd, lambda: list(_check_pod(record)))
    return tuple(found)


def _check_host(node: RtnlSocket, record: EndpointRecord) -> Iterable[Difference]:
    try:
        link = nl.get_link(node, record.host_name)
    except RtnlError as error:
        yield Difference(f"device {record.host_name}", "present", _reason(error))
        return
    yield from _check_link(link, record.host_name, record.host_mac)
    if link.mtu != record.mtu:
        yield Difference(f"MTU of {record.host_name}", str(record.mtu), str(link.mtu))
    if link.index != record.host_ifindex:
        yield Difference("host ifindex", str(record.host_ifindex), str(link.index))
    for address in record.addresses:
        yield from _check_route(node, address, None, link.index, address.max_prefixlen)
        yield from _check_neighbour(node, address, link.index, record.pod_mac)


def _check_pod(record: EndpointRecord) -> Iterable[Difference]:
    with RtnlSocket() as pod:
        try:
            link = nl.get_link(pod, record.ifname)
        except RtnlError as error:
            yield Difference(f"device {record.ifname} in the pod", "present", _reason(error))
            return
        yield from _check_link(link, f"{record.ifname} in the pod", record.pod_mac)
        if link.mtu > record.mtu:
            yield Difference(
                f"MTU of {record.ifname} in the pod", f"at most {record.mtu}", str(link.mtu)
            )
        present = {entry.address for entry in nl.list_addresses(pod, link.index)}
        for address in record.addresses:
            if address not in present:
                names = ", ".join(map(str, sorted(present, key=str))) or "none"
                yield Difference("address in the pod", str(address), names)
            gateway = GATEWAY4 if address.version == 4 else GATEWAY6
            anywhere = IPv4Address(0) if address.version == 4 else IPv6Address(0)
            yield from _check_route(pod, anywhere, gateway, link.index, 0, all_tables=True)
            yield from _check_neighbour(pod, gateway, link.index, record.host_mac)


def _check_link(link: nl.Link, name: str, mac: str) -> Iterable[Difference]:
    if link.mac != mac:
        yield Difference(f"MAC of {name}", mac, link.mac)
    if not link.up:
        yield Difference(f"state of {name}", "up", "down")


def _check_route(
    netlink: RtnlSocket,
    address: nl.IPAddress,
    gateway: nl.IPAddress | None,
    device: int,
    length: int,
    *,
    all_tables: bool = False,
) -> Iterable[Difference]:
    what = f"route to {address}/{length}"
    expected = f"by {gateway} device {device}" if gateway else f"device {device}"
    family = nl.family_of(address)
    for route in nl.list_routes(netlink, family, device, all_tables=all_tables):
        found = route.destination
        if (found.prefixlen if found else 0) != length or route.gateway != gateway:
            continue
        if found is None or found.network_address == address:
            return
    yield Difference(what, expected, "none")


def _check_neighbour(
    netlink: RtnlSocket, address: nl.IPAddress, device: int, mac: str
) -> Iterable[Difference]:
    try:
        found = nl.neighbour_mac(netlink, address, device)
    except RtnlError as error:
        found = _reason(error)
    if found != mac:
        yield Difference(f"neighbour {address} of device {device}", mac, found)


def _reason(error: RtnlError) -> str:
    absent = error.errno in (errno.ENODEV, errno.ENOENT)
    return "none" if absent else os.strerror(error.errno or 0)
