# SPDX-License-Identifier: Apache-2.0
"""Watches: what is sent, from which version on, in which form, and until when."""

import json
from collections.abc import Iterator

import pytest

from bench.lab.apiserver import ApiServer
from tests.unit.apiserver.web import CRDS, NODES, PODS, THINGS, Web, definition, node, pod, thing


def labels(server: ApiServer, name: str, **wanted: str | None) -> None:
    """Changes labels of a pod."""
    server.patch("Pod", name, {"metadata": {"labels": wanted}}, "default")


def test_a_watch_from_a_version(server: ApiServer, web: Web) -> None:
    server.create(pod("a"))
    version = web.get(PODS).version
    server.create(pod("b"))
    with web.watch(PODS, resourceVersion=version) as watch:
        assert watch.coding == "chunked"
        assert watch.named() == ("ADDED", "b")
        labels(server, "a", x="y")
        kind, item = watch.next()
        assert (kind, item["metadata"]["labels"]) == ("MODIFIED", {"x": "y"})
        assert (item["kind"], item["apiVersion"]) == ("Pod", "v1")
        assert item["metadata"]["resourceVersion"] == str(server.revision())
        server.delete("Pod", "a", "default")
        kind, item = watch.next()  # a pod is seen without any time left first
        assert (kind, item["metadata"]["deletionGracePeriodSeconds"]) == ("MODIFIED", 0)
        kind, item = watch.next()
        assert (kind, item["metadata"]["resourceVersion"]) == ("DELETED", str(server.revision()))


def test_a_watch_without_version_begins_with_what_is_there(server: ApiServer, web: Web) -> None:
    server.create(pod("a"))
    for query in ({}, {"resourceVersion": "0"}):
        with web.watch(PODS, **query) as watch:
            assert watch.named() == ("ADDED", "a")


def test_a_watch_is_a_list_with_watch_true(web: Web) -> None:
    for value in ("true", "1", ""):
        assert web.get(PODS, watch=value, timeoutSeconds=1).raw == b""
    assert web.get(PODS, watch="false").body["kind"] == "PodList"
    assert web.get(PODS, watch="0").body["kind"] == "PodList"


def test_selectors_turn_changes_into_coming_and_going(server: ApiServer, web: Web) -> None:
    server.create(pod("a", {"app": "web"}))
    version = web.get(PODS).version
    with web.watch(PODS, resourceVersion=version, labelSelector="app=web") as watch:
        labels(server, "a", more="x")
        assert watch.named() == ("MODIFIED", "a")
        labels(server, "a", app="db")
        kind, item = watch.next()
        # The object as it was when it was last seen, under the version that hid it.
        assert kind == "DELETED" and item["metadata"]["labels"]["app"] == "web"
        assert item["metadata"]["resourceVersion"] == str(server.revision())
        labels(server, "a", more="y")
        labels(server, "a", app="web")
        assert watch.named() == ("ADDED", "a")
        server.delete("Pod", "a", "default")
        assert watch.named() == ("MODIFIED", "a")
        assert watch.named() == ("DELETED", "a")


def test_field_selectors_and_namespaces(server: ApiServer, web: Web) -> None:
    far = pod("far", nodeName="n1")
    far["metadata"]["namespace"] = "kube-system"
    query = {"resourceVersion": server.revision(), "fieldSelector": "spec.nodeName=n1"}
    with web.watch("/api/v1/pods", **query) as everywhere, web.watch(PODS, **query) as here:
        for item in (far, pod("other", nodeName="n2"), pod("near", nodeName="n1")):
            server.create(item)
        assert everywhere.named() == ("ADDED", "far")
        assert everywhere.named() == ("ADDED", "near")
        assert here.named() == ("ADDED", "near")


def test_forgotten_versions(server: ApiServer, web: Web) -> None:
    server.create(pod("a"))
    version = web.get(PODS).version
    server.create(pod("b"))
    server.compact()
    with web.watch(PODS, resourceVersion=version) as watch:
        kind, item = watch.next()
        assert kind == "ERROR" and item["kind"] == "Status"
        assert (item["code"], item["reason"]) == (410, "Expired")
        assert watch.line() == b""
    server.set_expired("http")
    refused = web.get(PODS, watch="1", resourceVersion=version)
    assert (refused.code, refused.reason) == (410, "Expired")
    server.set_expired("event")
    assert web.get(PODS, watch="1", resourceVersion=server.revision(), timeoutSeconds=1).raw == b""


def test_history_is_limited() -> None:
    with ApiServer(history=5) as server:
        web = Web(server.url)
        server.create(pod("a"))
        version = web.get(PODS).version
        for number in range(100):
            labels(server, "a", n=str(number))
        with web.watch(PODS, resourceVersion=version) as watch:
            assert watch.next()[0] == "ERROR"


