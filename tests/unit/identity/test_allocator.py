# SPDX-License-Identifier: Apache-2.0
"""One number never stands for two things, and rests before it stands for another."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from identity.allocator import (
    IdentityAllocator,
    IdentityExhausted,
    NumberAllocator,
    NumberConflict,
    NumbersExhausted,
    SnapshotError,
)
from identity.labels import LabelSet
from identity.reserved import LOCAL_FIRST, Reserved

REST = 10.0
GRACE = 5.0


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False))
def test_numbers_against_a_model(random: Random) -> None:
    allocator = NumberAllocator(3, 8, rest=REST)
    live: dict[str, int] = {}
    freed: dict[int, tuple[str, float]] = {}  # number: who had it last, and until when
    now = 0.0
    for _ in range(60):
        now += random.choice((0.0, 0.0, 3.0, 8.0))
        key = random.choice("abcdefghij")
        if random.random() < 0.4 and key in live:
            number = live.pop(key)
            allocator.release(number, now)
            freed[number] = (key, now)
            continue
        allocator.expire(now)
        resting = {
            n for n, (_, since) in freed.items() if n not in live.values() and since + REST > now
        }
        try:
            number = allocator.allocate(key)
        except NumbersExhausted as error:
            assert len(live) + len(resting) == 6 and key not in live
            assert (error.live, error.resting) == (len(live), len(resting))
            continue
        assert 3 <= number <= 8 and number == live.get(key, number)
        assert number not in [n for k, n in live.items() if k != key]
        assert number not in resting or freed[number][0] == key
        live[key] = number
        assert (
            allocator.lookup(key) == number and number in allocator and len(allocator) == len(live)
        )


def test_the_candidate_is_the_same_everywhere_and_collisions_are_probed() -> None:
    keys = [f"key{n}" for n in range(200)]
    one, other = NumberAllocator(0, 255), NumberAllocator(0, 255)
    numbers = [one.allocate(key) for key in keys]
    assert len(set(numbers)) == 200
    assert [other.allocate(key) for key in keys] == numbers
    assert NumberAllocator(256, 65535).allocate("k8s:app=web") == 64325


def test_adoption() -> None:
    allocator = NumberAllocator(0, 9, rest=REST)
    allocator.adopt("a", 4)
    allocator.adopt("a", 4)
    assert allocator.allocate("a") == 4
    for key, number in (("b", 4), ("a", 5), ("c", 10)):
        with pytest.raises(NumberConflict):
            allocator.adopt(key, number)


def labels(n: int, cidr: bool = False) -> LabelSet:
    return LabelSet(
        {f"cidr:10.{n}.0.0/16": "", "reserved:world": ""} if cidr else {"k8s:n": str(n)}
    )


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False))
def test_identities_against_a_model(random: Random) -> None:
    """Held or within the grace: kept. Two sets never share a number. A restart changes nothing."""
    allocator = IdentityAllocator(GRACE, REST)
    holds: dict[LabelSet, int] = {}
    numbers: dict[LabelSet, int] = {}
    unheld: dict[LabelSet, float] = {}
    now = 0.0
    for _ in range(60):
        now += random.choice((0.0, 1.0, 4.0))
        one = labels(random.randrange(6), random.random() < 0.5)
        action = random.randrange(5)
        if action <= 1:
            number = allocator.acquire(one)
            assert number == numbers.setdefault(one, number)
            assert (number >= LOCAL_FIRST) is ("reserved:world" in one)
            holds[one] = holds.get(one, 0) + 1
            unheld.pop(one, None)
        elif action == 2 and holds.get(one):
            holds[one] -= 1
            allocator.release(numbers[one], now)
            if not holds[one]:
                unheld[one] = now
        elif action == 3:
            gone = allocator.collect(now)
            expected = [s for s, since in unheld.items() if since + GRACE <= now]
            assert gone == sorted(numbers[s] for s in expected)
            for one in expected:
                del unheld[one], numbers[one]
        elif action == 4 and random.random() < 0.3:
            stored = json.loads(json.dumps(allocator.snapshot()))
            allocator = IdentityAllocator(GRACE, REST)
            allocator.restore(stored, now)
            assert allocator.snapshot() == stored
            holds.clear()
            unheld = dict.fromkeys(numbers, now)
        assert allocator.items() == dict(sorted((n, s) for s, n in numbers.items()))


def test_reserved_labels_have_their_numbers() -> None:
    allocator = IdentityAllocator()
    assert allocator.acquire(Reserved.INIT.labels) == allocator.lookup(Reserved.INIT.labels) == 5
    allocator.release(5, 0.0)
    assert not allocator.items() and not allocator.revision


def test_a_collected_number_rests() -> None:
    allocator = IdentityAllocator(GRACE, REST, cluster=(256, 256))
    number = allocator.acquire(labels(1))
    with pytest.raises(IdentityExhausted, match="1 in use, 0 resting"):
        allocator.acquire(labels(2))
    allocator.release(number, 0.0)
    assert allocator.collect(GRACE) == [256]
    with pytest.raises(IdentityExhausted, match="0 in use, 1 resting"):
        allocator.acquire(labels(2))
    allocator.collect(GRACE + REST)
    assert allocator.acquire(labels(2)) == 256


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"version": 2},
        {"version": 1, "identities": {}},
        {"version": 1, "identities": [1]},
        {"version": 1, "identities": [{"number": True, "labels": {}}]},
        {"version": 1, "identities": [{"number": 300, "labels": {"a": 1}}]},
        {"version": 1, "identities": [{"number": 300, "labels": {"a": ";"}}]},
        {"version": 1, "identities": [{"number": 9, "labels": {"a": ""}}]},
        {"version": 1, "identities": [{"number": 300, "labels": {"cidr:1.0.0.0/8": ""}}]},
        {"version": 1, "identities": [{"number": 300, "labels": {"reserved:host": ""}}]},
        {"version": 1, "identities": [{"number": n, "labels": {"a": ""}} for n in (300, 301)]},
        {"version": 1, "identities": [{"number": 300, "labels": {"a": str(n)}} for n in (1, 2)]},
        {"version": 1, "resting": [{"number": 300, "labels": {}}]},
    ],
)
def test_a_snapshot_that_is_wrong_is_refused_whole(data: object) -> None:
    allocator = IdentityAllocator()
    with pytest.raises(SnapshotError):
        allocator.restore(data, 0.0)
    assert not allocator.items()
    allocator.restore({"version": 1, "identities": [{"number": 300, "labels": {"a": "b"}}]}, 0.0)
    assert allocator.labels(300) == LabelSet({"a": "b"})
