# SPDX-License-Identifier: Apache-2.0
"""Where packets to anywhere leave the node: the devices of its default routes.

A route may have several next hops, in the route itself (RTA_MULTIPATH) or as nexthop objects. Those
are repeated in the route, unless net.ipv4.nexthop_compat_mode is 0. Source: linux/nexthop.h.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from agent.kernel.netlink import (
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    RTN_UNICAST,
    Link,
    list_links,
    list_routes,
)
from agent.kernel.rtnl import Request, RtnlSocket, attributes, number

_RTM_GETNEXTHOP: Final = 106
_NHA_ID, _NHA_GROUP, _NHA_OIF = 1, 2, 5
_HEADER: Final = struct.Struct("=BBBxI")  # struct nhmsg
_MEMBER: Final = struct.Struct("=IBBH")  # struct nexthop_grp


def default_route_mtu() -> int:
    """The least MTU of the devices of the IPv4 default route that is preferred, or of the IPv6 one.
    0 where there is none. Raises RtnlError."""
    with RtnlSocket() as netlink:
        for family in (AF_INET, AF_INET6):
            found = _preferred(netlink, family)
            if found:
                return min(link.mtu for link in found)
    return 0


def default_route_devices() -> list[Link]:
    """The devices that packets to anywhere leave by: of the preferred default route of IPv4, and of
    IPv6 if those are others, in the order of next hops. Raises RtnlError."""
    with RtnlSocket() as netlink:
        both = [*_preferred(netlink, AF_INET), *_preferred(netlink, AF_INET6)]
    return list({link.index: link for link in both}.values())


def _preferred(netlink: RtnlSocket, family: int) -> list[Link]:
    """Of several routes of the same metric the kernel takes one or the other: all count."""
    links = {link.index: link for link in list_links(netlink)}
    objects: Mapping[int, tuple[int, ...]] | None = None
    found: list[tuple[int, list[Link]]] = []
    for route in list_routes(netlink, family):
        if route.destination is not None or route.kind != RTN_UNICAST:
            continue
        devices = route.devices
        if not devices and route.nexthop:
            objects = _nexthops(netlink) if objects is None else objects
            devices = objects.get(route.nexthop, ())
        present = [links[one] for one in devices if one in links]
        if present:
            found.append((route.metric, present))
    least = min((metric for metric, _ in found), default=0)
    return [link for metric, some in found if metric == least for link in some]


def _nexthops(netlink: RtnlSocket) -> dict[int, tuple[int, ...]]:
    """The devices of each nexthop object; of a group those of its members."""
    request = Request(_RTM_GETNEXTHOP, 0, _HEADER.pack(AF_UNSPEC, 0, 0, 0), "list nexthops")
    devices: dict[int, tuple[int, ...]] = {}
    groups: dict[int, list[int]] = {}
    for message in netlink.dump(request):
        found = attributes(message.payload[_HEADER.size :])
        this = number(found, _NHA_ID)
        if _NHA_OIF in found:
            devices[this] = (number(found, _NHA_OIF),)
        groups[this] = [one for one, *_ in _MEMBER.iter_unpack(found.get(_NHA_GROUP, b""))]
    for this, members in groups.items():
        if members:
            devices[this] = tuple(one for member in members for one in devices.get(member, ()))
    return devices
