# SPDX-License-Identifier: Apache-2.0
"""Nodes that say how they are reached: whether all say the same, and what is said where not."""

from __future__ import annotations

import pytest

from agent.core.desired import Desired
from agent.core.events import Node, NodePublished, NodeRemoved, NodeWithdrawn, PublishedNode
from agent.core.numbers import Numbers
from agent.core.store import Store
from identity.allocator import IdentityAllocator
from identity.labels import DEFAULT
from tests.unit.core.test_nodes import ME, A, after, book, store_of


def announce(store: Store, name: str, mode: str = "", port: int = 0) -> None:
    store.apply(NodePublished("test", PublishedNode(name, mode, port)))


def problems(mode: str, theirs: tuple[str, int], port: int = 8472) -> dict[str, str]:
    store = store_of(ME, A)
    announce(store, "a", *theirs)
    return after(store, book(mode, tunnel_port=port)).problems


@pytest.mark.parametrize(
    ("mode", "theirs"),
    [
        ("tunnel", ("tunnel", 8472)),
        ("native", ("native", 0)),
        ("native", ("native", 9999)),  # there is no tunnel that could have another port
        ("tunnel", ("tunnel", 0)),  # it says nothing of its port
        ("tunnel", ("", 0)),  # an older agent says nothing at all
        ("native", ("", 0)),
        ("none", ("", 0)),
    ],
)
def test_they_agree_or_one_does_not_say(mode: str, theirs: tuple[str, int]) -> None:
    assert problems(mode, theirs) == {}


@pytest.mark.parametrize(
    ("mode", "theirs", "said"),
    [
        ("tunnel", ("native", 0), "routing mode native and this node has tunnel"),
        ("native", ("tunnel", 8472), "routing mode tunnel and this node has native"),
        ("none", ("tunnel", 8472), "routing mode tunnel and this node has none"),
        ("tunnel", ("tunnel", 8473), "tunnel port 8473 and this node has 8472"),
        ("tunnel", ("", 8473), "tunnel port 8473 and this node has 8472"),
        ("tunnel", ("newer", 0), "routing mode newer and this node has tunnel"),
    ],
)
def test_they_differ(mode: str, theirs: tuple[str, int], said: str) -> None:
    found = problems(mode, theirs)
    assert list(found) == ["node a"]
    assert said in found["node a"]


def test_with_what_else_is_said_of_the_node() -> None:
    store = store_of(ME, Node("a"))
    announce(store, "a", "native")
    text = after(store, book()).problems["node a"]
    assert "routing mode native" in text and "it has no address" in text


def test_only_of_nodes_that_are_there_and_others() -> None:
    store = store_of(ME, A)
    announce(store, "me", "native")  # what this node's former agent had
    announce(store, "gone", "native")
    one = book()
    assert after(store, one).problems == {}
    announce(store, "a", "native")
    assert "node a" in after(store, one).problems
    store.apply(NodeRemoved("test", A.key))
    assert after(store, one).problems == {}


def test_it_is_over_when_the_node_says_the_same() -> None:
    store = store_of(ME, A)
    one = book()
    announce(store, "a", "native")
    assert after(store, one).problems
    announce(store, "a", "tunnel")
    assert after(store, one).problems == {}
    announce(store, "a", "native")
    assert after(store, one).problems
    store.apply(NodeWithdrawn("test", PublishedNode("a").key))
    assert after(store, one).problems == {}


def test_an_announcement_is_a_change_that_writes_nothing() -> None:
    desired = Desired(IdentityAllocator(), Numbers(60.0), DEFAULT, book())
    store = store_of(ME, A)
    desired.update(store, store.take_changes(), 0.0)
    assert desired.nodes.problems == {}
    announce(store, "a", "native")
    assert store.changed
    delta = desired.update(store, store.take_changes(), 1.0)
    assert "node a" in desired.nodes.problems
    assert not delta
