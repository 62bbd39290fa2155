# SPDX-License-Identifier: Apache-2.0
"""All columns of all live tables and classes, kept up to date by what a change touches.

Three facts make it fast and small. Classes that share a label set share every answer of every
selector, so selectors are matched once per label set, through indexes. Rules and peers that tables
share exist once. And a column depends only on which rules match, so the few combinations that occur
have one column object each, whichever table and class they belong to.

    class --- label set --- selector --- rule --- table
          \\- block ----------------------/

No column is stored by (table, class): those of one table or one class are put together when asked
for, in well under a millisecond. Columns are pure, so what has to be deleted is known the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import astuple

from identity.index import LabelIndex, SelectorIndex
from identity.labels import LabelSet
from identity.peers import IPBlock, NamedPort, PeerClass
from identity.reserved import Reserved
from identity.selectors import Selector
from policy.tables import HOST_COLUMN, Column, CompiledRule, Table, build_column


class _Labels:
    """A label set in use. Lists, not sets: there are 100,000s of these links."""

    __slots__ = ("classes", "labels", "peers")

    def __init__(self, labels: LabelSet) -> None:
        self.labels = labels
        self.classes: set[int] = set()
        self.peers: list[_Peer] = []


class _Peer:
    """A selector that rules in use have, or a block that rules or classes have, with what it
    selects."""

    __slots__ = ("classes", "labels", "peer", "rules")

    def __init__(self, peer: Selector | IPBlock) -> None:
        self.peer = peer
        self.rules: dict[_Rule, None] = {}
        self.labels: list[_Labels] = []  # of a selector
        self.classes: set[int] = set()  # of a block


class _Rule:
    """A rule that tables in use have. `columns`: where it is part of the combination."""

    __slots__ = ("combinations", "is_final", "order", "peers", "rule", "tables")

    def __init__(self, rule: CompiledRule, peers: list[_Peer] | None) -> None:
        self.rule = rule
        self.order = astuple(rule.ref)
        self.peers = peers
        self.tables: set[int] = set()
        self.is_final = rule.ranges is None
        self.combinations: set[_Combination] = set()

    def selected(self) -> set[int]:
        """Numbers of the classes that one of the rule's peers selects, hosts too."""
        found: set[int] = set()
        for peer in self.peers or ():
            found.update(peer.classes, *(labels.classes for labels in peer.labels))
        return found


_Combination = tuple[tuple[_Rule, ...], tuple[NamedPort, ...]]


