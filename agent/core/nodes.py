# SPDX-License-Identifier: Apache-2.0
"""Other nodes: which addresses are whose, and how they are reached (map ``tunnels``, routes).

Everything follows from the present Node facts. Of two nodes that claim the same, the first by name
has it, and the other one is told of in ``problems``; this node's own networks are its own whatever
others claim. What cannot be used of a node keeps nothing else of it from being used.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final

from agent.core.agreement import disagreements
from agent.core.delta import Delta, Writes, differences
from agent.core.endpoint import address_bytes
from agent.core.events import Node
from agent.core.store import Store
from bpf.layouts import PeerKey, Tunnel, TunnelFlag

Network = IPv4Network | IPv6Network

OVERHEAD: Final = {4: 50, 6: 70}
"""Bytes that the tunnel adds, by family of the outer packet: IP, UDP 8, VXLAN 8, Ethernet 14."""

_MAPPED_BITS: Final = 96


@dataclass(frozen=True, slots=True)
class Routing:
    """What of the configuration matters here; see agent.config.RoutingConfig.

    tunnel_port: counts in mode `tunnel`.
    straight: in native mode packets may leave by the programs alone, because answers come by them.
    """

    mode: str = "none"
    native_cidrs: tuple[Network, ...] = ()
    direct_node_routes: bool = True
    straight: bool = True
    tunnel_port: int = 0

    def native(self, network: Network) -> bool:
        """Whether pods of a network need no tunnel."""
        return self.mode == "native" or any(
            one.version == network.version and one.supernet_of(network)  # type: ignore[arg-type]
            for one in self.native_cidrs
        )


@dataclass(frozen=True, slots=True)
class NodeRoute:
    """A route of the node's own stack to another node's pods.

    gateway: that node's address; empty: through the tunnel's device. source: the address that the
    stack's own packets have; empty: the kernel chooses.
    """

    destination: Network
    node: str
    gateway: str = ""
    source: str = ""


class NodeBook:
    """The map ``tunnels`` and the routes that are wanted, kept in step with the facts.

    capacity: entries that the map holds.
    """

    def __init__(
        self,
        name: str,
        pod_cidrs: Iterable[Network] = (),
        routing: Routing | None = None,
        capacity: int = 65536,
    ) -> None:
        self.name = name
        self._pod_cidrs = tuple(pod_cidrs)
        self._routing = routing or Routing()
        self._capacity = capacity
        self._writes: Writes = {}
        self.routes: dict[Network, NodeRoute] = {}
        self.problems: dict[str, str] = {}
        """By what they concern: "node b". Read by other threads."""
        self.remotes: dict[str, tuple[str, str]] = {}
        """This node's outer address and the other one's, by node that there is a tunnel to."""
        self.overhead = 0
        """Bytes that the tunnel adds to a packet, at most."""
        self.sources: frozenset[str] = frozenset()
        """The addresses, one of each family, that other nodes take what this one sends them for."""

    def set_pod_cidrs(self, pod_cidrs: Iterable[Network]) -> None:
        """This node's own networks; counts from the next `update`."""
        self._pod_cidrs = tuple(pod_cidrs)

    def writes(self) -> Writes:
        """The whole map ``tunnels``."""
        return dict(self._writes)

    def update(self, store: Store, delta: Delta) -> None:
        """Take all nodes as they are now."""
        told = disagreements(store, self.name, self._routing.mode, self._routing.tunnel_port)
        if self._routing.mode == "none":
            self.problems = _by_node(told)
            return
        survey = _Survey(self.name, self._pod_cidrs, self._routing, self._capacity, store)
        change = differences(survey.writes, self._writes)
        for key, value in change.upserts.items():
            delta.tunnels.put(key, value)
        for key in change.deletes:
            delta.tunnels.drop(key)
        self._writes = survey.writes
        self.routes = survey.routes
        self.problems = _by_node([*told, *survey.problems])
        self.remotes = survey.remotes
        self.overhead = survey.overhead
        self.sources = frozenset(filter(None, survey.sources.values()))


