# SPDX-License-Identifier: Apache-2.0
"""Whole-world states: whatever the order and the batching of events, the same comes out, and no
step on the way allows what nobody wants."""

from __future__ import annotations

from ipaddress import ip_address
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.desired import Desired, EndpointTables
from agent.core.endpoint import address_bytes
from agent.core.events import Pod, PodUpserted, PolicyUpserted, ResourceKey
from agent.core.nodes import NodeBook
from agent.core.numbers import Numbers
from agent.core.store import Store
from bpf.layouts import EndpointPolicy, NumberKind
from bpf.maps import U32
from identity.allocator import IdentityAllocator
from identity.cluster import ClusterIdentities
from identity.ipcache import PeerClass
from policy.levels import ANY_PROTOCOL, mask
from policy.model import Direction
from policy.parse import parse_network_policy
from policy.resolve import Table
from tests.unit.core.facts import (
    LOCAL4,
    LOCAL6,
    NODE,
    REMOTE,
    SOURCE,
    change,
    cluster_change,
    copied,
    endpoint,
)
from tests.unit.core.kernel import FakeDatapath, wanted
from tests.unit.policy import worlds

ADDRESSES = (*LOCAL4, *LOCAL6, *REMOTE, *NODE, *worlds.OUTSIDE, "10.0.0.1", "10.7.0.1")
PROBES = tuple((protocol, port) for protocol in (6, 17) for port in (80, 8080))
Mapping = dict[object, object]


def fresh_desired(label_filter: int = 0, cluster: bool = False) -> Desired:
    identities = ClusterIdentities() if cluster else IdentityAllocator()
    return Desired(identities, Numbers(60.0), worlds.FILTERS[label_filter], NodeBook("here"))


def meaning(desired: Desired) -> dict[str, object]:
    """Desired contents with every number replaced by what it stands for."""

    def of(one: PeerClass) -> object:
        return one.labels, one.blocks, one.ports

    def table(one: Table | None) -> object:
        return one and one.fingerprint

    def endpoint(number: int) -> object:
        entry = desired.endpoint_policy(number)
        tables = desired.tables[number]
        assert entry is not None
        # The entry is what the tables say, and its classes are those of its own addresses.
        assert entry.ingress_table == desired.table_number(tables.ingress)
        assert entry.egress_table == desired.table_number(tables.egress)
        own = desired.local.endpoints[number]
        for address, given_class in ((own.ipv4, entry.class4), (own.ipv6, entry.class6)):
            if address:
                assert given_class == desired.class_number(desired.ipcache.lookup(address))
            else:
                assert given_class == 0
        labels = desired.addresses.labels_of(desired.addresses.key_of(own))
        return labels, table(tables.ingress), table(tables.egress), entry.flags

    columns = {
        (desired.compiler.tables[number].fingerprint, of(desired.compiler.classes[peer])): column
        for number in desired.compiler.tables
        for peer, column in desired.compiler.columns(number).items()
    }
    book = desired.addresses
    found = {address: book.owner(address) for address in ADDRESSES}
    # The node's own addresses have none.
    assert book.owners == {address_bytes(one): pod for one, pod in found.items() if pod is not None}
    return {
        "owners": dict(book.owners),
        "peers": {prefix: of(one) for prefix, one in desired.ipcache.entries().items()},
        "endpoints": {number: endpoint(number) for number in desired.tables},
        "devices": desired.device_writes(),
        "places": desired.place_writes(),
        "addresses": desired.address_writes(),
        "columns": columns,
    }


def table_allows(table: Table | None, peer: PeerClass, protocol: int, port: int) -> bool:
    if table is None:
        return True
    found = {(one.protocol, one.port, one.level): one.allow for one in table.column(peer)}
    for level in range(16, -1, -1):
        if (protocol, port & mask(level), level) in found:
            return found[protocol, port & mask(level), level]
    return found.get((0, 0, ANY_PROTOCOL), False)


