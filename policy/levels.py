# SPDX-License-Identifier: Apache-2.0
"""Levels: how port intervals become hash keys, and how the kernel reads them.

Level n (0 to 16) holds entries for the ports of one protocol that agree in their first n bits;
level 17 holds those for every protocol. The highest level that matches is final, 16 down to 0, then
17 (`enum policy_level` in bpf/lib/layout.h).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final, Protocol, TypeVar

ANY_PORT: Final = 0
EXACT_PORT: Final = 16
ANY_PROTOCOL: Final = 17
ALL_LEVELS: Final = (1 << 18) - 1


class Cell(Protocol):
    """What an entry needs for its place to be known; `port` in host order."""

    @property
    def protocol(self) -> int: ...
    @property
    def port(self) -> int: ...
    @property
    def level(self) -> int: ...


_C = TypeVar("_C", bound=Cell)


def mask(level: int) -> int:
    """Bits of a port that count at a level of 0 to 16."""
    return 0xFFFF & ~(0xFFFF >> level)


def prefixes(first: int, last: int) -> Iterator[tuple[int, int]]:
    """The fewest (port, level) prefixes that cover exactly the ports from first to last."""
    while first <= last:
        # As many low zero bits as the start has, as long as that does not go beyond the end.
        size = first & -first or 1 << 16
        while size > last - first + 1:
            size >>= 1
        yield first, 17 - size.bit_length()
        first += size


def merged(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Intervals (both ends included) sorted, those that overlap or touch made one."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(intervals):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def evaluate(cells: Iterable[_C], protocol: int, port: int, levels: int = ALL_LEVELS) -> _C | None:
    """The cell that decides a packet, or None for default deny.

    This is the kernel's look-up, step by step: levels whose bit is not in `levels` are not asked,
    and a cell whose low port bits are not zero is never found.
    """
    table = {(cell.level, cell.protocol, cell.port): cell for cell in cells}
    for level in range(EXACT_PORT, -1, -1):
        if levels >> level & 1:
            found = table.get((level, protocol, port & mask(level)))
            if found is not None:
                return found
    return table.get((ANY_PROTOCOL, 0, 0)) if levels >> ANY_PROTOCOL & 1 else None


def intervals(cells: Collection[Cell], protocol: int) -> list[tuple[int, int]]:
    """Elementary port intervals of a protocol: inside each one every port has the same verdict."""
    starts = {0}
    for cell in cells:
        if cell.protocol == protocol and 0 <= cell.level <= EXACT_PORT:
            first = cell.port & mask(cell.level)
            starts.add(first)
            starts.add(first + (1 << (EXACT_PORT - cell.level)))
    ordered = sorted(start for start in starts if start <= 0xFFFF)
    ends = [start - 1 for start in ordered[1:]] + [0xFFFF]
    return list(zip(ordered, ends, strict=True))
