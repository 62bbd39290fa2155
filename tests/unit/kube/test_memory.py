# SPDX-License-Identifier: Apache-2.0
"""A start over objects that are refused by now: their last good state is in force again, and that
of no other object."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from agent.core.events import (
    Event,
    Fact,
    Namespace,
    NamespaceUpserted,
    PolicyRemoved,
    PolicyUpserted,
    RejectionCleared,
    ResourceKey,
    ResourceRejected,
    fact_key,
)
from agent.kube.following import Following
from agent.kube.keeper import Keeper
from agent.kube.kinds import NAMESPACE, NETWORK_POLICY
from agent.kube.last_good import LastGood
from agent.kube.memory import Good, Memory
from agent.kube.wire import Meta
from policy.model import NetworkPolicy

BAD = "10.0.0.1/8"
GOOD = ("10.0.0.0/8", "10.0.0.0/9")


def policy(name: str, uid: str, cidr: str) -> Raw:
    spec = {"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": cidr}}]}]}
    meta = {"name": name, "namespace": "shop", "uid": uid}
    return Raw(json.dumps({"metadata": meta, "spec": spec}).encode())


def namespace(uid: str, labels: Any) -> Raw:
    return Raw(json.dumps({"metadata": {"name": "shop", "uid": uid, "labels": labels}}).encode())


class Agent:
    """What follows policies, and hears only of events."""

    def __init__(self, path: Path) -> None:
        self._file = LastGood(path, "kubernetes")
        self.memory = Memory(self._file.load(), lambda: None)
        self.policies = Following("kubernetes", NETWORK_POLICY, self.memory)
        self.heard: dict[ResourceKey, Fact] = {}
        self.rejected: dict[str, ResourceRejected] = {}

    def hear(self, events: list[Event]) -> None:
        for event in events:
            match event:
                case PolicyUpserted(policy=fact):
                    assert self.heard.get(fact_key(fact)) != fact
                    self.heard[fact_key(fact)] = fact
                case PolicyRemoved(key=gone):
                    del self.heard[ResourceKey(*gone)]
                case ResourceRejected(origin=origin):
                    self.rejected[str(origin)] = event
                case RejectionCleared(origin=origin):
                    del self.rejected[str(origin)]
                case _:
                    raise AssertionError(event)

    def list(self, *items: Raw) -> None:
        self.policies.begin_list()
        self.hear(self.policies.page(items))
        self.hear(self.policies.end_list())

    def save(self) -> None:
        self._file.save(self.memory.files())

    def names(self) -> dict[str, str]:
        found = {}
        for key, fact in self.heard.items():
            assert isinstance(fact, NetworkPolicy)
            found[key.name] = fact.uid
        return found


def test_a_start_over_a_refused_object_takes_nothing_back(tmp_path: Path) -> None:
    path = tmp_path / "manifests.json"
    agent = Agent(path)
    agent.list(*(policy(name, f"uid-{name}", GOOD[0]) for name in "abcd"))
    before = dict(agent.heard)
    agent.save()
    for _ in range(2):
        agent = Agent(path)
        assert not agent.heard  # nothing before the server has spoken
        agent.list(
            policy("a", "uid-a", BAD), policy("b", "another", BAD), policy("c", "uid-c", GOOD[0])
        )
        assert agent.names() == {"a": "uid-a", "c": "uid-c"}
        assert agent.heard.items() <= before.items()
        assert len(agent.rejected) == 2
        agent.save()
    # `d` was gone and `b` another: neither is ever brought back.
    agent = Agent(path)
    agent.list(*(policy(name, f"uid-{name}", BAD) for name in "abcd"))
    assert agent.names() == {"a": "uid-a", "c": "uid-c"}
    agent.hear(agent.policies.delete(Meta(name="a", namespace="shop", uid="uid-a")))
    agent.hear(agent.policies.put(policy("a", "new", BAD)))
    assert agent.names() == {"c": "uid-c"}


def test_labels_of_a_namespace_are_kept_as_well(tmp_path: Path) -> None:
    file = LastGood(tmp_path / "manifests.json", "kubernetes")
    memory = Memory({}, lambda: None)
    Following("kubernetes", NAMESPACE, memory).put(namespace("u", {"a": "b"}))
    file.save(memory.files())
    memory = Memory(file.load(), lambda: None)
    first, rejected = Following("kubernetes", NAMESPACE, memory).put(namespace("u", {"a": "-"}))
    assert isinstance(first, NamespaceUpserted) and first.namespace.labels["a"] == "b"
    assert isinstance(rejected, ResourceRejected)
    events = Following("kubernetes", NAMESPACE, memory).put(namespace("v", {"a": "-"}))
    assert [type(event) for event in events] == [ResourceRejected]


def test_an_object_that_its_successor_followed_unseen_is_not_in_force(tmp_path: Path) -> None:
    agent = Agent(tmp_path / "manifests.json")
    agent.list(policy("a", "1", GOOD[0]))
    agent.list(policy("a", "2", BAD))
    assert not agent.heard and len(agent.rejected) == 1


def test_one_state_that_cannot_be_read_takes_no_other_along(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "manifests.json"
    agent = Agent(path)
    agent.list(policy("a", "1", GOOD[0]), policy("b", "2", GOOD[1]))
    agent.save()
    path.write_text(path.read_text().replace(GOOD[1], BAD))
    agent = Agent(path)
    assert (
        "has bits set beyond its prefix length; 10.0.0.0/8 is meant?; one resource" in caplog.text
    )
    agent.list(policy("a", "1", BAD), policy("b", "2", BAD))
    assert agent.names() == {"a": "1"}


NAMES = st.sampled_from(["a", "b"])
STATES = st.sampled_from([*GOOD, BAD, BAD])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("edit"), NAMES, STATES),
        st.tuples(st.just("replace"), NAMES, STATES),
        st.tuples(st.just("delete"), NAMES, st.none()),
        *(
            st.just((what, None, None))
            for what in ("away", "list", "list", "half a list", "save", "restart")
        ),
    ),
    min_size=5,
    max_size=30,
)


@settings(max_examples=500, deadline=None)
@given(STEPS)
def test_any_history_ends_in_what_is_there_and_its_last_good(steps: Any) -> None:
    """The oracle knows of every object, by its uid, what an agent has last seen of it that was
    valid; a restart takes it back to what was written down."""
    objects: dict[str, tuple[str, str]] = {}
    seen: dict[str, str] = {}
    written: dict[str, str] = {}
    following = False
    with TemporaryDirectory() as folder:
        path = Path(folder) / "manifests.json"
        agent = Agent(path)

        def see(name: str) -> Raw:
            uid, state = objects[name]
            if state != BAD:
                seen[uid] = state
            return policy(name, uid, state)

        for number, (what, name, state) in enumerate(steps):
            if what in ("edit", "replace"):
                fresh = what == "replace" or name not in objects
                if fresh and name in objects and following:
                    agent.hear(agent.policies.delete(Meta(name=name, namespace="shop")))
                objects[name] = (f"u{number}" if fresh else objects[name][0], state)
                if following:
                    agent.hear(agent.policies.put(see(name)))
            elif what == "delete":
                if objects.pop(name, None) and following:
                    agent.hear(agent.policies.delete(Meta(name=name, namespace="shop")))
            elif what == "save":
                agent.save()
                written = dict(seen)
            elif what == "restart":
                agent, seen, following = Agent(path), dict(written), False
            elif what == "half a list":
                following = False
                agent.policies.begin_list()
                agent.hear(agent.policies.page([see(name) for name in sorted(objects)[:1]]))
            elif what == "away":
                following = False
            else:
                agent.list(*map(see, objects))
                following = True
            assert agent.heard == agent.policies.facts
            if following:
                expected = {(name, seen[uid]) for name, (uid, _) in objects.items() if uid in seen}
                assert {(key.name, _cidr(fact)) for key, fact in agent.heard.items()} == expected
                assert len(agent.memory.files()) == len(expected)
                assert len(agent.rejected) == sum(one[1] == BAD for one in objects.values())


def _cidr(fact: Fact) -> str:
    assert isinstance(fact, NetworkPolicy) and fact.ingress[0].peers
    return str(fact.ingress[0].peers[0].block.cidr)  # type: ignore[union-attr]


# ---- the thread that writes ------------------------------------------------------------------

SHOP = Namespace("shop", {"a": "b"})


class Writer:
    """A running keeper. `in_force` lets it write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked, self.in_force = threading.Event(), threading.Event()
        self.keeper = Keeper(LastGood(path, "kubernetes"), 0.01, 0.01, self._settle)
        self._thread = threading.Thread(target=self.keeper.run)
        self._thread.start()

    def _settle(self) -> None:
        self.asked.set()
        assert self.in_force.wait(10)

    def stop(self) -> None:
        self.in_force.set()
        self.keeper.stop()
        self._thread.join()

    def put(self, label: str) -> None:
        fact = Namespace("shop", {"a": label})
        self.keeper.memory.put(fact.key, Good(fact, "u"))


