# SPDX-License-Identifier: Apache-2.0
"""Work that comes round: when it is done again, what is said when it fails, and its end.

Pauses are either none or an hour, so what happens at all happens at once, or not within a test.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from agent.cluster.periodic import Periodic
from agent.kube.errors import ApiError

HOUR = 3600.0
NOW = 0.0
PATIENCE = 30.0  # seconds; only a failing test waits so long


class Work:
    """Does in turn what it is told, and lets a test wait for each time."""

    def __init__(self, *results: float | Exception | None) -> None:
        self.done = 0
        self._results = list(results)
        self._changed = threading.Condition()

    def __call__(self) -> float | None:
        with self._changed:
            self.done += 1
            self._changed.notify_all()
            result = self._results.pop(0) if self._results else HOUR
        if isinstance(result, Exception):
            raise result
        return result

    def times(self, wanted: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.done >= wanted, PATIENCE), self.done

    def no_more(self, than: int) -> None:
        """As far as a moment can tell."""
        with self._changed:
            assert not self._changed.wait_for(lambda: self.done > than, 0.05)


@contextmanager
def running(
    work: Callable[[], float | None], pause: float = HOUR, retry: float = HOUR
) -> Iterator[Periodic]:
    made = Periodic("test", work, pause, retry, (ApiError, TimeoutError))
    made.start()
    try:
        yield made
    finally:
        made.stop()


def until(condition: Callable[[], object]) -> None:
    """What is written after the work is done, a moment later."""
    waiting = threading.Event()
    for _ in range(int(PATIENCE / 0.005)):
        if condition():
            return
        waiting.wait(0.005)
    raise AssertionError("never happened")


def test_it_begins_at_once_and_then_waits_for_the_pause() -> None:
    work = Work(None)
    with running(work):
        work.times(1)
        work.no_more(1)
    work = Work(None, None)
    with running(work, pause=NOW):
        work.times(3)


def test_the_work_may_say_itself_when_it_is_due() -> None:
    work = Work(NOW, NOW, HOUR)
    with running(work):
        work.times(3)
        work.no_more(3)
    work = Work(HOUR)
    with running(work, pause=NOW):
        work.times(1)
        work.no_more(1)


def test_after_a_failure_the_other_pause_counts() -> None:
    work = Work(ApiError("away"), ApiError("away"), None)
    with running(work, retry=NOW):
        work.times(3)
        work.no_more(3)
    work = Work(ApiError("away"))
    with running(work, pause=NOW):
        work.times(1)
        work.no_more(1)


def test_what_is_wrong_is_said_until_it_is_right(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(ApiError("away"), ApiError("away"), ApiError("busy"), None, ApiError("away"))
    with running(work) as one:
        for number, problem in enumerate(("away", "away", "busy", None, "away"), 1):
            work.times(number)
            until(lambda wanted=problem: one.problem == wanted)  # type: ignore[misc]
            one.wake()
        work.times(6)
    # The same trouble is told of once, and again after it was over.
    assert [one.getMessage() for one in caplog.records] == [
        "test: away", "test: busy", "test: away"
    ]  # fmt: skip


def test_an_error_without_words_is_a_problem_all_the_same() -> None:
    work = Work(TimeoutError(), None)
    with running(work, pause=NOW) as one:
        until(lambda: one.problem is not None)
        assert one.problem == "TimeoutError"
        work.no_more(1)


def test_what_nobody_expects_is_logged_whole_and_ends_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    work = Work(ValueError("a bug"), None)
    with running(work) as one:
        until(lambda: one.problem == "ValueError: a bug")
        one.wake()
        until(lambda: one.problem is None and work.done == 2)
    assert any(record.exc_info for record in caplog.records)


def test_woken_it_does_not_wait() -> None:
    work = Work()
    with running(work) as one:
        for number in range(1, 4):
            work.times(number)
            one.wake()
        work.times(4)


def test_woken_while_at_work_it_is_done_again() -> None:
    entered, go = threading.Event(), threading.Event()
    done = []

    def work() -> None:
        entered.set()
        assert go.wait(PATIENCE)
        done.append(1)

    with running(work) as one:
        assert entered.wait(PATIENCE)
        one.wake()  # what it was woken for came after this round had looked
        go.set()
        until(lambda: len(done) == 2)


def test_stop_lets_the_work_under_way_end_and_no_other_begins() -> None:
    entered, go = threading.Event(), threading.Event()
    done = []

    def work() -> float:
        entered.set()
        assert go.wait(PATIENCE)
        done.append(1)
        return NOW

    one = Periodic("test", work, NOW, NOW, ApiError)
    one.start()
    assert entered.wait(PATIENCE)
    stopper = threading.Thread(target=one.stop)
    stopper.start()
    stopper.join(0.05)
    assert stopper.is_alive() and not done
    go.set()
    stopper.join(PATIENCE)
    assert not stopper.is_alive() and done == [1]


def test_stop_does_not_wait_for_a_pause() -> None:
    work = Work(None)
    with running(work):
        work.times(1)
    work = Work(ApiError("away"))
    with running(work):
        work.times(1)
