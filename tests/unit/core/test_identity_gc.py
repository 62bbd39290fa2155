# SPDX-License-Identifier: Apache-2.0
"""Published identities: marked, unmarked, deleted, by one observer's clock."""

from __future__ import annotations

from random import Random

import pytest

from agent.core.events import PublishedIdentity
from agent.core.identity_gc import Collection, IdentityCollector
from identity.labels import LabelSet

GRACE = 100.0


def identity(number: int, mark: str = "") -> dict[int, PublishedIdentity]:
    return {number: PublishedIdentity(number, LabelSet({"k8s:n": str(number)}), mark)}


def test_a_number_is_marked_and_then_deleted_each_after_the_grace() -> None:
    collector = IdentityCollector(GRACE)
    assert collector.collect(identity(300), set(), 0.0) == Collection()
    assert collector.collect(identity(300), set(), 99.0) == Collection()
    assert collector.collect(identity(300), set(), 100.0) == Collection(mark=(300,))
    # The mark is the other clock's: only when it was first seen counts.
    marked = identity(300, "1999-01-01T00:00:00Z")
    assert collector.collect(marked, set(), 101.0) == Collection()
    assert collector.collect(marked, set(), 200.0) == Collection()
    assert collector.collect(marked, set(), 201.0) == Collection(delete=(300,))


def test_use_begins_all_of_it_anew() -> None:
    collector = IdentityCollector(GRACE)
    collector.collect(identity(300), set(), 0.0)
    assert collector.collect(identity(300), {300}, 99.0) == Collection()
    assert collector.collect(identity(300), set(), 101.0) == Collection()
    assert collector.collect(identity(300), set(), 201.0) == Collection(mark=(300,))
    marked = identity(300, "a")
    collector.collect(marked, set(), 202.0)
    assert collector.collect(marked, {300}, 301.0) == Collection(unmark=(300,))
    assert collector.collect(marked, set(), 303.0) == Collection()
    # Unmarked and marked again between two looks: another mark, another wait.
    assert collector.collect(identity(300, "b"), set(), 403.0) == Collection()
    assert collector.collect(identity(300, "b"), set(), 503.0) == Collection(delete=(300,))


@pytest.mark.parametrize("seed", range(20))
def test_nothing_in_use_or_lately_in_use_is_ever_deleted(seed: int) -> None:
    random = Random(seed)
    collector = IdentityCollector(GRACE)
    identities: dict[int, PublishedIdentity] = {}
    last_used: dict[int, float] = {}
    now = 0.0
    for _ in range(400):
        now += random.choice((1.0, 30.0, 70.0))
        number = random.randrange(300, 304)
        if random.random() < 0.2 and number not in identities:
            identities |= identity(number)
            last_used[number] = now
        used = {one for one in identities if random.random() < 0.1}
        last_used |= dict.fromkeys(used, now)
        found = collector.collect(identities, used, now)
        for one in found.mark:
            assert now - last_used[one] >= GRACE
            identities |= identity(one, str(now))
        for one in found.unmark:
            assert one in used
            identities |= identity(one)
        for one in found.delete:
            assert now - last_used[one] >= 2 * GRACE and identities.pop(one).unused_since
    assert collector._unused.keys() | collector._marked.keys() <= identities.keys() | set(
        range(304)
    )
