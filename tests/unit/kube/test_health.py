# SPDX-License-Identifier: Apache-2.0
"""What a source says of itself, and how long it waits between attempts."""

from agent.core.events import SourceFailed, SourceStale, SourceSynced
from agent.kube.backoff import Backoff
from agent.kube.health import Health


def health() -> Health:
    return Health("kubernetes", ("pods", "nodes"), patience=10.0)


def synced() -> Health:
    one = health()
    one.delivered("pods")
    one.delivered("nodes")
    assert one.report(0.0) == SourceSynced("kubernetes")
    return one


def test_synced_once_every_kind_has_been_delivered() -> None:
    one = health()
    one.delivered("pods")
    assert one.report(0.0) is None
    one.delivered("nodes")
    assert one.report(0.0) == SourceSynced("kubernetes")
    assert one.report(99.0) is None


def test_trouble_before_the_first_delivery_is_told_soon_and_together() -> None:
    one = health()
    one.failed("pods", "forbidden", 0.0)
    assert one.report(0.5) is None
    assert one.due(0.5) == 0.5
    one.failed("nodes", "forbidden", 0.9)
    assert one.report(1.0) == SourceFailed("kubernetes", "nodes, pods: forbidden")
    one.failed("pods", "forbidden", 5.0)
    assert one.report(5.0) is None
    for kind in ("pods", "nodes"):
        one.delivered(kind)
        one.followed(kind)
    assert one.report(7.0) == SourceSynced("kubernetes")


def test_stale_after_some_patience_and_synced_on_return() -> None:
    one = synced()
    one.failed("pods", "no answer", 100.0)
    assert one.report(109.9) is None
    assert one.due(104.0) == 6.0
    one.failed("pods", "refused", 109.0)  # counts from the first attempt, tells the last reason
    one.failed("nodes", "refused", 109.5)
    assert one.report(110.0) == SourceStale("kubernetes", "nodes, pods: refused")
    one.followed("pods")
    assert one.report(111.0) is None  # kinds come back one by one, and that is one story
    assert one.due(111.0) == 8.5
    assert one.report(120.0) == SourceStale("kubernetes", "nodes: refused")
    one.followed("nodes")
    assert one.report(121.0) == SourceSynced("kubernetes")


def test_trouble_of_another_kind_while_the_first_recovers_does_not_make_it_well() -> None:
    one = synced()
    one.failed("pods", "refused", 100.0)
    assert isinstance(one.report(110.0), SourceStale)
    one.failed("nodes", "broken", 112.0)
    one.followed("pods")
    assert one.report(113.0) is None
    assert one.report(122.0) == SourceStale("kubernetes", "nodes: broken")


def test_a_short_failure_is_not_worth_a_word() -> None:
    one = synced()
    for now in (100.0, 105.0, 120.0):
        one.failed("pods", "broken", now)
        assert one.report(now) is None
        one.followed("pods")
        assert one.report(now + 1) is None
        assert one.due(now + 1) is None


def test_waits_double_up_to_the_cap_with_jitter() -> None:
    low, high = Backoff(0.25, 30.0, lambda: 0.0), Backoff(0.25, 30.0, lambda: 1.0)
    assert [low.next() for _ in range(9)] == [0.125, 0.25, 0.5, 1, 2, 4, 8, 15, 15]
    assert [high.next() for _ in range(9)] == [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert high.next(asked=45.0) == 45.0
    assert high.next(asked=1.0) == 30.0
    assert high.next(asked=1e9) == 300.0
    high.reset()
    assert high.next() == 0.25
