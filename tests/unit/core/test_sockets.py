# SPDX-License-Identifier: Apache-2.0
"""Whose sockets are redirected depends on what is, not on how it came about; and what is wrong
about an annotation is told with the way out."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.delta import Delta, MapDelta
from agent.core.endpoint import Endpoint
from agent.core.events import (
    Namespace,
    NamespaceUpserted,
    Pod,
    PodUpserted,
)
from agent.core.sockets import Mode, SocketBook
from agent.core.store import Store
from bpf.layouts import RedirectMode, SocketEndpoint
from bpf.maps import U32, U64
from identity.labels import LabelSet

SOURCE = "test"
VALUES = ("", "on", "off", "all", "On ", "true", "false", "wrong")


def endpoint(number: int, pod: str, cookie: int) -> Endpoint:
    return Endpoint(
        id=number, container_id=f"c{number}", ifname="eth0", namespace="shop", pod=pod, pod_uid="",
        ipv4=f"10.0.0.{number}", ipv6="", mac="02:00:00:00:00:01", host_mac="02:00:00:00:00:02",
        device=f"bri{number}", ifindex=number, netns_cookie=cookie,
    )  # fmt: skip


def pod(name: str, value: str) -> Pod:
    return Pod("shop", name, "", LabelSet({}), "default", "node-1", False, (), (), "Running",
               False, redirect=value)  # fmt: skip


def follow(kernel: dict[bytes, bytes], delta: MapDelta) -> None:
    """As the loop writes it."""
    for key in delta.deletes:
        kernel.pop(key, None)
    kernel.update(delta.upserts)


class World:
    """A store, a book, and the two maps as a kernel would have them."""

    def __init__(self, default: Mode, ceiling: Mode) -> None:
        self.store = Store([SOURCE])
        self.book = SocketBook(default, ceiling)
        self.sockets: dict[bytes, bytes] = {}
        self.namespaces: dict[bytes, bytes] = {}

    def apply(self, delta: Delta) -> None:
        follow(self.sockets, delta.socket_endpoints)
        follow(self.namespaces, delta.namespaces)

    def endpoint(self, one: Endpoint) -> None:
        delta = Delta()
        self.store.endpoints[one.id] = one
        self.book.put(one, self.store, delta)
        self.apply(delta)

    def gone(self, number: int) -> None:
        delta = Delta()
        self.store.endpoints.pop(number, None)
        self.book.drop(number, delta)
        self.apply(delta)

    def fact(self, event: PodUpserted | NamespaceUpserted) -> None:
        self.store.apply(event)
        for one in self.store.endpoints.values():
            self.endpoint(one)

    def ceiling(self, mode: Mode) -> None:
        delta = Delta()
        self.book.set_ceiling(mode, self.store, delta)
        self.apply(delta)


@given(st.randoms(use_true_random=False))
def test_any_order_gives_the_same(random: Random) -> None:
    """Random events, then the same facts told once to another book: the same maps."""
    world = World(random.choice(list(Mode)), random.choice(list(Mode)))
    ceiling = Mode.OFF
    for _ in range(random.randint(1, 40)):
        match random.randrange(5):
            case 0 | 1:
                # Few namespaces: some endpoints have the same, as after an ADD that was repeated.
                number = random.randint(1, 5)
                world.endpoint(endpoint(number, random.choice("pqr"), random.randint(0, 3)))
            case 2:
                world.gone(random.randint(1, 5))
            case 3:
                value = random.choice(VALUES)
                if random.random() < 0.5:
                    world.fact(PodUpserted(SOURCE, pod(random.choice("pqr"), value)))
                else:
                    shop = Namespace("shop", LabelSet({}), value)
                    world.fact(NamespaceUpserted(SOURCE, shop))
            case 4:
                ceiling = random.choice(list(Mode))
                world.ceiling(ceiling)
        assert world.book.endpoint_writes() == world.sockets
        assert world.book.namespace_writes() == world.namespaces
    fresh = SocketBook(world.book._default, world.book._ceiling)
    numbers = list(world.store.endpoints)
    random.shuffle(numbers)
    for number in numbers:
        fresh.put(world.store.endpoints[number], world.store, Delta())
    assert fresh.endpoint_writes() == world.sockets
    assert fresh.namespace_writes() == world.namespaces
    assert fresh.problems == world.book.problems
    # A namespace is an endpoint's that says the same of it.
    for cookie, endpoint_id in world.namespaces.items():
        assert SocketEndpoint.unpack(world.sockets[endpoint_id]).netns == U64.unpack(cookie)
    for entry in world.sockets.values():
        assert SocketEndpoint.unpack(entry).mode != RedirectMode.REDIRECT_OFF


def test_namespace_that_is_given_on() -> None:
    """The second ADD for a namespace comes before the first one's DEL."""
    world = World(Mode.ON, Mode.ALL)
    world.endpoint(endpoint(1, "p", 77))
    world.endpoint(endpoint(2, "p", 77))
    world.gone(1)
    assert world.namespaces == {U64.pack(77): U32.pack(2)}
    world.gone(2)
    assert world.namespaces == {} and world.sockets == {}


def test_unknown_namespace() -> None:
    """Without a cookie an endpoint takes no part."""
    world = World(Mode.ALL, Mode.ALL)
    world.endpoint(endpoint(1, "p", 0))
    assert (world.sockets, world.namespaces) == ({}, {}) and not world.book.users


@pytest.mark.parametrize(
    ("of_pod", "of_namespace", "default", "ceiling", "mode"),
    [
        ("", "", Mode.OFF, Mode.ALL, Mode.OFF),
        ("", "", Mode.ON, Mode.ALL, Mode.ON),
        ("", "on", Mode.OFF, Mode.ALL, Mode.ON),
        ("off", "on", Mode.ALL, Mode.ALL, Mode.OFF),
        ("all", "off", Mode.OFF, Mode.ALL, Mode.ALL),
        ("all", "", Mode.OFF, Mode.ON, Mode.ON),
        ("all", "all", Mode.ALL, Mode.OFF, Mode.OFF),
        ("TRUE", "", Mode.OFF, Mode.ALL, Mode.ON),
        ("wrong", "all", Mode.ALL, Mode.ALL, Mode.OFF),
        ("", "wrong", Mode.ALL, Mode.ALL, Mode.OFF),
    ],
)
def test_who_decides(
    of_pod: str, of_namespace: str, default: Mode, ceiling: Mode, mode: Mode
) -> None:
    world = World(default, ceiling)
    world.fact(NamespaceUpserted(SOURCE, Namespace("shop", LabelSet({}), of_namespace)))
    world.fact(PodUpserted(SOURCE, pod("p", of_pod)))
    world.endpoint(endpoint(1, "p", 5))
    assert world.book.mode(1) is mode
    told = world.book.problems.get(1, "")
    if "wrong" in (of_pod, of_namespace):
        owner = "pod shop/p" if of_pod == "wrong" else "namespace shop"
        assert told.startswith(owner) and '"wrong"' in told and "on, off or all" in told
        assert "bristle.io/socket-redirect" in told
    else:
        assert told == ""


def test_problem_goes_with_its_cause() -> None:
    world = World(Mode.OFF, Mode.ALL)
    world.fact(PodUpserted(SOURCE, pod("p", "x" * 500)))
    world.endpoint(endpoint(1, "p", 5))
    assert len(world.book.problems[1]) < 250
    world.fact(PodUpserted(SOURCE, pod("p", "on")))
    assert not world.book.problems
    world.fact(PodUpserted(SOURCE, pod("p", "?")))
    world.gone(1)
    assert not world.book.problems
