# SPDX-License-Identifier: Apache-2.0
"""Pods of other nodes: known by what their node published, and by nothing else."""

from __future__ import annotations

import pytest

from agent.core.desired import Desired
from agent.core.events import (
    EndpointPublished,
    EndpointWithdrawn,
    IdentityPublished,
    IdentityWithdrawn,
    Namespace,
    NamespaceUpserted,
    Pod,
    PodUpserted,
    PublishedEndpoint,
    PublishedIdentity,
    ResourceKey,
)
from agent.core.nodes import NodeBook
from agent.core.numbers import Numbers
from agent.core.publication import publication
from agent.core.store import Store
from identity.cluster import ClusterIdentities
from identity.labels import DEFAULT, LabelSet, pod_labels
from identity.reserved import Reserved
from tests.unit.core.facts import SOURCE, endpoint

CLIENT = LabelSet({"k8s:app": "client"})
KEY = ResourceKey("BristleEndpoint", "ns", "client")


class World:
    """A node called `here`."""

    def __init__(self) -> None:
        self.store = Store([SOURCE])
        self.desired = Desired(ClusterIdentities(), Numbers(60.0), DEFAULT, NodeBook("here"))

    def tell(self, *events: object) -> None:
        for event in events:
            self.store.apply(event)  # type: ignore[arg-type]
        self.desired.update(self.store, self.store.take_changes(), 1.0)

    def who(self, address: str) -> tuple[int, LabelSet]:
        one = self.desired.ipcache.lookup(address)
        return one.identity, one.labels


def published(number: int, node: str = "there", ip: str = "10.1.0.1") -> EndpointPublished:
    one = PublishedEndpoint("ns", "client", number, 7, (ip,), (), node)
    return EndpointPublished(SOURCE, one)


def identity(number: int, labels: LabelSet = CLIENT) -> IdentityPublished:
    return IdentityPublished(SOURCE, PublishedIdentity(number, labels))


UNMANAGED = (int(Reserved.UNMANAGED), Reserved.UNMANAGED.labels)
WORLD = (int(Reserved.WORLD_IPV4), Reserved.WORLD_IPV4.labels)


def test_a_peer_is_unmanaged_until_its_number_has_labels() -> None:
    world = World()
    world.tell(published(300))
    assert world.who("10.1.0.1") == UNMANAGED
    world.tell(identity(301))
    assert world.who("10.1.0.1") == UNMANAGED
    world.tell(identity(300))
    assert world.who("10.1.0.1") == (300, CLIENT)
    world.tell(published(300, ip="10.1.0.2"))
    assert (world.who("10.1.0.1"), world.who("10.1.0.2")) == (WORLD, (300, CLIENT))
    world.tell(EndpointWithdrawn(SOURCE, KEY))
    assert world.who("10.1.0.2") == WORLD
    assert world.desired.identities.references(300) == 0


def test_reserved_numbers_need_no_publication() -> None:
    world = World()
    world.tell(published(int(Reserved.HEALTH)))
    assert world.who("10.1.0.1") == (int(Reserved.HEALTH), Reserved.HEALTH.labels)


def test_labels_hold_while_a_peer_has_them() -> None:
    world = World()
    world.tell(published(300), identity(300))
    world.tell(IdentityWithdrawn(SOURCE, 300))
    assert world.who("10.1.0.1") == (300, CLIENT)
    world.tell(EndpointWithdrawn(SOURCE, KEY))
    assert world.desired.identities.items() == {}


def test_what_this_node_published_tells_it_nothing() -> None:
    world = World()
    world.tell(identity(300), published(300, node="here"))
    assert world.who("10.1.0.1") == WORLD


def test_a_pod_here_is_denied_until_its_labels_have_a_number() -> None:
    world = World()
    pod = Pod("ns", "web", labels={"app": "web"}, node_name="here", ips=("10.1.0.9",))
    world.store.put_endpoint(endpoint(1, "ns", "web", "10.1.0.9"))
    world.tell(NamespaceUpserted(SOURCE, Namespace("ns")), PodUpserted(SOURCE, pod))
    labels = pod_labels(pod.labels, "ns", {}, "default", DEFAULT)
    assert world.who("10.1.0.9") == (int(Reserved.INIT), Reserved.INIT.labels)
    assert world.desired.addresses.wanted == {("ns", "web"): labels}
    value = world.desired.endpoint_policy(1)
    assert value is not None and value.identity == Reserved.INIT
    world.tell(identity(300, labels))
    assert world.who("10.1.0.9") == (300, labels)
    assert world.desired.addresses.wanted == {}
    value = world.desired.endpoint_policy(1)
    assert value is not None and value.identity == 300
    # Another label set, another number; the former is let go.
    world.tell(PodUpserted(SOURCE, Pod("ns", "web", labels={"app": "db"}, node_name="here")))
    assert world.who("10.1.0.9")[0] == Reserved.INIT
    assert world.desired.identities.references(300) == 0


@pytest.mark.parametrize("early", [False, True])
def test_a_number_that_others_were_given_meanwhile(early: bool) -> None:
    """This node was cut off for so long that its pod's number was collected, and given to other
    labels. The pod keeps what it has here, is never published under that number, and moves to
    another one as soon as there is one; early: there is one already."""
    world, key = World(), ("ns", "web")
    pod = Pod("ns", "web", labels={"app": "web"}, node_name="here", ips=("10.1.0.9",))
    labels = pod_labels(pod.labels, "ns", {}, "default", DEFAULT)
    world.store.put_endpoint(endpoint(1, "ns", "web", "10.1.0.9"))
    space = NamespaceUpserted(SOURCE, Namespace("ns"))
    world.tell(space, identity(300, labels), PodUpserted(SOURCE, pod))
    if early:
        world.tell(identity(301, labels))
    world.desired.to_publish.clear()
    world.tell(IdentityWithdrawn(SOURCE, 300), identity(300), published(300))
    assert world.desired.to_publish == {key}
    if not early:
        assert world.who("10.1.0.9") == (300, labels)
        assert world.who("10.1.0.1") == UNMANAGED  # with which meaning?
        one = publication(key, world.store, world.desired, "here")
        assert one is not None
        assert (one.wanted, one.allocate, one.revive) == (None, labels, None)
        world.tell(identity(301, labels))
    assert world.who("10.1.0.9") == (301, labels)
    assert world.who("10.1.0.1") == (300, CLIENT)
    one = publication(key, world.store, world.desired, "here")
    assert one is not None and one.wanted is not None
    assert (one.wanted.identity, one.allocate, one.revive) == (301, None, None)
    value = world.desired.endpoint_policy(1)
    assert value is not None and value.identity == 301


def test_a_pod_is_nobody_until_its_namespace_is_known() -> None:
    """It has one in a cluster, with labels, by some of which policies may exclude it."""
    world = World()
    world.store.put_endpoint(endpoint(1, "ns", "pod", "10.0.0.4"))
    world.tell(PodUpserted(SOURCE, Pod("ns", "pod", labels={"app": "client"})))
    assert world.who("10.0.0.4") == (int(Reserved.INIT), Reserved.INIT.labels)
    assert not world.desired.addresses.wanted
    told = publication(("ns", "pod"), world.store, world.desired, "here")
    assert told is not None and told.settled
    world.tell(NamespaceUpserted(SOURCE, Namespace("ns", {"env": "prod"})))
    (labels,) = world.desired.addresses.wanted.values()
    assert labels["k8s:io.cilium.k8s.namespace.labels.env"] == "prod"
    world.tell(identity(300, labels))
    assert world.who("10.0.0.4") == (300, labels)
