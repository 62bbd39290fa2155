# SPDX-License-Identifier: Apache-2.0
"""The incremental compiler against columns computed one by one."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from identity.ipcache import HOST_CLASS, PeerClass
from policy.compiler import PolicyCompiler
from policy.model import Direction
from policy.resolve import Column, Table
from tests.unit.policy import worlds

Columns = dict[tuple[int, int], Column]


def material(random: Random) -> tuple[list[Table], list[PeerClass]]:
    """Tables and classes of two worlds, so that many rules and label sets are shared."""
    tables: dict[Table, None] = {Table.init(Direction.INGRESS): None}
    classes: dict[PeerClass, None] = {HOST_CLASS: None}
    for _ in range(2):
        world = worlds.world(random, most_policies=6)
        classes.update(dict.fromkeys(world.ipcache.classes()))
        for pod in world.pods.values():
            for direction in Direction:
                table = world.table(direction, pod)
                if table is not None:
                    tables[table] = None
    return list(tables), list(classes)


def naive(tables: dict[int, Table], classes: dict[int, PeerClass]) -> Columns:
    every = {(t, c): tables[t].column(classes[c]) for t in tables for c in classes}
    return {pair: column for pair, column in every.items() if column}


@settings(max_examples=120, deadline=None)
@given(st.randoms(use_true_random=False))
def test_any_order_of_events_ends_in_the_same_columns(random: Random) -> None:
    all_tables, all_classes = material(random)
    compiler = PolicyCompiler()
    mirror: Columns = {}
    tables: dict[int, Table] = {}
    classes: dict[int, PeerClass] = {}
    for _ in range(random.randint(5, 60)):
        number = random.randint(1, 12)
        if random.random() < 0.5:
            _table_event(random, compiler, tables, all_tables, mirror, number)
        else:
            _class_event(random, compiler, classes, all_classes, mirror, number)
        assert mirror == naive(tables, classes)
    for number in tables:
        expected = {c: column for (t, c), column in mirror.items() if t == number}
        assert compiler.columns(number) == expected
    for number in classes:
        expected = {t: column for (t, c), column in mirror.items() if c == number}
        assert compiler.class_columns(number) == expected
    fresh = PolicyCompiler()
    for number, peer in classes.items():
        fresh.add_class(number, peer)
    for number, table in tables.items():
        fresh.add_table(number, table)
    sizes = {name: (compiler.sizes()[name], size) for name, size in fresh.sizes().items()}
    del sizes["columns"]  # combinations that occurred before are kept while their rules live
    assert all(one == other for one, other in sizes.values()), sizes
    for number in [*tables]:
        compiler.remove_table(number)
    for number in [*classes]:
        compiler.remove_class(number)
    left = {name: size for name, size in compiler.sizes().items() if size}
    assert not left, "what nobody uses any more is kept"


def _table_event(
    random: Random,
    compiler: PolicyCompiler,
    tables: dict[int, Table],
    choice: list[Table],
    mirror: Columns,
    number: int,
) -> None:
    if number in tables and random.random() < 0.7:
        del tables[number]
        gone = compiler.remove_table(number)
        assert gone == {c for t, c in mirror if t == number}
        for one in gone:
            del mirror[number, one]
        return
    table = tables.setdefault(number, random.choice(choice))
    mirror.update({(number, c): col for c, col in compiler.add_table(number, table).items()})


def _class_event(
    random: Random,
    compiler: PolicyCompiler,
    classes: dict[int, PeerClass],
    choice: list[PeerClass],
    mirror: Columns,
    number: int,
) -> None:
    if number in classes and random.random() < 0.7:
        del classes[number]
        gone = compiler.remove_class(number)
        assert gone == {t for t, c in mirror if c == number}
        for one in gone:
            del mirror[one, number]
        return
    peer = classes.setdefault(number, random.choice(choice))
    mirror.update({(t, number): col for t, col in compiler.add_class(number, peer).items()})


def test_equal_combinations_share_one_column() -> None:
    random = Random(5)
    shared = 0
    for _ in range(20):
        tables, classes = material(random)
        compiler = PolicyCompiler()
        for number, peer in enumerate(classes):
            compiler.add_class(number, peer)
        columns = [
            c for n, table in enumerate(tables) for c in compiler.add_table(n, table).values()
        ]
        assert len({id(column) for column in columns}) <= compiler.sizes()["columns"] + 1
        shared += len(columns) - len({id(column) for column in columns})
    assert shared > 100


def test_a_number_never_means_two_things_at_once() -> None:
    compiler = PolicyCompiler()
    compiler.add_table(1, Table(Direction.INGRESS))
    with pytest.raises(ValueError, match="table 1 is in use"):
        compiler.add_table(1, Table(Direction.EGRESS))
    compiler.add_class(1, HOST_CLASS)
    with pytest.raises(ValueError, match="class 1 is in use"):
        compiler.add_class(1, PeerClass(256, HOST_CLASS.labels))
    assert compiler.remove_table(7) == compiler.remove_class(7) == set()
