# SPDX-License-Identifier: Apache-2.0
"""A name that pods have one after the other: what is known of one says nothing of another."""

from dataclasses import replace

import pytest

from agent.core.desired import Desired
from agent.core.endpoint import address_bytes
from agent.core.events import Pod, PodRemoved, PodUpserted
from agent.core.numbers import Numbers
from agent.core.publication import publication
from agent.core.store import Store
from bpf.layouts import EndpointFlag
from identity.allocator import IdentityAllocator
from identity.labels import DEFAULT
from identity.reserved import Reserved
from tests.unit.core.facts import SOURCE, endpoint

BOTH = EndpointFlag.ENDPOINT_INGRESS_ENFORCED | EndpointFlag.ENDPOINT_EGRESS_ENFORCED
OLD, NEW = (
    endpoint(1, "a", "p", "10.0.0.4", "", 10, "u1"),
    endpoint(2, "a", "p", "10.0.0.5", "", 11, "u2"),
)
POD = Pod("a", "p", uid="u1", labels={"app": "old"})


class World:
    def __init__(self) -> None:
        self.store = Store([SOURCE])
        self.desired = Desired(IdentityAllocator(), Numbers(60.0), DEFAULT)

    def put(self, pod: Pod) -> None:
        self.store.apply(PodUpserted(SOURCE, pod))

    def flush(self) -> None:
        self.desired.update(self.store, self.store.take_changes(), 1.0)

    def denied(self, number: int) -> bool:
        """Whether an endpoint is one whose labels are not known, to itself and to others."""
        self.flush()
        entry, own = self.desired.endpoint_policy(number), self.store.endpoints[number]
        assert entry is not None
        # One name for it everywhere, and that of the pod.
        assert self.desired.addresses.owners[address_bytes(own.ipv4)] == ("a", "p")
        assert self.desired.addresses.owner(own.ipv4) == ("a", "p")
        peer = self.desired.ipcache.lookup(own.ipv4)
        assert peer.identity == entry.identity
        is_init = entry.identity == Reserved.INIT
        assert (entry.flags & BOTH == BOTH) is is_init
        return is_init


def test_an_object_of_the_pod_before_is_not_the_new_ones() -> None:
    world = World()
    world.put(POD)
    world.store.put_endpoint(NEW)
    assert world.denied(2)
    world.put(replace(POD, uid="u2"))
    assert not world.denied(2)


def test_two_pods_of_the_name_at_once() -> None:
    """The one before still runs when the next one has come, and the other way round."""
    world = World()
    world.put(POD)
    world.store.put_endpoint(OLD)
    world.store.put_endpoint(NEW)
    assert (world.denied(1), world.denied(2)) == (False, True)
    world.put(replace(POD, uid="u2"))
    assert (world.denied(1), world.denied(2)) == (True, False)
    told = publication(("a", "p"), world.store, world.desired, "here")
    assert told is not None and told.wanted is not None
    assert (told.wanted.endpoint, told.wanted.ips) == (2, ("10.0.0.5",))
    world.store.drop_endpoint(1)
    assert not world.denied(2)
    assert world.desired.addresses.owner("10.0.0.4") is None
    world.store.apply(PodRemoved(SOURCE, POD.key))
    assert world.denied(2)


@pytest.mark.parametrize(
    ("pod", "told"),
    [
        (POD, ""),  # a runtime that does not say
        (replace(POD, uid=""), "u2"),  # a manifest that does not
        (replace(POD, static_uid="u2"), "u2"),  # the object that stands for a static pod
    ],
)
def test_who_may_be_the_same(pod: Pod, told: str) -> None:
    world = World()
    world.put(pod)
    world.store.put_endpoint(replace(NEW, pod_uid=told))
    assert not world.denied(2)
