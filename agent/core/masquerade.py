# SPDX-License-Identifier: Apache-2.0
"""Which destinations see pods as they are, and what pods look like to all others (maps
``masquerade_exclude``, ``masquerade``).

The cluster sees pods as they are: pod addresses and the addresses of nodes, but for further ones
of type ExternalIP, which may lead by a cloud's own translation, outside of it. With a tunnel nodes
see pods through it; what leaves for a node by an uplink all the same, because the stack translated
its destination (a service), is for a network that knows no pods. Link-local and
multicast destinations are on this link, where a pod's packets never go by the node's address.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

from agent.core.delta import Delta, MapDelta, Writes
from agent.core.endpoint import address_bytes
from agent.core.events import Node
from agent.core.store import Store
from bpf.layouts import MasqueradeKey, MasqueradeSource, PeerKey
from bpf.maps import U32

Network = IPv4Network | IPv6Network

NEVER: Final[tuple[Network, ...]] = tuple(
    ip_network(one)
    for one in (
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/4",
        "255.255.255.255/32",
        "::/127",  # unspecified and loopback
        "fe80::/10",
        "ff00::/8",
    )
)
"""This host, link-local, multicast, broadcast: RFC 6890, RFC 4291."""

_MAPPED_BITS: Final = 96
_EXCLUDED: Final = U32.pack(1)


@dataclass(frozen=True, slots=True)
class Masquerading:
    """What is configured. ``exclude``: never masqueraded, beside what follows from facts.
    ``seed`` decides which ports are tried first, and is nobody else's to know. ``tunnelled``: IP
    versions of which pods reach other nodes through the tunnel."""

    exclude: tuple[Network, ...]
    first_port: int
    last_port: int
    seed: int
    tunnelled: frozenset[int] = frozenset()


class MasqueradeBook:
    """Keeps both maps in step with the facts. Without settings both stay empty."""

    def __init__(self, settings: Masquerading | None = None) -> None:
        self._settings = settings
        self._excluded: Writes = {}
        self._sources: Writes = {}
        self._nodes: dict[str, tuple[Node, Writes]] = {}
        self._always: Writes = {}
        if settings is not None:
            self._always = _prefixes([*NEVER, *settings.exclude])

    def update(self, store: Store, delta: Delta) -> None:
        """After a change of nodes or of this node's addresses."""
        if self._settings is None:
            return
        excluded = self._always | _prefixes(map(ip_network, store.node_addresses))
        nodes = {name: (node, self._of(node)) for name, node in store.nodes.items()}
        for _, prefixes in nodes.values():
            excluded |= prefixes
        self._nodes = nodes
        _change(delta.masquerade_exclude, self._excluded, excluded)
        self._excluded = excluded
        sources = dict(
            _source(self._settings, place, address)
            for place, address in store.uplink_addresses.items()
        )
        _change(delta.masquerade, self._sources, sources)
        self._sources = sources

    def exclude_writes(self) -> Writes:
        """The whole map ``masquerade_exclude``."""
        return dict(self._excluded)

    def source_writes(self) -> Writes:
        """The whole map ``masquerade``."""
        return dict(self._sources)

    def _of(self, node: Node) -> Writes:
        known = self._nodes.get(node.name)
        if known is not None and known[0] == node:
            return known[1]
        tunnelled = self._settings.tunnelled if self._settings else frozenset()
        addresses = [one for one in _inner(node) if ip_address(one).version not in tunnelled]
        return _prefixes(map(ip_network, (*addresses, *node.pod_cidrs)))


def _inner(node: Node) -> Iterator[str]:
    """Without ExternalIPs, unless the node has no other address of the family."""
    families: set[int] = set()
    for one in node.addresses:
        family = ip_address(one).version
        if one not in node.external or family not in families:
            yield one
        families.add(family)


def _change(part: MapDelta, former: Mapping[bytes, bytes], wanted: Mapping[bytes, bytes]) -> None:
    for key, value in wanted.items():
        if former.get(key) != value:
            part.put(key, value)
    for key in former.keys() - wanted.keys():
        part.drop(key)


def _prefixes(networks: Iterable[Network]) -> Writes:
    return {
        PeerKey(
            one.prefixlen + (_MAPPED_BITS if one.version == 4 else 0),
            address_bytes(str(one.network_address)),
        ).pack(): _EXCLUDED
        for one in networks
    }


def _source(settings: Masquerading, place: tuple[int, int], address: str) -> tuple[bytes, bytes]:
    ifindex, family = place
    source = MasqueradeSource(
        address_bytes(address), settings.seed, settings.first_port, settings.last_port
    )
    return MasqueradeKey(ifindex, family).pack(), source.pack()
