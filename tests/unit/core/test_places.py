# SPDX-License-Identifier: Apache-2.0
"""Slots of pods: who is in which, and that nobody is seen in another's while it is written."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.delta import Delta
from agent.core.endpoint import Endpoint, address_bytes
from agent.core.local import LocalBook, device_slot, id_slot
from agent.kernel.places import Places
from bpf.layouts import Place, PlaceSize
from bpf.maps import U32
from tests.unit.core.kernel import FakeMap

SLOTS = PlaceSize.PLACE_SLOTS
# Ids and indexes that fall together with others, and ones that do not.
IDS = (1, 2, SLOTS + 1, SLOTS + 2, 3 * SLOTS + 1, 7)
INDEXES = (5, 6, SLOTS + 5, SLOTS + 6, 9)


def endpoint(number: int, ifindex: int, ipv4: str = "10.0.0.1", ipv6: str = "fd00::1") -> Endpoint:
    return Endpoint(
        number, f"c{number}", "eth0", "n", f"p{number}", "u", ipv4, ipv6,
        f"02:00:00:00:00:{number % 256:02x}", "02:00:00:00:01:01", f"bri{number:x}", ifindex,
    )  # fmt: skip


class Table(FakeMap):
    """The array, written a word at a time: all that a program could see, after every one."""

    def __init__(self) -> None:
        super().__init__("places", 2 * SLOTS, self.look)
        self.waits = 0
        #: Who was in a slot since programs were last waited for.
        self.seen: dict[bytes, set[bytes]] = {}

    def update_packed(self, keys: bytes, values: bytes, flags: int = 0) -> int:
        width = len(values) * U32.SIZE // len(keys)
        for n in range(len(keys) // U32.SIZE):
            key = keys[n * U32.SIZE : (n + 1) * U32.SIZE]
            for at in range(U32.SIZE, width + 1, U32.SIZE):
                held = self.content.get(key, bytes(width))
                self.content[key] = values[n * width : n * width + at] + held[at:]
                self.look()
        return len(keys) // U32.SIZE

    def look(self) -> None:
        for key, value in self.content.items():
            if Place.unpack(value).endpoint:
                self.seen.setdefault(key, set()).add(value)
        assert all(len(values) == 1 for values in self.seen.values())

    def wait(self) -> None:
        self.waits += 1
        self.seen.clear()
        self.look()


@given(st.integers(0, 1 << 32))
def test_what_programs_see_is_one_pod_or_none(seed: int) -> None:
    """Endpoints come, go and change; at every moment and in every slot there is the one that
    belongs there, or nobody, and never two within one run of a program."""
    random = Random(seed)
    table, book = Table(), LocalBook()
    places = Places(table, wait=table.wait)  # type: ignore[arg-type]
    alive: dict[int, Endpoint] = {}
    for _ in range(12):
        delta = Delta()
        for _ in range(random.randint(1, 3)):
            number = random.choice(IDS)
            if random.random() < 0.3:
                alive.pop(number, None)
                book.drop(number, delta)
            else:
                one = endpoint(number, random.choice(INDEXES), random.choice(["", "10.0.0.1"]))
                alive[number] = one
                book.put(one, delta)
        places.clear(delta.places.deletes)
        places.put(delta.places.upserts)
        assert places.content() == book.place_writes() == expected(alive)


def expected(alive: dict[int, Endpoint]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for one in sorted(alive.values(), key=lambda one: -one.id):
        value = Place(
            one.id, one.ifindex, bytes.fromhex(one.mac.replace(":", "")),
            bytes.fromhex(one.host_mac.replace(":", "")),
            int.from_bytes(address_bytes(one.ipv4)[12:], "little"), address_bytes(one.ipv6),
        ).pack()  # fmt: skip
        for slot in (device_slot(one.ifindex), id_slot(one.id)):
            found[U32.pack(slot)] = value
    return found


def test_fresh_slots_need_no_waiting() -> None:
    """Only who comes into a slot that somebody was in waits, and for all slots at once."""
    table = Table()
    places = Places(table, wait=table.wait)  # type: ignore[arg-type]
    book, delta = LocalBook(), Delta()
    for number in range(1, 101):
        book.put(endpoint(number, number), delta)
    places.put(delta.places.upserts)
    assert table.waits == 0
    delta = Delta()
    for number in range(1, 101):
        book.drop(number, delta)
    places.clear(delta.places.deletes)
    for number in range(1, 101):
        delta = Delta()
        book.put(endpoint(SLOTS + number, SLOTS + number), delta)
        places.put(delta.places.upserts)
    assert table.waits == 1
    assert places.content() == book.place_writes()


def test_a_later_agent_does_not_know_since_when() -> None:
    """What it finds in a slot may be being read: it is cleared and waited for, too."""
    table = Table()
    first, book, delta = Places(table, wait=table.wait), LocalBook(), Delta()  # type: ignore[arg-type]
    book.put(endpoint(1, 5), delta)
    first.put(delta.places.upserts)
    later = Places(table, wait=table.wait)  # type: ignore[arg-type]
    other, delta = LocalBook(), Delta()
    other.put(endpoint(SLOTS + 1, 5), delta)
    later.put(delta.places.upserts)
    assert table.waits == 1
    assert later.content() == other.place_writes()


@pytest.mark.parametrize("ipv4", ["", "10.1.2.3"])
def test_an_address_in_network_order(ipv4: str) -> None:
    book, delta = LocalBook(), Delta()
    book.put(endpoint(1, 5, ipv4, ""), delta)
    raw = delta.places.upserts[U32.pack(5)]
    assert raw[20:24] == (bytes([10, 1, 2, 3]) if ipv4 else bytes(4))
    assert raw[24:40] == bytes(16)
