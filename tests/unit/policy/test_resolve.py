# SPDX-License-Identifier: Apache-2.0
"""The compiled tables against the naive evaluator, over random worlds."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from identity.ipcache import NamedPort, PeerClass
from identity.labels import LabelSet
from identity.reserved import Reserved
from policy.explain import Packet, verdict
from policy.levels import evaluate, intervals, mask, prefixes
from policy.model import Direction, NetworkPolicy, PolicyKey, ReservedRule, RuleRef
from policy.parse import parse_network_policy
from policy.resolve import Entry, PolicyRepository, Table
from tests.unit.policy import worlds


def check(world: worlds.World, random: Random, remotes: int = 4) -> int:
    """Every verdict of one pod equals the oracle's; gives how many came from a rule."""
    by_rule = 0
    subject = random.choice(list(world.pods.values()))
    ports = world.ports()
    for remote in world.remotes(random, remotes):
        if remote.pod is subject:
            continue  # a pod reaches itself before any table is asked
        peer = world.peer_class(remote)
        for direction in Direction:
            table = world.table(direction, subject)
            column = table.column(peer) if table else ()
            for protocol in worlds.PROBED_PROTOCOLS:
                for port in ports:
                    packet = Packet(direction, protocol, port)
                    wanted = verdict(world.policies, subject, remote, packet, world.label_filter)
                    if table is None:
                        assert (wanted.allowed, wanted.rule) == (True, ReservedRule.NO_POLICY)
                        continue
                    entry = evaluate(column, protocol, port, table.levels)
                    got = (entry.allow, entry.rule) if entry else (False, table.default_rule)
                    assert got == (wanted.allowed, wanted.rule), (subject, remote, packet, column)
                    by_rule += not isinstance(wanted.rule, ReservedRule)
    return by_rule


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False))
def test_tables_agree_with_the_oracle(random: Random) -> None:
    check(worlds.world(random), random)


def test_tables_agree_with_the_oracle_in_thousands_of_worlds() -> None:
    by_rule = 0
    for seed in range(2500):
        random = Random(seed)
        try:
            by_rule += check(worlds.world(random), random)
        except AssertionError as error:
            raise AssertionError(f"world of seed {seed}") from error
    assert by_rule > 50_000, "the worlds are too dull to prove anything"


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 65535), st.integers(0, 65535))
def test_prefixes_cover_exactly_and_minimally(one: int, other: int) -> None:
    first, last = sorted((one, other))
    found = list(prefixes(first, last))
    at = first
    for port, level in found:
        assert port == at and port & mask(level) == port
        at += 1 << (16 - level)
    assert at == last + 1
    # Two neighbours of one size are never the halves of one larger prefix: none can be merged.
    for (port, level), (_next, next_level) in pairwise(found):
        assert level != next_level or port & mask(level - 1) != port


def test_overlapping_rules_need_no_extra_entries() -> None:
    table = _table(
        [
            {"ports": [{"port": 80}]},
            {"ports": [{"protocol": "TCP"}]},
            {"ports": [{"port": 443}, {"protocol": "UDP", "port": 53}]},
        ]
    )
    places = [(e.protocol, e.port, e.level, _index(e)) for e in _entries(table)]
    assert places == [(6, 80, 16, 0), (6, 0, 0, 1), (17, 53, 16, 2)]
    assert table.levels == 1 << 0 | 1 << 16 | 1 << 17


def test_a_rule_without_ports_ends_the_column() -> None:
    table = _table([{"ports": [{"port": 80}]}, {}, {"ports": [{"port": 443}]}])
    entries = [(e.protocol, e.port, e.level, _index(e)) for e in _entries(table)]
    assert entries == [(6, 80, 16, 0), (0, 0, 17, 1)]


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_columns_stay_within_the_levels_of_their_table(random: Random) -> None:
    world = worlds.world(random)
    for pod in world.pods.values():
        for direction in Direction:
            table = world.table(direction, pod)
            for peer in world.ipcache.classes() if table else ():
                assert table is not None
                for entry in table.column(peer):
                    assert table.levels >> entry.level & 1
                    assert entry.level == 17 or entry.port & mask(entry.level) == entry.port


def test_nothing_but_pods_matches_an_empty_selector() -> None:
    table = _table([{"from": [{"podSelector": {}}, {"namespaceSelector": {}}]}])
    for one in Reserved:
        column = table.column(PeerClass(one, one.labels))
        assert bool(column) is (one is Reserved.HOST), one
    assert not table.column(PeerClass(1 << 24, LabelSet({"cidr:1.0.0.0/8": "", "k8s:app": "x"})))


def test_init_denies_all_but_the_node() -> None:
    for direction in Direction:
        table = Table.init(direction)
        assert table.default_rule is ReservedRule.INIT
        assert not table.column(PeerClass(300, LabelSet({"k8s:io.kubernetes.pod.namespace": "a"})))
        host = table.column(PeerClass(Reserved.HOST, Reserved.HOST.labels))
        assert host == (Entry(0, 0, 17, True, ReservedRule.NODE),)
        assert table.fingerprint != Table(direction).fingerprint


