# SPDX-License-Identifier: Apache-2.0
"""What is asked of the loop by other threads, and what it has done."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Call(Generic[T]):
    """Work to be done in the loop's thread, and where its value goes."""

    work: Callable[[], T]
    future: Future[T]
    in_force: bool
    value: T | None = None


@dataclass(slots=True)
class LoopCounters:
    """What the loop has done since it started. Read by other threads, never together."""

    transactions: int = 0
    failures: int = 0
    repaired: int = 0
    connections: int = 0
    connections_removed: int = 0
    mappings: int = 0
    mappings_removed: int = 0
    gc_seconds: float = 0.0
    last_implementation: float = 0.0  # seconds from an event's arrival to its being in force


def perform(call: Call[Any]) -> bool:
    """Whether there is a value to answer with."""
    if not call.future.set_running_or_notify_cancel():
        return False
    try:
        call.value = call.work()
    except Exception as error:  # the caller's to judge
        call.future.set_exception(error)
        return False
    return True
