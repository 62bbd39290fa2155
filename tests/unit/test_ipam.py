# SPDX-License-Identifier: Apache-2.0
"""Addresses are never given twice and never leaked, also when the agent is killed at any byte."""

import tempfile
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.core.ipam import (
    AddressConflict,
    AddressPool,
    Allocation,
    IPAddress,
    PoolConfigError,
    PoolExhausted,
)
from agent.kernel.endpoint_store import EndpointRecord, EndpointStore

CIDRS = ("10.0.0.0/29", "fd00::/125", "10.0.1.0/30")
CAPACITY = {4: 5 + 1, 6: 6}


def usable(version: int) -> set[IPAddress]:
    """What a reader of the documentation would expect to be given out."""
    found: set[IPAddress] = set()
    for network in map(ip_network, CIDRS):
        if network.version == version:
            last = network.num_addresses - (1 if version == 4 else 0)
            found.update(network[number] for number in range(2, last))
    return found


def record(number: int, owner: str, addresses: tuple[IPAddress, ...]) -> EndpointRecord:
    return EndpointRecord(
        endpoint=number,
        container_id=owner,
        ifname="eth0",
        netns="/var/run/netns/x",
        netns_cookie=number,
        host_name=f"bri{number:08x}",
        host_ifindex=number,
        host_mac="02:00:00:00:00:01",
        pod_mac="02:00:00:00:00:02",
        mtu=1500,
        ipv4=next((a for a in addresses if isinstance(a, IPv4Address)), None),
        ipv6=next((a for a in addresses if isinstance(a, IPv6Address)), None),
        attributes={"path": "größer\n"},
    )