class Watched:
    """A desired state whose deltas go to dict maps, watched at every single write."""

    def __init__(self, random: Random, cluster: bool = False) -> None:
        self.store = Store([SOURCE])
        self.desired = fresh_desired(random.randrange(2), cluster)
        self.datapath = FakeDatapath()
        self.now = 100.0
        self.flush(1)

    def flush(
        self, events: int, probes: Random | None = None, addresses: tuple[str, ...] = ()
    ) -> None:
        """Write what the changes come to; check each step, and what is there afterwards."""
        old_tables, old_classes = self._policy_state()
        former = {number: one.addresses for number, one in self.desired.local.endpoints.items()}
        delta = self.desired.update(self.store, self.store.take_changes(), self.now)
        new_tables, new_classes = self._policy_state()
        chosen = probes.sample(ADDRESSES, 3) if probes else addresses

        def check() -> None:
            for number in old_tables.keys() & new_tables.keys():
                for direction in Direction:
                    for address in chosen:
                        states = [
                            (_side(tables[number], direction), classes[address])
                            for tables in (old_tables, new_tables)
                            for classes in (old_classes, new_classes)
                        ]
                        # One fact: its old state or its new one, never a mixture; but one that
                        # says which of two pods of a name is meant changes both of them, and an
                        # endpoint that becomes another leaves its own address.
                        own = {*self._of_the_name(number), *former[number]}
                        if events == 1 and address not in own:
                            states = [states[0], states[3]]
                        for protocol, port in PROBES:
                            if self.datapath.allows(
                                number, direction, address_bytes(address), protocol, port
                            ):
                                assert any(
                                    table_allows(table, peer, protocol, port)
                                    for table, peer in states
                                ), (number, direction, address, protocol, port)

        self.datapath.watch = check if chosen else lambda: None
        before, written = self.datapath.epoch(), self.datapath.content()
        self.datapath.apply(delta)
        self.datapath.watch = lambda: None
        self.desired.written()
        self.compare()
        after = self.datapath.content()
        if any(written[name] != after[name] for name in ("peers", "endpoints")):
            assert self.datapath.epoch() > before

    def _of_the_name(self, number: int) -> set[str]:
        """Addresses of the pods of an endpoint's name."""
        one = self.store.endpoints.get(number)
        namesakes = self.store.endpoints_of(one.pod_key) if one else ()
        return {address for other in namesakes for address in other.addresses}

    def retire(self) -> None:
        self.datapath.apply(self.desired.retire(self.now))
        self.compare()

    def compare(self) -> None:
        expected = wanted(self.desired)
        actual = self.datapath.content()
        for name, content in expected.items():
            assert actual[name] == content, name
            assert not self.datapath.fake(name).idle, f"{name}: written though equal already"
        assert self.desired.entries == len(actual["policy"])
        assert not self.datapath.fake("policy").rewrites, "a verdict was modified in place"
        assert actual["numbers"] == self.desired.numbers.entries()

    def _policy_state(self) -> tuple[dict[int, EndpointTables], dict[str, PeerClass]]:
        ipcache = self.desired.ipcache
        classes = {one: ipcache.lookup(one) for one in ADDRESSES} if len(ipcache) else {}
        return dict(self.desired.tables), classes


def blocks(name: str, *cidrs: tuple[str, ...]) -> PolicyUpserted:
    """A policy for pod a/p that lets blocks in, each with its exceptions."""
    peers = [{"ipBlock": {"cidr": cidr, "except": list(rest)}} for cidr, *rest in cidrs]
    document = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "a"},
        "spec": {"podSelector": {}, "ingress": [{"from": peers}] if peers else []},
    }
    return PolicyUpserted(SOURCE, parse_network_policy(document))


@given(
    st.lists(
        st.lists(
            st.sampled_from(
                (
                    ("10.0.0.0/8",),
                    ("10.0.0.0/8", "10.0.0.0/28"),
                    ("10.0.0.0/8", "10.0.0.4/30"),
                    ("10.0.0.0/28", "10.0.0.6/31"),
                    ("10.0.0.4/30",),
                    ("0.0.0.0/0", "10.0.0.0/8"),
                )
            ),
            max_size=3,
            unique=True,
        ),
        min_size=2,
        max_size=4,
    )
)
@settings(max_examples=80, deadline=None)
def test_an_exception_holds_at_every_moment_of_a_change(
    states: list[list[tuple[str, ...]]],
) -> None:
    world = Watched(Random(0))
    world.store.apply(PodUpserted(SOURCE, Pod("a", "p")))
    world.store.put_endpoint(endpoint(1, "a", "p", "10.2.0.1"))
    world.store.apply(blocks("p", ("192.168.0.0/16",)))
    world.flush(3)
    for state in states:
        world.store.apply(blocks("p", *state))
        world.flush(1, addresses=("10.0.0.1", "10.0.0.5", "10.0.0.7", "10.7.0.1", "8.8.8.8"))
        world.now += 3
        world.retire()