class PolicyCompiler:
    """Live tables and classes by number. Every change gives the columns that come or go with it.

    Only columns with entries are ever given; any other pair of a live table and class is all
    denied. A number that is in use cannot be given another meaning: ValueError.
    """

    def __init__(self) -> None:
        self._tables: dict[int, Table] = {}
        self._classes: dict[int, PeerClass] = {}
        self._hosts: set[int] = set()
        self._everyone: set[int] = set()  # classes that are not hosts
        self._rules: dict[CompiledRule, _Rule] = {}
        self._anybody: dict[_Rule, None] = {}  # rules for any peer
        self._peers: dict[Selector | IPBlock, _Peer] = {}
        self._labels: dict[LabelSet, _Labels] = {}
        self._selectors: SelectorIndex[_Peer] = SelectorIndex()
        self._label_index: LabelIndex[_Labels] = LabelIndex()
        self._columns: dict[_Combination, Column] = {}

    @property
    def tables(self) -> Mapping[int, Table]:
        """Live tables by number; not to be changed."""
        return self._tables

    @property
    def classes(self) -> Mapping[int, PeerClass]:
        """Live classes by number; not to be changed."""
        return self._classes

    def add_table(self, number: int, table: Table) -> dict[int, Column]:
        """Take a table in; gives its columns by class number."""
        present = self._tables.get(number)
        if present is not None and present != table:
            raise ValueError(f"table {number} is in use for another policy; remove it first")
        if present is None:
            self._tables[number] = table
            for rule in table.rules:
                self._rule(rule).tables.add(number)
        return self.columns(number)

    def remove_table(self, number: int) -> set[int]:
        """Take a table out; gives the classes it had columns for. An unknown one is no error."""
        table = self._tables.get(number)
        if table is None:
            return set()
        gone = set(self.columns(number))
        del self._tables[number]
        for rule in table.rules:
            record = self._rules[rule]
            record.tables.discard(number)
            if not record.tables:
                self._drop_rule(record)
        return gone

    def add_class(self, number: int, peer: PeerClass) -> dict[int, Column]:
        """Take a class in; gives its columns by table number."""
        present = self._classes.get(number)
        if present is not None and present != peer:
            raise ValueError(f"class {number} is in use for another peer; remove it first")
        if present is None:
            self._classes[number] = peer
            kind = self._hosts if peer.identity == Reserved.HOST else self._everyone
            kind.add(number)
            self._labelled(peer.labels).classes.add(number)
            for block in peer.blocks:
                self._peer(block).classes.add(number)
        return self.class_columns(number)

    def remove_class(self, number: int) -> set[int]:
        """Take a class out; gives the tables it had columns in. An unknown one is no error."""
        peer = self._classes.get(number)
        if peer is None:
            return set()
        gone = set(self.class_columns(number))
        del self._classes[number]
        self._hosts.discard(number)
        self._everyone.discard(number)
        for block in peer.blocks:
            record = self._peers[block]
            record.classes.discard(number)
            self._drop_unused(record)
        labels = self._labels[peer.labels]
        labels.classes.discard(number)
        if not labels.classes:
            self._drop_labels(labels)
        return gone

    def columns(self, number: int) -> dict[int, Column]:
        """Columns of a live table by class number. KeyError for a table that is not live."""
        table = self._tables[number]
        found: dict[int, Column] = dict.fromkeys(self._hosts, HOST_COLUMN)
        for rules, members in self._combinations(table):
            if any(one.rule.names for one in rules):
                pairs = ((one, self._column(rules, self._classes[one].ports)) for one in members)
                found.update((one, column) for one, column in pairs if column)
            else:
                found.update(dict.fromkeys(members, self._column(rules, ())))
        return found

    def class_columns(self, number: int) -> dict[int, Column]:
        """Columns of a live class by table number. KeyError for a class that is not live."""
        peer = self._classes[number]
        if number in self._hosts:
            return dict.fromkeys(self._tables, HOST_COLUMN)
        matching = dict(self._anybody)
        for record in self._labels[peer.labels].peers:
            matching.update(record.rules)
        for block in peer.blocks:
            matching.update(self._peers[block].rules)
        hits: dict[int, list[_Rule]] = {}
        # In canonical order over all tables, so that each table's rules come in its own order.
        for rule in sorted(matching, key=_order):
            for table in rule.tables:
                rules = hits.setdefault(table, [])
                if not (rules and rules[-1].is_final):
                    rules.append(rule)
        columns = {}
        for table, rules in hits.items():
            named = any(one.rule.names for one in rules)
            column = self._column(tuple(rules), peer.ports if named else ())
            if column:
                columns[table] = column
        return columns

    def column(self, table: int, peer_class: int) -> Column:
        """One column, computed from table and class alone. KeyError if either is not live."""
        return self._tables[table].column(self._classes[peer_class])

    def sizes(self) -> dict[str, int]:
        """How much it holds of what; for metrics, and to see that nothing is left behind."""
        return {
            "tables": len(self._tables),
            "classes": len(self._classes) + len(self._hosts) + len(self._everyone),
            "rules": len(self._rules) + len(self._anybody),
            "peers": len(self._peers) + len(self._selectors),
            "labels": len(self._labels) + len(self._label_index),
            "columns": len(self._columns),
            "links": sum(len(one.labels) for one in self._peers.values())
            + sum(len(one.peers) for one in self._labels.values()),
        }

    def _combinations(self, table: Table) -> Iterator[tuple[tuple[_Rule, ...], set[int]]]:
        """Classes of a table by the rules that match them, from none matched on refined by each.

        A rule without ports ends a combination: no later one is ever the first to allow.
        """
        groups: dict[tuple[_Rule, ...], set[int]] = {}
        left = self._everyone
        for rule in table.rules:
            record = self._rules[rule]
            selected = self._everyone if record.peers is None else record.selected()
            refined: dict[tuple[_Rule, ...], set[int]] = {}
            for rules, members in groups.items():
                both = set() if rules[-1].is_final else members & selected
                if not both:
                    refined[rules] = members
                    continue
                refined[*rules, record] = both
                if len(both) < len(members):
                    refined[rules] = members - both
            fresh = left & selected
            if fresh:
                refined[(record,)] = fresh
                left = left - fresh
            groups = refined
        yield from groups.items()

    def _column(self, rules: tuple[_Rule, ...], ports: tuple[NamedPort, ...]) -> Column:
        """The one column object of a combination of rules."""
        combination = (rules, ports)
        column = self._columns.get(combination)
        if column is None:
            column = build_column([one.rule for one in rules], ports)
            self._columns[combination] = column
            for one in rules:
                one.combinations.add(combination)
        return column

    def _rule(self, rule: CompiledRule) -> _Rule:
        record = self._rules.get(rule)
        if record is None:
            peers = None if rule.peers is None else [self._peer(one) for one in rule.peers]
            record = self._rules[rule] = _Rule(rule, peers)
            if peers is None:
                self._anybody[record] = None
            for peer in peers or ():
                peer.rules[record] = None
        return record

    def _peer(self, peer: Selector | IPBlock) -> _Peer:
        record = self._peers.get(peer)
        if record is None:
            record = self._peers[peer] = _Peer(peer)
            if isinstance(peer, Selector):
                self._selectors.add(record, peer)
                record.labels.extend(self._label_index.matching(peer))
                for labels in record.labels:
                    labels.peers.append(record)
        return record

    def _labelled(self, labels: LabelSet) -> _Labels:
        record = self._labels.get(labels)
        if record is None:
            record = self._labels[labels] = _Labels(labels)
            self._label_index.add(record, labels)
            record.peers.extend(self._selectors.matching(labels))
            for peer in record.peers:
                peer.labels.append(record)
        return record

    def _drop_labels(self, record: _Labels) -> None:
        del self._labels[record.labels]
        self._label_index.discard(record)
        for peer in record.peers:
            peer.labels.remove(record)

    def _drop_rule(self, record: _Rule) -> None:
        del self._rules[record.rule]
        self._anybody.pop(record, None)
        for combination in record.combinations:
            del self._columns[combination]
            for other in combination[0]:
                if other is not record:
                    other.combinations.discard(combination)
        for peer in record.peers or ():
            del peer.rules[record]
            self._drop_unused(peer)

    def _drop_unused(self, record: _Peer) -> None:
        if record.rules or record.classes:
            return
        del self._peers[record.peer]
        self._selectors.discard(record)
        for labels in record.labels:
            labels.peers.remove(record)


def _order(record: _Rule) -> tuple[object, ...]:
    return record.order
