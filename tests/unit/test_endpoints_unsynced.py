# SPDX-License-Identifier: Apache-2.0
"""CNI requests while the cluster's state is not known yet: what is waited for, and what is said."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, cast

import pytest

from agent import endpoints
from agent.core.events import SourceFailed, SourceSynced
from agent.core.ipam import AddressPool
from agent.core.store import Store
from agent.endpoints import EndpointManager
from agent.kernel.endpoint_store import EndpointStore
from agent.kernel.podnet import PodNetwork
from agent.loop import Loop
from cni.config import Command, NetworkConfig
from cni.errors import CniError, ErrorCode
from cni.protocol import Request

SOURCE = "kubernetes"
AWAY = "nodes, pods: https://192.0.2.9:6443: Connection refused"


class FakeLoop:
    """Does at once what it is asked. Its node has no room, so whoever is served is told that."""

    def __init__(self) -> None:
        self.store = Store([SOURCE])
        self.synced = threading.Event()
        self.datapath = self

    def capacity(self, name: str) -> int:
        return 0

    def call(self, work: Callable[[], Any], timeout: float = 0, *, in_force: bool = True) -> Any:
        return work()

    def submit(self, work: Callable[[], Any], *, in_force: bool = True) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work())
        return done


class NoRecords:
    def find(self, container: str, ifname: str) -> None:
        return None


class World:
    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.manager = EndpointManager(
            cast(Loop, self.loop),
            AddressPool(["10.244.1.0/24"]),
            cast(EndpointStore, NoRecords()),
            cast(PodNetwork, None),
            lambda: 1500,
        )

    def refusal(self, command: Command = Command.ADD) -> tuple[ErrorCode, str]:
        config = NetworkConfig("1.0.0", "pods", "bristle-cni")
        with pytest.raises(CniError) as caught:
            self.manager.handle(Request(command, config, "c1", "eth0"), 0)
        return caught.value.code, caught.value.message

    def away(self) -> None:
        self.loop.store.apply(SourceFailed(SOURCE, AWAY))

    def back(self) -> None:
        self.loop.store.apply(SourceSynced(SOURCE))
        self.loop.synced.set()


@pytest.fixture
def world() -> World:
    return World()


def after(seconds: float, work: Callable[[], None]) -> None:
    threading.Timer(seconds, work).start()


def test_a_source_that_cannot_be_read_is_named_at_once(world: World) -> None:
    world.away()
    begun = time.monotonic()
    code, message = world.refusal()
    assert time.monotonic() - begun < 5
    assert code == ErrorCode.TRY_AGAIN_LATER
    assert message == f"{endpoints.UNSYNCED}: source kubernetes: {AWAY}"
    assert world.refusal(Command.STATUS) == (ErrorCode.UNAVAILABLE, message)


def test_who_waits_hears_of_it_too(world: World) -> None:
    after(0.3, world.away)
    code, message = world.refusal()
    assert code == ErrorCode.TRY_AGAIN_LATER and AWAY in message


def test_who_waits_is_served_once_the_state_is_known(world: World) -> None:
    after(0.3, world.back)
    code, _ = world.refusal()
    assert code == ErrorCode.CAPACITY_EXCEEDED


def test_nobody_waits_for_ever(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "SYNC_TIMEOUT", 0.2)
    assert world.refusal() == (ErrorCode.TRY_AGAIN_LATER, endpoints.UNSYNCED)


def test_a_source_that_went_away_later_keeps_nobody_out(world: World) -> None:
    world.back()
    world.away()
    assert world.refusal()[0] == ErrorCode.CAPACITY_EXCEEDED
