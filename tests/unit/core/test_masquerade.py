# SPDX-License-Identifier: Apache-2.0
"""Masquerading as far as it is decided in user space: what is excluded, and what has ended."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.conntrack import Lifetimes
from agent.core.delta import Delta
from agent.core.endpoint import address_bytes
from agent.core.events import Node
from agent.core.masquerade import MasqueradeBook, Masquerading
from agent.core.nat import HALF_SECONDS, REST_SECONDS, crowded, ended
from agent.core.store import Store
from bpf.layouts import (
    CtFlag,
    CtKey,
    MasqueradeKey,
    MasqueradeSource,
    NatEntry,
    NatOrigin,
    NatReverseKey,
    PeerKey,
)

NOW = 100_000
NODE, POD, REMOTE = map(address_bytes, ("192.0.2.1", "10.0.0.2", "198.51.100.7"))
TCP, UDP, ICMP = 6, 17, 1
BOTH_FINS = CtFlag.CT_FIN_ORIGINAL, CtFlag.CT_FIN_REPLY


# ---- what is excluded --------------------------------------------------------------------------


def book(*exclude: str) -> MasqueradeBook:
    networks = tuple(map(ip_network, exclude))
    return MasqueradeBook(Masquerading(networks, 61000, 65535, 7))


def facts(nodes: Iterable[Node] = (), addresses: Iterable[str] = ()) -> Store:
    store = Store([])
    store.nodes = {one.name: one for one in nodes}
    store.set_node_addresses(addresses)
    return store


def sees(kept: MasqueradeBook, address: str) -> bool:
    """Whether the look-up of the longest prefix finds anything for it."""
    wanted = int(ip_address(address_bytes(address)))
    for raw in kept.exclude_writes():
        key = PeerKey.unpack(raw)
        shift = 128 - key.prefix_length
        if wanted >> shift == int.from_bytes(key.address, "big") >> shift:
            return True
    return False


OTHER = Node("two", "u", ("203.0.113.2", "2001:db8::2"), ("10.1.0.0/24", "fd00:1::/64"))


@pytest.mark.parametrize(
    ("address", "excluded"),
    [
        ("10.0.0.9", True),
        ("fd00::9", True),
        ("192.0.2.1", True),
        ("203.0.113.2", True),
        ("2001:db8::2", True),
        ("10.1.0.77", True),
        ("fd00:1::77", True),
        ("169.254.169.254", True),
        ("fe80::1", True),
        ("224.0.0.251", True),
        ("ff02::fb", True),
        ("255.255.255.255", True),
        ("127.0.0.1", True),
        ("203.0.113.3", False),
        ("10.2.0.1", False),
        ("8.8.8.8", False),
        ("2001:db8::3", False),
        ("fd00:2::1", False),
    ],
)
def test_the_cluster_sees_pods_as_they_are(address: str, excluded: bool) -> None:
    kept = book("10.0.0.0/24", "fd00::/64")
    kept.update(facts([OTHER], ["192.0.2.1"]), Delta())
    assert sees(kept, address) == excluded


def test_with_a_tunnel_nodes_are_outside() -> None:
    """Pods reach them through it; by an uplink comes what was translated on its way."""
    kept = MasqueradeBook(Masquerading((), 61000, 65535, 7, frozenset({4})))
    kept.update(facts([OTHER], ["192.0.2.1"]), Delta())
    seen = {one: sees(kept, one) for one in ("203.0.113.2", "2001:db8::2", "10.1.0.7", "192.0.2.1")}
    assert seen == {
        "203.0.113.2": False, "2001:db8::2": True, "10.1.0.7": True, "192.0.2.1": True
    }  # fmt: skip


def test_external_addresses_are_outside() -> None:
    """A cloud translates them on their way and takes no packet of a pod's address; only where a
    node has no other one is it the way to the node."""
    addresses = "192.0.2.2", "203.0.113.2", "2001:db8::2", "2001:db8::3"
    node = Node("two", "u", addresses, (), frozenset(addresses[1:]))
    kept = book()
    kept.update(facts([node]), Delta())
    assert [sees(kept, one) for one in addresses] == [True, False, True, False]


def test_only_what_differs_is_written() -> None:
    kept, store = book(), facts([OTHER], ["192.0.2.1"])
    store.set_uplink_addresses({(3, 4): "192.0.2.1"})
    first, again, moved, gone = Delta(), Delta(), Delta(), Delta()
    kept.update(store, first)
    assert first.masquerade.upserts == {
        MasqueradeKey(3, 4).pack(): MasqueradeSource(NODE, 7, 61000, 65535).pack()
    }
    kept.update(store, again)
    assert not again
    assert not again.verdicts and not first.verdicts  # none of policy's business
    store.nodes["two"] = replace(OTHER, pod_cidrs=("10.9.0.0/24",))
    kept.update(store, moved)
    assert len(moved.masquerade_exclude.upserts) == 1
    assert len(moved.masquerade_exclude.deletes) == 2
    kept.update(facts(), gone)
    assert gone.masquerade.deletes == set(first.masquerade.upserts)
    assert not sees(kept, "10.9.0.1") and not kept.source_writes()


def test_switched_off_nothing_is_written() -> None:
    kept, store, delta = MasqueradeBook(), facts([OTHER], ["192.0.2.1"]), Delta()
    store.set_uplink_addresses({(3, 4): "192.0.2.1"})
    kept.update(store, delta)
    assert not delta and not kept.exclude_writes() and not kept.source_writes()


def test_two_nodes_with_one_block() -> None:
    """The block is excluded as long as one of them is there."""
    kept = book()
    kept.update(facts([OTHER, replace(OTHER, name="three")]), Delta())
    kept.update(facts([OTHER]), Delta())
    assert sees(kept, "10.1.0.1")


# ---- what has ended ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Mapping:
    """One connection; `back` None: its entry of the way back is missing, `out` None: the other."""

    protocol: int = TCP
    port: int = 1
    out: int | None = NOW
    back: int | None = NOW
    flags: tuple[CtFlag, ...] = ()
    back_flags: tuple[CtFlag, ...] = (CtFlag.CT_SEEN_REPLY,)
    endpoint: int = 1
    address: bytes = NODE


def judge(
    mappings: list[Mapping], endpoints: Iterable[int] = (1,), lifetimes: Lifetimes | None = None
) -> list[tuple[bool, bool, bool]]:
    """(out deleted, back deleted, rest begins) of each."""
    out = {
        CtKey(REMOTE, m.endpoint, m.port, 80, m.protocol).pack(): NatEntry(
            m.address, m.out, m.port + 1000, sum(m.flags)
        ).pack()
        for m in mappings
        if m.out is not None
    }
    back = {
        NatReverseKey(REMOTE, m.address, 80, m.port + 1000, m.protocol).pack(): NatOrigin(
            POD, m.endpoint, m.back, m.port, sum(m.back_flags)
        ).pack()
        for m in mappings
        if m.back is not None
    }
    found = ended(
        np.frombuffer(b"".join(out), CtKey.DTYPE),
        np.frombuffer(b"".join(out.values()), NatEntry.DTYPE),
        np.frombuffer(b"".join(back), NatReverseKey.DTYPE),
        np.frombuffer(b"".join(back.values()), NatOrigin.DTYPE),
        NOW * 1_000_000_000,
        set(endpoints),
        [NODE],
        lifetimes or Lifetimes(),
    )
    outs, backs, rests = iter(found.out), iter(found.back), iter(found.resting)
    return [
        (
            bool(next(outs)) if m.out is not None else False,
            bool(next(backs)) if m.back is not None else False,
            bool(next(rests)) if m.back is not None else False,
        )
        for m in mappings
    ]


KEPT, DELETED = (False, False, False), (True, False, False)


@pytest.mark.parametrize(
    ("mapping", "verdict"),
    [
        (Mapping(), KEPT),
        (Mapping(out=NOW - 21000, back=NOW - 21000), KEPT),
        (Mapping(out=NOW - 22000, back=NOW - 22000), DELETED),
        # A packet in either direction keeps it.
        (Mapping(out=NOW - 22000, back=NOW - 10), KEPT),
        (Mapping(out=NOW - 10, back=NOW - 22000), KEPT),
        (Mapping(out=NOW - 70, back=NOW - 70, back_flags=()), DELETED),
        (Mapping(out=NOW - 50, back=NOW - 50, back_flags=()), KEPT),
        (Mapping(UDP, out=NOW - 170, back=NOW - 170), KEPT),
        (Mapping(UDP, out=NOW - 190, back=NOW - 190), DELETED),
        (Mapping(UDP, out=NOW - 70, back=NOW - 70, back_flags=()), DELETED),
        (Mapping(ICMP, out=NOW - 70, back=NOW - 70), DELETED),
        # Its end needs both sides.
        (Mapping(out=NOW - 20, back=NOW - 20, flags=BOTH_FINS[:1]), KEPT),
        (Mapping(out=NOW - 20, back=NOW - 20, flags=BOTH_FINS[:1],
                 back_flags=BOTH_FINS[1:]), DELETED),
        (Mapping(out=NOW - 20, back=NOW - 20, flags=(CtFlag.CT_RST,)), DELETED),
        (Mapping(out=NOW - 20, back=NOW - 20,
                 back_flags=(CtFlag.CT_SEEN_REPLY, CtFlag.CT_RST)), DELETED),
        # The pod went on after a reset from outside: it was forged.
        (Mapping(out=NOW - 20, back=NOW - 25,
                 back_flags=(CtFlag.CT_SEEN_REPLY, CtFlag.CT_RST)), KEPT),
        # The pod is gone: at once, and its port rests from now on.
        (Mapping(endpoint=2), (True, False, True)),
        (Mapping(endpoint=2, out=None), KEPT),
        (Mapping(endpoint=2, out=None, back=NOW - REST_SECONDS), KEPT),
        (Mapping(endpoint=2, out=None, back=NOW - REST_SECONDS - 1), (False, True, False)),
        # The node has the address no more.
        (Mapping(address=address_bytes("192.0.2.9")), DELETED),
        # Halves.
        (Mapping(back=None), DELETED),
        (Mapping(out=None), KEPT),
        (Mapping(out=None, back=NOW - HALF_SECONDS), KEPT),
        (Mapping(out=None, back=NOW - HALF_SECONDS - 1), (False, True, False)),
        # Touched after `now` was read.
        (Mapping(out=NOW + 1, back=NOW + 1), KEPT),
    ],
)  # fmt: skip
def test_ages(mapping: Mapping, verdict: tuple[bool, bool, bool]) -> None:
    assert judge([mapping]) == [verdict]
    # The same among others.
    others = [Mapping(port=n, out=None if n == 5 else NOW) for n in range(2, 8)]
    assert judge([*others[:3], mapping, *others[3:]])[3] == verdict


def test_a_port_that_is_somebody_elses_by_now() -> None:
    """Two entries of the way out for one of the way back: only its owner's stays."""
    keys = [CtKey(REMOTE, endpoint, 5, 80, TCP) for endpoint in (1, 2)]
    entries = [NatEntry(NODE, NOW, 1000, 0)] * 2
    back, origin = NatReverseKey(REMOTE, NODE, 80, 1000, TCP), NatOrigin(POD, 2, NOW, 5, 0)
    found = ended(
        np.frombuffer(b"".join(one.pack() for one in keys), CtKey.DTYPE),
        np.frombuffer(b"".join(one.pack() for one in entries), NatEntry.DTYPE),
        np.frombuffer(back.pack(), NatReverseKey.DTYPE),
        np.frombuffer(origin.pack(), NatOrigin.DTYPE),
        NOW * 1_000_000_000, {1, 2}, [NODE], Lifetimes(),
    )  # fmt: skip
    assert found.out.tolist() == [True, False] and found.back.tolist() == [False]


def test_a_crowd_ends_what_nobody_answered() -> None:
    young = Mapping(out=NOW - 20, back=NOW - 20, back_flags=())
    old = Mapping(port=2, out=NOW - 20000, back=NOW - 20000)
    assert judge([young, old]) == [KEPT, KEPT]
    assert judge([young, old], lifetimes=crowded(Lifetimes())) == [DELETED, KEPT]


ages = st.one_of(st.none(), st.integers(NOW - 30000, NOW))


@given(st.lists(st.tuples(ages, ages, st.sampled_from((TCP, UDP)), st.integers(1, 3)), max_size=20))
def test_never_a_way_out_without_a_way_back(
    drawn: list[tuple[int | None, int | None, int, int]],
) -> None:
    """What is left after any round is whole, or the younger half of something new."""
    mappings = [
        Mapping(protocol, n, out, back, endpoint=endpoint)
        for n, (out, back, protocol, endpoint) in enumerate(drawn)
    ]
    for one, (out, back, _) in zip(mappings, judge(mappings, (1, 2)), strict=True):
        if one.out is not None and not out:
            assert one.back is not None and not back and one.endpoint in (1, 2)
        if back:
            assert one.out is None
