# SPDX-License-Identifier: Apache-2.0
"""Whose address is whose: from pods, endpoints and the node to identities in the address table.

More than one pod may claim an address: a finished one beside its successor, or a stale status. An
endpoint of this node wins, because its address was given out here; otherwise the first name does.
So the outcome never depends on the order of events.

Of pods elsewhere either the pod itself is known (manifests) or what its node published of it
(cluster). A published number whose labels are not known yet makes an unmanaged peer, which no
label allows; labels of a pod here that have no number yet leave it with identity init, which is
denied. So does an object that is another pod's of the same name, an earlier or a later one's.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.core.endpoint import Endpoint, address_bytes
from agent.core.events import Pod, PublishedEndpoint
from agent.core.store import PodKey, Store
from identity.allocator import IdentityAllocator, IdentityExhausted
from identity.cluster import ClusterIdentities, IdentityPending, reserved_labels
from identity.ipcache import IPCache, NamedPort
from identity.labels import LabelFilter, LabelSet, pod_labels
from identity.reserved import Reserved

_Who = tuple[int, LabelSet, tuple[NamedPort, ...]]

_NODE: PodKey = ("", "\0node")
_REMOTE = "\0remote "
_OTHER = "\0other"
_NODE_IS: _Who = (int(Reserved.HOST), Reserved.HOST.labels, ())
_REMOTE_NODE_IS: _Who = (int(Reserved.REMOTE_NODE), Reserved.REMOTE_NODE.labels, ())
_INIT_IS: _Who = (int(Reserved.INIT), Reserved.INIT.labels, ())
_UNMANAGED_IS: _Who = (int(Reserved.UNMANAGED), Reserved.UNMANAGED.labels, ())


class AddressBook:
    """Keeps the address table in step with the facts; holds the identities that pods need."""

    def __init__(
        self,
        identities: IdentityAllocator,
        ipcache: IPCache,
        label_filter: LabelFilter,
        node_name: str = "",
    ) -> None:
        self._identities = identities
        self._ipcache = ipcache
        self._in_cluster = isinstance(identities, ClusterIdentities)
        self._node_name = node_name
        self._filter = label_filter
        self._who: dict[PodKey, _Who] = {_NODE: _NODE_IS}
        self._claims: dict[str, set[PodKey]] = {}
        self._claimed: dict[PodKey, tuple[str, ...]] = {}
        self._local: dict[str, PodKey] = {}
        self.problems: dict[PodKey, str] = {}
        """Pods that could not be given an identity; they are unmanaged, so no label allows them."""
        self.wanted: dict[PodKey, LabelSet] = {}
        """Label sets of pods here that have no number yet."""
        self.unknown: dict[PodKey, int] = {}
        """Published numbers whose labels are not known yet."""
        self.owners: dict[bytes, PodKey] = {}
        """Pod by address in the form of the maps; none for nodes' own. Other threads may read
        it, key by key."""

    def identity_of(self, pod: PodKey) -> int:
        """The identity of a pod that has addresses; init while its labels are not known."""
        return self._who.get(pod, _INIT_IS)[0]

    def key_of(self, endpoint: Endpoint) -> PodKey:
        """What to ask `identity_of` and `labels_of` for of an endpoint."""
        other = _other(endpoint.pod_key)
        is_other = set(endpoint.addresses) & set(self._claimed.get(other, ()))
        return other if is_other else endpoint.pod_key

    def owner(self, address: str) -> PodKey | None:
        """The pod that an address belongs to; None for a node's and for nobody's."""
        claims = self._claims.get(address)
        owner = self._owner(address, claims) if claims else _NODE
        return None if _is_node(owner) else _named(owner)

    def missing(self, pod: PodKey) -> str:
        """What a pod here has to wait for, although its own labels are known; empty: nothing."""
        if pod in self.wanted:
            return "its labels have no identity number yet"
        if self.identity_of(pod) == Reserved.INIT:
            return f"the labels of namespace {pod[0]} are not known"
        return ""

    def is_nodes(self, address: str) -> bool:
        """Whether this node's stack or another node has an address."""
        return any(map(_is_node, self._claims.get(address, ())))

    def labels_of(self, pod: PodKey) -> LabelSet:
        """The label set of `identity_of`."""
        return self._who.get(pod, _INIT_IS)[1]

    def update_node(self, addresses: Iterable[str]) -> None:
        """All addresses of the node's own stack."""
        self._claim(_NODE, tuple(sorted(addresses)))

    def update_remote_node(self, name: str, addresses: Iterable[str]) -> None:
        """The addresses of another node; none: it is gone. What this node has is its own."""
        key: PodKey = ("", f"{_REMOTE}{name}")
        self._who[key] = _REMOTE_NODE_IS
        self._claim(key, tuple(sorted(addresses)))
        if key not in self._claimed:
            del self._who[key]

    def update_pod(self, key: PodKey, store: Store, now: float) -> None:
        """Bring one pod up to date: its identity, and the addresses that are its own."""
        pod, all_endpoints = store.pods.get(key), store.endpoints_of(key)
        endpoints = tuple(one for one in all_endpoints if pod is None or pod.may_be(one.pod_uid))
        self._update_others(key, [one for one in all_endpoints if one not in endpoints])
        published = self._elsewhere(store.published.get(key))
        addresses = _addresses(pod, endpoints) or (published.ips if published else ())
        before = self._who.get(key)
        for about in (self.problems, self.wanted, self.unknown):
            about.pop(key, None)
        if not addresses:
            self._claim(key, ())
            self._who.pop(key, None)
        else:
            if published is not None and not endpoints and (pod is None or not pod.ips):
                self._who[key] = self._recognise(key, published)
            else:
                self._who[key] = self._identify(key, pod, store)
            local = [one for endpoint in endpoints for one in endpoint.addresses]
            self._set_local(key, local)
            self._claim(key, addresses)
        if before is not None:
            self._identities.release(before[0], now)

    def _update_others(self, key: PodKey, endpoints: Iterable[Endpoint]) -> None:
        """Endpoints that are of other pods of the name than the one that is known."""
        other = _other(key)
        addresses = tuple(address for endpoint in endpoints for address in endpoint.addresses)
        if addresses:
            self._who[other] = _INIT_IS
            self._set_local(other, addresses)
        self._claim(other, addresses)
        if not addresses:
            self._who.pop(other, None)

    def waiting(self, number: int, labels: LabelSet | None) -> list[PodKey]:
        """Pods that wait for a number or for its labels."""
        return [key for key, one in self.unknown.items() if one == number] + [
            key for key, one in self.wanted.items() if one == labels
        ]

    def having(self, number: int) -> list[PodKey]:
        """Pods that have a number."""
        return [key for key, (one, _, _) in self._who.items() if one == number]

    def _elsewhere(self, published: PublishedEndpoint | None) -> PublishedEndpoint | None:
        """Of its own pods a node knows more than it published."""
        own = published is not None and published.node_name == self._node_name
        return None if own else published

    def _recognise(self, key: PodKey, published: PublishedEndpoint) -> _Who:
        number = published.identity
        labels = reserved_labels(number) or self._identities.hold(number)
        if labels is None:
            self.unknown[key] = number
            return _UNMANAGED_IS
        return number, labels, published.ports

    def _identify(self, key: PodKey, pod: Pod | None, store: Store) -> _Who:
        # A folder of manifests need not have a pod's namespace. An API server has it, and where it
        # is not known yet, labels are not that a policy may exclude the pod by.
        if pod is None or (self._in_cluster and key[0] not in store.namespaces):
            return _INIT_IS
        labels = pod_labels(
            pod.labels,
            pod.namespace,
            store.namespace_labels(key[0]),
            pod.service_account,
            self._filter,
        )
        try:
            number = self._identities.acquire(labels)
        except IdentityPending:
            self.wanted[key] = labels
            return _INIT_IS
        except IdentityExhausted as error:
            self.problems[key] = str(error)
            return _UNMANAGED_IS
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
        owner = self._owner(address, claims)
        if _is_node(owner):
            self.owners.pop(address_bytes(address), None)
        else:
            self.owners[address_bytes(address)] = _named(owner)
        self._ipcache.upsert(address, *self._who[owner])

    def _owner(self, address: str, claims: set[PodKey]) -> PodKey:
        """Nodes come before pods, but for this node's own ones: their names sort first."""
        return _NODE if _NODE in claims else self._local.get(address) or min(claims)


def _is_node(key: PodKey) -> bool:
    return key[1].startswith("\0")


def _other(key: PodKey) -> PodKey:
    return key[0], key[1] + _OTHER


def _named(key: PodKey) -> PodKey:
    return key[0], key[1].removesuffix(_OTHER)


def _addresses(pod: Pod | None, endpoints: tuple[Endpoint, ...]) -> tuple[str, ...]:
    if endpoints:
        return tuple(address for endpoint in endpoints for address in endpoint.addresses)
    if pod is None or pod.host_network:
        return ()
    return pod.ips
