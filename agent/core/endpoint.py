# SPDX-License-Identifier: Apache-2.0
"""An endpoint: one pod's attachment to this node's network, as CNI ADD made it."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

MAX_ENDPOINT_ID: Final = 0x7FFFFFEF
"""Endpoint ids are 1 to this: 0 means none, and the numbers above are origins (layout.h)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What is fixed for the endpoint's life.

    ``ipv4``, ``ipv6`` are canonical text, empty where it has none; ``mac`` is of the pod's end,
    ``host_mac`` of the host's end ``device``, whose index in the node's namespace is ``ifindex``.
    ``netns_cookie``: of the pod's network namespace (SO_NETNS_COOKIE), 0 where it is not known.
    """

    id: int
    container_id: str
    ifname: str
    namespace: str
    pod: str
    pod_uid: str
    ipv4: str
    ipv6: str
    mac: str
    host_mac: str
    device: str
    ifindex: int
    netns_cookie: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """What CNI knows it by: container id and interface name."""
        return self.container_id, self.ifname

    @property
    def pod_key(self) -> tuple[str, str]:
        """Namespace and name of its pod; both empty for a caller that is not Kubernetes."""
        return self.namespace, self.pod

    @property
    def addresses(self) -> tuple[str, ...]:
        """Its addresses, IPv4 first."""
        return tuple(address for address in (self.ipv4, self.ipv6) if address)


def address_bytes(address: str) -> bytes:
    """``struct address``: 16 bytes, IPv4 mapped, all zero for none."""
    if not address:
        return bytes(16)
    parsed = ip_address(address)
    return parsed.packed if parsed.version == 6 else b"\0" * 10 + b"\xff\xff" + parsed.packed


def mac_bytes(mac: str) -> bytes:
    """Six bytes of ``02:00:5e:00:53:01``."""
    return bytes.fromhex(mac.replace(":", ""))
