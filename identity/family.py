# SPDX-License-Identifier: Apache-2.0
"""The prefixes and known addresses of one IP version: the working parts of the address table."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from identity.labels import LabelSet
from identity.peers import MAPPED, IPBlock, NamedPort, PeerClass, Prefix
from identity.reserved import Reserved

NO_BLOCKS: Final[frozenset[IPBlock]] = frozenset()
Key = tuple[int, int]
"""Value and prefix length within the family."""


def key_length(key: Key) -> int:
    """Prefix length of a key, to sort by."""
    return key[1]


@dataclass(frozen=True, slots=True)
class Known:
    """A known address: its identity, and all its named ports."""

    identity: int
    labels: LabelSet
    ports: tuple[NamedPort, ...]


@dataclass(slots=True)
class Net:
    """A prefix that blocks need: those that begin here, and those that except it."""

    identity: int
    labels: LabelSet
    permanent: bool
    opens: set[IPBlock] = field(default_factory=set)
    closes: set[IPBlock] = field(default_factory=set)
    blocks: frozenset[IPBlock] = NO_BLOCKS  # in force here; right after `resolve` passed it


class Family:
    """The prefixes and addresses of one IP version; values are plain integers."""

    def __init__(self, bits: int, default: Reserved) -> None:
        self.bits = bits
        self.nets: dict[Key, Net] = {(0, 0): Net(default, default.labels, permanent=True)}
        self.known: dict[int, Known] = {}
        self.published: dict[Key, PeerClass] = {}
        self.dirty: set[Key] = {(0, 0)}
        self._known_sorted: list[int] = []
        self._nets_sorted: list[Key] = [(0, 0)]
        self._lengths: dict[int, int] = {0: 1}  # how many nets have each length
        self._longest_first: list[tuple[int, int]] = [(0, 0)]  # length, mask

    def prefix(self, key: Key) -> Prefix:
        """The key of the longest-prefix table."""
        value, length = key
        if self.bits == 32:
            return Prefix((MAPPED | value).to_bytes(16, "big"), length + 96)
        return Prefix(value.to_bytes(16, "big"), length)

    def add_known(self, value: int, known: Known) -> None:
        """Add or change a known address."""
        if value not in self.known:
            insort(self._known_sorted, value)
        self.known[value] = known
        self.dirty.add((value, self.bits))

    def drop_known(self, value: int) -> None:
        """Take a known address out, if it is there."""
        if self.known.pop(value, None) is not None:
            del self._known_sorted[bisect_left(self._known_sorted, value)]
            self.dirty.add((value, self.bits))

    def add_net(self, key: Key, net: Net) -> None:
        """Add a prefix that is not there yet; marking is up to the caller."""
        self.nets[key] = net
        insort(self._nets_sorted, key)
        self._count_length(key[1], 1)

    def drop_net(self, key: Key) -> None:
        """Take a prefix out; marking is up to the caller."""
        del self.nets[key]
        del self._nets_sorted[bisect_left(self._nets_sorted, key)]
        self._count_length(key[1], -1)

    def mark_inside(self, key: Key) -> None:
        """Mark every prefix and known address inside a network, which itself may be gone."""
        first, length = key
        last = first | ((1 << (self.bits - length)) - 1)
        self.dirty.add(key)
        nets = self._nets_sorted
        self.dirty.update(nets[bisect_left(nets, key) : bisect_left(nets, (last, self.bits + 1))])
        values, bits = self._known_sorted, self.bits
        inside = values[bisect_left(values, first) : bisect_left(values, last + 1)]
        self.dirty.update((value, bits) for value in inside)

    def around(self, value: int, below: int) -> Net:
        """The net with the longest prefix shorter than `below` bits that holds the value."""
        nets = self.nets
        for length, mask in self._longest_first:
            if length < below:
                net = nets.get((value & mask, length))
                if net is not None:
                    return net
        raise AssertionError("the default route is permanent")

    def wanted(self, key: Key, names: Collection[tuple[str, int]]) -> PeerClass | None:
        """The class that belongs at a key now. Shorter keys must have been asked before."""
        value, length = key
        net = self.nets.get(key)
        if net is not None:
            outer = self.around(value, length).blocks if length else NO_BLOCKS
            if net.opens or net.closes:
                outer = (outer | net.opens) - net.closes
            net.blocks = outer
        known = self.known.get(value) if length == self.bits else None
        if known is not None:
            ports = tuple(port for port in known.ports if (port.name, port.protocol) in names)
            blocks = self.around(value, self.bits + 1).blocks
            return PeerClass(known.identity, known.labels, blocks, ports)
        return PeerClass(net.identity, net.labels, net.blocks) if net is not None else None

    def _count_length(self, counted: int, step: int) -> None:
        count = self._lengths.get(counted, 0) + step
        self._lengths[counted] = count
        if count == 0:
            del self._lengths[counted]
        full = (1 << self.bits) - 1
        self._longest_first = [
            (length, full ^ ((1 << (self.bits - length)) - 1))
            for length in sorted(self._lengths, reverse=True)
        ]
