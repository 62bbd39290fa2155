# SPDX-License-Identifier: Apache-2.0
"""The few rtnetlink messages the agent sends and reads (linux/rtnetlink.h, if_link.h, neighbour.h).

Builders give one Request each; readers turn the kernel's answers into frozen objects. What is
wired with them is in podnet.py.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)

from agent.kernel.rtnl import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Request,
    RtnlError,
    RtnlSocket,
    attribute,
    attributes,
    nested,
    number,
    string,
    text,
    u32,
)

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

AF_UNSPEC, AF_INET, AF_INET6 = 0, 2, 10

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_GETNEIGH = 28, 30

IFF_UP = 0x1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_IFALIAS = 1, 3, 4, 18, 20
IFLA_OPERSTATE, OPERSTATE_UP = 16, 6
IFLA_AF_SPEC, IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK = 26, 27, 28, 29
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_INET6_ADDR_GEN_MODE, ADDR_GEN_MODE_NONE = 8, 1
IFLA_INET_CONF, IFLA_INET6_CONF = 1, 2
DEVCONF_FORWARDING, DEVCONF_ACCEPT_RA, DEVCONF_DISABLE_IPV6, DEVCONF_ACCEPT_DAD = 0, 3, 26, 27
IPV4_DEVCONF_FORWARDING, IPV4_DEVCONF_SEND_REDIRECTS, IPV4_DEVCONF_RP_FILTER = 1, 6, 8
SKIP_STATISTICS = 1 << 3  # RTEXT_FILTER_SKIP_STATS: they are most of a link's message

IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_NODAD, IFA_F_NOPREFIXROUTE = 0x02, 0x200
IFA_F_DADFAILED, IFA_F_TENTATIVE = 0x08, 0x40
IFA_F_DEPRECATED = 0x20
IFA_F_SECONDARY = IFA_F_TEMPORARY = 0x01  # of IPv4: not the first of its network; of IPv6

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_TABLE = 1, 4, 5, 6, 7, 15
RTA_MULTIPATH, RTA_NH_ID = 9, 30
RTNH_F_ONLINK = 0x4
RTN_UNICAST, RTN_LOCAL, RTN_UNREACHABLE = 1, 2, 7
RT_TABLE_MAIN = 254
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_NOWHERE = 0, 253, 255

NDA_DST, NDA_LLADDR = 1, 2
NUD_PERMANENT = 0x80

ROUTE_PROTOCOL = 178
"""rtm_protocol of every route the agent installs, so that an administrator knows whose it is
(`ip route show proto 178`). Not in use by any daemon in iproute2's rt_protos."""

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEXT_HOP = struct.Struct("=HBBi")  # struct rtnexthop
_NEIGHBOUR = struct.Struct("=BxHiHBB")


