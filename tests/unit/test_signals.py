# SPDX-License-Identifier: Apache-2.0
"""A signal ends the agent at whatever moment it comes."""

import signal
import threading
from collections.abc import Iterator

import pytest

from agent.signals import set_on_signals


@pytest.fixture
def handlers() -> Iterator[None]:
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_while_the_event_is_locked(handlers: None, number: int) -> None:
    stopping = threading.Event()
    set_on_signals(stopping)
    # As `wait` does on its way to sleep.
    with stopping._cond:  # type: ignore[attr-defined]
        signal.raise_signal(number)
        assert not stopping.is_set()
    assert stopping.wait(10)


def test_signals_may_come_again(handlers: None) -> None:
    stopping = threading.Event()
    set_on_signals(stopping)
    for _ in range(3):
        signal.raise_signal(signal.SIGTERM)
    assert stopping.wait(10)