def _wait(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    made = Writer(tmp_path / "state" / "manifests.json")
    yield made
    made.stop()


def test_nothing_is_written_before_it_is_in_force_and_nobody_waits(writer: Writer) -> None:
    writer.path.parent.mkdir()
    writer.put("1")
    assert writer.asked.wait(10)
    writer.put("2")
    assert not writer.path.exists()
    writer.stop()
    assert '"a": "2"' in writer.path.read_text()


def test_what_could_not_be_written_is_tried_again(
    writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    writer.in_force.set()
    writer.put("1")
    _wait(lambda: "could not be written down" in caplog.text)
    writer.path.parent.mkdir()
    _wait(writer.path.exists)
    assert '"a": "1"' in writer.path.read_text()


def test_nothing_is_written_when_nothing_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "manifests.json"
    agent = Agent(path)
    agent.list(policy("a", "1", GOOD[0]))
    agent.save()
    before = path.stat()
    agent.save()
    assert path.stat() == before
    agent = Agent(path)
    agent.save()
    assert path.stat() == before
    agent.list(policy("a", "1", GOOD[1]))
    agent.save()
    assert path.stat() != before
    assert {_cidr(one.fact) for (one,) in LastGood(path, "kubernetes").load().values()} == {GOOD[1]}
    agent.list(policy("a", "1", GOOD[0]))
    agent.save()
    changes: list[None] = []
    memory = Memory(LastGood(path, "kubernetes").load(), lambda: changes.append(None))
    following = Following("kubernetes", NETWORK_POLICY, memory)
    following.begin_list()
    following.page([policy("a", "1", GOOD[0])])
    following.end_list()
    following.put(policy("a", "1", BAD))
    assert not changes
    following.put(policy("a", "1", GOOD[1]))
    assert len(changes) == 1
