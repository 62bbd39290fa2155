# SPDX-License-Identifier: Apache-2.0
"""Is what the kernel holds what the policies say? Exhaustively, cell by cell.

Both sides are entries with rule numbers. Each protocol's ports are cut at every boundary of either
side; inside a piece neither verdict changes, so one look-up per side and piece (with the kernel's
own semantics, `policy.levels.evaluate`) covers all 65,536 ports of all 256 protocols.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from policy.levels import ALL_LEVELS, ANY_PROTOCOL, evaluate, intervals
from policy.model import LAST_PORT

OTHER_PROTOCOLS: Final = 256
"""Stands for every protocol that neither side's entries name."""


class Verdict(NamedTuple):
    """What a packet meets: whether it passes, and the number of the rule that says so."""

    allow: bool
    rule: int


class NumberedEntry(NamedTuple):
    """An entry as the kernel has it. `port` is in host order, `rule` a rule number."""

    protocol: int
    port: int
    level: int
    allow: bool
    rule: int

    @property
    def verdict(self) -> Verdict:
        """What it says."""
        return Verdict(self.allow, self.rule)


Pair = tuple[int, int]
"""Number of the table, number of the peer class."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which kernel and policies differ.

    Either packets of `protocol` (OTHER_PROTOCOLS: every one not named) to the ports from
    `first_port` to `last_port` meet `found` instead of `wanted`, None being default deny; or, if
    `entry` is set, that one entry is too much or missing or altered without changing any verdict.
    """

    table: int
    peer_class: int
    protocol: int
    first_port: int
    last_port: int
    wanted: Verdict | None
    found: Verdict | None
    entry: NumberedEntry | None = None

    def __str__(self) -> str:
        protocol = "any other" if self.protocol == OTHER_PROTOCOLS else str(self.protocol)
        ports = f"{self.first_port}-{self.last_port}"
        where = f"table {self.table} class {self.peer_class} protocol {protocol} ports {ports}"
        if self.entry is not None:
            state = "is missing" if self.found is None else "should not be there"
            return f"{where}: entry at level {self.entry.level} {state}; no verdict differs"
        return f"{where}: kernel {_spoken(self.found)}, policies {_spoken(self.wanted)}"


def compare(
    desired: Mapping[Pair, Iterable[NumberedEntry]],
    actual: Mapping[Pair, Iterable[NumberedEntry]],
    levels: Mapping[int, int] | None = None,
) -> Iterator[Difference]:
    """Every difference between what should be there and what is, in order of table and class.

    A pair that one side lacks has no entries there. `levels` gives the level bits that endpoints
    have for a table, for those where the kernel asks fewer than all levels.
    """
    for pair in sorted(desired.keys() | actual.keys()):
        wanted = frozenset(desired.get(pair, ()))
        found = frozenset(actual.get(pair, ()))
        asked = ALL_LEVELS if levels is None else levels.get(pair[0], ALL_LEVELS)
        if wanted != found or asked != ALL_LEVELS:
            yield from compare_column(pair, wanted, found, asked)


def compare_column(
    pair: Pair,
    wanted: frozenset[NumberedEntry],
    found: frozenset[NumberedEntry],
    levels: int = ALL_LEVELS,
) -> Iterator[Difference]:
    """Differences of one table and class; `levels` are those that the kernel asks.

    Differences in verdicts come first. Only where there are none, entries that differ are listed.
    """
    is_equal = True
    for protocol in _protocols(wanted | found):
        pieces = [(0, LAST_PORT)]
        if protocol != OTHER_PROTOCOLS:
            pieces = intervals(wanted | found, protocol)
        run: Difference | None = None
        for first, last in pieces:
            should = _verdict(evaluate(wanted, protocol, first))
            does = _verdict(evaluate(found, protocol, first, levels))
            if should == does:
                continue
            is_equal = False
            if run is not None and (run.last_port + 1, run.wanted, run.found) == (
                first,
                should,
                does,
            ):
                first = run.first_port
            elif run is not None:
                yield run
            run = Difference(*pair, protocol, first, last, should, does)
        if run is not None:
            yield run
    if is_equal:
        for entry in sorted(wanted ^ found):
            yield _idle(pair, entry, entry in wanted)


def _protocols(entries: Iterable[NumberedEntry]) -> list[int]:
    return [
        *sorted({one.protocol for one in entries if one.level != ANY_PROTOCOL}),
        OTHER_PROTOCOLS,
    ]


def _verdict(entry: NumberedEntry | None) -> Verdict | None:
    return None if entry is None else entry.verdict


def _idle(pair: Pair, entry: NumberedEntry, is_wanted: bool) -> Difference:
    wanted, found = (entry.verdict, None) if is_wanted else (None, entry.verdict)
    return Difference(*pair, entry.protocol, entry.port, entry.port, wanted, found, entry)


def _spoken(verdict: Verdict | None) -> str:
    if verdict is None:
        return "denies by default"
    return f"{'allows' if verdict.allow else 'denies'} by rule {verdict.rule}"
