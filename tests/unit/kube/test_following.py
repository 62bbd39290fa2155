# SPDX-License-Identifier: Apache-2.0
"""What is in force of one kind after lists and changes in any order."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from agent.core.events import (
    Event,
    Fact,
    IdentityWithdrawn,
    Origin,
    PodRemoved,
    PodUpserted,
    PolicyRemoved,
    RejectionCleared,
    ResourceKey,
    ResourceRejected,
    fact_key,
)
from agent.kube.following import Following
from agent.kube.kinds import IDENTITY, NETWORK_POLICY, POD
from agent.kube.wire import Meta
from policy.model import PolicyKey


def pod(name: str, app: str = "web", **status: Any) -> Raw:
    meta = {"name": name, "namespace": "shop", "labels": {"app": app}}
    return Raw(json.dumps({"metadata": meta, "status": status}).encode())


def policy(name: str, spec: Any) -> Raw:
    return Raw(json.dumps({"metadata": {"name": name, "namespace": "shop"}, "spec": spec}).encode())


def listed(following: Following, *items: Raw) -> list[Event]:
    following.begin_list()
    return [*following.page(items), *following.end_list()]


def key(name: str) -> ResourceKey:
    return ResourceKey("Pod", "shop", name)


def test_a_second_list_says_only_what_differs() -> None:
    following = Following("kubernetes", POD)
    assert len(listed(following, pod("a"), pod("b"), pod("c"))) == 3
    assert listed(following, pod("a"), pod("b"), pod("c")) == []
    events = listed(following, pod("a", "db"), pod("c"), pod("d"))
    assert [type(event) for event in events] == [PodUpserted, PodUpserted, PodRemoved]
    assert events[-1] == PodRemoved("kubernetes", key("b"))


def test_a_list_that_was_not_completed_removes_nothing() -> None:
    following = Following("kubernetes", POD)
    listed(following, pod("a"), pod("b"))
    following.begin_list()
    assert following.page([pod("c")]) != []
    assert listed(following, pod("a"), pod("b"), pod("c")) == []


def test_an_update_of_what_is_not_used_is_no_event() -> None:
    following = Following("kubernetes", POD)
    assert len(following.put(pod("a", phase="Running"))) == 1
    assert following.put(pod("a", phase="Running", qosClass="BestEffort")) == []
    assert len(following.put(pod("a", phase="Running", podIP="10.0.0.1"))) == 1


def test_the_last_good_state_stays_in_force_until_the_object_is_gone() -> None:
    following = Following("kubernetes", NETWORK_POLICY)
    listed(following, policy("np", {"podSelector": {}}))
    origin = Origin("kubernetes/networkpolicies/shop/np")
    [rejected] = following.put(policy("np", {"podSelector": {}, "newField": 1}))
    assert isinstance(rejected, ResourceRejected)
    assert (rejected.origin, rejected.field) == (origin, "spec.newField")
    assert str(rejected).startswith("kubernetes/networkpolicies/shop/np: NetworkPolicy shop/np:")
    assert following.put(policy("np", {"podSelector": {}, "newField": 2})) == []
    assert listed(following, policy("np", {"podSelector": {}, "newField": 1})) == []
    assert len(following.facts) == 1
    assert following.put(policy("np", {"podSelector": {}})) == [
        RejectionCleared("kubernetes", origin)
    ]
    following.put(policy("np", 5))
    assert following.delete(Meta(name="np", namespace="shop")) == [
        PolicyRemoved("kubernetes", PolicyKey("NetworkPolicy", "shop", "np")),
        RejectionCleared("kubernetes", origin),
    ]


def test_an_object_that_was_never_good_is_cleared_by_a_list_without_it() -> None:
    following = Following("kubernetes", IDENTITY)
    bad = Raw(b'{"metadata":{"name":"007"},"security-labels":{"k8s:a":"b"}}')
    good = Raw(b'{"metadata":{"name":"700"},"security-labels":{"k8s:a":"b"}}')
    assert len(listed(following, bad, good)) == 2
    assert listed(following) == [
        RejectionCleared("kubernetes", Origin("kubernetes/bristleidentities/007")),
        IdentityWithdrawn("kubernetes", 700),
    ]


def test_what_has_no_name_is_refused_once_and_harms_nothing() -> None:
    following = Following("kubernetes", POD)
    events = listed(following, Raw(b"5"), Raw(b"{}"), Raw(b"[]"), pod("a"))
    assert {type(event) for event in events} == {ResourceRejected, PodUpserted}
    assert [type(event) for event in listed(following, pod("a"))] == [RejectionCleared]


NAMES = st.sampled_from(["a", "b", "c"])
APPS = st.sampled_from(["web", "db", "-invalid"])
STEPS = st.lists(
    st.tuples(st.just("put"), NAMES, APPS)
    | st.tuples(st.just("delete"), NAMES, st.none())
    | st.tuples(st.just("list"), st.dictionaries(NAMES, APPS), st.none()),
    max_size=12,
)


@given(STEPS, st.dictionaries(NAMES, st.sampled_from(["web", "db"])))
def test_events_tell_all_whatever_came_before(steps: Any, final: dict[str, str]) -> None:
    """Who only hears events knows the facts, and no event is in vain."""
    following = Following("kubernetes", POD)
    heard: dict[ResourceKey, Fact] = {}
    rejected: set[Origin] = set()

    def hear(events: list[Event]) -> None:
        for event in events:
            match event:
                case PodUpserted(pod=fact):
                    assert heard.get(fact_key(fact)) != fact
                    heard[fact_key(fact)] = fact
                case PodRemoved(key=gone):
                    del heard[gone]
                case ResourceRejected(origin=origin):
                    rejected.add(origin)
                case RejectionCleared(origin=origin):
                    rejected.remove(origin)
                case _:
                    raise AssertionError(event)

    for what, one, app in steps:
        if what == "put":
            hear(following.put(pod(one, app)))
        elif what == "delete":
            hear(following.delete(Meta(name=one, namespace="shop")))
        else:
            hear(listed(following, *(pod(name, value) for name, value in one.items())))
        assert heard == following.facts
    hear(listed(following, *(pod(name, app) for name, app in final.items())))
    assert heard == following.facts
    assert {k.name: fact.labels["app"] for k, fact in heard.items()} == final  # type: ignore[union-attr]
    assert not rejected
