# SPDX-License-Identifier: Apache-2.0
"""Policy tables: the compiled rules of one direction of one subject, and columns of entries.

A column is all entries of one (table, peer class). It is a pure function of both, and even of less:
of the rules that match the class, in their order. Every entry is a final verdict (see
`policy.levels`); where no entry matches, the table's default rule denies.

Each rule brings the prefixes of its own port ranges. Two prefixes are nested or apart, so keeping,
along each chain of nested ones, only those of ever earlier rules makes the longest one always that
of the first rule in order. No entry is ever needed to take another one back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from hashlib import blake2b
from itertools import pairwise
from typing import Final

from identity.peers import IPBlock, NamedPort, PeerClass
from identity.reserved import Reserved
from identity.selectors import Selector
from policy.levels import ANY_PROTOCOL, EXACT_PORT, mask, merged, prefixes
from policy.model import Direction, ReservedRule, RuleName, RuleRef

_PLACE = tuple[int, int, int]  # protocol, port, level


@dataclass(frozen=True, slots=True)
class Entry:
    """One final verdict of a column. `protocol` and `port` are 0 at level 17; `port` is in host
    order with the bits beyond the level zero. `allow` is always true until deny rules exist."""

    protocol: int
    port: int
    level: int
    allow: bool
    rule: RuleName


Column = tuple[Entry, ...]

HOST_COLUMN: Final[Column] = (Entry(0, 0, ANY_PROTOCOL, True, ReservedRule.NODE),)
"""A pod's own node always reaches it and is reached by it."""


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports from first to last, both included."""

    protocol: int
    first: int
    last: int


@dataclass(frozen=True, slots=True, order=True)
class PortName:
    """A port that only the peer gives a number (egress)."""

    protocol: int
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class CompiledRule:
    """A rule as tables hold it. `peers` None is anybody; `ranges` None is every protocol.

    Peers are selectors on an identity's label set, or blocks, in canonical order. Ranges are merged
    and sorted. `names` is empty where `ranges` is None. Rules are equal if their digests are.
    """

    ref: RuleRef
    peers: tuple[Selector | IPBlock, ...] | None
    ranges: tuple[PortRange, ...] | None
    names: tuple[PortName, ...] = ()
    digest: bytes = field(init=False, repr=False)
    places: tuple[_PLACE, ...] = field(init=False, repr=False)
    _hash: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        digest = blake2b(_spelling(self), digest_size=16).digest()
        places = tuple(
            (one.protocol, port, level)
            for one in self.ranges or ()
            for port, level in prefixes(one.first, one.last)
        )
        object.__setattr__(self, "digest", digest)
        object.__setattr__(self, "places", places)
        object.__setattr__(self, "_hash", hash(digest))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CompiledRule) and self.digest == other.digest

    def matches(self, peer: PeerClass) -> bool:
        """Whether a peer class is one of the rule's peers."""
        if self.peers is None:
            return True
        return any(
            one in peer.blocks if isinstance(one, IPBlock) else one.matches(peer.labels)
            for one in self.peers
        )

    def levels(self) -> int:
        """Bit n: the rule may bring entries of level n, for whatever class."""
        if self.ranges is None:
            return 1 << ANY_PROTOCOL
        bits = 1 << EXACT_PORT if self.names else 0
        for _protocol, _port, level in self.places:
            bits |= 1 << level
        return bits


def merge_ranges(ranges: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """The same ports in the fewest ranges, sorted."""
    by_protocol: dict[int, list[tuple[int, int]]] = {}
    for one in ranges:
        by_protocol.setdefault(one.protocol, []).append((one.first, one.last))
    return tuple(
        PortRange(protocol, first, last)
        for protocol, found in sorted(by_protocol.items())
        for first, last in merged(found)
    )


def _spelling(rule: CompiledRule) -> bytes:
    """The rule's content, spelled the same in every process and differently for every other."""
    peers = None if rule.peers is None else [[type(p).__name__, p.canonical()] for p in rule.peers]
    ranges = None if rule.ranges is None else [[r.protocol, r.first, r.last] for r in rule.ranges]
    names = [[n.protocol, n.name] for n in rule.names]
    return json.dumps([*astuple(rule.ref), peers, ranges, names]).encode()


def build_column(rules: Sequence[CompiledRule], ports: tuple[NamedPort, ...]) -> Column:
    """The column of a class that exactly these rules match, in canonical order.

    `ports` are the class's named ports, for rules with names.
    """
    entries: list[Entry] = []
    taken: dict[int, set[_PLACE]] = {}
    for rule in rules:
        if rule.ranges is None:
            # Whatever comes later in order is never the first to allow.
            entries.append(Entry(0, 0, ANY_PROTOCOL, True, rule.ref))
            break
        places = rule.places
        if rule.names:
            wanted = {(one.name, one.protocol) for one in rule.names}
            places += tuple(
                (one.protocol, one.number, EXACT_PORT)
                for one in ports
                if (one.name, one.protocol) in wanted
            )
        for place in places:
            if not _is_covered(place, taken):
                taken.setdefault(place[2], set()).add(place)
                entries.append(Entry(*place, True, rule.ref))
    return tuple(entries)


def _is_covered(place: _PLACE, taken: dict[int, set[_PLACE]]) -> bool:
    """Whether an earlier prefix holds this one, or is it."""
    protocol, port, level = place
    return any(
        outer <= level and (protocol, port & mask(outer), outer) in places
        for outer, places in taken.items()
    )


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Table:
    """The policy of one direction for one subject, or for many that share it.

    Content-addressed: `fingerprint` (16 bytes, stable over processes) is equal exactly for equal
    tables. `levels` has bit n set where some column may have entries of level n; the kernel asks no
    others. `default_rule` is what denies where no entry matches. Rules are in canonical order, each
    once; ValueError otherwise.
    """

    direction: Direction
    rules: tuple[CompiledRule, ...] = ()
    default_rule: ReservedRule = ReservedRule.DEFAULT_DENY
    fingerprint: bytes = field(init=False)
    levels: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        refs = [rule.ref for rule in self.rules]
        if any(one >= other for one, other in pairwise(refs)):
            raise ValueError("the rules of a table must be in canonical order, each once")
        if any(ref.direction is not self.direction for ref in refs):
            raise ValueError(
                f"a table for {self.direction.field} has a rule of the other direction"
            )
        content = bytes([self.direction, self.default_rule])
        content += b"".join(rule.digest for rule in self.rules)
        levels = 1 << ANY_PROTOCOL  # the host column
        for rule in self.rules:
            levels |= rule.levels()
        object.__setattr__(self, "fingerprint", blake2b(content, digest_size=16).digest())
        object.__setattr__(self, "levels", levels)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.fingerprint == other.fingerprint

    @classmethod
    def init(cls, direction: Direction) -> Table:
        """For a pod whose labels are not known yet: only its node reaches it."""
        return cls(direction, default_rule=ReservedRule.INIT)

    def column(self, peer: PeerClass) -> Column:
        """All entries for a class; empty means that everything is denied."""
        if peer.identity == Reserved.HOST:
            return HOST_COLUMN
        return build_column([rule for rule in self.rules if rule.matches(peer)], peer.ports)
