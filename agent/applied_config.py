# SPDX-License-Identifier: Apache-2.0
"""What a configuration comes to on this node: its uplinks, sizes of tables, routing, masquerading.
What the node cannot give is a StartError that names the key."""

from __future__ import annotations

import dataclasses
import logging
import socket
from collections.abc import Iterable, Sequence
from ipaddress import ip_network
from typing import Final

from agent.cleanup import StartError
from agent.config import Config
from agent.config_values import PortRange
from agent.core.masquerade import Masquerading
from agent.core.nodes import NodeBook, Routing
from agent.kernel import sysctl
from agent.kernel.default_routes import default_route_devices
from agent.kernel.links import LinkError
from agent.kernel.node_addresses import devices_with

log = logging.getLogger("bristle")

_MAC_LENGTH: Final = len("02:00:5e:00:53:01")


def with_uplinks(
    config: Config, addresses: Sequence[str] = (), former: Iterable[str] = ()
) -> Config:
    """In a cluster a node has uplinks, whether it was told which or not: those of the default
    routes, and those with the addresses that other nodes know it by. former: the uplinks that it
    had last, which count while these addresses are not known."""
    if config.devices or config.source.kubernetes is None:
        return config
    links = default_route_devices()
    if addresses:
        links += devices_with(addresses)
    # The programs read Ethernet headers; a tunnel of layer 3 has none.
    found = dict.fromkeys(link.name for link in links if len(link.mac) == _MAC_LENGTH)
    for link in links:
        if link.name not in found:
            log.warning("devices: %s is no Ethernet device, and none of the uplinks", link.name)
    if not addresses:
        found |= dict.fromkeys(one for one in former if is_device(one))
    if not found:
        raise StartError("devices: this node has no default route: name its uplinks")
    log.info("devices: %s, by default routes and the node's addresses", ", ".join(found))
    return dataclasses.replace(config, devices=tuple(found))


def is_device(name: str) -> bool:
    """Whether there is one in this network namespace."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def ifindex(device: str) -> int:
    """Of an uplink. Raises StartError."""
    try:
        return socket.if_nametoindex(device)
    except OSError:
        raise StartError(
            f"devices: there is no device {device!r} in this network namespace"
        ) from None


def ifindex_now(device: str) -> int:
    """The same in the loop, which tries again. Raises LinkError."""
    try:
        return ifindex(device)
    except StartError as error:
        raise LinkError(str(error)) from None


def map_sizes(config: Config) -> dict[str, int]:
    """Entries of maps that are not of a fixed size."""
    return {
        "ct": config.bpf.ct_max,
        "nat": config.bpf.nat_max,
        # Ports of connections that have ended rest there, and keep no new one out.
        "nat_reverse": 2 * config.bpf.nat_max,
        "policy": config.bpf.policy_max,
        "peers": config.bpf.peers_max,
        "endpoints": config.bpf.endpoints_max,
        "devices": config.bpf.endpoints_max,
        # Two addresses for each pod, and the node's own.
        "addresses": 2 * config.bpf.endpoints_max + 1024,
    }


def node_book(config: Config, cidrs: Sequence[str], capacity: int) -> NodeBook:
    """How other nodes are reached. capacity: of the map `tunnels`."""
    routing = Routing(
        config.routing.mode,
        config.routing.native_cidrs,
        config.routing.direct_node_routes,
        # Without a program at the uplink answers come by the stack, and so must questions go.
        straight=bool(config.devices),
        tunnel_port=config.routing.tunnel_port,
    )
    own = [ip_network(one) for one in cidrs]
    return NodeBook(config.node_name, own, routing, capacity)


def check_masquerade(config: Config) -> None:
    """A port may not be given to a pod's connection and to a socket of the node. Raises
    StartError."""
    if not config.masquerade.enabled:
        return
    if not config.devices:
        raise StartError("masquerade.enabled: needs uplinks: name them in devices")
    ports = config.masquerade.ports
    own = sysctl.local_ports()
    if not ports.overlaps(PortRange(*own)):
        return
    shared = range(max(ports.first, own[0]), min(ports.last, own[1]) + 1)
    if not sysctl.reserved_ports().issuperset(shared):
        raise StartError(
            f"masquerade.ports: {ports} overlaps net.ipv4.ip_local_port_range, {own[0]}-{own[1]}:"
            " choose ports outside of it, or keep them from the node's own connections with"
            f" net.ipv4.ip_local_reserved_ports={shared[0]}-{shared[-1]}"
        )


def masquerading(config: Config, cidrs: Sequence[str], seed: int) -> Masquerading | None:
    """Who is seen under the node's address, and by which ports; None: nobody."""
    if not config.masquerade.enabled:
        return None
    own = [ip_network(one) for one in cidrs]
    exclude = (*own, *config.routing.native_cidrs, *config.masquerade.exclude)
    ports = config.masquerade.ports
    routing = Routing(config.routing.mode, config.routing.native_cidrs)
    tunnelled = frozenset(
        one.version for one in own if routing.mode == "tunnel" and not routing.native(one)
    )
    return Masquerading(exclude, ports.first, ports.last, seed, tunnelled)
