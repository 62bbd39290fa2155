# SPDX-License-Identifier: Apache-2.0
"""Who is behind the addresses of services (map ``service_peers``), so that egress policy, which
speaks of pods, holds for a connection to a service.

The node's stack (kube-proxy) leads it to one of the service's endpoints, of its own choice and only
after the pod's program has decided. So a connection is allowed if it is allowed to each kind of
endpoint: to each peer class and port. Endpoints count whether they are ready or not. A port of a
service without endpoints, or with more kinds than an entry holds, has no entry, and is judged by
the service's own address, which is world. So is an address that the node itself has (a DNS cache on
each node takes that of the DNS service): it leads to a process of the node, and is the node's.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from agent.core.delta import Delta, Writes
from agent.core.endpoint import address_bytes
from agent.core.events import EndpointSlice, Service
from agent.core.store import Store
from bpf.layouts import ServiceKey, ServiceLimit, ServicePeers
from bpf.maps import SERVICE_PEERS
from identity.ipcache import IPCache, IPCacheDelta, PeerClass

log = logging.getLogger(__name__)

_Name = tuple[str, str]
_FULL_LENGTH: Final = 128


@dataclass(frozen=True, slots=True)
class Behind:
    """One kind of endpoint of a service's port; the address stands for all of the kind."""

    peer_class: int
    identity: int
    port: int
    address: str


