# SPDX-License-Identifier: Apache-2.0
"""The collection of identities: by the elected agent alone, for as long as it is, and whatever
fails on the way."""

from __future__ import annotations

import logging

import pytest

from agent.cluster.collector import Collector
from agent.core.events import PublishedIdentity
from agent.kube.errors import ApiError, Conflict, NotFound
from identity.labels import LabelSet

GRACE = 100.0


class World:
    """What is published, and a collector of it. Failures are by number.

    lead_for: how many further answers the election gives before it is lost; None: it is not.
    """

    def __init__(self, *numbers: int) -> None:
        self.now = 0.0
        self.used: set[int] = set()
        self.identities = {one: _identity(one) for one in numbers}
        self.done: list[str] = []
        self.failures: dict[int, Exception] = {}
        self.leads = True
        self.lead_for: int | None = None
        self.looks = 0
        self.collector = Collector(self, self._snapshot, self._leading, GRACE, lambda: self.now)

    def _snapshot(self) -> tuple[dict[int, PublishedIdentity], set[int]]:
        self.looks += 1
        return dict(self.identities), set(self.used)

    def _leading(self) -> bool:
        if self.lead_for is not None:
            self.lead_for -= 1
            if self.lead_for < 0:
                self.leads, self.lead_for = False, None
        return self.leads

    def mark(self, number: int) -> None:
        self._do("mark", number)
        self.identities[number] = _identity(number, f"at {self.now}")

    def unmark(self, number: int) -> None:
        self._do("unmark", number)
        self.identities[number] = _identity(number)

    def delete_identity(self, number: int) -> None:
        self._do("delete", number)
        del self.identities[number]

    def _do(self, what: str, number: int) -> None:
        if number in self.failures:
            raise self.failures[number]
        self.done.append(f"{what} {number}")

    def work(self, now: float) -> list[str]:
        """A round at a time; what was done in it."""
        self.now, self.done = now, []
        self.collector.work()
        return self.done


def _identity(number: int, mark: str = "") -> PublishedIdentity:
    return PublishedIdentity(number, LabelSet({"k8s:n": str(number)}), mark)


def marked(*numbers: int) -> World:
    """With numbers whose mark has been looked at for as long as it takes."""
    world = World()
    world.identities = {one: _identity(one, "some time") for one in numbers}
    assert world.work(0.0) == []
    return world


def test_marked_after_the_grace_deleted_after_another_unmarked_when_used() -> None:
    world = World(300, 301)
    assert world.work(0.0) == []
    assert world.work(GRACE) == ["mark 300", "mark 301"]
    assert world.work(GRACE + 1) == []
    world.used = {301}
    assert world.work(2 * GRACE + 1) == ["unmark 301", "delete 300"]
    assert world.work(9 * GRACE) == []


def test_who_is_not_elected_does_nothing_and_asks_nothing() -> None:
    world = World(300)
    world.leads = False
    for now in (0.0, GRACE, 2 * GRACE):
        assert world.work(now) == []
    assert world.looks == 0


def test_who_leads_again_judges_ages_anew() -> None:
    world = World(300)
    world.work(0.0)
    world.leads = False
    world.work(GRACE)
    world.leads = True
    assert world.work(GRACE + 1) == []
    assert world.work(2 * GRACE) == []
    assert world.work(2 * GRACE + 1) == ["mark 300"]


@pytest.mark.parametrize("left", [1, 2, 3])
def test_the_election_is_lost_in_the_middle(left: int) -> None:
    """Whatever is left to be done is another's from then on."""
    world = marked(300, 301, 302)
    world.lead_for = left
    assert world.work(GRACE) == ["delete 300", "delete 301", "delete 302"][: left - 1]
    # Elected again before the next round: another has been at work in between.
    world.leads = True
    assert world.work(GRACE + 1) == []
    assert world.work(2 * GRACE) == []
    assert len(world.work(2 * GRACE + 1)) == 4 - left


@pytest.mark.parametrize("failure", [Conflict("taken up again"), NotFound("gone")])
def test_somebody_was_faster(failure: Exception) -> None:
    world = marked(300, 301)
    world.failures = {300: failure}
    assert world.work(GRACE) == ["delete 301"]


def test_a_failure_keeps_none_of_the_others_and_is_raised_in_the_end() -> None:
    world = marked(300, 301, 302)
    world.identities[400] = _identity(400)
    world.work(1.0)
    world.used = {301}
    world.failures = {301: ApiError("unmark: away"), 300: ApiError("delete: away")}
    with pytest.raises(ApiError, match="away"):
        world.work(GRACE + 1)
    assert world.done == ["mark 400", "delete 302"]
    # It is all there to be done the next time.
    world.failures = {}
    assert world.work(GRACE + 2) == ["unmark 301", "delete 300"]


def test_only_what_was_deleted_is_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    world = marked(300, 301, 302)
    world.failures = {300: Conflict("taken up again"), 301: ApiError("away")}
    with caplog.at_level(logging.INFO), pytest.raises(ApiError):
        world.work(GRACE)
    (said,) = (one.getMessage() for one in caplog.records)
    assert "302" in said and "300" not in said and "301" not in said