def test_a_version_yet_to_come(server: ApiServer, web: Web) -> None:
    with web.watch(PODS, resourceVersion=server.revision() + 2) as watch:
        for name in "abc":
            server.create(pod(name))
        assert watch.named() == ("ADDED", "c")


def test_the_end_in_time(web: Web) -> None:
    with web.watch(PODS, timeoutSeconds="1") as watch:
        assert watch.line() == b""  # and no error: the answer is complete


# ---- bookmarks -------------------------------------------------------------------------------


@pytest.fixture
def busy() -> Iterator[ApiServer]:
    """A server with a bookmark every tenth of a second."""
    with ApiServer(bookmark_seconds=0.1) as made:
        yield made


def test_bookmarks_come_at_intervals(busy: ApiServer) -> None:
    web = Web(busy.url)
    with web.watch(PODS, allowWatchBookmarks="true") as watch:
        kind, first = watch.next()
        busy.create(node())  # another resource: the version moves all the same
        last = first
        while last["metadata"]["resourceVersion"] != str(busy.revision()):
            assert kind == "BOOKMARK"
            kind, last = watch.next()
    assert first["metadata"] == {
        "resourceVersion": str(busy.revision() - 1),
        "creationTimestamp": None,
    }
    # An empty object of Go: it must not be taken for a pod.
    assert first["spec"] == {"containers": None} and first["kind"] == "Pod"


def test_a_final_bookmark_without_an_interval(server: ApiServer, web: Web) -> None:
    with web.watch(PODS, allowWatchBookmarks="true", timeoutSeconds="1") as watch:
        assert [kind for kind, _ in watch.rest()] == ["BOOKMARK"]


def test_no_bookmarks_unless_asked(busy: ApiServer) -> None:
    with Web(busy.url).watch(PODS, timeoutSeconds="1") as watch:
        assert list(watch.rest()) == []


# ---- streaming lists -------------------------------------------------------------------------


def test_streaming_lists(server: ApiServer, web: Web) -> None:
    server.load([pod("a", {"x": "y"}), pod("b")])
    query = {
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
    }
    with web.watch(PODS, **query, labelSelector="x=y") as watch:
        assert watch.named() == ("ADDED", "a")
        kind, mark = watch.next()
        assert kind == "BOOKMARK"
        assert mark["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        assert mark["metadata"]["resourceVersion"] == str(server.revision())
        server.create(pod("c", {"x": "y"}))
        assert watch.named() == ("ADDED", "c")
    bare = web.get(PODS, watch="1", sendInitialEvents="true")
    assert (bare.code, bare.fields) == (422, {"resourceVersionMatch"})
    assert web.get(PODS, watch="1", resourceVersionMatch="NotOlderThan").code == 422
    server.set_watch_list(False)
    unknown = web.get(PODS, watch="1", **query)
    assert (unknown.code, unknown.fields) == (422, {"sendInitialEvents"})


# ---- other things that end or share a watch --------------------------------------------------


def test_watches_end_when_the_definition_changes(server: ApiServer, things: Web) -> None:
    with things.watch(THINGS) as watch:
        things.post(THINGS, thing())
        assert watch.named() == ("ADDED", "t")
        changed = things.get(f"{CRDS}/things.example.io").body
        spec = changed["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        spec["properties"]["more"] = {"type": "string"}
        assert things.put(f"{CRDS}/things.example.io", changed).code == 200
        assert watch.line() == b""
    with things.watch(THINGS) as watch:
        assert watch.named() == ("ADDED", "t")
        assert things.delete(f"{CRDS}/things.example.io").code == 200
        assert watch.named() == ("DELETED", "t")
        assert watch.line() == b""
    assert things.post(CRDS, definition()).code == 201
    assert things.get(THINGS).body["items"] == []


def test_many_watchers_see_the_same_in_order(server: ApiServer, web: Web) -> None:
    version = server.revision()
    watches = [web.watch(NODES, resourceVersion=version) for _ in range(10)]
    for number in range(100):
        server.create(node(f"n{number:03}"))
    wanted = [("ADDED", f"n{number:03}") for number in range(100)]
    for watch in watches:
        with watch:
            assert [watch.named() for _ in range(100)] == wanted


def test_one_line_is_one_event(server: ApiServer, web: Web) -> None:
    odd = node()
    odd["metadata"]["annotations"] = {"text": "two\nlines\r\n\u2028 \x00 é"}
    server.create(odd)
    with web.watch(NODES) as watch:
        line = watch.line()
    assert line.endswith(b"}\n") and line.count(b"\n") == 1
    assert (
        json.loads(line)["object"]["metadata"]["annotations"]["text"]
        == "two\nlines\r\n\u2028 \x00 é"
    )


def test_partial_watches(server: ApiServer, web: Web) -> None:
    server.create(pod("a"))
    accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
    answer = web.ask("GET", PODS, headers={"Accept": accept}, watch="1", timeoutSeconds="1")
    item = answer.body["object"]
    assert item["kind"] == "PartialObjectMetadata" and "spec" not in item
