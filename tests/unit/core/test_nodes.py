# SPDX-License-Identifier: Apache-2.0
"""Other nodes: who has what, how it is reached, and what is said of nodes that cannot be."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from itertools import permutations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.delta import Delta
from agent.core.endpoint import address_bytes
from agent.core.events import Node, NodePublished, NodeRemoved, NodeUpserted, PublishedNode
from agent.core.nodes import NodeBook, Routing
from agent.core.store import Store
from bpf.layouts import PeerKey, Tunnel, TunnelFlag

ME = Node("me", "", ("192.0.2.1", "2001:db8::1"), ("10.1.0.0/24", "fd00:1::/64"))
A = Node("a", "", ("192.0.2.2", "2001:db8::2"), ("10.2.0.0/24", "fd00:2::/64"))
B = Node("b", "", ("192.0.2.3", "2001:db8::3"), ("10.3.0.0/24", "fd00:3::/64"))
DEVICE = 7


def store_of(*nodes: Node, device: int = DEVICE, own: tuple[str, ...] = ME.addresses) -> Store:
    store = Store([])
    store.set_node_addresses(own)
    store.set_tunnel_device(device)
    for node in nodes:
        store.apply(NodeUpserted("test", node))
    return store


def book(mode: str = "tunnel", capacity: int = 100, **more: object) -> NodeBook:
    routing = Routing(mode, **more)  # type: ignore[arg-type]
    return NodeBook("me", [ip_network(one) for one in ME.pod_cidrs], routing, capacity)


def after(store: Store, one: NodeBook | None = None) -> NodeBook:
    one = one or book()
    one.update(store, Delta())
    return one


def entry(one: NodeBook, network: str) -> Tunnel | None:
    block = ip_network(network)
    length = block.prefixlen + (96 if block.version == 4 else 0)
    found = one.writes().get(PeerKey(length, address_bytes(str(block[0]))).pack())
    return Tunnel.unpack(found) if found else None


def to(remote: str, local: str = "192.0.2.1", flags: int = 0) -> Tunnel:
    return Tunnel(address_bytes(remote), address_bytes(local), DEVICE, flags)


def test_pods_and_addresses_of_another_node() -> None:
    alias = replace(A, addresses=(*A.addresses, "203.0.113.9"))
    one = after(store_of(ME, alias))
    for network in (*A.pod_cidrs, "192.0.2.2/32", "2001:db8::2/128"):
        assert entry(one, network) == to("192.0.2.2")
    only = int(TunnelFlag.TUNNEL_SOURCE_ONLY)
    assert entry(one, "203.0.113.9/32") == to("192.0.2.2", flags=only)
    assert len(one.writes()) == 5 and one.problems == {}
    routes = {str(r.destination): (r.gateway, r.source) for r in one.routes.values()}
    assert routes == {"10.2.0.0/24": ("", "192.0.2.1"), "fd00:2::/64": ("", "2001:db8::1")}


@pytest.mark.parametrize(
    ("mine", "theirs", "outer"),
    [
        (("192.0.2.1", "2001:db8::1"), ("2001:db8::2", "192.0.2.2"), ("192.0.2.2", 50)),
        (("2001:db8::1", "192.0.2.1"), ("192.0.2.2", "2001:db8::2"), ("192.0.2.2", 50)),
        (("2001:db8::1",), ("192.0.2.2", "2001:db8::2"), ("2001:db8::2", 70)),
        (("192.0.2.1", "2001:db8::1"), ("2001:db8::2",), ("2001:db8::2", 70)),
    ],
)
def test_both_ends_choose_the_same_family(
    mine: tuple[str, ...], theirs: tuple[str, ...], outer: tuple[str, int]
) -> None:
    me, a = replace(ME, addresses=mine), replace(A, addresses=theirs)
    one = after(store_of(me, a, own=mine))
    assert (one.remotes["a"][1], one.overhead) == outer
    back = NodeBook("a", [ip_network(c) for c in A.pod_cidrs], Routing("tunnel"))
    back.update(store_of(me, a, own=theirs), Delta())
    assert back.remotes["me"] == one.remotes["a"][::-1]


def test_native_mode() -> None:
    one = after(store_of(ME, A), book("native"))
    assert entry(one, "10.2.0.0/24") == Tunnel(bytes(16), bytes(16), 0, 0)
    assert entry(one, "192.0.2.2/32") is None
    routes = {str(r.destination): r.gateway for r in one.routes.values()}
    assert routes == {"10.2.0.0/24": "192.0.2.2", "fd00:2::/64": "2001:db8::2"}
    assert (one.remotes, one.overhead) == ({}, 0)
    assert after(store_of(ME, A), book("native", direct_node_routes=False)).routes == {}
    assert after(store_of(ME, A), book("native", straight=False)).writes() == {}
    assert after(store_of(ME, A), book("none")).writes() == {}


def test_networks_that_need_no_tunnel() -> None:
    """They must be at both ends: answers come the way questions went."""
    one = after(store_of(ME, A, B), book(native_cidrs=(ip_network("10.2.0.0/16"),)))
    assert entry(one, "10.2.0.0/24") == to("192.0.2.2")
    native = ip_network("10.0.0.0/14")
    one = after(
        store_of(ME, A, replace(B, pod_cidrs=("10.9.0.0/24",))), book(native_cidrs=(native,))
    )
    assert entry(one, "10.2.0.0/24") == Tunnel(bytes(16), bytes(16), 0, 0)
    assert entry(one, "192.0.2.2/32") is None
    assert entry(one, "2001:db8::2/128") == to("192.0.2.2")
    assert entry(one, "10.9.0.0/24") == to("192.0.2.3")
    assert entry(one, "192.0.2.3/32") == to("192.0.2.3")
    assert entry(one, "fd00:2::/64") == to("192.0.2.2")
    assert one.routes[ip_network("10.2.0.0/24")].gateway == "192.0.2.2"


def test_without_a_device_nothing_leaks() -> None:
    """The entries stay, so that the programs drop: without them packets would take the default
    route."""
    one = after(store_of(ME, A, device=0))
    found = entry(one, "10.2.0.0/24")
    assert found is not None and any(found.remote) and found.ifindex == 0
    assert one.routes == {}


@pytest.mark.parametrize("order", list(permutations((ME, A, B, replace(B, name="c")))))
def test_two_nodes_with_one_network(order: tuple[Node, ...]) -> None:
    """The first by name has it, whichever came first; both are named; the rest goes on."""
    one = after(store_of(*order))
    assert entry(one, "10.3.0.0/24") == to("192.0.2.3")
    assert entry(one, "10.2.0.0/24") == to("192.0.2.2")
    assert set(one.problems) == {"node c"}
    assert "192.0.2.3 is that of node b" in one.problems["node c"]


def test_this_nodes_own_pods_among_the_nodes() -> None:
    """Other nodes do not reach such pods, and here they take addresses that are others'."""
    one = after(store_of(ME, replace(A, addresses=("10.1.0.7", "2001:db8::2"))))
    assert set(one.problems) == {"node me"}
    assert "10.1.0.0/24 overlaps the network of the nodes" in one.problems["node me"]
    assert "10.1.0.7 of node a" in one.problems["node me"]
    assert entry(one, "10.2.0.0/24") is not None


