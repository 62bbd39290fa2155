# SPDX-License-Identifier: Apache-2.0
"""Nothing that is wrong in the kernel escapes the comparison, and nothing right is reported."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.equivalence import OTHER_PROTOCOLS, NumberedEntry, Verdict, compare
from policy.levels import evaluate, mask

Cells = list[NumberedEntry]


def entry(random: Random) -> NumberedEntry:
    level = random.choice((0, 1, 8, 14, 15, 16, 16, 17))
    if level == 17:
        return NumberedEntry(0, 0, 17, random.random() < 0.8, random.randint(256, 258))
    protocol = random.choice((6, 17))
    port = random.choice((0, 80, 81, 82, 255, 256, 65535)) & mask(level)
    return NumberedEntry(protocol, port, level, random.random() < 0.8, random.randint(256, 258))


def column(random: Random) -> Cells:
    found = {one[:3]: one for one in (entry(random) for _ in range(random.randint(0, 6)))}
    return list(found.values())


def altered(random: Random, cells: Cells) -> Cells:
    """The column with one entry deleted, added or changed."""
    kind = random.choice(("delete", "add", "change")) if cells else "add"
    if kind == "add":
        present = {one[:3] for one in cells}
        fresh = [one for one in (entry(random) for _ in range(99)) if one[:3] not in present]
        return [*cells, fresh[0]]
    victim = random.choice(cells)
    rest = [one for one in cells if one is not victim]
    if kind == "delete":
        return rest
    changes = (
        victim._replace(allow=not victim.allow),
        victim._replace(rule=victim.rule + 1),
        victim._replace(port=victim.port ^ 1),
        victim._replace(level=3),
    )
    return [*rest, random.choice(changes)]


def brute_force(wanted: Cells, found: Cells, protocol: int, levels: int) -> set[int]:
    """Ports whose verdicts differ."""
    probes = {edge + step for one in wanted + found for edge in _edges(one) for step in (-1, 0, 1)}
    different = set()
    for port in {0, 65535, *(probe for probe in probes if 0 <= probe <= 65535)}:
        one, other = evaluate(wanted, protocol, port), evaluate(found, protocol, port, levels)
        if verdict(one) != verdict(other):
            different.add(port)
    return different


def _edges(one: NumberedEntry) -> tuple[int, int]:
    first = one.port & mask(min(one.level, 16))
    return first, first + (1 << (16 - min(one.level, 16)))


@settings(max_examples=400, deadline=None)
@given(st.randoms(use_true_random=False))
def test_every_single_alteration_is_found(random: Random) -> None:
    wanted = column(random)
    assert not list(compare({(1, 2): wanted}, {(1, 2): list(reversed(wanted))}))
    found = altered(random, wanted)
    assert list(compare({(1, 2): wanted}, {(1, 2): found}))
    assert list(compare({(1, 2): found}, {(1, 2): wanted}))


@settings(max_examples=400, deadline=None)
@given(st.randoms(use_true_random=False))
def test_differences_are_those_of_the_verdicts(random: Random) -> None:
    wanted, found = column(random), column(random)
    levels = random.choice(((1 << 18) - 1, 1 << 16 | 1 << 17))
    differences = list(compare({(1, 2): wanted}, {(1, 2): found}, {1: levels}))
    for protocol in (6, 17, 132):
        # A protocol that no entry names is reported with all others of that kind.
        named = any(one.protocol == protocol for one in wanted + found)
        key = protocol if named else OTHER_PROTOCOLS
        reported = [one for one in differences if one.protocol == key and one.entry is None]
        for port in brute_force(wanted, found, protocol, levels):
            assert any(one.first_port <= port <= one.last_port for one in reported)
        for one in reported:
            for port in {one.first_port, one.last_port}:
                assert one.wanted != one.found
                assert one.wanted == verdict(evaluate(wanted, protocol, port))
                assert one.found == verdict(evaluate(found, protocol, port, levels))


def verdict(cell: NumberedEntry | None) -> Verdict | None:
    return cell.verdict if cell else None


def test_missing_and_surplus_columns_are_found_and_said() -> None:
    cell = NumberedEntry(6, 80, 16, True, 300)
    texts = [str(one) for one in compare({(1, 2): [cell]}, {(1, 3): [cell]})]
    assert texts == [
        "table 1 class 2 protocol 6 ports 80-80: kernel denies by default, "
        "policies allows by rule 300",
        "table 1 class 3 protocol 6 ports 80-80: kernel allows by rule 300, "
        "policies denies by default",
    ]


def test_an_entry_without_effect_is_found_too() -> None:
    wide = NumberedEntry(6, 0, 0, True, 300)
    hidden = NumberedEntry(6, 80, 16, True, 300)
    (one,) = compare({(1, 2): [wide]}, {(1, 2): [wide, hidden]})
    assert one.entry == hidden and "should not be there" in str(one)
    (one,) = compare({(1, 2): [wide, hidden]}, {(1, 2): [wide]})
    assert one.entry == hidden and "is missing" in str(one)
