# SPDX-License-Identifier: Apache-2.0
"""Pod addresses: which are free, whose are taken, and which was freed longest ago.

Pure: what is durable is in agent/kernel/endpoint_store.py, which replays into `adopt` and `rest`.

An owner (any string; the agent uses container id and interface) holds one address of every family
that is configured. Addresses never used come first, in order; then those freed, the one freed
longest ago first. So an address rests as long as the pool allows, and a peer's stale connection
or ARP entry seldom meets a new pod.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_interface,
    ip_network,
)

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

BLOCK_LIMIT = 65_536
"""Addresses used of one block at most. An IPv6 /64 would otherwise make the list of resting
addresses grow without bound; a node holds a few hundred pods."""


class PoolConfigError(ValueError):
    """pod_cidrs cannot be used; the message names the entry and the way out."""


class PoolExhausted(RuntimeError):
    """Every address of one family is taken."""

    def __init__(self, cidrs: tuple[str, ...], used: int, capacity: int, avoided: int) -> None:
        others = f" and {avoided} are others'" if avoided else ""
        super().__init__(
            f"no free address in {', '.join(cidrs)}: {used} of {capacity} are in use{others}; "
            "add a block to pod_cidrs or delete pods"
        )
        self.cidrs = cidrs
        self.used = used
        self.capacity = capacity


class AddressConflict(RuntimeError):
    """An address that is to be adopted belongs to another owner."""

    def __init__(self, address: IPAddress, owner: str, holder: str) -> None:
        super().__init__(f"address {address} wanted by {owner} is in use by {holder}")
        self.address = address
        self.owner = owner
        self.holder = holder


@dataclass(frozen=True, slots=True)
class Allocation:
    """What one owner holds; None for a family that is not configured."""

    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None

    @property
    def addresses(self) -> tuple[IPAddress, ...]:
        """Those that are there, IPv4 first."""
        return tuple(address for address in (self.ipv4, self.ipv6) if address is not None)


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one family: addresses handed out of its blocks, and how many the blocks have."""

    version: int
    cidrs: tuple[str, ...]
    used: int
    capacity: int


class _Block:
    """One CIDR: numbers from its first address on, `first` <= number < `end` may be given out."""

    def __init__(self, network: IPNetwork) -> None:
        self.network = network
        self.base = int(network.network_address)
        # 0: network address (IPv4) or subnet-router anycast (RFC 4291, 2.6.1). 1: for the node.
        self.first = 2
        size = network.num_addresses - (1 if network.version == 4 else 0)  # broadcast
        self.end = min(size, BLOCK_LIMIT)
        self.fresh = self.first  # numbers from here on were never used

    @property
    def capacity(self) -> int:
        return max(0, self.end - self.first)

    def number(self, address: IPAddress) -> int | None:
        """The address's number here, or None where it is not one to give out."""
        if address.version != self.network.version:
            return None
        number = int(address) - self.base
        return number if self.first <= number < self.end else None

    def address(self, number: int) -> IPAddress:
        return self.network.network_address + number


class _Family:
    """The blocks of one IP version."""

    def __init__(self, blocks: Sequence[_Block]) -> None:
        self.blocks = blocks
        self.cidrs = tuple(str(block.network) for block in blocks)
        self.capacity = sum(block.capacity for block in blocks)
        self.taken: dict[IPAddress, str] = {}
        self.resting: OrderedDict[IPAddress, None] = OrderedDict()  # freed longest ago first

    def contains(self, address: IPAddress) -> bool:
        return any(block.number(address) is not None for block in self.blocks)

    def peek(self, avoid: Callable[[IPAddress], bool]) -> IPAddress:
        """The next address to give out. Raises PoolExhausted."""
        for block in self.blocks:
            while block.fresh < block.end:
                address = block.address(block.fresh)
                if address not in self.taken and address not in self.resting:
                    if not avoid(address):
                        return address
                    self.rest(address)  # it may become free; others come before
                block.fresh += 1
        for address in self.resting:
            if not avoid(address):
                return address
        raise PoolExhausted(self.cidrs, len(self.taken), self.capacity, len(self.resting))

    def take(self, address: IPAddress, owner: str) -> None:
        self.taken[address] = owner
        self.resting.pop(address, None)

    def free(self, address: IPAddress) -> None:
        del self.taken[address]
        self.rest(address)

    def rest(self, address: IPAddress) -> None:
        if address not in self.taken and self.contains(address):
            self.resting[address] = None
            self.resting.move_to_end(address)


