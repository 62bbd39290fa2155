# SPDX-License-Identifier: Apache-2.0
"""Who is behind services: after any history what the facts alone say, and no idle write."""

from __future__ import annotations

import sys
from ipaddress import ip_address, ip_network
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.delta import Delta
from agent.core.endpoint import address_bytes
from agent.core.events import (
    EndpointSlice,
    EndpointSliceRemoved,
    EndpointSliceUpserted,
    ResourceKey,
    Service,
    ServicePort,
    ServiceRemoved,
    ServiceUpserted,
)
from agent.core.services import ServiceBook
from agent.core.store import Store
from bpf.layouts import ServiceKey, ServicePeers
from identity.ipcache import IPBlock, IPCache, PeerClass
from identity.labels import LabelSet

SOURCE = "test"
NAMES = tuple((namespace, name) for namespace in ("a", "b") for name in ("x", "y"))
CLUSTER_IPS = ("10.96.0.1", "10.96.0.2", "fd00:96::1", "fd00:96::2")
ENDPOINTS = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1", "8.8.8.8", "fd00::1", "fd00::2",
             "2001:db8::1")  # fmt: skip
PORTS = (
    ServicePort("", 6, 80), ServicePort("dns", 17, 53), ServicePort("dns-tcp", 6, 53),
    ServicePort("web", 6, 8080), ServicePort("web", 6, 8081),
)  # fmt: skip
BLOCKS = ("10.0.0.0/8", "10.0.0.0/30", "0.0.0.0/0", "2001:db8::/32")


class World:
    """A book, what it had written, and the facts."""

    def __init__(self, capacity: int = 1000) -> None:
        self.store = Store([SOURCE])
        self.ipcache = IPCache(lambda labels: 300 + len(labels))
        self.numbers: dict[PeerClass, int] = {}
        self.book = ServiceBook(self.ipcache, self.number, capacity)
        self.written: dict[bytes, bytes] = {}
        self.flush()

    def number(self, one: PeerClass) -> int:
        return self.numbers.setdefault(one, 1000 + len(self.numbers))

    def flush(self) -> None:
        delta = Delta()
        classes = self.ipcache.resolve()
        self.book.update(self.store, self.store.take_changes().services, classes, delta)
        part = delta.service_peers
        for key, value in part.upserts.items():
            assert self.written.get(key) != value, "written though equal already"
            self.written[key] = value
        for key in part.deletes:
            del self.written[key]
        assert self.book.writes() == self.written
        assert delta.verdicts is bool(part)

    def expected(self) -> dict[bytes, set[tuple[int, int, int]]]:
        """From the facts as they stand, without an index."""
        found: dict[bytes, set[tuple[int, int, int]]] = {}
        for (namespace, name), service in sorted(self.store.services.items()):
            for ip in set(service.cluster_ips) - self.store.node_addresses:
                for port in service.ports:
                    kinds = set()
                    for one in self.store.slices.values():
                        if (one.namespace, one.service) != (namespace, name):
                            continue
                        for target in one.ports:
                            if (target.name, target.protocol) == (port.name, port.protocol):
                                for address in one.addresses:
                                    if ip_address(address).version == ip_address(ip).version:
                                        peer = self.ipcache.lookup(address)
                                        kinds.add((self.number(peer), peer.identity, target.port))
                    number = int.from_bytes(port.port.to_bytes(2, "big"), sys.byteorder)
                    key = ServiceKey(address_bytes(ip), number, port.protocol).pack()
                    if 1 <= len(kinds) <= 4:
                        found.setdefault(key, kinds)
        return found

    def change(self, random: Random) -> None:
        namespace, name = random.choice(NAMES)
        match random.randrange(7):
            case 0:
                ips = random.sample(CLUSTER_IPS, random.randint(0, 2))
                ports = tuple(random.sample(PORTS, random.randint(0, 3)))
                one = Service(namespace, name, tuple(ips), ports)
                self.store.apply(ServiceUpserted(SOURCE, one))
                if random.random() < 0.3:
                    self.store.apply(ServiceRemoved(SOURCE, one.key))
            case 1 | 2:
                addresses = tuple(random.sample(ENDPOINTS, random.randint(0, 5)))
                ports = tuple(random.sample(PORTS, random.randint(0, 3)))
                part = f"{random.choice('pq')}"
                slice_ = EndpointSlice(namespace, part, random.choice("xy"), addresses, ports)
                self.store.apply(EndpointSliceUpserted(SOURCE, slice_))
                if random.random() < 0.3:
                    self.store.apply(EndpointSliceRemoved(SOURCE, slice_.key))
            case 3 | 4:
                address = random.choice(ENDPOINTS)
                if random.random() < 0.3:
                    self.ipcache.remove(address)
                else:
                    label = random.choice("stu")
                    self.ipcache.upsert(address, ord(label), LabelSet({f"k8s:{label}": ""}))
            case 5:
                ips = random.sample(CLUSTER_IPS, random.choice((0, 0, 1, 2)))
                self.store.set_node_addresses(["192.0.2.1", *ips])
            case _:
                chosen = random.sample(BLOCKS, random.randint(0, 3))
                self.ipcache.set_blocks([IPBlock(ip_network(one)) for one in chosen])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 60))
def test_any_history(seed: int, steps: int) -> None:
    random, world = Random(seed), World()
    for _ in range(steps):
        world.change(random)
        if random.random() < 0.6:
            world.flush()
    world.flush()
    found = {}
    for key, value in world.written.items():
        place, entry = ServiceKey.unpack(key), ServicePeers.unpack(value)
        assert (entry.address, entry.service_port, entry.protocol) == (
            place.address, place.port, place.protocol,
        )  # fmt: skip
        kinds = list(zip(entry.peer_class, entry.identity, entry.port, strict=True))
        assert not any(map(any, kinds[entry.count :]))
        found[key] = set(kinds[: entry.count])
        assert len(found[key]) == entry.count
    assert found == world.expected()


def test_no_more_than_the_map_holds() -> None:
    """What finds no place is judged by its own address; it gets one when there is room."""
    world = World(capacity=1)
    ports = (ServicePort("", 6, 80),)
    for name, ip in (("x", "10.96.0.1"), ("y", "10.96.0.2")):
        world.store.apply(ServiceUpserted(SOURCE, Service("a", name, (ip,), ports)))
        slice_ = EndpointSlice("a", name, name, ("10.0.0.1",), ports)
        world.store.apply(EndpointSliceUpserted(SOURCE, slice_))
    world.flush()
    assert len(world.written) == 1
    assert world.book.behind("10.96.0.1", 6, 80)[0] == ("a", "x")
    assert world.book.behind("10.96.0.2", 6, 80) == (("", ""), ())
    world.store.apply(ServiceRemoved(SOURCE, ResourceKey("Service", "a", "x")))
    world.flush()
    assert world.book.behind("10.96.0.2", 6, 80)[0] == ("a", "y")
