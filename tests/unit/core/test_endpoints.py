# SPDX-License-Identifier: Apache-2.0
"""CNI requests carried out with a fake network: all of it, or nothing that is left behind."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

import pytest

from agent.core.desired import Desired
from agent.core.events import Pod, PodUpserted, SourceSynced
from agent.core.ipam import AddressPool
from agent.core.local import id_slot
from agent.core.numbers import Numbers
from agent.core.store import Store
from agent.endpoints import EndpointManager
from agent.kernel.endpoint_store import EndpointStore
from agent.kernel.podnet import PodNetwork, Wiring, WiringError, WiringRequest, device_name
from agent.kernel.syscall import BpfError, Command
from agent.loop import Loop
from agent.state_file import StateFileError
from cni.config import Attachment, NetworkConfig
from cni.config import Command as CniCommand
from cni.environment import PodRef
from cni.errors import CniError, ErrorCode
from cni.protocol import Reply, Request
from identity.allocator import IdentityAllocator
from identity.labels import DEFAULT
from tests.unit.core.kernel import FakeDatapath


@dataclass
class Device:
    name: str
    index: int


class FakeNetwork:
    """Devices in a dict."""

    def __init__(self) -> None:
        self.present: dict[str, Device] = {}
        self.fail_add = self.fail_delete = False
        self._next = 10

    def add(self, netns_fd: int, wanted: WiringRequest) -> Wiring:
        if self.fail_add:
            raise WiringError("no")
        self._next += 1
        name = device_name(wanted.endpoint)
        self.present[name] = Device(name, self._next)
        return Wiring(name, self._next, "02:00:00:00:01:00", "02:00:00:00:00:01", 7)

    def delete(self, name: str) -> bool:
        if self.fail_delete:
            raise WiringError("busy")
        return self.present.pop(name, None) is not None

    def devices(self) -> tuple[Device, ...]:
        return tuple(self.present.values())

    def remove_devices(self, keep: Collection[str] = ()) -> tuple[str, ...]:
        gone = tuple(name for name in self.present if name not in keep)
        for name in gone:
            del self.present[name]
        return gone


class Node:
    """An agent's endpoints, on a folder that outlives it."""

    def __init__(self, folder: Path, network: FakeNetwork) -> None:
        self.network = network
        self.datapath = FakeDatapath()
        self.store = Store(["source"])
        self.loop = Loop(
            self.store,
            Desired(IdentityAllocator(), Numbers(60.0), DEFAULT),
            self.datapath,
            identity_gc=60.0,
            save_identities=lambda: None,
            on_first_sync=lambda: None,
        )
        self.pool = AddressPool(["10.0.0.0/29", "fd00::/124"])
        self.records = EndpointStore(folder / "endpoints.journal", "boot")
        self.records.open()
        self.manager = EndpointManager(
            self.loop, self.pool, self.records, cast(PodNetwork, network), lambda: 1500
        )
        self.adopted = self.manager.adopt()
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()
        self.loop.post(PodUpserted("source", Pod("ns", "p", labels={"app": "web"})))
        self.loop.post(SourceSynced("source"))
        assert self.loop.synced.wait(10)

    def request(self, command: CniCommand, container: str = "c1", **config: Any) -> Reply:
        conf = NetworkConfig("1.1.0", "net", "bristle", **config)
        pod = PodRef("ns", "p", "u")
        return self.manager.handle(Request(command, conf, container, "eth0", "/n", pod), 3)

    def used(self) -> int:
        return sum(usage.used for usage in self.loop.call(self.pool.usage, in_force=False))

    def is_clean(self) -> bool:
        self.loop.call(lambda: None, in_force=False)
        maps = self.datapath.content()
        return (
            not self.network.present
            and not self.store.endpoints
            and not len(self.records)
            and not self.used()
            and not self.manager._reserved
            and not maps["endpoints"]
            and not maps["devices"]
            and not maps["addresses"]
            and not maps["places"]
        )

    def stop(self) -> None:
        self.loop.stop()
        self.thread.join(10)
        self.records.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path, FakeNetwork())
    yield made
    made.stop()


def test_every_id_has_a_slot_of_its_own(node: Node) -> None:
    """By chance alone, hardly ever among so many."""
    ids: list[int] = []
    for _ in range(500):
        ids.append(node.manager._new_id())
        node.manager._reserved[ids[-1]] = f"owner {ids[-1]}"
    assert len({id_slot(one) for one in ids}) == len(ids)
    node.manager._reserved.clear()