class _Survey:
    """One look at all nodes, in the order of their names."""

    def __init__(
        self,
        name: str,
        pod_cidrs: tuple[Network, ...],
        routing: Routing,
        capacity: int,
        store: Store,
    ) -> None:
        self.writes: Writes = {}
        self.routes: dict[Network, NodeRoute] = {}
        self.remotes: dict[str, tuple[str, str]] = {}
        self.problems: list[tuple[str, str]] = []
        self._name = name
        self._routing = routing
        self._room = capacity
        self._device = store.tunnel_device
        self._addresses = _Addresses(name, store)
        self._taken = _Taken(name, pod_cidrs)
        # What goes without a tunnel must come back without one, so both ends must be native.
        self._native = {one.version for one in pod_cidrs if routing.native(one)} - {
            one.version for one in pod_cidrs if not routing.native(one)
        }
        self._own = store.nodes.get(name, Node(name))
        here = store.node_addresses
        first = {version: _of(self._own.addresses, version) for version in (4, 6)}
        self.sources = {version: one if one in here else "" for version, one in first.items()}
        self.overhead = 0
        if routing.mode == "tunnel":
            self.overhead = OVERHEAD[4 if _of(self._own.addresses, 4) else 6]
            if not self._own.addresses and store.nodes.keys() - {name}:
                self._complain(name, "no address of this node is known, so there is no tunnel")
        for network in pod_cidrs:
            self._apart(name, network)
        for one in sorted(store.nodes.values(), key=lambda node: node.name):
            if one.name != name:
                self._look_at(one)

    def _complain(self, node: str, text: str) -> None:
        self.problems.append((node, text))

    def _look_at(self, node: Node) -> None:
        if not node.addresses:
            self._complain(node.name, "it has no address, so its pods cannot be reached")
            return
        mine = []
        for address in node.addresses:
            holder = self._addresses.holder(address)
            if holder == node.name:
                mine.append(address)
            else:
                self._complain(node.name, f"its address {address} is that of node {holder}")
        if not mine:
            return
        networks = [one for one in map(ip_network, node.pod_cidrs) if self._usable(node.name, one)]
        entries = dict(self._reach(node.name, mine, networks))
        if len(entries) > self._room:
            self._complain(node.name, "the tunnels table is full, so its pods cannot be reached")
            return
        self._room -= len(entries)
        self.writes |= entries
        for network in networks:
            self._route(node.name, mine, network)

    def _usable(self, node: str, network: Network) -> bool:
        """Whether a pod network is the node's to have; if so, it has it from now on."""
        other = self._taken.overlapping(network)
        if other is not None:
            taken, holder = other
            why = "this node" if holder == self._name else f"node {holder}, the first by name"
            self._complain(node, f"its pod network {network} overlaps {taken} of {why}")
            return False
        if not self._apart(node, network):
            return False
        self._taken.add(network, node)
        return True

    def _apart(self, node: str, network: Network) -> bool:
        """Whether no node has an address in a pod network."""
        inside = self._addresses.inside(network)
        if inside is None:
            return True
        address, holder = inside
        self._complain(
            node,
            f"its pod network {network} overlaps the network of the nodes: it holds the"
            f" address {address} of node {holder}",
        )
        return False

    def _reach(
        self, node: str, addresses: list[str], networks: list[Network]
    ) -> Iterable[tuple[bytes, bytes]]:
        along = Tunnel(bytes(16), bytes(16), 0, 0).pack()
        through = [one for one in networks if self._tunnelled(one)]
        if self._routing.straight:
            yield from ((_key(one), along) for one in networks if one not in through)
        if self._routing.mode != "tunnel":
            return
        local, remote = self._ends(addresses)
        if not remote:
            if self._own.addresses:
                ours, theirs = (_families(some) for some in (self._own.addresses, addresses))
                self._complain(node, f"it has only {theirs} addresses and this node {ours} ones")
            return
        self.remotes[node] = local, remote
        self.overhead = max(self.overhead, OVERHEAD[ip_address(remote).version])
        ends = address_bytes(remote), address_bytes(local), self._device
        reached = Tunnel(*ends, 0).pack()
        yield from ((_key(one), reached) for one in through)
        first = {ip_address(one).version: one for one in reversed(addresses)}
        for one in addresses:
            version = ip_address(one).version
            alike = [network for network in networks if network.version == version]
            if alike and not any(network in through for network in alike):
                continue  # the node's own packets come as its pods' do
            only = 0 if one in first.values() else int(TunnelFlag.TUNNEL_SOURCE_ONLY)
            yield _key(ip_network(one)), Tunnel(*ends, only).pack()

    def _tunnelled(self, network: Network) -> bool:
        return self._routing.mode == "tunnel" and not (
            network.version in self._native and self._routing.native(network)
        )

    def _ends(self, addresses: list[str]) -> tuple[str, str]:
        """This node's and the other one's outer address. Both nodes must find the same family."""
        for version in (4, 6):
            local, remote = _of(self._own.addresses, version), _of(addresses, version)
            if local and remote:
                return local, remote
        return "", ""

    def _route(self, node: str, addresses: list[str], network: Network) -> None:
        source = self.sources[network.version]
        if self._tunnelled(network):
            if node in self.remotes and self._device:
                self.routes[network] = NodeRoute(network, node, source=source)
        elif self._routing.direct_node_routes:
            gateway = _of(addresses, network.version)
            if gateway:
                self.routes[network] = NodeRoute(network, node, gateway, source)
            else:
                self._complain(
                    node,
                    f"it has no IPv{network.version} address that its pod network {network}"
                    " could be reached by",
                )


