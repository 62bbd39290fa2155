# SPDX-License-Identifier: Apache-2.0
"""Events on policies that are not in force: once for each reason, again before they are forgotten,
and what could not be told is told later."""

from __future__ import annotations

import pytest

from agent.cluster.policy_events import AGAIN_SECONDS, KIND, PolicyReporter
from agent.core.events import ResourceKey
from agent.kube.errors import ApiError

A = ResourceKey(KIND, "shop", "a")
B = ResourceKey(KIND, "shop", "b")


class World:
    """A reporter; `found` is what is not in force. `look` gives what it has told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.found: dict[ResourceKey, str] = {}
        self.failing: set[ResourceKey] = set()
        self._told: list[tuple[ResourceKey, str]] = []
        self._reporter = PolicyReporter(lambda: self.found, self._report, lambda: self.now)

    def _report(self, key: ResourceKey, reason: str) -> None:
        if key in self.failing:
            raise ApiError("the API server is away")
        self._told.append((key, reason))

    def look(self) -> list[tuple[ResourceKey, str]]:
        if self.failing & self.found.keys():
            with pytest.raises(ApiError, match="away"):  # for the log and status
                self._reporter.work()
        else:
            self._reporter.work()
        told, self._told = self._told, []
        return told


def test_each_reason_once() -> None:
    world = World()
    assert world.look() == []
    world.found = {B: "full", A: "bad port"}
    assert world.look() == [(A, "bad port"), (B, "full")]
    assert world.look() == []
    world.found = {B: "fuller", A: "bad port"}
    assert world.look() == [(B, "fuller")]
    world.found = {B: "full", A: "bad port"}
    assert world.look() == [(B, "full")]


def test_again_as_long_as_it_holds() -> None:
    world = World()
    world.found = {A: "full"}
    assert world.look() == [(A, "full")]
    world.now = AGAIN_SECONDS - 1
    assert world.look() == []
    world.now = AGAIN_SECONDS
    assert world.look() == [(A, "full")]
    assert world.look() == []
    world.now = 2 * AGAIN_SECONDS
    assert world.look() == [(A, "full")]


def test_what_was_in_force_meanwhile_is_new() -> None:
    world = World()
    world.found = {A: "full"}
    assert world.look() == [(A, "full")]
    world.found = {}
    assert world.look() == []
    world.found = {A: "full"}
    assert world.look() == [(A, "full")]


def test_what_could_not_be_told_is_told_later_and_keeps_nothing_else() -> None:
    world = World()
    world.found, world.failing = {A: "full", B: "full"}, {A}
    assert world.look() == [(B, "full")]
    assert world.look() == []
    world.failing = set()
    assert world.look() == [(A, "full")]
    # The same with what is to be told again.
    world.now, world.failing = 2 * AGAIN_SECONDS, {B}
    assert world.look() == [(A, "full")]
    world.failing = set()
    assert world.look() == [(B, "full")]
    # In force before it could be told: nothing is left to say.
    world.found, world.failing = {A: "fuller"}, {A}
    assert world.look() == []
    world.found, world.failing = {}, set()
    assert world.look() == []
