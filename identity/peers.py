# SPDX-License-Identifier: Apache-2.0
"""What is known of a peer before any rule is asked: blocks, named ports, classes, prefixes.

IPv4 addresses and prefixes are mapped into IPv6 (::ffff:a.b.c.d, lengths 96 to 128) in keys, as
`struct address` in bpf/lib/layout.h; the two families never contain one another all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from identity.labels import CIDR_SOURCE, RESERVED_SOURCE, LabelSet
from identity.reserved import Reserved

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAPPED: Final = 0xFFFF << 32
"""Value of ::ffff:0:0, where IPv4 lies among the 128 bit addresses."""

_MAPPED_NETWORK: Final = IPv6Network((MAPPED, 96))


@dataclass(frozen=True, slots=True)
class IPBlock:
    """Addresses of `cidr` that are in none of `excepts` (sorted, without repetition).

    Raises ValueError for an except that is not inside the CIDR, and for IPv4-mapped IPv6 networks:
    no packet has such addresses, and they would be taken for IPv4.
    """

    cidr: Network
    excepts: tuple[Network, ...] = ()
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        cidr = self.cidr
        if isinstance(cidr, IPv6Network) and cidr.subnet_of(_MAPPED_NETWORK):
            raise ValueError(f"{cidr} is IPv4 mapped into IPv6; write it as IPv4")
        for inner in self.excepts:
            if inner.version != cidr.version or not _inside(inner, cidr):
                raise ValueError(f"except {inner} is not inside {cidr}")
        ordered = tuple(sorted(set(self.excepts), key=_order))
        object.__setattr__(self, "excepts", ordered)
        object.__setattr__(self, "_hash", hash((cidr, ordered)))

    def __hash__(self) -> int:
        return self._hash

    def __contains__(self, address: object) -> bool:
        """Whether the block holds an IPv4Address or IPv6Address."""
        return address in self.cidr and not any(address in inner for inner in self.excepts)

    def canonical(self) -> str:
        """`10.0.0.0/8` or `10.0.0.0/8 except 10.1.0.0/16,10.2.0.0/16`."""
        if not self.excepts:
            return str(self.cidr)
        return f"{self.cidr} except {','.join(map(str, self.excepts))}"


def _order(network: Network) -> tuple[int, int]:
    return int(network.network_address), network.prefixlen


def _inside(inner: Network, outer: Network) -> bool:
    return inner.prefixlen >= outer.prefixlen and inner.network_address in outer


@dataclass(frozen=True, slots=True, order=True)
class NamedPort:
    """A container port that has a name. `protocol` is the IP protocol, `number` 1 to 65535."""

    name: str
    protocol: int
    number: int


@dataclass(frozen=True, slots=True)
class PeerClass:
    """All that a rule can ask of a peer's address; addresses that agree in it share a column.

    `blocks` are the policy blocks that contain the address, `ports` (sorted) those of its named
    ports that egress rules mention.
    """

    identity: int
    labels: LabelSet
    blocks: frozenset[IPBlock] = frozenset()
    ports: tuple[NamedPort, ...] = ()
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = (self.identity, self.labels, self.blocks, self.ports)
        object.__setattr__(self, "_hash", hash(parts))

    def __hash__(self) -> int:
        return self._hash

    def canonical(self) -> str:
        """Equal exactly for equal classes; stable over processes, so a key for their numbers."""
        blocks = sorted(block.canonical() for block in self.blocks)
        ports = [f"{port.name}/{port.protocol}={port.number}" for port in self.ports]
        return f"{self.identity}|{self.labels.canonical()}|{';'.join(blocks)}|{','.join(ports)}"


HOST_CLASS: Final = PeerClass(Reserved.HOST, Reserved.HOST.labels)
"""The class of the node's own stack: CLASS_HOST in bpf/lib/layout.h."""


@dataclass(frozen=True, slots=True, order=True)
class Prefix:
    """Key of the longest-prefix table: 16 bytes, IPv4 mapped, and a length of 0 to 128."""

    address: bytes
    length: int

    @classmethod
    def of(cls, network: Network) -> Prefix:
        """The key for a network of either family."""
        value = int(network.network_address)
        if isinstance(network, IPv4Network):
            return cls((MAPPED | value).to_bytes(16, "big"), network.prefixlen + 96)
        return cls(value.to_bytes(16, "big"), network.prefixlen)

    def network(self) -> Network:
        """The network, IPv4 again where it was mapped."""
        value = int.from_bytes(self.address, "big")
        if self.length >= 96 and value >> 32 == 0xFFFF:
            return IPv4Network((value & 0xFFFFFFFF, self.length - 96))
        return IPv6Network((value, self.length))


def normalised(address: Address | str) -> Address:
    """An address as an object, IPv4 where it is mapped. Raises ValueError, also for a zone."""
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address):
        if parsed.scope_id is not None:
            raise ValueError(f"address {address} has a zone, which no packet carries")
        return parsed.ipv4_mapped or parsed
    return parsed


def cidr_labels(network: Network) -> LabelSet:
    """Labels of the identity of a world prefix: `reserved:world` and `cidr:<prefix>`."""
    return LabelSet({f"{RESERVED_SOURCE}world": "", f"{CIDR_SOURCE}{network}": ""})
