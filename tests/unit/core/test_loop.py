# SPDX-License-Identifier: Apache-2.0
"""The loop over dict maps: who is answered when, what a failed write leads to, what is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from agent.admission import Admission
from agent.checker import Checker
from agent.core.desired import Desired
from agent.core.endpoint import Endpoint
from agent.core.events import (
    Origin,
    Pod,
    PodRemoved,
    PodUpserted,
    PolicyRemoved,
    PolicyUpserted,
    RejectionCleared,
    ResourceKey,
    ResourceRejected,
    SourceSynced,
)
from agent.core.numbers import Numbers
from agent.core.store import Store
from agent.kernel.links import LinkError
from agent.kernel.loader import LoadError
from agent.kernel.rtnl import RtnlError
from agent.kernel.syscall import BpfError, Command
from agent.loop import CapacityExceeded, Loop, LoopStopped
from identity.allocator import IdentityAllocator
from identity.labels import DEFAULT
from policy.model import NetworkPolicy, PolicyKey
from policy.parse import parse_network_policy
from tests.unit.core.kernel import FakeDatapath, wanted


def broken() -> BpfError:
    return BpfError(12, Command.MAP_UPDATE_BATCH, "a test")


def pod(name: str, app: str, ip: str = "", **more: Any) -> Pod:
    return Pod("ns", name, labels={"app": app}, ips=(ip,) if ip else (), **more)


def policy(name: str, ports: int = 1, app: str = "web", block: str = "") -> NetworkPolicy:
    peer = {"ipBlock": {"cidr": block}} if block else {"podSelector": {}}
    rule = {"from": [peer], "ports": [{"port": 1 + 2 * n} for n in range(ports)]}
    return parse_network_policy(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "ns"},
            "spec": {"podSelector": {"matchLabels": {"app": app}}, "ingress": [rule]},
        }
    )


def endpoint(number: int, name: str) -> Endpoint:
    return Endpoint(
        number, f"c{number}", "eth0", "ns", name, "", f"10.0.0.{number}", "",
        f"02:00:00:00:00:{number:02x}", "02:00:00:00:01:00", f"bri{number}", 100 + number,
    )  # fmt: skip


class Rig:
    """A loop in a thread of its own; its clock is the test's."""

    def __init__(self, datapath: FakeDatapath, numbers: Numbers | None = None) -> None:
        self.now = 1000.0
        self.saved = 0
        self.first: Callable[[], None] = lambda: None
        self.store = Store(["source"])
        self.datapath = datapath
        self.desired = Desired(IdentityAllocator(), numbers or Numbers(60.0), DEFAULT)
        self.loop = Loop(
            self.store, self.desired, datapath,
            identity_gc=60.0, save_identities=self._save, on_first_sync=lambda: self.first(),
            clock=lambda: self.now,
        )  # fmt: skip
        self.thread = threading.Thread(target=self.loop.run)

    def _save(self) -> None:
        self.saved += 1

    def start(self) -> None:
        for name, app, ip in (("w", "web", ""), ("c", "client", "10.9.0.1")):
            self.loop.post(PodUpserted("source", pod(name, app, ip)))
        self.loop.post(SourceSynced("source"))
        self.store.put_endpoint(endpoint(1, "w"))
        self.thread.start()
        assert self.loop.synced.wait(10)

    def settle(self, seconds: float = 0.0) -> None:
        """Let time pass, and all that is due be done."""
        self.now += seconds
        for _ in range(8):
            self.loop.call(lambda: None, 10, in_force=False)

    def do(self, event: Any) -> None:
        self.loop.post(event)
        self.loop.call(lambda: None, 10)

    def consistent(self) -> bool:
        actual = self.datapath.content()
        return all(actual[name] == content for name, content in wanted(self.desired).items())

    def stop(self) -> None:
        self.loop.stop()
        if self.thread.ident is not None:
            self.thread.join(10)


@pytest.fixture
def rigs() -> Iterator[Any]:
    made: list[Rig] = []

    def make(
        numbers: Numbers | None = None, datapath: FakeDatapath | None = None, **sizes: int
    ) -> Rig:
        made.append(Rig(datapath or FakeDatapath(**sizes), numbers))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_nothing_is_written_before_every_source_has_delivered(rigs: Any) -> None:
    rig = rigs()
    rig.loop.post(PodUpserted("source", pod("w", "web", "10.9.0.1")))
    rig.thread.start()
    assert rig.loop.call(lambda: 7, 10) == 7
    assert not any(rig.datapath.content().values())
    assert not rig.loop.synced.is_set()
    rig.loop.post(SourceSynced("source"))
    assert rig.loop.synced.wait(10)
    assert rig.consistent()


