# SPDX-License-Identifier: Apache-2.0
"""What the cluster is told of this node's pods, against a registry that may fail and a watch that
may be slow: in the end it holds what is wanted, and nothing is written twice."""

from __future__ import annotations

from collections.abc import Collection
from random import Random

import pytest

from agent.cluster.publisher import ECHO_SECONDS, Publisher
from agent.core.desired import Desired
from agent.core.events import (
    EndpointPublished,
    EndpointWithdrawn,
    IdentityPublished,
    IdentityWithdrawn,
    Namespace,
    NamespaceUpserted,
    NodeRemoved,
    NodeUpserted,
    Pod,
    PodRemoved,
    PodUpserted,
    PolicyUpserted,
    PublishedEndpoint,
    PublishedIdentity,
    ResourceKey,
)
from agent.core.events import Node as NodeFact
from agent.core.nodes import NodeBook
from agent.core.numbers import Numbers
from agent.core.publication import PodPublication, publications
from agent.core.store import PodKey, Store
from agent.kube.errors import ApiError
from bench.lab.manifests import policy
from identity.cluster import ClusterIdentities, candidates
from identity.labels import DEFAULT, LabelSet
from identity.reserved import Reserved
from policy.parse import parse_network_policy
from tests.unit.core.facts import SOURCE, endpoint

WEB: PodKey = ("ns", "web")


class Cluster:
    """A registry in memory, and the watch by which its contents come back: `echo`."""

    def __init__(self) -> None:
        self.identities: dict[int, PublishedIdentity] = {}
        self.endpoints: dict[PodKey, PublishedEndpoint] = {}
        self.statuses: dict[PodKey, tuple[bool, bool]] = {}
        self.status_writes = 0
        self.writes: list[str] = []
        self.failing = 0

    def _write(self, text: str) -> None:
        if self.failing:
            self.failing -= 1
            raise ApiError("the API server is away")
        self.writes.append(text)

    def allocate(self, labels: LabelSet) -> int:
        for number in candidates(labels):
            known = self.identities.get(number)
            if known is None:
                self._write(f"identity {number}")
                self.identities[number] = PublishedIdentity(number, labels)
            elif known.labels != labels:
                continue
            return number
        raise AssertionError

    def keep(self, number: int, labels: LabelSet) -> None:
        self._write(f"keep {number}")
        assert self.identities.get(number, PublishedIdentity(number, labels)).labels == labels
        self.identities[number] = PublishedIdentity(number, labels)

    def put(self, wanted: PublishedEndpoint) -> None:
        self._write(f"put {wanted.name} {wanted.identity}")
        self.endpoints[wanted.namespace, wanted.name] = wanted

    def put_status(self, wanted: PublishedEndpoint, ingress: bool, egress: bool) -> None:
        if self.failing:
            self.failing -= 1
            raise ApiError("the API server is away")
        self.statuses[wanted.namespace, wanted.name] = (ingress, egress)
        self.status_writes += 1

    def remove(self, observed: PublishedEndpoint) -> None:
        self._write(f"remove {observed.name}")
        self.endpoints.pop((observed.namespace, observed.name), None)


class Node:
    """A node called `here`: facts, what they come to, and its publisher, all in this thread."""

    def __init__(self) -> None:
        self.now = 0.0
        self.cluster = Cluster()
        self.store = Store([SOURCE])
        self.store.apply(NamespaceUpserted(SOURCE, Namespace("ns")))
        self.desired = Desired(ClusterIdentities(), Numbers(60.0), DEFAULT, NodeBook("here"))
        self.publisher = Publisher(self._plan, self.cluster, lambda: self.now)

    def _plan(self, keys: Collection[PodKey]) -> list[PodPublication]:
        return publications(keys, self.store, self.desired, "here")

    def tell(self, *events: object) -> None:
        for event in events:
            self.store.apply(event)  # type: ignore[arg-type]
        self.desired.update(self.store, self.store.take_changes(), 1.0)
        self.publisher.changed(self.desired.to_publish)
        self.desired.to_publish = set()

    def echo(self) -> None:
        """The watch brings what is published."""
        events: list[object] = []
        for number, one in self.cluster.identities.items():
            if self.store.identities.get(number) != one:
                events.append(IdentityPublished(SOURCE, one))
        events += [
            IdentityWithdrawn(SOURCE, number)
            for number in self.store.identities.keys() - self.cluster.identities.keys()
        ]
        for key, published in self.cluster.endpoints.items():
            if self.store.published.get(key) != published:
                events.append(EndpointPublished(SOURCE, published))
        events += [
            EndpointWithdrawn(SOURCE, ResourceKey("BristleEndpoint", *key))
            for key in self.store.published.keys() - self.cluster.endpoints.keys()
        ]
        self.tell(*events)

    def settle(self) -> None:
        for _ in range(6):
            self.publisher.work()
            self.echo()

    def run(self, name: str, number: int, address: str, **labels: str) -> None:
        pod = Pod("ns", name, uid=f"uid-{name}", labels=labels, node_name="here", ips=(address,))
        self.store.put_endpoint(endpoint(number, "ns", name, address))
        self.tell(PodUpserted(SOURCE, pod))


