# SPDX-License-Identifier: Apache-2.0
"""What an endpoint is shown to wait for while it has identity init, and what is in force of objects
that are refused."""

import threading
from types import SimpleNamespace
from typing import Any

from agent.core.events import (
    Namespace,
    NamespaceRemoved,
    NamespaceUpserted,
    Node,
    NodeUpserted,
    Origin,
    Pod,
    PodUpserted,
    ResourceKey,
    ResourceRejected,
)
from agent.listing import Listing
from identity.labels import DEFAULT, pod_labels
from identity.reserved import Reserved
from tests.unit.core.facts import SOURCE, endpoint
from tests.unit.core.test_published import World, identity


def test_an_endpoint_with_identity_init_says_what_it_waits_for() -> None:
    world = World()
    loop: Any = SimpleNamespace(store=world.store, desired=world.desired, surroundings=None)
    one = endpoint(1, "ns", "web", "10.1.0.9")

    def shown() -> tuple[str, str]:
        info = Listing(loop, DEFAULT).endpoint(one)
        assert (info.identity == Reserved.INIT) == (info.state != "ready")
        return info.state, info.reason.partition(":")[0]

    waiting = "waiting-for-identity"
    world.store.put_endpoint(one)
    world.tell()
    assert shown() == (waiting, "the pod's labels are not known")
    pod = Pod("ns", "web", labels={"app": "web"}, node_name="here", ips=("10.1.0.9",))
    world.tell(PodUpserted(SOURCE, pod))
    assert shown() == (waiting, "the labels of namespace ns are not known")
    world.tell(NamespaceUpserted(SOURCE, Namespace("ns")))
    assert shown() == (waiting, "its labels have no identity number yet")
    world.tell(identity(300, pod_labels(pod.labels, "ns", {}, "default", DEFAULT)))
    assert shown() == ("ready", "")
    world.tell(NamespaceRemoved(SOURCE, ResourceKey("Namespace", "", "ns")))
    assert shown() == (waiting, "the labels of namespace ns are not known")


def test_a_refused_object_of_any_kind_has_its_last_good_state_shown() -> None:
    world = World()
    loop: Any = SimpleNamespace(
        store=world.store, desired=world.desired, refused={}, revision=1, synced=threading.Event()
    )
    world.tell(
        NamespaceUpserted(SOURCE, Namespace("good")),
        NodeUpserted(SOURCE, Node("good")),
        PodUpserted(SOURCE, Pod("ns", "good")),
    )
    for kind, namespace in (("Namespace", ""), ("Node", ""), ("Pod", "ns")):
        for name in ("good", "never"):
            key = ResourceKey(kind, namespace, name)
            world.tell(ResourceRejected(SOURCE, Origin(str(key)), "", "", key))
    rejected = Listing(loop, DEFAULT).policies().rejected
    assert len(rejected) == 6
    assert all(one.last_good == one.resource.endswith("good") for one in rejected)