def test_a_call_is_answered_after_what_it_changed_is_in_force(rigs: Any) -> None:
    rig = rigs()
    rig.start()
    rig.store_key = (2).to_bytes(4, "little")

    def seen(future: Any) -> None:
        rig.seen = rig.store_key in rig.datapath.fake("endpoints").content

    future = rig.loop.submit(lambda: rig.store.put_endpoint(endpoint(2, "c")))
    future.add_done_callback(seen)
    future.result(10)
    rig.loop.call(lambda: None, 10)
    assert rig.seen
    with pytest.raises(KeyError):
        rig.loop.call(lambda: rig.store.policies[ResourceKey("", "", "no")], 10)


@pytest.mark.parametrize(
    "name", ["numbers", "policy", "peers", "endpoints", "addresses", "devices"]
)
def test_a_failed_write_is_told_and_made_good_by_comparison(rigs: Any, name: str) -> None:
    rig = rigs()
    rig.start()
    rig.do(PolicyUpserted("source", policy("p")))
    epoch = rig.datapath.epoch()
    rig.datapath.fake(name).fail = broken()
    rig.loop.post(PodUpserted("source", pod("n", "new", "10.9.0.7")))
    rig.loop.post(PolicyUpserted("source", policy("p", ports=3)))
    with pytest.raises(BpfError):
        rig.loop.call(lambda: rig.store.put_endpoint(endpoint(3, "n")), 10)
    assert "datapath" in rig.loop.problems
    assert rig.datapath.epoch() > epoch  # part of it may be in force: nothing cached may stand
    assert rig.loop.call(lambda: 5, 10, in_force=False) == 5
    rig.datapath.fake(name).fail = None
    rig.settle(2)
    assert rig.consistent()
    assert rig.loop.problems == {}


def test_removing_a_peer_moves_the_epoch(rigs: Any) -> None:
    """A connection's cached verdict must not outlive the peer's labels."""
    rig = rigs()
    rig.start()
    before = rig.datapath.epoch()
    rig.do(PodRemoved("source", ResourceKey("Pod", "ns", "c")))
    assert rig.datapath.epoch() > before


def test_a_policy_that_does_not_fit_is_refused_and_its_former_state_stays(rigs: Any) -> None:
    rig = rigs(policy=14)
    rig.start()
    rig.do(PolicyUpserted("source", policy("good", ports=2)))
    before = dict(rig.datapath.fake("policy").content)
    rig.loop.post(PolicyUpserted("source", policy("good", ports=40)))
    rig.loop.post(PolicyUpserted("source", policy("another", ports=60)))
    rig.loop.post(PolicyUpserted("source", policy("zmall", ports=1, app="client")))
    rig.loop.call(lambda: None, 10)
    assert {key.name for key in rig.loop.refused} == {"good", "another"}
    assert "14 entries" in str(next(iter(rig.loop.refused.values())).reason)
    assert {key.name for key in rig.store.policies} == {"good", "zmall"}
    assert before.items() <= rig.datapath.fake("policy").content.items()
    assert rig.consistent()
    # A version that fits is taken, and the refusal is over; so it is when the policy goes.
    rig.settle(5)
    rig.do(PolicyUpserted("source", policy("good", ports=1)))
    rig.do(PolicyRemoved("source", PolicyKey("NetworkPolicy", "ns", "another")))
    assert rig.loop.refused == {}
    rig.settle(5)
    assert rig.consistent()


def test_a_refused_policy_is_put_in_force_when_there_is_room(rigs: Any) -> None:
    rig = rigs(policy=20)
    rig.start()
    rig.do(PolicyUpserted("source", policy("a", ports=6)))
    rig.do(PolicyUpserted("source", policy("b", ports=6)))
    assert [key.name for key in rig.loop.refused] == ["b"]
    rig.do(PolicyRemoved("source", PolicyKey("NetworkPolicy", "ns", "a")))
    for _ in range(4):
        rig.settle(3)
    assert rig.loop.refused == {}
    assert {key.name for key in rig.store.policies} == {"b"}
    assert rig.consistent()