class Node(RuleBasedStateMachine):
    """The agent's order: allocate, write down, answer; strike out, release. Any kill between."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="bristle-t-")
        self.path = Path(self.folder.name) / "endpoints"
        self.model: dict[str, tuple[IPAddress, ...]] = {}
        self.freed_at: dict[IPAddress, int] = {}
        self.time = 0
        self.next = 1
        self.start()

    def start(self, boot: str = "boot-1") -> None:
        self.store = EndpointStore(self.path, boot)
        self.store.open()
        self.pool = AddressPool(CIDRS)
        for endpoint in self.store:
            self.pool.adopt(endpoint.owner, endpoint.addresses)
        self.pool.rest(self.store.released())

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    def free(self, version: int) -> set[IPAddress]:
        return usable(version) - {a for held in self.model.values() for a in held}

    def cut(self, before: bytes, keep: int) -> bool:
        """Kill: of what was written since, only the first bytes reached the disk. Was it whole?"""
        self.store.close()
        after = self.path.read_bytes()
        # A rewritten file is replaced as a whole.
        whole = not after.startswith(before) or keep >= len(after) - len(before)
        if not whole:
            self.path.write_bytes(after[: len(before) + keep])
        self.path.with_name(f".{self.path.name}.new").write_bytes(b"left by a kill")
        self.start()
        return whole

    @rule(keep=st.none() | st.integers(0, 600))
    def add(self, keep: int | None) -> None:
        owner = f"c{self.next}"
        key = f"{owner}/eth0"
        if not self.free(4) or not self.free(6):
            with pytest.raises(PoolExhausted) as raised:
                self.pool.allocate(key)
            assert raised.value.used == raised.value.capacity
            assert self.pool.held_by(key) is None
            return
        before = self.path.read_bytes()
        addresses = self.pool.allocate(key).addresses
        assert self.pool.allocate(key).addresses == addresses
        assert [a.version for a in addresses] == [4, 6]
        for address in addresses:
            free = self.free(address.version)
            assert address in free
            # It rested longest; what was never used rested for ever.
            rested = self.freed_at.get(address, -1)
            assert rested == min(self.freed_at.get(other, -1) for other in free)
        self.store.put(record(self.next, owner, addresses))
        if keep is None or self.cut(before, keep):
            self.model[key] = addresses
            self.next += 1

    @precondition(lambda self: self.model)
    @rule(data=st.data(), keep=st.none() | st.integers(0, 200))
    def remove(self, data: st.DataObject, keep: int | None) -> None:
        key = data.draw(st.sampled_from(sorted(self.model)))
        before = self.path.read_bytes()
        (endpoint,) = (e for e in self.store if e.owner == key)
        assert self.store.remove(endpoint.endpoint) == endpoint
        assert self.store.remove(endpoint.endpoint) is None
        self.pool.release(key)
        assert self.pool.release(key) is None
        if keep is None or self.cut(before, keep):
            for address in self.model.pop(key):
                self.time += 1
                self.freed_at[address] = self.time

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.start()

    @invariant()
    def nothing_twice_and_nothing_leaked(self) -> None:
        assert {e.owner: e.addresses for e in self.store} == self.model
        assert {k: h.addresses for k in self.model if (h := self.pool.held_by(k))} == self.model
        taken = [address for held in self.model.values() for address in held]
        assert len(taken) == len(set(taken))
        for usage in self.pool.usage():
            assert usage.used == len(self.model)
            assert usage.capacity == CAPACITY[usage.version]


TestNode = Node.TestCase
TestNode.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_every_address_is_given_out_once_and_no_other() -> None:
    pool = AddressPool(CIDRS)
    given = [pool.allocate(f"c{number}") for number in range(6)]
    assert {allocation.ipv4 for allocation in given} == usable(4)
    assert {allocation.ipv6 for allocation in given} == usable(6)
    with pytest.raises(PoolExhausted, match=r"10\.0\.0\.0/29, 10\.0\.1\.0/30: 6 of 6"):
        pool.allocate("one more")


def test_what_is_to_be_avoided_is_not_given_out_until_it_is_free() -> None:
    """Never used or used before; the other family goes on."""
    pool = AddressPool(["10.0.0.0/29", "fd00::/64"])
    others = {ip_address("10.0.0.2"), ip_address("10.0.0.4")}

    def given(owner: str) -> str:
        return str(pool.allocate(owner, others.__contains__).ipv4)

    assert [given(f"c{number}") for number in range(3)] == ["10.0.0.3", "10.0.0.5", "10.0.0.6"]
    with pytest.raises(PoolExhausted, match="3 of 5 are in use and 2 are others'"):
        given("more")
    pool.release("c1")
    others.add(ip_address("10.0.0.5"))
    with pytest.raises(PoolExhausted):
        given("more")
    others.clear()
    assert [given(f"d{number}") for number in range(3)] == ["10.0.0.2", "10.0.0.4", "10.0.0.5"]
    assert pool.allocate("d2", lambda address: True).ipv4 == ip_address("10.0.0.5")  # its own


def test_one_exhausted_family_takes_nothing_of_the_other() -> None:
    pool = AddressPool(["10.0.0.0/30", "fd00::/64"])
    pool.allocate("first")
    with pytest.raises(PoolExhausted) as raised:
        pool.allocate("second")
    assert raised.value.cidrs == ("10.0.0.0/30",)
    assert [usage.used for usage in pool.usage()] == [1, 1]


def test_adopting_keeps_others_apart_and_accepts_blocks_of_yesterday() -> None:
    pool = AddressPool(["10.0.0.0/29"])
    yesterday = ip_address("192.168.7.7")
    assert pool.adopt("a", [ip_address("10.0.0.4"), ip_address("fd00::9")]).addresses
    assert pool.adopt("b", [yesterday]).ipv4 == yesterday
    assert pool.allocate("a").ipv4 == ip_address("10.0.0.4")
    for address in ("10.0.0.4", "fd00::9", "192.168.7.7"):
        with pytest.raises(AddressConflict, match=address):
            pool.adopt("c", [ip_address("10.0.0.5"), ip_address(address)])
    assert pool.owner_of(ip_address("10.0.0.5")) is None
    pool.adopt("a", [ip_address("10.0.0.5")])
    assert pool.owner_of(ip_address("10.0.0.4")) is None
    pool.release("b")
    assert pool.owner_of(yesterday) is None
    pool.rest([yesterday])
    assert pool.usage()[0].used == 1
    given = {pool.allocate(f"n{number}").ipv4 for number in range(4)}
    assert given == {ip_address(f"10.0.0.{n}") for n in (2, 3, 4, 6)}


@pytest.mark.parametrize(
    ("cidrs", "message"),
    [
        ([], "empty"),
        (["10.0.0.0/33"], r"pod_cidrs\[0\].*no CIDR"),
        (["fd00::/64", "10.0.0.5/24"], r"pod_cidrs\[1\].*write 10\.0\.0\.0/24"),
        (["10.0.0.0/31"], "smallest"),
        (["fd00::/127"], "smallest"),
        (["10.0.0.0/16", "10.0.9.0/24"], r"overlaps 10\.0\.0\.0/16"),
    ],
)
def test_blocks_that_cannot_be_used_are_refused(cidrs: list[str], message: str) -> None:
    with pytest.raises(PoolConfigError, match=message):
        AddressPool(cidrs)


def test_a_large_block_is_bounded() -> None:
    pool = AddressPool(["fd00::/64"])
    assert pool.usage()[0].capacity == 65_534
    for number in range(3000):
        address = pool.allocate("c").ipv6
        assert address == ip_address("fd00::2") + number
        pool.release("c")


_BLOCKS = ("10.0.0.0/29", "10.0.1.0/29", "fd00::/125", "fd00:1::/125")


@given(st.randoms(use_true_random=False))
def test_blocks_that_change_take_no_address_away_and_give_none_twice(random: Random) -> None:
    def some() -> list[str]:
        return random.sample(_BLOCKS, random.randint(1, 4))

    wanted = some()
    pool = AddressPool(wanted)
    held: dict[str, Allocation] = {}
    for step in range(60):
        chance = random.random()
        if chance < 0.15:
            wanted = some()
            pool.set_blocks(wanted)
        elif chance < 0.65:
            owner = f"o{step}"
            try:
                held[owner] = pool.allocate(owner)
            except PoolExhausted:
                continue
            networks = [ip_network(one) for one in wanted]
            families = {one.version for one in networks}
            assert {one.version for one in held[owner].addresses} == families
            for address in held[owner].addresses:
                assert any(address in one for one in networks if one.version == address.version)
        elif held:
            owner = random.choice(sorted(held))
            assert pool.release(owner) == held.pop(owner)
        taken = [address for one in held.values() for address in one.addresses]
        assert len(taken) == len(set(taken))
        for owner, one in held.items():
            assert pool.held_by(owner) == one
            assert all(pool.owner_of(address) == owner for address in one.addresses)
        inside = [a for a in taken if any(a in ip_network(w) for w in wanted)]
        assert sum(one.used for one in pool.usage()) == len(inside)
    for owner in list(held):
        pool.release(owner)
    assert not pool._foreign
    with pytest.raises(PoolConfigError):
        pool.set_blocks([])
    assert [cidr for one in pool.usage() for cidr in one.cidrs] == [
        one for version in (4, 6) for one in wanted if ip_network(one).version == version
    ]
