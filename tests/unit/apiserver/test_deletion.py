# SPDX-License-Identifier: Apache-2.0
"""Deletion: preconditions, finalizers, grace, owners, namespaces."""

from collections.abc import Iterator
from typing import Any

import pytest

from bench.lab.apiserver import ApiServer
from tests.unit.apiserver.web import CRDS, LEASES, NODES, PODS, THINGS, Web, lease, node, pod, thing

NAMESPACES = "/api/v1/namespaces"
FINALIZER = "example.io/wait"


def owned(item: dict[str, Any], *owners: dict[str, Any]) -> dict[str, Any]:
    """The object with owners, given as they came from the server."""
    item["metadata"]["ownerReferences"] = [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
        }
        for owner in owners
    ]
    return item


def test_a_deletion_is_answered(web: Web) -> None:
    uid = web.post(NODES, node()).body["metadata"]["uid"]
    answer = web.delete(f"{NODES}/n1")
    assert (answer.code, answer.body["status"]) == (200, "Success")
    assert answer.body["details"] == {"name": "n1", "kind": "nodes", "uid": uid}
    assert web.delete(f"{NODES}/n1").code == 404
    web.post(PODS, pod())
    assert web.delete(f"{PODS}/a").body["kind"] == "Pod"


def test_preconditions(web: Web) -> None:
    meta = web.post(NODES, node()).body["metadata"]
    for wrong in ({"uid": "other"}, {"resourceVersion": "1"}):
        refused = web.delete(f"{NODES}/n1", {"kind": "DeleteOptions", "preconditions": wrong})
        assert (refused.code, refused.reason) == (409, "Conflict")
    right = {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
    assert web.delete(f"{NODES}/n1", {"preconditions": right}).code == 200


def test_deletion_options_are_checked(web: Web) -> None:
    web.post(NODES, node())
    assert web.delete(f"{NODES}/n1", {"kind": "Pod"}).code == 400
    assert web.delete(f"{NODES}/n1", {"propagationPolicy": "Never"}).code == 422
    assert web.delete(f"{NODES}/n1", {"preconditions": []}).code == 400
    assert web.delete(f"{NODES}/n1", gracePeriodSeconds="soon").code == 400
    assert web.get(f"{NODES}/n1").code == 200
    assert web.delete(f"{NODES}/n1", {"gracePeriodSeconds": -1}).code == 200  # as 1


def test_finalizers(things: Web) -> None:
    item = thing()
    item["metadata"]["finalizers"] = [FINALIZER]
    version = things.post(THINGS, item).version
    with things.watch(THINGS, resourceVersion=version) as watch:
        waiting = things.delete(f"{THINGS}/t").body
        assert waiting["metadata"]["deletionTimestamp"] and waiting["metadata"]["finalizers"]
        assert things.delete(f"{THINGS}/t").code == 200  # again: nothing changes
        more = {"metadata": {"finalizers": [FINALIZER, "example.io/more"]}}
        assert things.patch(f"{THINGS}/t", more).fields == {"metadata.finalizers"}
        undo = {"metadata": {"deletionTimestamp": None}}
        assert "deletionTimestamp" in things.patch(f"{THINGS}/t", undo).body["metadata"]
        assert things.patch(f"{THINGS}/t", {"metadata": {"finalizers": None}}).code == 200
        assert things.get(f"{THINGS}/t").code == 404
        assert [watch.next()[0] for _ in range(2)] == ["MODIFIED", "DELETED"]


@pytest.fixture
def patient() -> Iterator[Web]:
    """A client of a server where no kubelet ends pods."""
    with ApiServer(kubelet=False) as server:
        yield Web(server.url)


def test_pods_are_given_time(patient: Web) -> None:
    patient.post(PODS, pod(nodeName="n1"))
    ending = patient.delete(f"{PODS}/a").body["metadata"]
    assert ending["deletionGracePeriodSeconds"] == 30
    assert ending["deletionTimestamp"] > ending["creationTimestamp"]
    shorter = patient.delete(f"{PODS}/a", {"gracePeriodSeconds": 5}).body["metadata"]
    assert shorter["deletionGracePeriodSeconds"] == 5
    assert patient.patch(f"{PODS}/a", {"metadata": {"labels": {"a": "b"}}}).code == 200
    assert patient.get(f"{PODS}/a").code == 200
    assert patient.delete(f"{PODS}/a", {"gracePeriodSeconds": 0}).code == 200
    assert patient.get(f"{PODS}/a").code == 404
    patient.post(PODS, pod("nowhere"))
    patient.delete(f"{PODS}/nowhere")
    assert patient.get(f"{PODS}/nowhere").code == 404  # runs nowhere: at once


def test_a_kubelet_ends_pods(web: Web) -> None:
    version = web.post(PODS, pod(nodeName="n1")).version
    with web.watch(PODS, resourceVersion=version) as watch:
        assert web.delete(f"{PODS}/a").body["metadata"]["deletionGracePeriodSeconds"] == 30
        kind, item = watch.next()
        assert kind == "MODIFIED" and item["metadata"]["deletionTimestamp"]
        kind, item = watch.next()
        assert kind == "MODIFIED" and item["metadata"]["deletionGracePeriodSeconds"] == 0
        assert watch.named() == ("DELETED", "a")
    assert web.get(f"{PODS}/a").code == 404


def test_collections_are_deleted_by_selector(web: Web) -> None:
    for name, app in (("a", "x"), ("b", "x"), ("c", "y")):
        web.post(PODS, pod(name, {"app": app}))
    gone = web.delete(PODS, labelSelector="app=x").body
    assert gone["kind"] == "PodList" and len(gone["items"]) == 2
    assert [item["metadata"]["name"] for item in web.get(PODS).body["items"]] == ["c"]
    assert web.delete("/api/v1/pods").code == 405


def test_dependants_go_with_their_owners(things: Web) -> None:
    first, second = (things.post(THINGS, thing(name)).body for name in ("t1", "t2"))
    things.post(LEASES, owned(lease("one"), first))
    things.post(LEASES, owned(lease("two"), first, second))
    things.delete(f"{THINGS}/t1")
    assert things.get(f"{LEASES}/one").code == 404
    left = things.get(f"{LEASES}/two").body["metadata"]["ownerReferences"]
    assert [owner["name"] for owner in left] == ["t2"]
    things.delete(f"{THINGS}/t2", {"propagationPolicy": "Orphan"})
    assert "ownerReferences" not in things.get(f"{LEASES}/two").body["metadata"]


def test_dependants_of_dependants(things: Web) -> None:
    top = things.post(THINGS, thing("top")).body
    middle = things.post(THINGS, owned(thing("middle"), top)).body
    things.post(LEASES, owned(lease(), middle))
    version = things.get(LEASES).version
    with things.watch(LEASES, resourceVersion=version) as watch:
        things.delete(f"{THINGS}/top")
        assert watch.named() == ("DELETED", "l")


def test_who_names_an_owner_that_is_gone_goes_too(things: Web) -> None:
    owner = things.post(THINGS, thing()).body
    things.delete(f"{THINGS}/t")
    assert things.post(LEASES, owned(lease(), owner)).code == 201
    assert things.get(f"{LEASES}/l").code == 404
    # Nobody here knows whether a ReplicaSet exists.
    foreign = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "r", "uid": "u"}}
    things.post(PODS, owned(pod(), foreign))
    assert things.get(f"{PODS}/a").code == 200