@dataclass(frozen=True, slots=True)
class Link:
    """A network device. `mac` in the usual notation, empty where it has none.

    `up` is what was asked for, `operational` says that it carries packets (RFC 2863 ifOperStatus).
    `ipv6_conf` are its values of net.ipv6.conf, indexed by DEVCONF_*; empty where the kernel has
    no IPv6, and shorter on older kernels.
    """

    index: int
    name: str
    mac: str
    mtu: int
    up: bool
    operational: bool
    alias: str
    kind: str
    ipv6_conf: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address of a device, `scope` as in rtnetlink.h (0 global, 253 link, 254 host)."""

    index: int
    address: IPAddress
    length: int
    scope: int
    flags: int


@dataclass(frozen=True, slots=True)
class Route:
    """A route: `gateway` None for on-link ones, `device` 0 where it has none; `source` is the
    address that the node's own packets get, None where nothing is said. `devices` are those of all
    next hops, also of several; `nexthop` is the id of the object that tells them, or 0."""

    destination: IPNetwork | None
    gateway: IPAddress | None
    device: int
    scope: int
    kind: int
    metric: int
    protocol: int
    source: IPAddress | None = None
    devices: tuple[int, ...] = ()
    nexthop: int = 0


def family_of(address: IPAddress | IPNetwork) -> int:
    """AF_INET or AF_INET6."""
    return AF_INET if address.version == 4 else AF_INET6


def mac_bytes(mac: str) -> bytes:
    """Six bytes of "02:00:5e:00:53:01"."""
    return bytes.fromhex(mac.replace(":", ""))


def random_mac() -> str:
    """A random locally administered unicast address (IEEE 802: second-lowest bit set)."""
    raw = bytearray(os.urandom(6))
    raw[0] = raw[0] & 0xFC | 0x02
    return raw.hex(":")


# ---- devices ---------------------------------------------------------------------------------


def create_pair(
    host_name: str, host_mac: str, netns_fd: int, pod_name: str, pod_mac: str, mtu: int
) -> Request:
    """A veth pair, both ends down: one in the socket's namespace, its peer in `netns_fd`.

    EEXIST where one of the names is taken, and then nothing is made.
    """

    def end(name: str, mac: str) -> bytes:
        hardware = attribute(IFLA_ADDRESS, mac_bytes(mac))
        return text(IFLA_IFNAME, name) + u32(IFLA_MTU, mtu) + hardware

    peer = _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + end(pod_name, pod_mac)
    peer += u32(IFLA_NET_NS_FD, netns_fd)
    info = nested(
        IFLA_LINKINFO,
        attribute(IFLA_INFO_KIND, b"veth"),
        nested(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, peer)),
    )
    payload = _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + end(host_name, host_mac) + info
    return Request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload, f"create device {host_name}")


def _change(what: str, extra: bytes, name: str = "", index: int = 0, up: bool = False) -> Request:
    flags = IFF_UP if up else 0
    payload = _LINK.pack(AF_UNSPEC, 0, index, flags, flags) + extra
    if name:
        payload += text(IFLA_IFNAME, name)
    return Request(RTM_NEWLINK, 0, payload, f"{what} device {name or index}")


def set_alias(name: str, alias: str) -> Request:
    """Set IFLA_IFALIAS (at most 255 bytes), by which cleanup knows our devices."""
    return _change("tag", attribute(IFLA_IFALIAS, alias.encode()[:255]), name=name)


def no_address_generation(name: str) -> Request:
    """The device gets no IPv6 link-local address (addr_gen_mode none)."""
    mode = attribute(IFLA_INET6_ADDR_GEN_MODE, bytes((ADDR_GEN_MODE_NONE,)))
    return _change("no addresses on", nested(IFLA_AF_SPEC, nested(AF_INET6, mode)), name=name)


def set_ipv4_conf(name: str, values: Mapping[int, int]) -> Request:
    """Set per-device sysctls net.ipv4.conf.<name>.* (IPV4_DEVCONF_* -> value), without /proc."""
    conf = nested(IFLA_INET_CONF, *(u32(kind, value) for kind, value in values.items()))
    return _change("configure", nested(IFLA_AF_SPEC, nested(AF_INET, conf)), name=name)


def set_up(name: str = "", index: int = 0) -> Request:
    """Bring a device up, by name or by number."""
    return _change("bring up", b"", name=name, index=index, up=True)


def set_group(index: int, group: int) -> Request:
    """Put a device into a group, for `delete_group`."""
    request = _change("group", u32(IFLA_GROUP, group), index=index)
    return replace(request, tolerated=frozenset({errno.ENODEV}))


def delete_link(index: int) -> Request:
    """Delete a device and with it its peer, wherever that is. Absent is success."""
    payload = _LINK.pack(AF_UNSPEC, 0, index, 0, 0)
    gone = frozenset({errno.ENODEV})
    return Request(RTM_DELLINK, 0, payload, f"delete device {index}", gone)


def delete_group(group: int) -> Request:
    """Delete every device of a group at once: one grace period for all of them."""
    payload = _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + u32(IFLA_GROUP, group)
    return Request(RTM_DELLINK, 0, payload, f"delete group {group}", frozenset({errno.ENODEV}))


def read_link(message: Message) -> Link:
    """Parse RTM_NEWLINK or RTM_DELLINK."""
    _, _, index, flags, _ = _LINK.unpack_from(message.payload)
    found = attributes(message.payload[_LINK.size :])
    info = attributes(found.get(IFLA_LINKINFO, b""))
    families = attributes(found.get(IFLA_AF_SPEC, b""))
    conf = attributes(families.get(AF_INET6, b"")).get(IFLA_INET6_CONF, b"")
    return Link(
        index=index,
        name=string(found, IFLA_IFNAME),
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=number(found, IFLA_MTU),
        up=bool(flags & IFF_UP),
        operational=number(found, IFLA_OPERSTATE) == OPERSTATE_UP,
        alias=string(found, IFLA_IFALIAS),
        kind=string(info, IFLA_INFO_KIND),
        ipv6_conf=struct.unpack(f"={len(conf) // 4}i", conf),
    )


def get_link(netlink: RtnlSocket, name: str) -> Link:
    """One device by name. Raises RtnlError(ENODEV)."""
    extra = u32(IFLA_EXT_MASK, SKIP_STATISTICS) + text(IFLA_IFNAME, name)
    payload = _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + extra
    return read_link(netlink.get(Request(RTM_GETLINK, 0, payload, f"read device {name}")))


def list_links(netlink: RtnlSocket) -> list[Link]:
    """Every device of the namespace."""
    payload = _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + u32(IFLA_EXT_MASK, SKIP_STATISTICS)
    return [read_link(m) for m in netlink.dump(Request(RTM_GETLINK, 0, payload, "list devices"))]


# ---- addresses -------------------------------------------------------------------------------


def add_address(index: int, address: IPAddress) -> Request:
    """A single-host address without duplicate detection and prefix route.

    The kernel installs the local route of an IPv6 address by a work queue, also without duplicate
    detection: only when `is_local` says so are packets to it accepted.
    """
    flags = IFA_F_NODAD | IFA_F_NOPREFIXROUTE if address.version == 6 else 0
    payload = (
        _ADDRESS.pack(
            family_of(address), address.max_prefixlen, flags & 0xFF, SCOPE_UNIVERSE, index
        )
        + attribute(IFA_LOCAL, address.packed)
        + attribute(IFA_ADDRESS, address.packed)
        + u32(IFA_FLAGS, flags)
    )
    return Request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, payload, f"add address {address}")


def delete_address(index: int, address: IPAddress) -> Request:
    """Take a single-host address away; absent is success."""
    payload = _ADDRESS.pack(
        family_of(address), address.max_prefixlen, 0, SCOPE_UNIVERSE, index
    ) + attribute(IFA_LOCAL, address.packed)
    gone = frozenset({errno.EADDRNOTAVAIL})
    return Request(RTM_DELADDR, 0, payload, f"delete address {address}", gone)


def read_address(message: Message) -> InterfaceAddress:
    """Parse RTM_NEWADDR or RTM_DELADDR."""
    _, length, flags, scope, index = _ADDRESS.unpack_from(message.payload)
    found = attributes(message.payload[_ADDRESS.size :])
    # On point-to-point devices IFA_ADDRESS is the other side's; IFA_LOCAL is always ours.
    raw = found.get(IFA_LOCAL) or found[IFA_ADDRESS]
    return InterfaceAddress(index, ip_address(raw), length, scope, number(found, IFA_FLAGS, flags))


def list_addresses(netlink: RtnlSocket, index: int = 0) -> list[InterfaceAddress]:
    """Addresses of both families, of one device or (0) of all."""
    request = Request(RTM_GETADDR, 0, _ADDRESS.pack(0, 0, 0, 0, index), "list addresses")
    return [read_address(message) for message in netlink.dump(request)]


# ---- routes and neighbours -------------------------------------------------------------------


def _route(
    destination: IPNetwork | None,
    family: int,
    *extra: bytes,
    scope: int = SCOPE_UNIVERSE,
    kind: int = RTN_UNICAST,
    flags: int = 0,
) -> bytes:
    length = destination.prefixlen if destination is not None else 0
    header = _ROUTE.pack(family, length, 0, 0, RT_TABLE_MAIN, ROUTE_PROTOCOL, scope, kind, flags)
    if destination is not None:
        header += attribute(RTA_DST, destination.network_address.packed)
    return header + b"".join(extra)


def add_host_route(address: IPAddress, device: int) -> Request:
    """A route to one address, on-link at a device. EEXIST where another route has it already."""
    header = _ROUTE.pack(
        family_of(address), address.max_prefixlen, 0, 0, RT_TABLE_MAIN, ROUTE_PROTOCOL,
        SCOPE_LINK if address.version == 4 else SCOPE_UNIVERSE, RTN_UNICAST, 0,
    )  # fmt: skip
    payload = header + attribute(RTA_DST, address.packed) + u32(RTA_OIF, device)
    flags = NLM_F_CREATE | NLM_F_EXCL
    return Request(RTM_NEWROUTE, flags, payload, f"add route to {address}")


def add_default_route(gateway: IPAddress, device: int) -> Request:
    """A default route whose gateway is taken to be on-link. EEXIST where there is one already."""
    payload = _route(
        None,
        family_of(gateway),
        attribute(RTA_GATEWAY, gateway.packed),
        u32(RTA_OIF, device),
        flags=RTNH_F_ONLINK,
    )
    flags = NLM_F_CREATE | NLM_F_EXCL
    return Request(RTM_NEWROUTE, flags, payload, f"add default route by {gateway}")


def unreachable_route(network: IPNetwork, metric: int, install: bool) -> Request:
    """Install (idempotent) or remove (absent is success) an unreachable route for a network."""
    payload = _route(network, family_of(network), u32(RTA_PRIORITY, metric), kind=RTN_UNREACHABLE)
    if install:
        flags = NLM_F_CREATE | NLM_F_REPLACE
        return Request(RTM_NEWROUTE, flags, payload, f"add unreachable route {network}")
    gone = frozenset({errno.ESRCH, errno.ENOENT})
    return Request(RTM_DELROUTE, 0, payload, f"remove unreachable route {network}", gone)


def network_route(
    network: IPNetwork,
    gateway: IPAddress | None,
    device: int,
    source: IPAddress | None,
    metric: int,
) -> bytes:
    """A unicast route, for RTM_NEWROUTE; what is not given is left out."""
    extra = [u32(RTA_PRIORITY, metric)]
    if gateway is not None:
        extra.append(attribute(RTA_GATEWAY, gateway.packed))
    if device:
        extra.append(u32(RTA_OIF, device))
    if source is not None:
        extra.append(attribute(RTA_PREFSRC, source.packed))
    on_link = gateway is None and bool(device) and network.version == 4
    return _route(
        network, family_of(network), *extra, scope=SCOPE_LINK if on_link else SCOPE_UNIVERSE
    )


def no_route(network: IPNetwork, metric: int) -> bytes:
    """A unicast route to a network whatever its way, for RTM_DELROUTE. For IPv4 the kernel compares
    scopes, and finds no route where one is given that is not the route's own."""
    return _route(network, family_of(network), u32(RTA_PRIORITY, metric), scope=SCOPE_NOWHERE)


