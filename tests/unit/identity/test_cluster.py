# SPDX-License-Identifier: Apache-2.0
"""Numbers that the cluster gives: what they mean, who holds them, and what comes after."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity.cluster import ClusterIdentities, IdentityPending, candidates, reserved_labels
from identity.labels import LabelSet
from identity.reserved import CLUSTER_FIRST, CLUSTER_LAST, Reserved, is_local

WEB, DB = LabelSet({"k8s:app": "web"}), LabelSet({"k8s:app": "db"})
BLOCK = LabelSet({"cidr:10.0.0.0/8": ""})


def test_nobody_has_a_number_that_was_not_told() -> None:
    identities = ClusterIdentities()
    with pytest.raises(IdentityPending, match="k8s:app=web") as caught:
        identities.acquire(WEB)
    assert caught.value.labels == WEB
    assert identities.hold(300) is None
    identities.publish(300, WEB)
    assert identities.acquire(WEB) == 300
    assert identities.hold(300) == WEB
    assert identities.references(300) == 2
    assert is_local(identities.acquire(BLOCK))
    assert identities.acquire(Reserved.HOST.labels) == Reserved.HOST


def test_of_two_numbers_the_one_that_stays_is_taken() -> None:
    identities = ClusterIdentities()
    identities.publish(300, WEB, unused=True)
    assert identities.lookup(WEB) == 300
    identities.publish(400, WEB)
    assert identities.lookup(WEB) == 400
    identities.publish(300, WEB)
    assert identities.lookup(WEB) == 300


def test_a_withdrawn_number_means_the_same_as_long_as_it_is_held() -> None:
    identities = ClusterIdentities()
    identities.publish(300, WEB)
    identities.acquire(WEB)
    identities.withdraw(300)
    assert identities.labels(300) == WEB
    with pytest.raises(IdentityPending):
        identities.acquire(WEB)
    # Others use it for something else by now: not here, not yet.
    identities.publish(300, DB)
    assert (identities.labels(300), identities.hold(300), identities.lookup(DB)) == (
        WEB, None, None,
    )  # fmt: skip
    identities.release(300, 0.0)
    assert (identities.labels(300), identities.lookup(DB)) == (DB, 300)
    identities.withdraw(300)
    assert identities.items() == {}


def test_only_blocks_outlive_the_process() -> None:
    identities = ClusterIdentities()
    identities.publish(300, WEB)
    identities.acquire(WEB)
    number = identities.acquire(BLOCK)
    snapshot = identities.snapshot()
    again = ClusterIdentities()
    again.restore(snapshot, 0.0)
    assert again.items() == {number: BLOCK}
    # Of what a standalone agent left, pods' numbers are not the cluster's.
    snapshot["identities"].append({"number": 300, "labels": dict(WEB)})
    snapshot["resting"].append({"number": 301, "labels": DB.canonical()})
    another = ClusterIdentities()
    another.restore(snapshot, 0.0)
    assert another.items() == {number: BLOCK}


@given(st.dictionaries(st.text("abc", min_size=1), st.text("xyz"), max_size=3))
def test_candidates_are_the_whole_range_once(labels: dict[str, str]) -> None:
    found = LabelSet({f"k8s:{key}": value for key, value in labels.items()})
    first = list(islice(candidates(found), 5))
    assert first == list(islice(candidates(LabelSet(reversed(list(found.items())))), 5))
    assert set(candidates(found)) == set(range(CLUSTER_FIRST, CLUSTER_LAST + 1))


def test_reserved_numbers_have_their_labels() -> None:
    assert reserved_labels(6) == Reserved.REMOTE_NODE.labels
    assert reserved_labels(256) is None and reserved_labels(0) is None
