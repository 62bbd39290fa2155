# SPDX-License-Identifier: Apache-2.0
"""The tunnel's device: one VXLAN device for all nodes, whose packets bear their tunnel key
("external", or collect-metadata mode; RFC 7348, linux/if_link.h).

It has no ARP and no neighbours: the programs name the other end of each packet, and inner hardware
addresses mean nothing. It is made down, so that no packet passes it without the programs, and its
alias says whose it is.

It bears the addresses that the cluster knows the node by, for rules of the node's that masquerade:
the kernel takes the address of the device that a packet leaves by, without one that of some other
device, which other nodes would not believe.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from typing import Final

from agent.kernel import netlink as nl
from agent.kernel import sysctl
from agent.kernel.rtnl import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    Request,
    RtnlError,
    RtnlSocket,
    attribute,
    attributes,
    nested,
    number,
    text,
    u32,
)

DEVICE: Final = "bristle_vxlan"
MINIMUM_MTU: Final = 1280  # RFC 8200, section 5

_ID, _LEARNING, _PORT, _COLLECT_METADATA = 1, 7, 15, 25
_IFF_NOARP, _IFF_MULTICAST = 0x80, 0x1000
_LINK = struct.Struct("=BxHiII")
_IPV4 = {
    nl.IPV4_DEVCONF_FORWARDING: 1,
    nl.IPV4_DEVCONF_RP_FILTER: 0,  # from_tunnel knows whose sources may come, exactly
    nl.IPV4_DEVCONF_SEND_REDIRECTS: 0,
}
_IPV6 = {"disable_ipv6": "0", "forwarding": "1", "force_forwarding": "1", "accept_ra": "0"}


class TunnelError(OSError):
    """The device cannot be had; the message says why and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Vxlan:
    """A device as it should be, or as it is (then with its `index`)."""

    alias: str
    port: int
    mtu: int
    up: bool = True
    plain: bool = True
    """In collect-metadata mode, without learning, without ARP and reports of multicast groups."""
    index: int = 0

    def differences(self, found: Vxlan) -> list[str]:
        """What is not as it should be, in words; nothing about the alias."""
        words = []
        if found.port != self.port:
            words.append(f"port {found.port} instead of {self.port}")
        if found.mtu != self.mtu:
            words.append(f"MTU {found.mtu} instead of {self.mtu}")
        if found.up != self.up:
            words.append("down" if self.up else "up")
        if found.plain != self.plain:
            words.append("another mode")
        return words


def alias_of(tag: str) -> str:
    """The alias of an agent's device; no prefix of pods' devices'."""
    return f"bristle-tunnel:{tag}"


def find(netlink: RtnlSocket) -> Vxlan | None:
    """The device of our name; None where there is none. Raises RtnlError."""
    payload = _LINK.pack(nl.AF_UNSPEC, 0, 0, 0, 0) + text(nl.IFLA_IFNAME, DEVICE)
    try:
        answer = netlink.get(Request(nl.RTM_GETLINK, 0, payload, f"read device {DEVICE}"))
    except RtnlError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    return _read(answer)


def make(wanted: Vxlan) -> int:
    """Find or make the device; gives its index. One that is there and ours stays, and is changed
    where that goes without making it anew. A new one is down.

    Raises TunnelError for another's device or port, RtnlError.
    """
    with RtnlSocket() as netlink:
        found = find(netlink)
        if found is not None:
            if found.alias != wanted.alias:
                raise TunnelError(
                    f"there is another's device {DEVICE} (alias {found.alias!r}): remove it with"
                    f" `ip link delete {DEVICE}`, or let only one agent have routing.mode tunnel"
                )
            if found.port != wanted.port or not found.plain:
                netlink.run([nl.delete_link(found.index)])
                found = None
        if found is None:
            return _create(netlink, wanted)
        if found.mtu != wanted.mtu:
            netlink.run([_change("change the MTU of", u32(nl.IFLA_MTU, wanted.mtu))])
        _settings()
        return found.index


def bring_up(index: int, port: int) -> None:
    """Let packets in and out. Raises TunnelError where the port is taken, RtnlError."""
    with RtnlSocket() as netlink:
        try:
            netlink.run([nl.set_up(index=index)])
        except RtnlError as error:
            if error.errno in (errno.EADDRINUSE, errno.EEXIST):
                raise TunnelError(_port_taken(port)) from error
            raise


def addresses(netlink: RtnlSocket, index: int) -> frozenset[nl.IPAddress]:
    """What the device bears. Raises RtnlError, DumpInterrupted."""
    return frozenset(
        one.address
        for one in nl.list_addresses(netlink)
        if one.index == index and one.scope == nl.SCOPE_UNIVERSE
    )