def fault() -> BpfError:
    return BpfError(12, Command.MAP_UPDATE_BATCH, "a test")


def test_add_answers_when_policy_is_in_force_and_del_leaves_nothing(node: Node) -> None:
    assert not node.request(CniCommand.ADD).error
    (endpoint,) = node.store.endpoints
    assert endpoint.to_bytes(4, "little") in node.datapath.fake("endpoints").content
    with pytest.raises(CniError) as caught:
        node.request(CniCommand.ADD)
    assert caught.value.code == ErrorCode.INTERFACE_EXISTS
    assert len(node.records) == 1 and node.used() == 2
    for _ in range(2):  # the second one is of something unknown, and is no error
        assert not node.request(CniCommand.DEL).error
    assert node.is_clean()


@pytest.mark.parametrize("step", ["wiring", "record", "devices", "endpoints", "peers", "numbers"])
def test_a_failed_add_leaves_nothing(
    node: Node, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.request(CniCommand.ADD, "other")
    node.request(CniCommand.DEL, "other")
    if step == "wiring":
        node.network.fail_add = True
    elif step == "record":

        def refuse(record: object) -> None:
            raise StateFileError(28, "no space", "endpoints.journal")

        monkeypatch.setattr(node.records, "put", refuse)
    else:
        # A write fails, and goes on failing while the ADD is taken back.
        node.datapath.fake(step).fail = fault()
        if step == "numbers":
            node.loop.post(PodUpserted("source", Pod("ns", "x", ips=("10.9.0.1",))))
    with pytest.raises((CniError, BpfError)):
        node.request(CniCommand.ADD)
    assert not node.network.present and not node.store.endpoints and not len(node.records)
    assert not node.used() and not node.manager._reserved
    monkeypatch.undo()
    node.network.fail_add = False
    if step in node.datapath._maps:
        node.datapath.fake(step).fail = None
    assert not node.request(CniCommand.ADD).error
    assert not node.request(CniCommand.DEL).error
    assert node.is_clean()


def test_an_address_is_kept_until_its_device_is_gone(node: Node) -> None:
    node.request(CniCommand.ADD)
    node.network.fail_delete = True
    with pytest.raises(CniError) as caught:
        node.request(CniCommand.DEL)
    assert caught.value.code == ErrorCode.TRY_AGAIN_LATER
    assert node.used() == 2 and len(node.records) == 1
    node.network.fail_delete = False
    node.request(CniCommand.DEL)
    assert node.is_clean()


def test_del_works_while_the_maps_cannot_be_written(node: Node) -> None:
    node.request(CniCommand.ADD)
    node.datapath.fake("devices").fail = fault()
    assert not node.request(CniCommand.DEL).error
    assert not node.network.present and not node.used()


def test_exhausted_addresses_are_told_and_nothing_is_taken(node: Node) -> None:
    for number in range(5):
        node.request(CniCommand.ADD, f"c{number}")
    with pytest.raises(CniError) as caught:
        node.request(CniCommand.ADD, "c9")
    assert caught.value.code == ErrorCode.ADDRESSES_EXHAUSTED
    node.request(CniCommand.DEL, "c0")
    assert not node.request(CniCommand.ADD, "c9").error


def test_gc_removes_what_the_runtime_does_not_name(node: Node) -> None:
    for name in ("keep", "a", "b"):
        node.request(CniCommand.ADD, name)
    node.request(CniCommand.GC, valid_attachments=frozenset({Attachment("keep", "eth0")}))
    assert [record.container_id for record in node.records] == ["keep"]
    assert len(node.network.present) == 1 and node.used() == 2


def test_a_restart_keeps_what_is_wired_and_forgets_what_is_gone(tmp_path: Path) -> None:
    network = FakeNetwork()
    first = Node(tmp_path, network)
    for name in ("a", "b"):
        first.request(CniCommand.ADD, name)
    gone, kept = list(first.records)
    first.stop()
    del network.present[gone.host_name]
    network.present["bri-unfinished"] = Device("bri-unfinished", 99)
    again = Node(tmp_path, network)
    try:
        assert again.adopted == (1, 1)
        assert set(network.present) == {kept.host_name}
        assert list(again.store.endpoints) == [kept.endpoint]
        # The address of the one that is gone is the last that is given out again.
        taken = [again.pool.allocate(str(n)).ipv4 for n in range(4)]
        assert taken[-1] == gone.ipv4 and ip_address("10.0.0.3") not in taken
    finally:
        again.stop()