def test_tables_are_shared_and_change_only_with_their_policies() -> None:
    repository = PolicyRepository()
    for name, app in (("one", "web"), ("two", "db")):
        repository.upsert(_policy([{"ports": [{"port": "http"}]}], name, {"app": app}))
    web = {"app": "web"}
    http = (NamedPort("http", 6, 80),)
    first = repository.table_for(Direction.INGRESS, "a", web, http)
    other_port = repository.table_for(Direction.INGRESS, "a", web, (NamedPort("http", 6, 81),))
    unrelated = (*http, NamedPort("metrics", 6, 9100))
    assert repository.table_for(Direction.INGRESS, "a", {**web, "x": "y"}, unrelated) is first
    assert other_port != first
    assert repository.table_for(Direction.EGRESS, "a", web) is None
    assert repository.table_for(Direction.INGRESS, "b", web) is None
    repository.upsert(_policy([{}], "two", {"app": "db"}))
    assert repository.table_for(Direction.INGRESS, "a", web, http) is first
    repository.upsert(_policy([{}], "one", web))
    edited = repository.table_for(Direction.INGRESS, "a", web, http)
    assert edited != first and first is not None and len(first.rules) == 1
    repository.remove(repository.policies()[0].key)
    assert repository.table_for(Direction.INGRESS, "a", web, http) is None


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_repository_forgets_what_it_is_told_to(random: Random) -> None:
    """Any history of edits ends in what the last state alone gives."""
    history = [
        parse_network_policy(worlds.document(random, random.choice("pqr"))) for _ in range(12)
    ]
    edited = PolicyRepository()
    kept: dict[PolicyKey, NetworkPolicy] = {}
    held: list[Table | None] = []
    for policy in history:
        if random.random() < 0.3:
            edited.remove(policy.key)
            kept.pop(policy.key, None)
        else:
            edited.upsert(policy)
            kept[policy.key] = policy
        held += [edited.table_for(direction, "a", {"app": "web"}) for direction in Direction]
    fresh = PolicyRepository()
    for policy in kept.values():
        fresh.upsert(policy)
    assert edited.policies() == fresh.policies()
    assert (edited.blocks(), edited.port_names()) == (fresh.blocks(), fresh.port_names())
    for direction in Direction:
        for namespace in worlds.NAMESPACES:
            for app in worlds.LABELS["app"]:
                pod = (direction, namespace, {"app": app}, worlds.NAMED)
                assert edited.table_for(*pod) == fresh.table_for(*pod)


def test_fingerprints_are_stable_over_processes() -> None:
    code = (
        "from tests.unit.policy.test_resolve import _table;"
        "print(_table([{'from': [{'podSelector': {'matchLabels': {'a': 'b', 'c': 'd'}}},"
        "{'ipBlock': {'cidr': '10.0.0.0/8'}}], 'ports': [{'port': 80}]}]).fingerprint.hex())"
    )
    seen = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        seen.add(done.stdout)
    assert len(seen) == 1


def test_a_table_refuses_rules_out_of_order() -> None:
    rules = _table([{}, {"ports": [{"port": 1}]}]).rules
    with pytest.raises(ValueError, match="canonical order"):
        Table(Direction.INGRESS, tuple(reversed(rules)))
    with pytest.raises(ValueError, match="other direction"):
        Table(Direction.EGRESS, rules)


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False))
def test_elementary_intervals_hold_one_verdict_each(random: Random) -> None:
    world = worlds.world(random)
    pod = random.choice(list(world.pods.values()))
    table = world.table(Direction.INGRESS, pod)
    peer = world.peer_class(random.choice(world.remotes(random, 3)))
    column = table.column(peer) if table else ()
    for protocol in (6, 17):
        pieces = intervals(column, protocol)
        assert pieces[0][0] == 0 and pieces[-1][1] == 65535
        for first, last in pieces:
            inside = {first, last, *(random.randint(first, last) for _ in range(3))}
            assert len({evaluate(column, protocol, port) for port in inside}) == 1


def _policy(rules: object, name: str = "p", selector: object = None) -> NetworkPolicy:
    labels = {} if selector is None else {"matchLabels": selector}
    return parse_network_policy(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "a"},
            "spec": {"podSelector": labels, "ingress": rules},
        }
    )


def _table(rules: object) -> Table:
    repository = PolicyRepository()
    repository.upsert(_policy(rules))
    table = repository.table_for(Direction.INGRESS, "a", {})
    assert table is not None
    return table


def _entries(table: Table) -> tuple[Entry, ...]:
    return table.column(PeerClass(Reserved.WORLD_IPV4, Reserved.WORLD_IPV4.labels))


def _index(entry: Entry) -> int:
    assert isinstance(entry.rule, RuleRef)
    return entry.rule.index