def set_addresses(index: int, wanted: frozenset[nl.IPAddress]) -> None:
    """Make it bear these and no others. Raises RtnlError, DumpInterrupted."""
    with RtnlSocket() as netlink:
        found = addresses(netlink, index)
        netlink.run(
            [nl.add_address(index, one) for one in wanted - found]
            + [nl.delete_address(index, one) for one in found - wanted]
        )


def remove(alias: str) -> bool:
    """Delete our device; whether there was one. Raises RtnlError."""
    with RtnlSocket() as netlink:
        found = find(netlink)
        if found is None or found.alias != alias:
            return False
        netlink.run([nl.delete_link(found.index)])
        return True


def _create(netlink: RtnlSocket, wanted: Vxlan) -> int:
    data = nested(
        nl.IFLA_INFO_DATA,
        u32(_ID, 0),
        attribute(_LEARNING, b"\0"),
        attribute(_PORT, struct.pack("!H", wanted.port)),
        attribute(_COLLECT_METADATA, b"\1"),
    )
    payload = (
        _LINK.pack(nl.AF_UNSPEC, 0, 0, _IFF_NOARP, _IFF_NOARP | _IFF_MULTICAST)
        + text(nl.IFLA_IFNAME, DEVICE)
        # Too small for IPv6 at first: it would join groups before the flags count, and report that.
        + u32(nl.IFLA_MTU, MINIMUM_MTU - 1)
        # Random: a packet is not taken in by a device that has its source's address.
        + attribute(nl.IFLA_ADDRESS, nl.mac_bytes(nl.random_mac()))
        + nested(nl.IFLA_LINKINFO, attribute(nl.IFLA_INFO_KIND, b"vxlan"), data)
    )
    create = Request(nl.RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, payload, f"create device {DEVICE}")
    # One system call, so a kill cannot come between the device and its alias.
    outcome = netlink.attempt(
        [
            create,
            nl.set_alias(DEVICE, wanted.alias),
            nl.set_ipv4_conf(DEVICE, _IPV4),
            _change("change the MTU of", u32(nl.IFLA_MTU, wanted.mtu)),
            nl.no_address_generation(DEVICE),
        ]
    )
    created, *others = outcome
    if created is not None:
        if created.errno in (errno.EEXIST, errno.EADDRINUSE):
            raise TunnelError(_port_taken(wanted.port)) from created
        if created.errno == errno.EOPNOTSUPP:
            raise TunnelError("this kernel has no VXLAN (CONFIG_VXLAN)") from created
        raise created
    link = find(netlink)
    if link is None:
        raise TunnelError(f"device {DEVICE} was deleted as soon as it was made")
    failed = next((one for one in others[:-1] if one is not None), None)  # IPv6 may be absent
    if failed is not None:
        netlink.attempt([nl.delete_link(link.index)])
        raise failed
    _settings()
    return link.index


def _settings() -> None:
    for name, value in _IPV6.items():
        path = f"net/ipv6/conf/{DEVICE}/{name}"
        if sysctl.read(path) not in (None, value):
            sysctl.write(path, value)


def _read(message: Message) -> Vxlan:
    link = nl.read_link(message)
    _, _, _, flags, _ = _LINK.unpack_from(message.payload)
    found = attributes(message.payload[_LINK.size :])
    info = attributes(found.get(nl.IFLA_LINKINFO, b""))
    data = attributes(info.get(nl.IFLA_INFO_DATA, b"")) if link.kind == "vxlan" else {}
    plain = (
        number(data, _COLLECT_METADATA) == 1
        and number(data, _LEARNING) == 0
        and flags & (_IFF_NOARP | _IFF_MULTICAST) == _IFF_NOARP
    )
    port = struct.unpack("!H", data[_PORT])[0] if len(data.get(_PORT, b"")) == 2 else 0
    return Vxlan(link.alias, port, link.mtu, link.up, plain, link.index)


def _change(what: str, extra: bytes) -> Request:
    payload = _LINK.pack(nl.AF_UNSPEC, 0, 0, 0, 0) + extra + text(nl.IFLA_IFNAME, DEVICE)
    return Request(nl.RTM_NEWLINK, 0, payload, f"{what} device {DEVICE}")


def _port_taken(port: int) -> str:
    return (
        f"UDP port {port} of the tunnel is taken by another device or program of this node"
        f" ({os.strerror(errno.EADDRINUSE)}): stop it, or give all nodes another"
        " routing.tunnel_port"
    )