class ServiceBook:
    """Keeps the map in step with services, their endpoint slices and the classes of addresses.

    number: of a class in use. capacity: entries that the map holds; what exceeds it has none.
    """

    def __init__(
        self,
        ipcache: IPCache,
        number: Callable[[PeerClass], int],
        capacity: int = SERVICE_PEERS.max_entries,
    ) -> None:
        self._ipcache = ipcache
        self._number = number
        self._capacity = capacity
        self._entries: dict[_Name, dict[bytes, tuple[Behind, ...]]] = {}
        self._claims: dict[bytes, set[_Name]] = {}
        self._addresses: dict[_Name, frozenset[str]] = {}
        self._users: dict[str, set[_Name]] = {}
        self._peers: dict[str, tuple[int, int]] = {}
        """Class and identity of endpoints' addresses, as long as they stay: a service may have
        thousands, of which one changes at a time."""
        self._written: Writes = {}
        self._left_out: set[bytes] = set()
        self._node: frozenset[str] = frozenset()

    def update(
        self, store: Store, changed: Iterable[_Name], classes: IPCacheDelta, delta: Delta
    ) -> None:
        """After a change of services or their slices, of the classes of addresses, or of the node's
        own addresses."""
        names = {*changed, *self._concerned(classes)}
        if store.node_addresses != self._node:
            moved = store.node_addresses ^ self._node
            self._node = store.node_addresses
            names.update(
                name
                for name, one in store.services.items()
                if not moved.isdisjoint(one.cluster_ips)
            )
        touched: set[bytes] = set()
        for name in sorted(names):
            service = store.services.get(name)
            slices = store.slices_of(name) if service is not None else ()
            self._note_addresses(name, slices)
            wanted = dict(self._of(service, slices)) if service is not None else {}
            former = self._entries.pop(name, {})
            if wanted:
                self._entries[name] = wanted
            for key in former.keys() - wanted.keys():
                self._claims[key].discard(name)
            for key in wanted:
                self._claims.setdefault(key, set()).add(name)
            touched.update(former.keys() | wanted.keys())
        for key in sorted(touched):
            self._settle(key, delta)
        while self._left_out and len(self._written) < self._capacity:
            self._settle(min(self._left_out), delta)

    def writes(self) -> Writes:
        """The whole map."""
        return dict(self._written)

    def behind(self, address: str, protocol: int, port: int) -> tuple[_Name, tuple[Behind, ...]]:
        """The service that a port of an address is one's, and what its entry holds, in the order in
        which it is judged. Nothing where there is no entry."""
        key = _key(address, protocol, port)
        if key not in self._written:
            return ("", ""), ()
        name = min(self._claims[key])
        return name, self._entries[name][key]

    def _concerned(self, classes: IPCacheDelta) -> Iterator[_Name]:
        """Services with endpoints whose class may be another now."""
        if not self._users:
            return
        shorter = False
        for prefix in (*classes.upserts, *classes.deletes):
            if prefix.length == _FULL_LENGTH:
                address = str(prefix.network().network_address)
                self._peers.pop(address, None)
                yield from self._users.get(address, ())
            else:
                shorter = True
        if shorter:
            # Known addresses have entries of their own; the few others have their network's class.
            for address, users in self._users.items():
                if not self._ipcache.is_known(address):
                    self._peers.pop(address, None)
                    yield from users

    def _note_addresses(self, name: _Name, slices: Iterable[EndpointSlice]) -> None:
        wanted = frozenset(address for one in slices for address in one.addresses)
        former = self._addresses.pop(name, frozenset())
        if wanted:
            self._addresses[name] = wanted
        for address in former - wanted:
            users = self._users[address]
            users.discard(name)
            if not users:
                del self._users[address]
                self._peers.pop(address, None)
        for address in wanted - former:
            self._users.setdefault(address, set()).add(name)

    def _of(
        self, service: Service, slices: Iterable[EndpointSlice]
    ) -> Iterator[tuple[bytes, tuple[Behind, ...]]]:
        """Entries of a service, by key."""
        slices = tuple(slices)
        for address in service.cluster_ips:
            if address in self._node:
                continue
            for port in service.ports:
                found: dict[tuple[int, int, int], Behind] = {}
                for number, endpoint in _endpoints(slices, port.name, port.protocol, address):
                    kind = (*self._peer(endpoint), number)
                    found.setdefault(kind, Behind(*kind, endpoint))
                if len(found) > ServiceLimit.SERVICE_PEERS:
                    log.debug(
                        "service %s/%s, port %d: %d kinds of endpoints, so egress policy does not"
                        " see who is behind it",
                        service.namespace, service.name, port.port, len(found),
                    )  # fmt: skip
                elif found:
                    kinds = tuple(found[kind] for kind in sorted(found))
                    yield _key(address, port.protocol, port.port), kinds

    def _peer(self, address: str) -> tuple[int, int]:
        found = self._peers.get(address)
        if found is None:
            one = self._ipcache.lookup(address)
            found = self._peers[address] = self._number(one), one.identity
        return found

    def _settle(self, key: bytes, delta: Delta) -> None:
        """Of several services with one address the first by name counts."""
        self._left_out.discard(key)
        claims = self._claims[key]
        if not claims:
            del self._claims[key]
            if self._written.pop(key, None) is not None:
                delta.service_peers.drop(key)
            return
        value = _value(key, self._entries[min(claims)][key])
        if self._written.get(key) == value:
            return
        if key in self._written or len(self._written) < self._capacity:
            self._written[key] = value
            delta.service_peers.put(key, value)
        else:
            self._left_out.add(key)


def _endpoints(
    slices: Iterable[EndpointSlice], name: str, protocol: int, like: str
) -> Iterator[tuple[int, str]]:
    """Port and address of the endpoints of a service's port, of the family of an address."""
    six = ":" in like
    for one in slices:
        for port in one.ports:
            if (port.name, port.protocol) == (name, protocol):
                for address in one.addresses:
                    if (":" in address) is six:
                        yield port.port, address


def _key(address: str, protocol: int, port: int) -> bytes:
    in_network_order = int.from_bytes(port.to_bytes(2, "big"), sys.byteorder)
    return ServiceKey(address_bytes(address), in_network_order, protocol).pack()


def _value(key: bytes, kinds: tuple[Behind, ...]) -> bytes:
    place = ServiceKey.unpack(key)
    return ServicePeers(
        place.address,
        place.port,
        place.protocol,
        len(kinds),
        _four(one.peer_class for one in kinds),
        _four(one.identity for one in kinds),
        _four(one.port for one in kinds),
    ).pack()


def _four(values: Iterable[int]) -> tuple[int, int, int, int]:
    a, b, c, d = (*values, 0, 0, 0, 0)[: ServiceLimit.SERVICE_PEERS]
    return a, b, c, d