def test_a_deleted_policy_does_not_come_back_as_former_state(rigs: Any) -> None:
    rig = rigs(policy=14)
    rig.start()
    rig.do(PolicyUpserted("source", policy("d", ports=2)))

    def in_one_batch() -> None:
        rig.store.apply(PolicyRemoved("source", PolicyKey("NetworkPolicy", "ns", "d")))
        rig.store.apply(PolicyUpserted("source", policy("big", ports=40)))

    rig.loop.call(in_one_batch, 10)
    assert {key.name for key in rig.loop.refused} == {"big"}
    rig.do(PolicyUpserted("source", policy("d", ports=60)))
    assert {key.name for key in rig.loop.refused} == {"big", "d"}
    assert rig.store.policies == {}
    for name in ("big", "d"):
        rig.do(PolicyRemoved("source", PolicyKey("NetworkPolicy", "ns", name)))
    assert rig.loop.refused == {}
    rig.settle(70)
    assert rig.store.policies == {}
    assert rig.consistent()


@pytest.mark.parametrize("former", [False, True])
def test_a_refused_policy_that_is_deleted_is_not_tried_again(former: bool) -> None:
    room = [14]
    store = Store(["source"])
    desired = Desired(IdentityAllocator(), Numbers(60.0), DEFAULT)
    admission = Admission(store, desired, lambda name: room[0])
    store.apply(PodUpserted("source", pod("w", "web")))
    store.apply(PodUpserted("source", pod("c", "client", "10.9.0.1")))
    store.put_endpoint(endpoint(1, "w"))
    if former:
        store.apply(PolicyUpserted("source", policy("p", ports=1)))
    admission.take(0.0)
    store.apply(PolicyUpserted("source", policy("p", ports=40)))
    admission.take(1.0)
    assert [key.name for key in admission.refused] == ["p"]
    room[0] = 1 << 20
    store.apply(PolicyRemoved("source", PolicyKey("NetworkPolicy", "ns", "p")))
    # Its removal is known and not taken yet, and then it is.
    assert not admission.retry(2.0, everything=True)
    assert store.policies == {}
    admission.take(2.0)
    assert admission.refused == {}
    assert not admission.retry(3.0, everything=True)
    assert store.policies == {} and desired.repository.policies() == ()


