# SPDX-License-Identifier: Apache-2.0
"""Columns as records of the policy map.

Many (table, class) pairs share one column object, so its records are packed once and only table
and class are put before them.
"""

from __future__ import annotations

import struct
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final

from agent.core.delta import PolicyDelta
from agent.core.numbers import Numbers, fingerprint
from bpf.layouts import NumberKind, PolicyAction, PolicyKey, PolicyVerdict
from policy.model import ReservedRule, RuleName, RuleRef
from policy.tables import Column

_HEAD: Final = struct.Struct("=II")
_KEPT: Final = 4096


class ColumnPacker:
    """Packs columns; hands out the numbers of rules, and knows what they mean."""

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        self._rules: dict[RuleRef, int] = {}
        self._users: Counter[RuleRef] = Counter()
        self._names: dict[int, RuleRef] = {}
        # By identity: columns are shared objects, and comparing them would cost more than packing.
        self._packed: OrderedDict[int, tuple[Column, tuple[bytes, ...], bytes]] = OrderedDict()

    def rule_number(self, rule: RuleName) -> int:
        """The number that the programs report for a rule."""
        if isinstance(rule, ReservedRule):
            return int(rule)
        number = self._rules.get(rule)
        if number is None:
            number = self._numbers.allocate(NumberKind.NUMBER_RULE, fingerprint(str(rule)))
            self._rules[rule] = number
            self._names[number] = rule
        return number

    def rule_ref(self, number: int) -> RuleRef | None:
        """The rule of a number, also while the number rests. May be called from any thread."""
        return self._names.get(number)

    def rule_names(self) -> dict[int, RuleRef]:
        """Every rule that has a number, also of those that rest."""
        return dict(self._names)

    def use(self, rules: Iterable[RuleRef]) -> None:
        """One more table has these rules."""
        self._users.update(rules)

    def unuse(self, rules: Iterable[RuleRef], now: float) -> None:
        """Undo `use`: the numbers of rules that no table has any more begin their rest.

        Columns with them are not packed again: the compiler makes new ones if they come back.
        """
        for rule in rules:
            self._users[rule] -= 1
            if self._users[rule] <= 0:
                del self._users[rule]
                number = self._rules.pop(rule, None)
                if number is not None:
                    self._numbers.release(NumberKind.NUMBER_RULE, number, now)

    def forget(self, number: int) -> None:
        """A rule number's rest is over: it means nothing now."""
        rule = self._names.get(number)
        if rule is not None and self._rules.get(rule) != number:
            del self._names[number]

    @property
    def used_numbers(self) -> frozenset[int]:
        """Rule numbers that tables have now."""
        return frozenset(self._rules.values())

    def pack(self, delta: PolicyDelta, table: int, peer_class: int, column: Column) -> int:
        """Add a column's records to what is written; gives how many there are."""
        tails, values = self._column(column)
        head = _HEAD.pack(table, peer_class)
        for tail in tails:
            delta.keys += head
            delta.keys += tail
        delta.values += values
        return len(tails)

    def pack_table(self, delta: PolicyDelta, table: int, columns: Mapping[int, Column]) -> None:
        """As `pack` for all columns of a table at once, many times faster where they are many."""
        import numpy as np

        sharing: dict[int, tuple[Column, list[int]]] = {}
        for peer_class, column in columns.items():
            shared = sharing.get(id(column))
            if shared is None:
                shared = sharing[id(column)] = (column, [])
            shared[1].append(peer_class)
        for column, classes in sharing.values():
            tails, values = self._column(column)
            rows = np.empty((len(classes), len(tails), PolicyKey.SIZE // 4), dtype=np.uint32)
            rows[:, :, 0] = table
            rows[:, :, 1] = np.array(classes, dtype=np.uint32)[:, np.newaxis]
            rows[:, :, 2] = np.frombuffer(b"".join(tails), dtype=np.uint32)
            delta.keys += rows.tobytes()
            delta.values += values * len(classes)

    def pack_deletes(self, delta: PolicyDelta, table: int, peer_class: int, column: Column) -> int:
        """Add a column's keys to what is deleted; gives how many there are."""
        tails, _ = self._column(column)
        head = _HEAD.pack(table, peer_class)
        for tail in tails:
            delta.deletes += head
            delta.deletes += tail
        return len(tails)

    def _column(self, column: Column) -> tuple[tuple[bytes, ...], bytes]:
        known = self._packed.get(id(column))
        if known is not None:
            return known[1], known[2]
        tails = tuple(
            PolicyKey(0, 0, entry.port, entry.protocol, entry.level).pack()[_HEAD.size :]
            for entry in column
        )
        values = b"".join(
            PolicyVerdict(
                self.rule_number(entry.rule),
                PolicyAction.ACTION_ALLOW if entry.allow else PolicyAction.ACTION_DENY,
            ).pack()
            for entry in column
        )
        # The column is kept with its id, so that the id stays its own.
        self._packed[id(column)] = (column, tails, values)
        if len(self._packed) > _KEPT:
            self._packed.popitem(last=False)
        return tails, values