def test_a_namespace_goes_with_its_contents(web: Web) -> None:
    web.post(NAMESPACES, {"metadata": {"name": "shop"}})
    inside = "/api/v1/namespaces/shop/pods"
    item = pod(nodeName="n1")
    item["metadata"] = {"name": "a", "finalizers": [FINALIZER]}
    web.post(inside, item)
    web.post(inside, {**item, "metadata": {"name": "b"}})
    ending = web.delete(f"{NAMESPACES}/shop").body
    assert ending["status"]["phase"] == "Terminating" and ending["spec"]["finalizers"]
    assert [entry["metadata"]["name"] for entry in web.get(inside).body["items"]] == ["a"]
    refused = web.post(inside, {**item, "metadata": {"name": "c"}})
    assert (refused.code, refused.reason) == (403, "Forbidden")
    assert "because it is being terminated" in refused.message
    label = {"metadata": {"labels": {"x": "y"}}}
    assert web.patch(f"{NAMESPACES}/shop", label).code == 200  # still there
    web.patch(f"{inside}/a", {"metadata": {"finalizers": None}})
    assert web.get(f"{NAMESPACES}/shop").code == 404
    assert web.post(inside, item).message == 'namespaces "shop" not found'


def test_namespaces_bear_their_name(web: Web) -> None:
    made = web.post(NAMESPACES, {"metadata": {"name": "shop"}}).body
    assert made["metadata"]["labels"] == {"kubernetes.io/metadata.name": "shop"}
    gone = {"metadata": {"labels": None}}
    assert web.patch(f"{NAMESPACES}/shop", gone).body["metadata"]["labels"]
    assert web.post(NAMESPACES, {"metadata": {"name": "a.b"}}).fields == {"metadata.name"}


def test_definitions_take_their_objects_along(things: Web) -> None:
    owner = things.post(THINGS, thing()).body
    things.post(LEASES, owned(lease(), owner))
    things.delete(f"{CRDS}/things.example.io")
    assert things.get(THINGS).code == 404
    assert things.get(f"{LEASES}/l").code == 404


def test_definitions_wait_for_their_objects(things: Web) -> None:
    item = thing()
    item["metadata"]["finalizers"] = [FINALIZER]
    things.post(THINGS, item)
    ending = things.delete(f"{CRDS}/things.example.io").body["metadata"]
    assert ending["deletionTimestamp"]
    assert ending["finalizers"] == ["customresourcecleanup.apiextensions.k8s.io"]
    assert things.get(f"{THINGS}/t").body["metadata"]["deletionTimestamp"]
    refused = things.post(THINGS, thing("u"))
    assert (refused.code, refused.reason) == (405, "MethodNotAllowed")
    things.patch(f"{THINGS}/t", {"metadata": {"finalizers": None}})
    assert things.get(THINGS).code == 404
    assert things.get(f"{CRDS}/things.example.io").code == 404
