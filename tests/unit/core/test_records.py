# SPDX-License-Identifier: Apache-2.0
"""The pure parts that work on whole tables, each against a naive oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core import delta
from agent.core.conntrack import Lifetimes, expired
from agent.core.delta import differences, peer_deletes, peer_upserts, record_differences
from agent.core.numbers import Numbers, fingerprint
from bpf.layouts import CtEntry, CtFlag, CtKey, NumberKey, NumberKind, PeerKey

KEY, VALUE = 12, 8
_tables = st.dictionaries(
    st.integers(0, 40).map(lambda n: n.to_bytes(4, "little") * 2 + bytes(4)),
    st.integers(0, 2).map(lambda n: n.to_bytes(8, "little")),
    max_size=30,
)


def split(blob: bytearray, size: int) -> list[bytes]:
    return [bytes(blob[at : at + size]) for at in range(0, len(blob), size)]


@given(_tables, _tables, st.booleans())
def test_record_differences_are_those_of_dicts(
    wanted: dict[bytes, bytes], actual: dict[bytes, bytes], collide: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if collide:  # hashes that all collide must not matter
            patch.setattr(delta, "_hashes", lambda keys: np.zeros(len(keys), dtype=np.uint64))
        found = record_differences(
            b"".join(wanted), b"".join(wanted.values()),
            bytearray(b"".join(actual)), b"".join(actual.values()), KEY, VALUE,
        )  # fmt: skip
    oracle = differences(wanted, actual)
    keys, deletes = split(found.keys, KEY), split(found.deletes, KEY)
    assert dict(zip(keys, split(found.values, VALUE), strict=True)) == oracle.upserts
    assert len(keys) == len(oracle.upserts)
    assert sorted(deletes) == sorted(oracle.deletes)


def test_peers_are_written_longest_first_and_deleted_shortest_first() -> None:
    keys = [PeerKey(length, bytes(16)).pack() for length in (0, 128, 96, 104, 127)]
    written = [PeerKey.unpack(key).prefix_length for key in peer_upserts(dict.fromkeys(keys, b""))]
    deleted = [PeerKey.unpack(key).prefix_length for key in peer_deletes(keys)]
    assert written == [128, 127, 104, 96, 0]
    assert deleted == written[::-1]


# ---- numbers ---------------------------------------------------------------------------------


def test_numbers_keep_their_meaning_over_a_restart_and_rest_before_they_are_free() -> None:
    numbers = Numbers(rest=60.0)
    one = numbers.allocate(NumberKind.NUMBER_CLASS, fingerprint("one"))
    two = numbers.allocate(NumberKind.NUMBER_CLASS, fingerprint("two"))
    fresh = numbers.take_fresh()
    assert dict(fresh) == numbers.entries()
    assert not numbers.take_fresh()

    later = Numbers(rest=60.0)
    entries = [(NumberKey.unpack(key), meaning) for key, meaning in fresh.items()]
    assert later.adopt([*entries, (NumberKey(99, 300), bytes(32)), entries[0]]) == 1
    assert later.allocate(NumberKind.NUMBER_CLASS, fingerprint("one")) == one
    assert not later.take_fresh()
    later.release_unused(NumberKind.NUMBER_CLASS, [one], now=10.0)
    assert later.in_use(NumberKind.NUMBER_CLASS) == 1
    assert later.take_free(69.0) == []
    assert NumberKey(NumberKind.NUMBER_CLASS, two).pack() in later.entries()
    assert later.take_free(70.0) == [NumberKey(NumberKind.NUMBER_CLASS, two).pack()]
    assert set(later.entries()) == {NumberKey(NumberKind.NUMBER_CLASS, one).pack()}


def test_a_number_taken_up_again_while_it_rests_is_not_freed() -> None:
    numbers = Numbers(rest=60.0)
    one = numbers.allocate(NumberKind.NUMBER_TABLE, fingerprint("one"))
    numbers.release(NumberKind.NUMBER_TABLE, one, 0.0)
    assert numbers.allocate(NumberKind.NUMBER_TABLE, fingerprint("one")) == one
    assert numbers.take_free(1000.0) == []


def test_numbers_of_unknown_meaning_are_not_handed_out() -> None:
    probe = Numbers(rest=60.0)
    candidate = probe.allocate(NumberKind.NUMBER_TABLE, fingerprint("mine"))
    numbers = Numbers(rest=60.0)
    numbers.avoid(NumberKind.NUMBER_TABLE, [candidate, 0, 255])
    assert numbers.allocate(NumberKind.NUMBER_TABLE, fingerprint("mine")) != candidate
    assert len(numbers.entries()) == 1  # what is unknown is not written
    numbers.release_unused(NumberKind.NUMBER_TABLE, [], 0.0)
    numbers.take_free(60.0)
    assert numbers.allocate(NumberKind.NUMBER_TABLE, fingerprint("mine")) == candidate


# ---- connection tracking ---------------------------------------------------------------------

_FLAGS = st.integers(0, 127)
_SECOND = 1_000_000_000


def scalar(protocol: int, flags: int, idle: float, alive: bool) -> bool:
    times = Lifetimes()
    if not alive:
        return True
    if flags & CtFlag.CT_LOCAL:
        # It may be as much older than it looks.
        idle = max(idle, 0) - 16
    answered = bool(flags & CtFlag.CT_SEEN_REPLY)
    if protocol in (1, 58):
        return idle > times.icmp
    if protocol in (6, 132):
        if flags & CtFlag.CT_RST or (
            flags & CtFlag.CT_FIN_ORIGINAL and flags & CtFlag.CT_FIN_REPLY
        ):
            return idle > times.closing
        if protocol == 132:
            return idle > times.sctp
        return idle > (times.tcp_established if answered else times.tcp_opening)
    return idle > (times.answered if answered else times.unanswered)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from((1, 6, 17, 47, 58, 132)),
            _FLAGS,
            st.sampled_from(
                (-2, 0, 9, 10, 11, 26, 27, 59, 61, 77, 179, 181, 197, 899, 901, 21599, 21601, 21617)
            ),
            st.integers(1, 4),
        ),
        max_size=20,
    )
)
def test_expired_is_the_scalar_rule(rows: list[tuple[int, int, int, int]]) -> None:
    now = 40_000 * _SECOND
    keys = np.zeros(len(rows), dtype=CtKey.DTYPE)
    values = np.zeros(len(rows), dtype=CtEntry.DTYPE)
    for n, (protocol, flags, idle, endpoint) in enumerate(rows):
        keys[n]["protocol"], keys[n]["endpoint"] = protocol, endpoint
        values[n]["flags"], values[n]["seen"] = flags, now // _SECOND - idle
    found = expired(keys, values, now, {1, 2, 3}, Lifetimes())
    assert found.tolist() == [
        scalar(protocol, flags, idle, endpoint in (1, 2, 3))
        for protocol, flags, idle, endpoint in rows
    ]
