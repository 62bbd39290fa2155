# SPDX-License-Identifier: Apache-2.0
"""From policies to tables: which policies select a pod, and what their rules come to for it.

`PolicyRepository` holds the policies in force. Pods with equal policies get one and the same Table;
nothing is scanned that an index can find, and an edited policy touches only its own tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakValueDictionary

from identity.index import SelectorIndex
from identity.labels import NAMESPACE_KEY, namespace_label_key, pod_label_key
from identity.peers import IPBlock, NamedPort
from identity.selectors import Operator, Requirement, Selector
from policy.compiler import PolicyCompiler
from policy.model import (
    LAST_PORT,
    BlockPeer,
    Direction,
    NetworkPolicy,
    Peer,
    PodPeer,
    PolicyKey,
    Port,
    Rule,
    RuleRef,
)
from policy.tables import Column, CompiledRule, Entry, PortName, PortRange, Table, merge_ranges

__all__ = [
    "Column",
    "CompiledRule",
    "Entry",
    "PolicyCompiler",
    "PolicyRepository",
    "Table",
    "peer_selector",
]


def peer_selector(peer: PodPeer, namespace: str) -> Selector:
    """A pod peer as a selector on an identity's label set, for a policy of this namespace.

    Only pods have a namespace label, so nothing else (world, host, CIDR, init, unmanaged) matches
    even the emptiest selector.
    """
    if peer.namespace_selector is None:
        requirements = [Requirement(NAMESPACE_KEY, Operator.IN, (namespace,))]
    else:
        requirements = [Requirement(NAMESPACE_KEY, Operator.EXISTS)]
        requirements += peer.namespace_selector.rekeyed(namespace_label_key).requirements
    if peer.pod_selector is not None:
        requirements += peer.pod_selector.rekeyed(pod_label_key).requirements
    return Selector.of(requirements)


def _compiled_peers(
    peers: tuple[Peer, ...] | None, namespace: str
) -> tuple[Selector | IPBlock, ...] | None:
    if peers is None:
        return None
    found: dict[str, Selector | IPBlock] = {}
    for peer in peers:
        one = peer.block if isinstance(peer, BlockPeer) else peer_selector(peer, namespace)
        found[f"{type(one).__name__} {one.canonical()}"] = one
    return tuple(one for _spelling, one in sorted(found.items()))


@dataclass(frozen=True, slots=True)
class _Template:
    """A rule compiled as far as it can be without knowing the subject."""

    ref: RuleRef
    peers: tuple[Selector | IPBlock, ...] | None
    ranges: tuple[PortRange, ...] | None
    names: tuple[PortName, ...]

    @classmethod
    def of(cls, rule: Rule, ref: RuleRef) -> _Template:
        ranges = None if rule.ports is None else merge_ranges(map(_range, _numbered(rule.ports)))
        names = {
            PortName(one.protocol, one.port)
            for one in rule.ports or ()
            if isinstance(one.port, str)
        }
        return cls(ref, _compiled_peers(rule.peers, ref.namespace), ranges, tuple(sorted(names)))

    def compile(self, ports: Iterable[NamedPort]) -> CompiledRule | None:
        """The rule for a subject with these named ports; None if it then allows nothing.

        A subject with several ports of the name and protocol opens all of them.
        """
        ranges, names = self.ranges, self.names
        if ranges is not None and names and self.ref.direction is Direction.INGRESS:
            wanted = {(one.name, one.protocol) for one in names}
            own = [
                PortRange(port.protocol, port.number, port.number)
                for port in ports
                if (port.name, port.protocol) in wanted
            ]
            ranges, names = merge_ranges([*ranges, *own]), ()
        if ranges == () and not names:
            return None
        return CompiledRule(self.ref, self.peers, ranges, names)


def _numbered(ports: Iterable[Port]) -> list[Port]:
    return [one for one in ports if not isinstance(one.port, str)]


def _range(port: Port) -> PortRange:
    if port.port is None:
        return PortRange(port.protocol, 0, LAST_PORT)
    first = int(port.port)
    return PortRange(port.protocol, first, first if port.end is None else port.end)


class _Stored:
    """A policy in force with its compiled parts. A new revision of a policy is a new object."""

    __slots__ = ("blocks", "compiled", "egress_names", "names", "policy", "templates")

    def __init__(self, policy: NetworkPolicy) -> None:
        self.policy = policy
        self.templates = {
            direction: tuple(
                _Template.of(rule, policy.ref(direction, index))
                for index, rule in enumerate(policy.rules(direction))
            )
            for direction in policy.policy_types
        }
        every = [one for templates in self.templates.values() for one in templates]
        self.blocks = {
            peer for one in every for peer in one.peers or () if isinstance(peer, IPBlock)
        }
        self.names = {
            (name.name, name.protocol)
            for one in self.templates.get(Direction.INGRESS, ())
            for name in one.names
        }
        self.egress_names = {
            (name.name, name.protocol)
            for one in self.templates.get(Direction.EGRESS, ())
            for name in one.names
        }
        self.compiled: dict[tuple[Direction, tuple[NamedPort, ...]], tuple[CompiledRule, ...]] = {}

    def rules(self, direction: Direction, ports: tuple[NamedPort, ...]) -> tuple[CompiledRule, ...]:
        """Rules for a subject; one object for all subjects where no named port differs."""
        key = (direction, self._relevant(direction, ports))
        rules = self.compiled.get(key)
        if rules is None:
            found = (one.compile(key[1]) for one in self.templates[direction])
            rules = self.compiled[key] = tuple(rule for rule in found if rule is not None)
        return rules

    def _relevant(
        self, direction: Direction, ports: tuple[NamedPort, ...]
    ) -> tuple[NamedPort, ...]:
        if direction is Direction.EGRESS or not self.names:
            return ()
        return tuple(one for one in ports if (one.name, one.protocol) in self.names)


_TableKey = tuple[Direction, tuple[PolicyKey, ...], tuple[NamedPort, ...]]


_K = TypeVar("_K")


class PolicyRepository:
    """The policies in force, and the tables that they come to."""

    def __init__(self) -> None:
        self._stored: dict[PolicyKey, _Stored] = {}
        self._by_namespace: dict[str, SelectorIndex[PolicyKey]] = {}
        self._blocks: Counter[IPBlock] = Counter()
        self._port_names: Counter[tuple[str, int]] = Counter()
        # Weak: a table that no endpoint has any more goes by itself.
        self._tables: WeakValueDictionary[_TableKey, Table] = WeakValueDictionary()

    def upsert(self, policy: NetworkPolicy) -> None:
        """Put a policy in force, in place of the one with its key."""
        stored = _Stored(policy)
        self.remove(policy.key)
        self._stored[policy.key] = stored
        index = self._by_namespace.setdefault(policy.namespace, SelectorIndex())
        index.add(policy.key, policy.pod_selector)
        self._blocks.update(stored.blocks)
        self._port_names.update(stored.egress_names)

    def remove(self, key: PolicyKey) -> None:
        """Take a policy out of force; one that is not there is no error."""
        stored = self._stored.pop(key, None)
        if stored is None:
            return
        index = self._by_namespace[key.namespace]
        index.discard(key)
        if not len(index):
            del self._by_namespace[key.namespace]
        _uncount(self._blocks, stored.blocks)
        _uncount(self._port_names, stored.egress_names)
        for table_key in [one for one in self._tables if key in one[1]]:
            del self._tables[table_key]

    def policies(self) -> tuple[NetworkPolicy, ...]:
        """All policies in canonical order."""
        return tuple(self._stored[key].policy for key in sorted(self._stored))

    def get(self, key: PolicyKey) -> NetworkPolicy | None:
        """One policy, if it is in force."""
        stored = self._stored.get(key)
        return stored.policy if stored else None

    def isolating(
        self, direction: Direction, namespace: str, pod_labels: Mapping[str, str]
    ) -> tuple[PolicyKey, ...]:
        """Policies that isolate a pod in a direction, in canonical order."""
        index = self._by_namespace.get(namespace)
        if index is None:
            return ()
        found = [
            key
            for key in index.matching(pod_labels)
            if direction in self._stored[key].policy.policy_types
        ]
        return tuple(sorted(found))

    def table_for(
        self,
        direction: Direction,
        namespace: str,
        pod_labels: Mapping[str, str],
        ports: tuple[NamedPort, ...] = (),
    ) -> Table | None:
        """The table of a pod, or None where no policy isolates it in this direction.

        `pod_labels` are the pod's own labels, as they stand in its object, none left out; `ports`
        are its named container ports. Equal results are one object while the policies stand.
        """
        keys = self.isolating(direction, namespace, pod_labels)
        if not keys:
            return None
        policies = [self._stored[key] for key in keys]
        relevant: tuple[NamedPort, ...] = ()
        if direction is Direction.INGRESS and ports:
            names = {name for one in policies for name in one.names}
            relevant = tuple(sorted(one for one in set(ports) if (one.name, one.protocol) in names))
        key = (direction, keys, relevant)
        table = self._tables.get(key)
        if table is None:
            rules = [rule for one in policies for rule in one.rules(direction, relevant)]
            table = self._tables[key] = Table(direction, tuple(rules))
        return table

    def blocks(self) -> frozenset[IPBlock]:
        """Blocks that rules in force mention, for the address table."""
        return frozenset(self._blocks)

    def port_names(self) -> frozenset[tuple[str, int]]:
        """(name, protocol) of ports that egress rules in force mention, for the address table."""
        return frozenset(self._port_names)

    def peer_label_keys(self, key: PolicyKey) -> tuple[str, ...]:
        """Keys of identity labels that a policy's peers look at; see `LabelFilter.hides`."""
        stored = self._stored.get(key)
        templates = [] if stored is None else list(stored.templates.values())
        return tuple(
            sorted(
                {
                    label
                    for group in templates
                    for one in group
                    for peer in one.peers or ()
                    if isinstance(peer, Selector)
                    for label in peer.keys
                }
            )
        )


def _uncount(counter: Counter[_K], keys: Iterable[_K]) -> None:
    for key in keys:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]