def read_route(message: Message) -> Route:
    """Parse RTM_NEWROUTE."""
    family, length, _, _, _, protocol, scope, kind, _ = _ROUTE.unpack_from(message.payload)
    found = attributes(message.payload[_ROUTE.size :])
    network: type[IPv4Network] | type[IPv6Network]
    network = IPv4Network if family == AF_INET else IPv6Network
    gateway, source = found.get(RTA_GATEWAY), found.get(RTA_PREFSRC)
    device = number(found, RTA_OIF)
    return Route(
        destination=network((found[RTA_DST], length)) if RTA_DST in found else None,
        gateway=ip_address(gateway) if gateway else None,
        device=device,
        scope=scope,
        kind=kind,
        metric=number(found, RTA_PRIORITY),
        protocol=protocol,
        source=ip_address(source) if source else None,
        devices=(device,) if device else tuple(_next_hops(found.get(RTA_MULTIPATH, b""))),
        nexthop=number(found, RTA_NH_ID),
    )


def _next_hops(data: bytes) -> Iterator[int]:
    """The devices of RTA_MULTIPATH; a malformed tail is left out."""
    while len(data) >= _NEXT_HOP.size:
        length, _, _, device = _NEXT_HOP.unpack_from(data)
        if length < _NEXT_HOP.size:
            return
        yield device
        data = data[(length + 3) & ~3 :]