class AddressPool:
    """Addresses for the pods of one node, from its `pod_cidrs` (several per family if need be).

    Raises PoolConfigError for entries that are no CIDR, have host bits, overlap or hold no pod.
    """

    def __init__(self, pod_cidrs: Sequence[str]) -> None:
        self._families: dict[int, _Family] = {}
        self._foreign: dict[IPAddress, str] = {}  # of blocks that are no longer configured
        self._owners: dict[str, Allocation] = {}
        self.set_blocks(pod_cidrs)

    def set_blocks(self, pod_cidrs: Sequence[str]) -> None:
        """Give out addresses of these blocks from now on.

        Who holds one of a former block keeps it until it is released; then it is forgotten. A block
        that stays goes on where it was. Raises PoolConfigError, and then has changed nothing.
        """
        networks = _parse(pod_cidrs)
        known = {block.network: block for one in self._families.values() for block in one.blocks}
        held = dict(self._foreign)
        rested: list[IPAddress] = []
        for family in self._families.values():
            held |= family.taken
            rested += family.resting
        self._families = {}
        for version in (4, 6):
            own = [known.get(one) or _Block(one) for one in networks if one.version == version]
            if own:
                self._families[version] = _Family(own)
        self._foreign = {}
        for address, owner in held.items():
            self._hold(address, owner)
        self.rest(rested)

    def allocate(
        self, owner: str, avoid: Callable[[IPAddress], bool] = lambda address: False
    ) -> Allocation:
        """One address of each family for `owner`; the same ones where it holds some already.

        avoid: whether an address is somebody else's now, and not to be given out. Raises
        PoolExhausted, and then has taken nothing.
        """
        held = self._owners.get(owner)
        if held is not None:
            return held
        chosen = {version: family.peek(avoid) for version, family in self._families.items()}
        for version, address in chosen.items():
            self._families[version].take(address, owner)
        return self._record(owner, tuple(chosen.values()))

    def adopt(self, owner: str, addresses: Iterable[IPAddress]) -> Allocation:
        """Take exactly these for `owner` (restart, a pod wired before), in place of what it held.

        An address outside the configured blocks is accepted: the pod lives on with it, and it is
        forgotten when released. Raises AddressConflict, and then has changed nothing.
        """
        wanted = tuple(addresses)
        for address in wanted:
            holder = self.owner_of(address)
            if holder is not None and holder != owner:
                raise AddressConflict(address, owner, holder)
        if owner in self._owners:
            self.release(owner)
        for address in wanted:
            self._hold(address, owner)
        return self._record(owner, wanted)

    def _hold(self, address: IPAddress, owner: str) -> None:
        family = self._families.get(address.version)
        if family is not None and family.contains(address):
            family.take(address, owner)
        else:
            self._foreign[address] = owner

    def release(self, owner: str) -> Allocation | None:
        """Free what `owner` holds; None where it holds nothing (releasing twice is no error)."""
        held = self._owners.pop(owner, None)
        if held is None:
            return None
        for address in held.addresses:
            if self._foreign.pop(address, None) is None:
                self._families[address.version].free(address)
        return held

    def rest(self, addresses: Iterable[IPAddress]) -> None:
        """Count these as freed just now, in this order (history replayed after a restart).

        Addresses in use and outside the blocks are ignored.
        """
        for address in addresses:
            family = self._families.get(address.version)
            if family is not None:
                family.rest(address)

    def owner_of(self, address: IPAddress) -> str | None:
        """Who holds an address."""
        family = self._families.get(address.version)
        holder = family.taken.get(address) if family is not None else None
        return holder if holder is not None else self._foreign.get(address)

    def held_by(self, owner: str) -> Allocation | None:
        """What an owner holds."""
        return self._owners.get(owner)

    def usage(self) -> tuple[Usage, ...]:
        """Per family, IPv4 first; foreign addresses are not counted."""
        return tuple(
            Usage(version, family.cidrs, len(family.taken), family.capacity)
            for version, family in self._families.items()
        )

    def _record(self, owner: str, addresses: tuple[IPAddress, ...]) -> Allocation:
        ipv4 = next((a for a in addresses if isinstance(a, IPv4Address)), None)
        ipv6 = next((a for a in addresses if isinstance(a, IPv6Address)), None)
        held = Allocation(ipv4, ipv6)
        self._owners[owner] = held
        return held


def _parse(pod_cidrs: Sequence[str]) -> list[IPNetwork]:
    networks: list[IPNetwork] = []
    if not pod_cidrs:
        raise PoolConfigError("pod_cidrs is empty; give at least one block, e.g. 10.244.0.0/24")
    for position, cidr in enumerate(pod_cidrs):
        where = f"pod_cidrs[{position}]: {cidr!r}"
        try:
            network = ip_network(cidr, strict=False)
        except ValueError as error:
            raise PoolConfigError(f"{where} is no CIDR: {error}") from error
        if ip_interface(cidr).ip != network.network_address:
            raise PoolConfigError(f"{where} has host bits set; write {network}")
        if _Block(network).capacity == 0:
            raise PoolConfigError(f"{where} has no address for a pod: /30 or /126 is the smallest")
        for other in networks:
            if other.version == network.version and other.overlaps(network):
                raise PoolConfigError(f"{where} overlaps {other}")
        networks.append(network)
    return networks