class _Addresses:
    """Whose each address of the nodes is; this node has its own, else the first by name."""

    def __init__(self, name: str, store: Store) -> None:
        self._holders = dict.fromkeys(store.node_addresses, name)
        own = store.nodes.get(name)
        for address in own.addresses if own else ():
            self._holders.setdefault(address, name)
        for node in sorted(store.nodes.values(), key=lambda one: one.name):
            for address in node.addresses:
                self._holders.setdefault(address, node.name)
        places = [(ip_address(one), one) for one in self._holders]
        self._ordered = {
            version: sorted((int(a), text) for a, text in places if a.version == version)
            for version in (4, 6)
        }

    def holder(self, address: str) -> str:
        return self._holders[address]

    def inside(self, network: Network) -> tuple[str, str] | None:
        """An address in a network, the smallest, and whose it is."""
        ordered = self._ordered[network.version]
        place = bisect_left(ordered, (int(network.network_address), ""))
        if place < len(ordered) and ordered[place][0] <= int(network.broadcast_address):
            return ordered[place][1], self._holders[ordered[place][1]]
        return None


class _Taken:
    """Pod networks that somebody has; none of them overlap."""

    def __init__(self, name: str, networks: Iterable[Network]) -> None:
        self._starts: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        self._holders: dict[tuple[int, int, int], tuple[Network, str]] = {}
        for network in networks:
            self.add(network, name)

    def add(self, network: Network, node: str) -> None:
        start, end = int(network.network_address), int(network.broadcast_address)
        insort(self._starts[network.version], (start, end))
        self._holders[network.version, start, end] = network, node

    def overlapping(self, network: Network) -> tuple[Network, str] | None:
        """One that overlaps, with its node."""
        starts = self._starts[network.version]
        first, last = int(network.network_address), int(network.broadcast_address)
        place = bisect_left(starts, (first, -1))
        for start, end in starts[max(place - 1, 0) : place + 1]:
            if start <= last and end >= first:
                return self._holders[network.version, start, end]
        return None


def _by_node(problems: Iterable[tuple[str, str]]) -> dict[str, str]:
    """All that is said of one node together, in the order of their names."""
    found: dict[str, list[str]] = {}
    for node, text in problems:
        found.setdefault(f"node {node}", []).append(text)
    return {node: "; ".join(found[node]) for node in sorted(found)}


def _of(addresses: Iterable[str], version: int) -> str:
    """The first address of a family, empty for none."""
    return next((one for one in addresses if (":" in one) == (version == 6)), "")


def _families(addresses: Iterable[str]) -> str:
    return " and ".join(f"IPv{v}" for v in sorted({ip_address(a).version for a in addresses}))


def _key(network: Network) -> bytes:
    length = network.prefixlen + (_MAPPED_BITS if network.version == 4 else 0)
    return PeerKey(length, address_bytes(str(network.network_address))).pack()