def test_bad_input() -> None:
    """Each is told of, and keeps nothing else from being used."""
    nodes = [
        replace(A, name="a-ours", addresses=("192.0.2.10",), pod_cidrs=("10.1.0.128/25",)),
        replace(A, name="b-nodes", addresses=("192.0.2.11",), pod_cidrs=("192.0.2.0/28",)),
        replace(A, name="c-wide", addresses=("192.0.2.12",), pod_cidrs=("10.0.0.0/8",)),
        replace(A, name="d-mute", addresses=()),
        replace(A, name="e-six", addresses=("2001:db8::e",), pod_cidrs=("10.9.0.0/24",)),
        replace(A, name="f-good", addresses=("192.0.2.14",), pod_cidrs=("10.7.0.0/24",)),
        replace(A, name="g-same", addresses=("192.0.2.15",), pod_cidrs=("10.7.0.0/25",)),
        replace(A, name="h-me", addresses=("192.0.2.1",), pod_cidrs=("10.8.0.0/24",)),
    ]
    four = replace(ME, addresses=("192.0.2.1",))
    one = after(store_of(four, *nodes, own=("192.0.2.1",)))
    said = {name.removeprefix("node "): text for name, text in one.problems.items()}
    assert "10.1.0.128/25 overlaps 10.1.0.0/24 of this node" in said["a-ours"]
    assert "192.0.2.0/28 overlaps the network of the nodes" in said["b-nodes"]
    assert "192.0.2.1 of node me" in said["b-nodes"]
    assert "overlaps 10.1.0.0/24 of this node" in said["c-wide"]
    assert "no address" in said["d-mute"]
    assert "only IPv6 addresses and this node IPv4" in said["e-six"]
    assert "10.7.0.0/25 overlaps 10.7.0.0/24 of node f-good" in said["g-same"]
    assert "192.0.2.1 is that of node me" in said["h-me"]
    assert set(said) == {name for name in (n.name for n in nodes)} - {"f-good"}
    assert entry(one, "10.7.0.0/24") == to("192.0.2.14")
    # Who lost its network is still believed for its own address.
    assert entry(one, "192.0.2.10/32") == to("192.0.2.10")
    assert entry(one, "10.1.0.128/25") is None