def _side(tables: EndpointTables, direction: Direction) -> Table | None:
    return tables.ingress if direction is Direction.INGRESS else tables.egress


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(5, 40), st.booleans())
def test_any_history_ends_as_its_last_facts_alone(seed: int, steps: int, cluster: bool) -> None:
    random = Random(seed)
    world = Watched(random, cluster)
    waiting = 0
    for _ in range(steps):
        if cluster:
            cluster_change(random, world.store, world.desired)
        else:
            change(random, world.store)
        waiting += 1
        world.now += random.choice((0.0, 0.1, 1.0, 3.0))
        if random.random() < 0.6:
            world.flush(waiting, random)
            waiting = 0
        if random.random() < 0.3:
            world.retire()
    world.flush(waiting)
    world.now += 100
    world.retire()

    again = fresh_desired(cluster=cluster)
    again.addresses._filter = world.desired.addresses._filter
    fresh = copied(world.store)
    again.update(fresh, fresh.take_changes(), 1.0)
    for mine, others in ((world.desired.addresses, again.addresses),):
        assert (mine.wanted, mine.unknown) == (others.wanted, others.unknown)
    assert meaning(world.desired) == meaning(again)
    held, expected = world.desired.compiler.sizes(), again.compiler.sizes()
    del held["columns"], expected["columns"]  # a cache, as long as its rules are in use
    assert held == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(5, 25))
def test_nothing_is_left_when_all_facts_are_gone(seed: int, steps: int) -> None:
    random = Random(seed)
    world = Watched(random)
    empty = world.desired.compiler.sizes()
    for _ in range(steps):
        change(random, world.store)
        if random.random() < 0.5:
            world.flush(2)
            world.now += 1
    gone = Store([SOURCE])
    world.store.take_changes()
    for number in list(world.store.endpoints):
        world.store.drop_endpoint(number)
    changes = world.store.take_changes()
    changes.pods.update(world.desired.addresses._who)
    changes.pods.discard(("", "\0node"))
    changes.policies.update(world.store.policies)
    # What was applied since the last flush must be seen too.
    changes.policies.update(ResourceKey(*one.key) for one in world.desired.repository.policies())
    changes.node_addresses = True
    changes.endpoints.update(world.desired.tables)
    world.datapath.apply(world.desired.update(gone, changes, world.now))
    for _ in range(3):
        world.now += 1000
        world.retire()
    world.desired.identities.collect(world.now)
    assert world.desired.identities.items() == {}
    assert world.desired.compiler.sizes() == empty
    assert {name: len(one) for name, one in world.datapath.content().items()} == {
        "numbers": 2,  # the default routes' classes
        "policy": 0,
        "peers": 2,
        "tunnels": 0,
        "service_peers": 0,
        "endpoints": 0,
        "addresses": 0,
        "devices": 0,
        "places": 0,
        "masquerade": 0,
        "masquerade_exclude": 0,
        "socket_endpoints": 0,
        "namespaces": 0,
    }
    assert not world.desired.packer.rule_names()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(5, 25))
def test_a_restarted_agent_adopts_the_kernel_as_it_is(seed: int, steps: int) -> None:
    random = Random(seed)
    world = Watched(random)
    for _ in range(steps):
        change(random, world.store)
        if random.random() < 0.5:
            world.flush(2)
            world.now += random.choice((0.0, 3.0))
            world.retire()
    world.flush(1)

    numbers = Numbers(60.0)
    assert numbers.adopt(world.datapath.numbers()) == 0
    identities = IdentityAllocator()
    identities.restore(world.desired.identities.snapshot(), 0.0)
    again = Desired(identities, numbers, world.desired.addresses._filter)
    fresh = copied(world.store)
    delta = again.update(fresh, fresh.take_changes(), 1.0)
    assert not delta.numbers.upserts
    actual = world.datapath.content()
    for name, content in wanted(again).items():
        missing = {key for key, value in content.items() if actual[name].get(key) != value}
        assert not missing, name
    # Numbers that only the former one used rest, and are free in the end.
    again.release_unused(2.0)
    again.retire(70.0)
    kept = {(NumberKind.NUMBER_CLASS, number) for number in again.compiler.classes}
    assert {number for _, number in kept if number >= 256} == {
        number
        for number in again.numbers._allocators[NumberKind.NUMBER_CLASS].items()
        if number in again.compiler.classes
    }
    assert again.numbers.in_use(NumberKind.NUMBER_CLASS) == len(kept) - 1
    assert again.numbers.in_use(NumberKind.NUMBER_TABLE) == len(again.compiler.tables)


def test_endpoint_entries_unpack() -> None:
    """The oracle above reads what the programs read."""
    random = Random(5)
    world = Watched(random)
    for _ in range(60):
        change(random, world.store)
    world.flush(60)
    for raw, value in world.datapath.content()["endpoints"].items():
        entry = EndpointPolicy.unpack(value)
        assert U32.pack(entry.endpoint) == raw
        addresses = world.desired.addresses
        key = addresses.key_of(world.store.endpoints[entry.endpoint])
        assert entry.identity == addresses.identity_of(key)
    for address in ADDRESSES:
        peer = world.desired.ipcache.lookup(ip_address(address))
        assert world.datapath.peer_class(address_bytes(address)) == world.desired.class_number(peer)