def test_a_rejection_is_logged_once_in_one_line(
    rigs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rig = rigs()
    rig.start()
    rejected = ResourceRejected("source", Origin("bad.yaml", 2), "spec", "line 1:\n  not\n so")
    for _ in range(3):
        rig.do(rejected)
    found = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert found == ["rejected: bad.yaml document 2: spec: line 1: not so"]
    rig.do(RejectionCleared("source", rejected.origin))
    rig.do(rejected)
    assert len([one for one in caplog.records if one.levelname == "WARNING"]) == 2


def test_a_pod_whose_policy_finds_no_room_is_not_added(rigs: Any) -> None:
    rig = rigs(policy=8)
    rig.start()
    rig.do(PolicyUpserted("source", policy("p", ports=10, app="big")))
    rig.do(PodUpserted("source", pod("b", "big")))
    with pytest.raises(CapacityExceeded, match=r"bpf\.policy_max"):
        rig.loop.call(lambda: rig.store.put_endpoint(endpoint(4, "b")), 10)
    rig.loop.call(lambda: rig.store.drop_endpoint(4), 10)
    assert rig.consistent()
    rig.loop.call(lambda: rig.store.put_endpoint(endpoint(5, "c")), 10)
    assert rig.loop.problems == {}


def test_what_others_alter_is_repaired_and_counted(rigs: Any) -> None:
    rig = rigs()
    rig.start()
    rig.do(PolicyUpserted("source", policy("p", ports=3)))
    for _ in range(4):
        rig.settle(5)
    assert rig.loop.counters.repaired == 0
    entries = rig.datapath.fake("policy").content
    first, second, *_ = entries
    entries[first] = bytes(8)
    del entries[second]
    entries[first[:-1] + b"\x10"] = bytes(8)
    rig.datapath.fake("peers").content.popitem()
    epoch = rig.datapath.epoch()
    for _ in range(3):
        rig.settle(20)
    assert rig.consistent()
    assert rig.loop.counters.repaired >= 3
    assert rig.datapath.epoch() > epoch


def test_a_restarted_agent_writes_nothing_that_is_there(rigs: Any) -> None:
    first = rigs()
    first.start()
    first.do(PolicyUpserted("source", policy("p", ports=3, block="10.0.0.0/8")))
    first.settle(5)
    first.stop()
    before, epoch = first.datapath.content(), first.datapath.epoch()
    numbers = Numbers(60.0)
    assert numbers.adopt(first.datapath.numbers()) == 0
    written = {name: first.datapath.fake(name).writes for name in before}
    again = rigs(numbers=numbers, datapath=first.datapath)
    again.loop.post(PolicyUpserted("source", policy("p", ports=3, block="10.0.0.0/8")))
    again.start()
    again.settle(5)
    assert first.datapath.content() == before
    assert {name: first.datapath.fake(name).writes for name in before} == written
    assert first.datapath.epoch() == epoch


def test_whoever_asks_a_stopped_loop_is_told(rigs: Any) -> None:
    rig = rigs()
    rig.start()
    rig.stop()
    with pytest.raises(LoopStopped):
        rig.loop.call(lambda: None, 10)
    assert rig.saved >= 1  # identities made since the last save


def test_a_bug_ends_the_loop_and_leaves_nobody_waiting(rigs: Any) -> None:
    rig = rigs()
    ended: list[BaseException] = []

    def run() -> None:
        try:
            rig.loop.run()
        except ZeroDivisionError as error:
            ended.append(error)

    rig.thread = threading.Thread(target=run)
    rig.start()
    rig.datapath.fake("peers").fail = ZeroDivisionError()
    rig.loop.post(PodUpserted("source", pod("n", "new", "10.9.0.7")))
    waiting = [rig.loop.submit(lambda: None) for _ in range(3)]
    for future in waiting:
        with pytest.raises((ZeroDivisionError, LoopStopped)):
            future.result(10)
    rig.thread.join(10)
    assert ended


@pytest.mark.parametrize(
    "error", [LinkError("attach"), LoadError("from_pod", "verify", "no", ""), RtnlError(16, "x")]
)
def test_a_take_over_that_fails_is_said_and_tried_again(rigs: Any, error: Exception) -> None:
    rig, tries = rigs(), []

    def first() -> None:
        tries.append(rig.now)
        if len(tries) < 4:
            raise error

    rig.first = first
    rig.loop.post(SourceSynced("source"))
    rig.thread.start()
    rig.settle()
    assert tries == [1000.0] and not rig.loop.synced.is_set()
    assert rig.loop.problems == {"datapath": str(error)}
    with pytest.raises(type(error)):  # nobody is told that anything is in force
        rig.loop.call(lambda: None, 10)
    for pause in (1.0, 2.0, 4.0):
        rig.settle(pause - 0.5)
        before = len(tries)
        rig.settle(0.5)
        assert len(tries) == before + 1
    assert rig.loop.synced.is_set() and not rig.loop.problems
    rig.loop.call(lambda: None, 10)


def test_a_check_leaves_alone_what_is_to_be_deleted(rigs: Any) -> None:
    def differences(rig: Rig) -> int:
        checker = Checker(rig.loop, str)
        return rig.loop.call(lambda: checker.check(False), 10).difference_count

    former = rigs()
    former.start()
    former.do(PolicyUpserted("source", policy("a", 3)))
    former.do(PodUpserted("source", pod("d", "other", "10.9.0.2")))
    former.stop()
    # Another agent knows neither the policy nor the pod.
    rig = rigs(datapath=former.datapath)
    rig.start()
    assert not rig.consistent() and differences(rig) == 0
    rig.settle(5)
    assert rig.consistent() and differences(rig) == 0
    # A table that nothing uses any more stays for a moment; by then somebody may have altered it.
    rig.do(PolicyUpserted("source", policy("b", 2)))
    rig.do(PolicyRemoved("source", PolicyKey("NetworkPolicy", "ns", "b")))
    table = rig.datapath.fake("policy").content
    assert table and differences(rig) == 0
    table.pop(min(table))
    assert differences(rig) == 0
    rig.do(PolicyUpserted("source", policy("c", 2)))
    table.pop(min(table))
    assert differences(rig) > 0


def test_what_looks_after_things_waits_for_quiet_but_not_for_ever(rigs: Any) -> None:
    rig = rigs()
    looks: list[float] = []

    def collect(*_: object) -> tuple[int, int]:
        looks.append(rig.now)
        return 0, 0

    rig.datapath.collect_connections = collect
    rig.start()
    rig.settle(5)
    looks.clear()
    begin = rig.now
    for n in range(200):  # something changes all the time
        rig.do(PodUpserted("source", pod("c", f"client-{n}", "10.9.0.1")))
        rig.settle(0.2)
    assert all(pause >= 15 for pause in _pauses([begin, *looks])), looks
    assert len(looks) >= 1
    rig.settle(1)
    rig.settle(11)
    busy = len(looks)
    for _ in range(10):
        rig.settle(11)
    assert len(looks) == busy + 10


def _pauses(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]