def route_to(netlink: RtnlSocket, address: IPAddress) -> Route:
    """The route that a packet to an address would take. Raises RtnlError where there is none."""
    payload = _ROUTE.pack(family_of(address), address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    payload += attribute(RTA_DST, address.packed)
    return read_route(netlink.get(Request(RTM_GETROUTE, 0, payload, f"find route to {address}")))


def is_local(netlink: RtnlSocket, address: IPAddress) -> bool:
    """Would this namespace take a packet to that address for its own?"""
    try:
        return route_to(netlink, address).kind == RTN_LOCAL
    except RtnlError:
        return False


def list_routes(
    netlink: RtnlSocket, family: int, device: int = 0, *, all_tables: bool = False
) -> list[Route]:
    """Routes of the main table, or of all, through one device or (0) all."""
    extra = b"" if all_tables else u32(RTA_TABLE, RT_TABLE_MAIN)
    extra += u32(RTA_OIF, device) if device else b""
    payload = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0) + extra
    # Without any route in the table the kernel says ENOENT.
    request = Request(RTM_GETROUTE, 0, payload, "list routes", frozenset({errno.ENOENT}))
    return [read_route(message) for message in netlink.dump(request)]


def add_neighbour(address: IPAddress, mac: str, device: int) -> Request:
    """A permanent neighbour: no ARP or neighbour discovery for it. Replaces what is there."""
    payload = (
        _NEIGHBOUR.pack(family_of(address), 0, device, NUD_PERMANENT, 0, 0)
        + attribute(NDA_DST, address.packed)
        + attribute(NDA_LLADDR, mac_bytes(mac))
    )
    flags = NLM_F_CREATE | NLM_F_REPLACE
    return Request(RTM_NEWNEIGH, flags, payload, f"add neighbour {address}")


def neighbour_mac(netlink: RtnlSocket, address: IPAddress, device: int) -> str:
    """Link-layer address of a neighbour. Raises RtnlError(ENOENT)."""
    payload = _NEIGHBOUR.pack(family_of(address), 0, device, 0, 0, 0)
    payload += attribute(NDA_DST, address.packed)
    answer = netlink.get(Request(RTM_GETNEIGH, 0, payload, f"find neighbour {address}"))
    found = attributes(answer.payload[_NEIGHBOUR.size :])
    return found.get(NDA_LLADDR, b"").hex(":")