def test_this_node_must_be_known() -> None:
    one = after(store_of(A))
    assert "no address of this node" in one.problems["node me"]
    assert one.writes() == {}
    assert after(store_of(replace(ME, addresses=()))).problems == {}


def test_a_family_that_a_native_node_lacks() -> None:
    one = after(store_of(ME, replace(A, addresses=("192.0.2.2",))), book("native"))
    assert "no IPv6 address" in one.problems["node a"]
    assert [str(r.destination) for r in one.routes.values()] == ["10.2.0.0/24"]


def test_a_full_table() -> None:
    """Nodes that find no room are named; the first ones work."""
    one = after(store_of(ME, A, B), book(capacity=5))
    assert len(one.writes()) == 4
    assert "table is full" in one.problems["node b"]
    assert {r.node for r in one.routes.values()} == {"a"}


def test_a_change_writes_what_differs() -> None:
    store = store_of(ME, A, B)
    one = after(store)
    delta = Delta()
    one.update(store, delta)
    assert not delta
    store.apply(NodeUpserted("test", replace(A, addresses=("192.0.2.9", "2001:db8::2"))))
    one.update(store, delta)
    # Pods at their new place in one write each; the old address goes, the new one comes.
    assert len(delta.tunnels.upserts) == 4 and len(delta.tunnels.deletes) == 1
    delta = Delta()
    store.apply(NodeRemoved("test", B.key))
    one.update(store, delta)
    assert (len(delta.tunnels.upserts), len(delta.tunnels.deletes)) == (0, 4)
    assert not delta.verdicts


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_history_does_not_matter(seed: int) -> None:
    random = Random(seed)
    store, one = store_of(ME), book(random.choice(("tunnel", "native")), capacity=20)
    held: dict[bytes, bytes] = {}
    for _ in range(random.randint(1, 20)):
        name = random.choice("abcmn")
        if random.random() < 0.3:
            store.apply(NodeRemoved("test", replace(A, name=name).key))
        else:
            store.apply(NodeUpserted("test", _node(random, name)))
        if random.random() < 0.3:
            told = PublishedNode(name, random.choice(("", "native", "tunnel")), 8472)
            store.apply(NodePublished("test", told))
        if random.random() < 0.1:
            store.set_tunnel_device(random.choice((0, DEVICE)))
        if random.random() < 0.7:
            _apply(one, store, held)
    _apply(one, store, held)
    assert held == one.writes()
    nodes = list(store.nodes.values())
    random.shuffle(nodes)
    again = store_of(*nodes, device=store.tunnel_device)
    for told in reversed(store.published_nodes.values()):
        again.apply(NodePublished("test", told))
    fresh = after(again, NodeBook("me", one._pod_cidrs, one._routing, 20))
    assert (fresh.writes(), fresh.routes) == (one.writes(), one.routes)
    assert (fresh.problems, fresh.overhead) == (one.problems, one.overhead)


def _apply(one: NodeBook, store: Store, held: dict[bytes, bytes]) -> None:
    delta = Delta()
    one.update(store, delta)
    held.update(delta.tunnels.upserts)
    for key in delta.tunnels.deletes:
        del held[key]


def _node(random: Random, name: str) -> Node:
    def some(pool: list[str], most: int) -> tuple[str, ...]:
        return tuple(random.sample(pool, random.randint(0, most)))

    addresses = [f"192.0.2.{n}" for n in range(1, 6)] + [f"2001:db8::{n}" for n in range(1, 6)]
    fours = ["10.2.0.0/24", "10.2.0.0/25", "10.2.0.128/25", "10.3.0.0/16", "10.1.0.0/24",
             "192.0.2.0/29"]  # fmt: skip
    cidrs = some(fours, 1) + some(["fd00:2::/64", "fd00:3::/64", "fd00:2::/48"], 1)
    return Node(name, "", some(addresses, 3), cidrs)