def test_the_nodes_address_is_told_again_when_it_is_another() -> None:
    node = Node()
    node.run("web", 1, "10.0.0.1", app="web")
    node.run("db", 2, "10.0.0.2", app="db")
    node.tell(NodeUpserted(SOURCE, NodeFact("here", "uid", ("192.0.2.1", "2001:db8::1"))))
    node.settle()

    def told() -> set[str]:
        return {one.node_ip for one in node.cluster.endpoints.values()}

    assert told() == {"192.0.2.1"}
    node.cluster.writes.clear()
    # The first one alone is told; another node's is none of theirs; none at all is no news.
    for fact in (
        NodeFact("here", "uid", ("192.0.2.1",), ("10.0.0.0/24",)),
        NodeFact("there", "uid-2", ("192.0.2.3",)),
        NodeFact("here", "uid"),
    ):
        node.tell(NodeUpserted(SOURCE, fact))
        node.settle()
    node.tell(NodeRemoved(SOURCE, ResourceKey("Node", "", "here")))
    node.settle()
    assert node.cluster.writes == [] and told() == {"192.0.2.1"}
    node.tell(NodeUpserted(SOURCE, NodeFact("here", "uid", ("192.0.2.9",))))
    node.settle()
    assert sorted(one.split()[1] for one in node.cluster.writes) == ["db", "web"]
    assert told() == {"192.0.2.9"}


def test_a_number_first_and_then_the_pod() -> None:
    node = Node()
    node.run("web", 1, "10.0.0.1", app="web")
    node.settle()
    (number,) = node.cluster.identities
    assert node.cluster.writes == [f"identity {number}", f"put web {number}"]
    assert node.cluster.endpoints[WEB] == PublishedEndpoint(
        "ns", "web", number, 1, ("10.0.0.1",), (), "here", "uid-web"
    )
    # Equal labels, the same number; no write that changes nothing.
    node.run("twin", 2, "10.0.0.2", app="web")
    node.settle()
    assert node.cluster.writes[2:] == [f"put twin {number}"]
    node.run("twin", 2, "10.0.0.2", app="web")
    node.settle()
    assert len(node.cluster.writes) == 3


def test_equal_labels_are_allocated_once_however_many_pods_have_them() -> None:
    node = Node()
    for number in range(1, 9):
        node.run(f"p{number}", number, f"10.0.0.{number}", app="web")
    node.settle()
    assert sorted(node.cluster.writes)[0].startswith("identity")
    assert len([one for one in node.cluster.writes if one.startswith("identity")]) == 1
    assert len(node.cluster.endpoints) == 8


def test_a_slow_watch_makes_no_second_write_and_a_lost_one_does() -> None:
    node = Node()
    node.run("web", 1, "10.0.0.1", app="web")
    node.publisher.work()
    node.echo()
    node.publisher.work()
    before = len(node.cluster.writes)
    for _ in range(3):
        node.publisher.changed([WEB])
        node.publisher.work()
    assert len(node.cluster.writes) == before
    node.cluster.endpoints.clear()  # as if it had never arrived
    node.now += ECHO_SECONDS
    node.settle()
    assert WEB in node.cluster.endpoints


def test_a_failure_is_named_and_tried_again_later_and_later() -> None:
    node = Node()
    node.run("web", 1, "10.0.0.1", app="web")
    node.cluster.failing = 3
    node.publisher.work()
    assert node.publisher.problems == {WEB: "the API server is away"}
    node.publisher.changed([WEB])  # something moves meanwhile: no reason to hurry
    node.publisher.work()
    assert node.cluster.failing == 2
    for pause in (0.2, 0.4, 0.8):
        node.now += pause
        node.publisher.work()
    node.settle()
    assert node.publisher.problems == {} and WEB in node.cluster.endpoints


