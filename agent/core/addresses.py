# SPDX-License-Identifier: Apache-2.0
"""Whose address is whose: from pods, endpoints and the node to identities in the address table.

More than one pod may claim an address: a finished one beside its successor, or a stale status. An
endpoint of this node wins, because its address was given out here; otherwise the first name does.
So the outcome never depends on the order of events.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.core.endpoint import Endpoint, address_bytes
from agent.core.events import Pod
from agent.core.store import PodKey, Store
from identity.allocator import IdentityAllocator, IdentityExhausted
from identity.ipcache import IPCache, NamedPort
from identity.labels import LabelFilter, LabelSet, pod_labels
from identity.reserved import Reserved

_Who = tuple[int, LabelSet, tuple[NamedPort, ...]]

_NODE: PodKey = ("", "\0node")
_NODE_IS: _Who = (int(Reserved.HOST), Reserved.HOST.labels, ())
_INIT_IS: _Who = (int(Reserved.INIT), Reserved.INIT.labels, ())


class AddressBook:
    """Keeps the address table in step with the facts; holds the identities that pods need."""

    def __init__(
        self, identities: IdentityAllocator, ipcache: IPCache, label_filter: LabelFilter
    ) -> None:
        self._identities = identities
        self._ipcache = ipcache
        self._filter = label_filter
        self._who: dict[PodKey, _Who] = {_NODE: _NODE_IS}
        self._claims: dict[str, set[PodKey]] = {}
        self._claimed: dict[PodKey, tuple[str, ...]] = {}
        self._local: dict[str, PodKey] = {}
        self.problems: dict[PodKey, str] = {}
        """Pods that could not be given an identity; they are unmanaged, so no label allows them."""
        self.owners: dict[bytes, PodKey] = {}
        """Pod by address in the form of the maps; none for the node's own. Other threads may read
        it, key by key."""

    def identity_of(self, pod: PodKey) -> int:
        """The identity of a pod that has addresses; init while its labels are not known."""
        return self._who.get(pod, _INIT_IS)[0]

    def owner(self, address: str) -> PodKey | None:
        """The pod that an address belongs to; None for the node's and for nobody's."""
        claims = self._claims.get(address)
        if not claims or _NODE in claims:
            return None
        return self._local.get(address) or min(claims)

    def labels_of(self, pod: PodKey) -> LabelSet:
        """The label set of `identity_of`."""
        return self._who.get(pod, _INIT_IS)[1]

    def update_node(self, addresses: Iterable[str]) -> None:
        """All addresses of the node's own stack."""
        self._claim(_NODE, tuple(sorted(addresses)))

    def update_pod(self, key: PodKey, store: Store, now: float) -> None:
        """Bring one pod up to date: its identity, and the addresses that are its own."""
        pod, endpoints = store.pods.get(key), store.endpoints_of(key)
        addresses = _addresses(pod, endpoints)
        before = self._who.get(key)
        self.problems.pop(key, None)
        if not addresses:
            self._claim(key, ())
            self._who.pop(key, None)
        else:
            self._who[key] = self._identify(key, pod, store.namespace_labels(key[0]))
            local = [one for endpoint in endpoints for one in endpoint.addresses]
            self._set_local(key, local)
            self._claim(key, addresses)
        if before is not None:
            self._identities.release(before[0], now)

    def _identify(self, key: PodKey, pod: Pod | None, namespace_labels: Mapping[str, str]) -> _Who:
        if pod is None:
            return _INIT_IS
        labels = pod_labels(
            pod.labels, pod.namespace, namespace_labels, pod.service_account, self._filter
        )
        try:
            number = self._identities.acquire(labels)
        except IdentityExhausted as error:
            self.problems[key] = str(error)
            return int(Reserved.UNMANAGED), Reserved.UNMANAGED.labels, ()
        return number, self._identities.labels(number) or labels, pod.ports

    def _set_local(self, key: PodKey, local: Iterable[str]) -> None:
        wanted = set(local)
        for address in self._claimed.get(key, ()):
            if self._local.get(address) == key and address not in wanted:
                del self._local[address]
        for address in wanted:
            self._local[address] = key

    def _claim(self, key: PodKey, addresses: tuple[str, ...]) -> None:
        former = self._claimed.pop(key, ())
        for address in former:
            if address not in addresses:
                if self._local.get(address) == key:
                    del self._local[address]
                claims = self._claims[address]
                claims.discard(key)
                if not claims:
                    del self._claims[address]
                self._settle(address)
        for address in addresses:
            self._claims.setdefault(address, set()).add(key)
            self._settle(address)
        if addresses:
            self._claimed[key] = addresses

    def _settle(self, address: str) -> None:
        claims = self._claims.get(address)
        if not claims:
            self._ipcache.remove(address)
            self.owners.pop(address_bytes(address), None)
            return
        owner = _NODE if _NODE in claims else self._local.get(address) or min(claims)
        if owner is _NODE:
            self.owners.pop(address_bytes(address), None)
        else:
            self.owners[address_bytes(address)] = owner
        self._ipcache.upsert(address, *self._who[owner])


def _addresses(pod: Pod | None, endpoints: tuple[Endpoint, ...]) -> tuple[str, ...]:
    if endpoints:
        return tuple(address for endpoint in endpoints for address in endpoint.addresses)
    if pod is None or pod.host_network:
        return ()
    return pod.ips
