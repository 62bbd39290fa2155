# SPDX-License-Identifier: Apache-2.0
"""The address table against a naive function of address and facts, in any order of events."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Network, ip_address, ip_network
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from identity.ipcache import HOST_CLASS, IPBlock, IPCache, NamedPort, PeerClass, Prefix
from identity.labels import LabelSet
from identity.reserved import LOCAL_FIRST, Reserved

V4 = "0.0.0.0/0 0.0.0.0/1 10.0.0.0/8 10.0.0.0/24 10.0.0.0/30 10.0.0.2/32 10.0.0.3/32 128.0.0.0/1"
V6 = "::/0 ::/8 ::/95 fd00::/64 fd00::2/127 fd00::3/128"
CIDRS = [ip_network(one) for text in (V4, "255.255.255.255/32", V6) for one in text.split()]
V4_ADDRESSES = "0.0.0.0 10.0.0.0 10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.1.0 128.0.0.1"
V6_ADDRESSES = "::1 fd00::2 fd00::3 fd00::4 ff00::1 ::ffff:10.0.0.2"
ADDRESSES = [*V4_ADDRESSES.split(), "255.255.255.255", *V6_ADDRESSES.split()]
PORTS = [NamedPort("http", 6, 80), NamedPort("http", 17, 80), NamedPort("dns", 17, 53)]
PODS = [(256 + n, LabelSet({"k8s:app": str(n)})) for n in range(3)]
DEFAULTS = {4: Reserved.WORLD_IPV4, 6: Reserved.WORLD_IPV6}

Facts = dict[str, tuple[int, LabelSet, tuple[NamedPort, ...]]]


class Numbers:
    """Identity numbers that count their holders."""

    def __init__(self) -> None:
        self.numbers: dict[LabelSet, int] = {}
        self.held: Counter[int] = Counter()
        self.refuse_after: int | None = None

    def acquire(self, labels: LabelSet) -> int:
        if self.refuse_after is not None:
            if not self.refuse_after:
                raise RuntimeError("no more")
            self.refuse_after -= 1
        number = self.numbers.setdefault(labels, LOCAL_FIRST + len(self.numbers))
        self.held[number] += 1
        return number

    def release(self, number: int) -> None:
        assert self.held[number] > 0
        self.held[number] -= 1


def naive(
    address: str, facts: Facts, blocks: set[IPBlock], names: set[tuple[str, int]], numbers: Numbers
) -> PeerClass:
    parsed = ip_address(address)
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    inside = frozenset(
        one for one in blocks if parsed in one.cidr and not any(parsed in e for e in one.excepts)
    )
    if str(parsed) in facts:
        identity, labels, ports = facts[str(parsed)]
        visible = sorted({p for p in ports if (p.name, p.protocol) in names})
        return PeerClass(identity, labels, inside, tuple(visible))
    around = [n for one in blocks for n in (one.cidr, *one.excepts) if parsed in n]
    longest = max(around, key=lambda network: network.prefixlen, default=None)
    if longest is None or longest.prefixlen == 0:
        default = DEFAULTS[parsed.version]
        return PeerClass(default, default.labels, inside)
    labels = LabelSet({"reserved:world": "", f"cidr:{longest}": ""})
    return PeerClass(numbers.numbers[labels], labels, inside)


def longest_match(entries: dict[Prefix, PeerClass], address: str) -> PeerClass:
    """As the kernel does it: on 128 bits, knowing nothing of families."""
    parsed = ip_address(address)
    value = int(parsed) | (0xFFFF << 32 if parsed.version == 4 else 0)
    found = [
        prefix
        for prefix in entries
        if (int.from_bytes(prefix.address, "big") ^ value) >> (128 - prefix.length) == 0
    ]
    return entries[max(found, key=lambda prefix: prefix.length)]


def block(random: Random) -> IPBlock:
    cidr = random.choice(CIDRS)
    inside = [
        one
        for one in CIDRS
        if one.version == cidr.version
        and one.prefixlen >= cidr.prefixlen
        and one.network_address in cidr
    ]
    return IPBlock(cidr, tuple(random.sample(inside, random.randint(0, min(2, len(inside))))))


@settings(max_examples=250, deadline=None)
@given(st.randoms(use_true_random=False))
def test_any_order_of_events_gives_what_the_facts_alone_give(random: Random) -> None:
    numbers = Numbers()
    cache = IPCache(numbers.acquire, numbers.release)
    facts: Facts = {}
    blocks: set[IPBlock] = set()
    names: set[tuple[str, int]] = set()
    mirror: dict[Prefix, PeerClass] = {}
    classes: set[PeerClass] = set()
    for _ in range(random.randint(1, 25)):
        kind = random.randrange(5)
        address = random.choice(ADDRESSES)
        canonical = address.removeprefix("::ffff:")
        if kind == 0:
            blocks = set(random.sample(sorted(blocks, key=str), len(blocks) // 2))
            blocks |= {block(random) for _ in range(random.randint(0, 3))}
            cache.set_blocks(blocks)
        elif kind == 1:
            names = {(p.name, p.protocol) for p in PORTS if random.random() < 0.5}
            cache.set_port_names(names)
        elif kind == 2:
            cache.remove(address)
            facts.pop(canonical, None)
        else:
            identity, labels = random.choice(PODS)
            ports = tuple(random.sample(PORTS, random.randint(0, 3)))
            cache.upsert(address, identity, labels, ports)
            facts[canonical] = (identity, labels, ports)
        if random.random() < 0.6:
            _apply(cache, mirror, classes)
    _apply(cache, mirror, classes)
    assert not cache.resolve(), "nothing has happened since"
    assert mirror == cache.entries()
    assert classes == cache.classes() == set(mirror.values())
    for address in ADDRESSES:
        expected = naive(address, facts, blocks, names, numbers)
        assert longest_match(mirror, address) == cache.lookup(address) == expected
    cache.set_blocks(())
    for address in ADDRESSES:
        cache.remove(address)
    _apply(cache, mirror, classes)
    assert {str(prefix.network()) for prefix in mirror} == {"0.0.0.0/0", "::/0"}
    assert not any(numbers.held.values())


def _apply(cache: IPCache, mirror: dict[Prefix, PeerClass], classes: set[PeerClass]) -> None:
    delta = cache.resolve()
    for prefix, one in delta.upserts.items():
        assert mirror.get(prefix) != one, "written although nothing changed"
        mirror[prefix] = one
    for prefix in delta.deletes:
        del mirror[prefix]
    assert not delta.classes_added & classes and delta.classes_removed <= classes
    classes |= delta.classes_added
    classes -= delta.classes_removed


def test_defaults_are_there_from_the_first() -> None:
    delta = IPCache(Numbers().acquire).resolve()
    v4 = Prefix(bytes(10) + b"\xff\xff" + bytes(4), 96)
    assert {p: c.identity for p, c in delta.upserts.items()} == {v4: 9, Prefix(bytes(16), 0): 10}


def test_exhausted_identities_change_nothing() -> None:
    numbers = Numbers()
    cache = IPCache(numbers.acquire, numbers.release)
    old = IPBlock(ip_network("10.0.0.0/8"))
    cache.set_blocks({old})
    cache.resolve()
    before = cache.entries()
    numbers.refuse_after = 1
    with pytest.raises(RuntimeError):
        cache.set_blocks({IPBlock(ip_network("11.0.0.0/8"), (ip_network("11.1.0.0/16"),))})
    assert not cache.resolve() and cache.entries() == before
    assert sum(numbers.held.values()) == 1
    numbers.refuse_after = None
    cache.set_blocks({IPBlock(ip_network("11.0.0.0/8"))})
    assert len(cache.resolve().deletes) == 1


def test_classes_are_shared_objects() -> None:
    cache = IPCache(Numbers().acquire)
    identity, labels = PODS[0]
    for address in ("10.0.0.1", "10.0.0.2"):
        cache.upsert(address, identity, labels)
    upserts = cache.resolve().upserts
    pods = [one for one in upserts.values() if one.identity == identity]
    assert len(pods) == 2 and pods[0] is pods[1]


def test_blocks_and_prefixes_check_themselves() -> None:
    for cidr, inner in (("10.0.0.0/8", "11.0.0.0/16"), ("10.0.0.0/8", "fd00::/64")):
        with pytest.raises(ValueError, match="not inside"):
            IPBlock(ip_network(cidr), (ip_network(inner),))
    with pytest.raises(ValueError, match="write it as IPv4"):
        IPBlock(ip_network("::ffff:10.0.0.0/104"))
    one = IPBlock(IPv4Network("10.0.0.0/8"), (ip_network("10.2.0.0/16"), ip_network("10.1.0.0/16")))
    assert one == IPBlock(one.cidr, (*reversed(one.excepts), one.excepts[0]))
    for network in CIDRS:
        assert Prefix.of(network).network() == network
    cache = IPCache(Numbers().acquire)
    for wrong in ("fe80::1%eth0", "10.0.0", ""):
        with pytest.raises(ValueError):
            cache.upsert(wrong, 256, HOST_CLASS.labels)
