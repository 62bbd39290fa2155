# SPDX-License-Identifier: Apache-2.0
"""Random facts that come, change and go, from small vocabularies so that they often meet."""

from __future__ import annotations

from random import Random

from agent.core.desired import Desired
from agent.core.endpoint import Endpoint
from agent.core.events import (
    EndpointPublished,
    EndpointWithdrawn,
    IdentityPublished,
    IdentityWithdrawn,
    Namespace,
    NamespaceRemoved,
    NamespaceUpserted,
    Pod,
    PodRemoved,
    PodUpserted,
    PolicyRemoved,
    PolicyUpserted,
    PublishedEndpoint,
    PublishedIdentity,
    ResourceKey,
)
from agent.core.store import Store
from identity.labels import LabelSet
from policy.model import PolicyKey
from policy.parse import parse_network_policy
from tests.unit.policy import worlds

UIDS = ("", "", "u1", "u2")
SOURCE = "test"
PODS = tuple((namespace, name) for namespace in worlds.NAMESPACES[:2] for name in ("p", "q", "r"))
LOCAL4 = ("10.0.0.4", "10.0.0.5", "10.0.0.6")
LOCAL6 = ("fd00::4", "fd00::5")
REMOTE = ("10.0.0.7", "10.0.0.15", "192.168.1.7", "fd00::9")
NODE = ("192.168.2.1", "10.0.0.6", "2001:db8::1")
POLICIES = ("one", "two", "three")
IDENTITIES = tuple(range(300, 308))


def change(random: Random, store: Store) -> None:
    """One event."""
    kinds = (_pod, _pod, _pod, _namespace, _policy, _policy, _endpoint, _endpoint, _node)
    random.choice(kinds)(random, store)


def cluster_change(random: Random, store: Store, desired: Desired) -> None:
    """One event of a cluster: pods here, what nodes published of others, identities."""
    kinds = (_published, _published, _identity, _identity, _identity)
    if random.random() < 0.5:
        random.choice(kinds)(random, store, desired)
    else:
        change(random, store)


def _published(random: Random, store: Store, desired: Desired) -> None:
    namespace, name = random.choice(PODS)
    if random.random() < 0.25:
        store.apply(EndpointWithdrawn(SOURCE, ResourceKey("BristleEndpoint", namespace, name)))
        return
    ips = random.sample(REMOTE, random.randint(0, 2))
    number = random.choice((5, *IDENTITIES))
    ports = tuple(random.sample(worlds.NAMED, random.randint(0, 2)))
    node = random.choice(("here", "there"))
    published = PublishedEndpoint(namespace, name, number, 1, tuple(ips), ports, node)
    store.apply(EndpointPublished(SOURCE, published))


def _identity(random: Random, store: Store, desired: Desired) -> None:
    number = random.choice(IDENTITIES)
    if number in store.identities and random.random() < 0.3:
        if not desired.identities.references(number):  # else it keeps its meaning for its holders
            store.apply(IdentityWithdrawn(SOURCE, number))
        return
    known = store.identities.get(number)
    wanted = list(desired.addresses.wanted.values())
    labels = known.labels if known else LabelSet({f"k8s:n{number}": ""})
    if known is None and wanted and random.random() < 0.8:
        labels = random.choice(wanted)
    unused = random.choice(("", "", "2026-01-01T00:00:00Z"))
    store.apply(IdentityPublished(SOURCE, PublishedIdentity(number, labels, unused)))


def _pod(random: Random, store: Store) -> None:
    namespace, name = random.choice(PODS)
    if random.random() < 0.2:
        store.apply(PodRemoved(SOURCE, ResourceKey("Pod", namespace, name)))
        return
    ips = [one for one in (random.choice(REMOTE + LOCAL4), random.choice(LOCAL6))]
    store.apply(
        PodUpserted(
            SOURCE,
            Pod(
                namespace,
                name,
                labels=worlds.labels(random, worlds.LABELS),
                service_account=random.choice(("default", "robot")),
                uid=random.choice(UIDS),
                static_uid=random.choice(("", "", "", "u1")),
                host_network=random.random() < 0.1,
                ips=tuple(ips[: random.randint(0, 2)]),
                ports=tuple(random.sample(worlds.NAMED, random.randint(0, 3))),
            ),
        )
    )


def _namespace(random: Random, store: Store) -> None:
    name = random.choice(worlds.NAMESPACES)
    if random.random() < 0.2:
        store.apply(NamespaceRemoved(SOURCE, ResourceKey("Namespace", "", name)))
    else:
        labels = worlds.labels(random, worlds.NAMESPACE_LABELS)
        store.apply(NamespaceUpserted(SOURCE, Namespace(name, labels)))


def _policy(random: Random, store: Store) -> None:
    document = worlds.document(random, random.choice(POLICIES))
    document["metadata"]["namespace"] = random.choice(worlds.NAMESPACES[:2])
    meta = document["metadata"]
    if random.random() < 0.25:
        key = PolicyKey("NetworkPolicy", meta["namespace"], meta["name"])
        store.apply(PolicyRemoved(SOURCE, key))
    else:
        store.apply(PolicyUpserted(SOURCE, parse_network_policy(document)))


def _endpoint(random: Random, store: Store) -> None:
    number = random.randint(1, 4)
    if random.random() < 0.35:
        store.drop_endpoint(number)
        return
    namespace, name = random.choice((*PODS, ("", "")))
    free4 = [a for a in LOCAL4 if all(e.ipv4 != a for e in store.endpoints.values())]
    free6 = [a for a in LOCAL6 if all(e.ipv6 != a for e in store.endpoints.values())]
    taken = {one.ifindex for one in store.endpoints.values()}
    store.put_endpoint(
        endpoint(
            number, namespace, name, random.choice(free4) if free4 else "",
            random.choice(["", *free6]),
            random.choice([one for one in range(10, 16) if one not in taken]),
            random.choice(UIDS),
        )
    )  # fmt: skip


def endpoint(
    number: int,
    namespace: str,
    pod: str,
    ipv4: str,
    ipv6: str = "",
    ifindex: int = 9,
    pod_uid: str = "",
) -> Endpoint:
    return Endpoint(
        id=number,
        container_id=f"c{number}",
        ifname="eth0",
        namespace=namespace,
        pod=pod,
        pod_uid=pod_uid,
        ipv4=ipv4,
        ipv6=ipv6,
        mac=f"02:00:00:00:00:{number:02x}",
        host_mac="02:00:00:00:01:00",
        device=f"bri{number}",
        ifindex=ifindex,
    )


def _node(random: Random, store: Store) -> None:
    store.set_node_addresses(random.sample(NODE, random.randint(0, len(NODE))))


def copied(store: Store) -> Store:
    """A store that has just learnt the same facts, in another order."""
    fresh = Store([SOURCE])
    for endpoint in reversed(store.endpoints.values()):
        fresh.put_endpoint(endpoint)
    for policy in reversed(store.policies.values()):
        fresh.apply(PolicyUpserted(SOURCE, policy))
    for pod in reversed(store.pods.values()):
        fresh.apply(PodUpserted(SOURCE, pod))
    for namespace in store.namespaces.values():
        fresh.apply(NamespaceUpserted(SOURCE, namespace))
    for published in reversed(store.published.values()):
        fresh.apply(EndpointPublished(SOURCE, published))
    for identity in reversed(store.identities.values()):
        fresh.apply(IdentityPublished(SOURCE, identity))
    fresh.set_node_addresses(store.node_addresses)
    return fresh