def test_the_status_says_what_policy_decides_and_is_written_when_that_changes() -> None:
    node = Node()
    node.run("web", 1, "10.0.0.1", app="web")
    node.settle()
    assert (node.cluster.statuses, node.cluster.status_writes) == ({WEB: (False, False)}, 1)
    spec = {"podSelector": {}, "policyTypes": ["Egress"]}
    node.tell(PolicyUpserted(SOURCE, parse_network_policy(policy("ns", "p", spec))))
    node.cluster.failing = 1
    node.settle()
    node.now += 1
    node.settle()
    assert (node.cluster.statuses, node.cluster.status_writes) == ({WEB: (False, True)}, 2)
    assert len(node.cluster.writes) == 2


def test_what_is_gone_is_withdrawn_and_others_work_is_left_alone() -> None:
    node = Node()
    node.run("web", 1, "10.0.0.1", app="web")
    node.settle()
    other = PublishedEndpoint("ns", "else", 300, 1, ("10.9.0.1",), (), "there")
    node.cluster.endpoints["ns", "else"] = other
    node.echo()
    node.store.drop_endpoint(1)
    node.tell()
    node.settle()
    assert node.cluster.endpoints == {("ns", "else"): other}
    # The pod is another node's by now: what that one published stays.
    node.run("web", 2, "10.0.0.1", app="web")
    node.settle()
    moved = PublishedEndpoint("ns", "web", 300, 1, ("10.9.0.2",), (), "there")
    node.cluster.endpoints[WEB] = moved
    node.tell(PodUpserted(SOURCE, Pod("ns", "web", node_name="there")))
    node.echo()
    node.settle()
    assert node.cluster.endpoints[WEB] == moved


def test_a_number_in_use_that_is_marked_or_deleted_is_kept() -> None:
    node = Node()
    node.run("web", 1, "10.0.0.1", app="web")
    node.settle()
    (number,) = node.cluster.identities
    labels = node.cluster.identities[number].labels
    node.cluster.identities[number] = PublishedIdentity(number, labels, "2026-01-01T00:00:00Z")
    node.echo()
    node.settle()
    assert not node.cluster.identities[number].unused_since
    node.cluster.identities.clear()
    node.echo()
    node.settle()
    assert node.cluster.identities == {number: PublishedIdentity(number, labels)}
    assert node.desired.addresses.identity_of(WEB) == number


def test_labels_that_change_keep_the_former_publication_until_there_is_a_number() -> None:
    node = Node()
    node.run("web", 1, "10.0.0.1", app="web")
    node.settle()
    former = node.cluster.endpoints[WEB]
    node.run("web", 1, "10.0.0.1", app="db")
    assert node.desired.addresses.identity_of(WEB) == Reserved.INIT
    node.publisher.work()
    assert node.cluster.endpoints[WEB] == former
    node.settle()
    assert node.cluster.endpoints[WEB].identity != former.identity


def test_a_pod_without_an_object_is_not_published() -> None:
    node = Node()
    node.store.put_endpoint(endpoint(1, "ns", "web", "10.0.0.1"))
    node.tell()
    node.settle()
    assert not node.cluster.writes
    node.run("web", 1, "10.0.0.1", app="web")
    node.settle()
    node.tell(PodRemoved(SOURCE, ResourceKey("Pod", "ns", "web")))
    node.settle()
    assert not node.cluster.endpoints


@pytest.mark.parametrize("seed", range(15))
def test_any_story_ends_with_what_is_wanted(seed: int) -> None:
    random = Random(seed)
    node = Node()
    for _ in range(120):
        chance = random.random()
        number = random.randrange(1, 5)
        if chance < 0.4:
            node.run(f"p{number}", number, f"10.0.0.{number}", app=random.choice("abc"))
        elif chance < 0.5:
            node.store.drop_endpoint(number)
            node.tell()
        elif chance < 0.6:
            node.cluster.failing = random.randrange(4)
        elif chance < 0.7 and node.cluster.endpoints:
            node.cluster.endpoints.pop(random.choice(sorted(node.cluster.endpoints)))
        elif chance < 0.8 and node.cluster.identities:
            node.cluster.identities.pop(random.choice(sorted(node.cluster.identities)))
        node.now += random.choice((0.0, 0.1, 1.0))
        if random.random() < 0.6:
            node.publisher.work()
        if random.random() < 0.5:
            node.echo()
    node.cluster.failing = 0
    for _ in range(8):
        node.now += 60
        node.settle()
    wanted = {}
    for key in {one.pod_key for one in node.store.endpoints.values()}:
        (one,) = node._plan([key])
        assert one.settled and one.wanted is not None
        wanted[key] = one.wanted
        assert one.wanted.identity in node.cluster.identities
    assert node.cluster.endpoints == wanted
    assert node.publisher.problems == {}
