# SPDX-License-Identifier: Apache-2.0
"""Address to peer class, kept as the prefixes of a longest-prefix table.

Every network of a block, and every except, is a prefix of its own; so all addresses whose longest
prefix is P lie in the same blocks, and a prefix needs one class. Known addresses (pods, nodes) are
prefixes of full length with their own identity in the blocks of the prefix around them.

A change marks the keys it can touch: one address, or those inside the block that came or went.
`resolve` computes only these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from identity.family import NO_BLOCKS, Family, Key, Known, Net, key_length
from identity.labels import LabelSet
from identity.peers import (
    HOST_CLASS,
    Address,
    IPBlock,
    NamedPort,
    Network,
    PeerClass,
    Prefix,
    cidr_labels,
    normalised,
)
from identity.reserved import Reserved

__all__ = [
    "HOST_CLASS",
    "IPBlock",
    "IPCache",
    "IPCacheDelta",
    "NamedPort",
    "PeerClass",
    "Prefix",
]


@dataclass(frozen=True, slots=True)
class IPCacheDelta:
    """What changed since the last `resolve`: prefixes, and classes coming into and out of use."""

    upserts: dict[Prefix, PeerClass] = field(default_factory=dict)
    deletes: set[Prefix] = field(default_factory=set)
    classes_added: set[PeerClass] = field(default_factory=set)
    classes_removed: set[PeerClass] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.upserts or self.deletes)


class IPCache:
    """Incremental address table. `acquire` gives the identity number of a world prefix from its
    labels, and may raise; `release` takes it back. Neither is called by anything but `set_blocks`.
    """

    def __init__(
        self,
        acquire: Callable[[LabelSet], int],
        release: Callable[[int], None] = lambda number: None,
    ) -> None:
        self._acquire = acquire
        self._release = release
        self._v4 = Family(32, Reserved.WORLD_IPV4)
        self._v6 = Family(128, Reserved.WORLD_IPV6)
        self._blocks: frozenset[IPBlock] = NO_BLOCKS
        self._names: frozenset[tuple[str, int]] = frozenset()
        self._uses: dict[PeerClass, tuple[PeerClass, int]] = {}

    def set_blocks(self, blocks: Iterable[IPBlock]) -> None:
        """The blocks that policies in force mention, all of them.

        An error of `acquire` is passed on and leaves everything as it was.
        """
        wanted = frozenset(blocks)
        added, removed = wanted - self._blocks, self._blocks - wanted
        for family, key, net in self._new_nets(added):
            family.add_net(key, net)
        for block in added:
            self._change(block, add=True)
        for block in removed:
            self._change(block, add=False)
        self._blocks = wanted

    def set_port_names(self, names: Iterable[tuple[str, int]]) -> None:
        """The (name, protocol) pairs that egress rules in force mention, all of them."""
        wanted = frozenset(names)
        changed = wanted ^ self._names
        self._names = wanted
        if not changed:
            return
        for family in (self._v4, self._v6):
            for value, known in family.known.items():
                if any((port.name, port.protocol) in changed for port in known.ports):
                    family.dirty.add((value, family.bits))

    def upsert(
        self,
        address: Address | str,
        identity: int,
        labels: LabelSet,
        ports: Iterable[NamedPort] = (),
    ) -> None:
        """Say who an address is, with all its named ports. Raises ValueError for no address."""
        parsed = normalised(address)
        known = Known(identity, labels, tuple(sorted(set(ports))))
        family = self._family(parsed.version)
        if family.known.get(int(parsed)) != known:
            family.add_known(int(parsed), known)

    def remove(self, address: Address | str) -> None:
        """Forget an address, which then is world again. An unknown one is no error."""
        parsed = normalised(address)
        self._family(parsed.version).drop_known(int(parsed))

    def resolve(self) -> IPCacheDelta:
        """What has to be written and deleted since the last call."""
        delta = IPCacheDelta()
        touched: dict[PeerClass, bool] = {}
        for family in (self._v4, self._v6):
            # Shorter prefixes first: the longer take their blocks over.
            for key in sorted(family.dirty, key=key_length):
                self._resolve_key(family, key, delta, touched)
            family.dirty.clear()
        for one, was_used in touched.items():
            used = one in self._uses
            if used != was_used:
                (delta.classes_added if used else delta.classes_removed).add(one)
        return delta

    def entries(self) -> dict[Prefix, PeerClass]:
        """The whole table, as of the last `resolve`."""
        return {
            family.prefix(key): one
            for family in (self._v4, self._v6)
            for key, one in family.published.items()
        }

    def __len__(self) -> int:
        """How many entries the table has, as of the last `resolve`."""
        return len(self._v4.published) + len(self._v6.published)

    def classes(self) -> set[PeerClass]:
        """Classes in use, as of the last `resolve`."""
        return set(self._uses)

    def lookup(self, address: Address | str) -> PeerClass:
        """The class an address has, as of the last `resolve`. LookupError before the first one."""
        parsed = normalised(address)
        family, value = self._family(parsed.version), int(parsed)
        for length in range(family.bits, -1, -1):
            shift = family.bits - length
            found = family.published.get((value >> shift << shift, length))
            if found is not None:
                return found
        raise LookupError(f"address {address}: nothing has been resolved yet")

    def is_known(self, address: Address | str) -> bool:
        """Whether an address has an entry of its own, as of the last `resolve`."""
        parsed = normalised(address)
        family = self._family(parsed.version)
        return (int(parsed), family.bits) in family.published

    def _resolve_key(
        self, family: Family, key: Key, delta: IPCacheDelta, touched: dict[PeerClass, bool]
    ) -> None:
        wanted = family.wanted(key, self._names)
        published = family.published.get(key)
        if wanted == published:
            return
        for one in (wanted, published):
            if one is not None:
                touched.setdefault(one, one in self._uses)
        if wanted is not None:
            family.published[key] = delta.upserts[family.prefix(key)] = self._use(wanted)
        else:
            del family.published[key]
            delta.deletes.add(family.prefix(key))
        if published is not None:
            self._unuse(published)

    def _use(self, one: PeerClass) -> PeerClass:
        """Count a use; gives the one object that stands for all equal ones."""
        canonical, count = self._uses.get(one, (one, 0))
        self._uses[canonical] = (canonical, count + 1)
        return canonical

    def _unuse(self, one: PeerClass) -> None:
        canonical, count = self._uses[one]
        if count == 1:
            del self._uses[one]
        else:
            self._uses[one] = (canonical, count - 1)

    def _new_nets(self, added: Iterable[IPBlock]) -> list[tuple[Family, Key, Net]]:
        """Records for prefixes not seen before, with their identities; all of them or none."""
        missing: dict[Network, tuple[Family, Key]] = {}
        for block in added:
            for network in (block.cidr, *block.excepts):
                family, key = self._place(network)
                if key not in family.nets:
                    missing[network] = (family, key)
        found: list[tuple[Family, Key, Net]] = []
        try:
            for network, (family, key) in missing.items():
                labels = cidr_labels(network)
                number = self._acquire(labels)
                found.append((family, key, Net(number, labels, permanent=False)))
        except Exception:
            for _family, _key, net in found:
                self._release(net.identity)
            raise
        return found

    def _change(self, block: IPBlock, add: bool) -> None:
        family, outer = self._place(block.cidr)
        inner = [self._place(network)[1] for network in block.excepts]
        members = [family.nets[outer].opens, *(family.nets[key].closes for key in inner)]
        for blocks in members:
            (blocks.add if add else blocks.discard)(block)
        family.mark_inside(outer)
        for key in {outer, *inner}:
            net = family.nets[key]
            if not (net.opens or net.closes or net.permanent):
                family.drop_net(key)
                self._release(net.identity)

    def _family(self, version: int) -> Family:
        return self._v4 if version == 4 else self._v6

    def _place(self, network: Network) -> tuple[Family, Key]:
        return self._family(network.version), (int(network.network_address), network.prefixlen)
