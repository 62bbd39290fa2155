# SPDX-License-Identifier: Apache-2.0
"""Lists: pages of one state, versions, selectors."""

from typing import Any

import pytest

from bench.lab.apiserver import ApiServer
from tests.unit.apiserver.web import LEASES, NODES, PODS, THINGS, Web, node, pod, thing

ALL = "/api/v1/pods"


def names(answer: Any) -> list[str]:
    assert answer.code == 200, answer.body
    return [item["metadata"]["name"] for item in answer.body["items"]]


def test_items_of_built_in_kinds_bear_no_kind(things: Web) -> None:
    things.post(NODES, node())
    things.post(THINGS, thing())
    listed = things.get(NODES).body
    assert (listed["kind"], listed["apiVersion"]) == ("NodeList", "v1")
    assert "kind" not in listed["items"][0] and "apiVersion" not in listed["items"][0]
    custom = things.get(THINGS).body
    assert custom["kind"] == "ThingList"
    assert custom["items"][0]["kind"] == "Thing"
    assert custom["items"][0]["apiVersion"] == "example.io/v1"


def test_pages_show_one_state(server: ApiServer, web: Web) -> None:
    server.load([pod(f"p{number}") for number in range(7)])
    first = web.get(PODS, limit=3)
    assert names(first) == ["p0", "p1", "p2"]
    assert first.body["metadata"]["remainingItemCount"] == 4
    token = first.body["metadata"]["continue"]
    server.delete("Pod", "p4", "default")
    server.create(pod("p3a"))
    server.patch("Pod", "p5", {"metadata": {"labels": {"new": "yes"}}}, "default")
    second = web.get(PODS, limit=3, continue_=token)
    assert names(second) == ["p3", "p4", "p5"] and second.version == first.version
    assert "labels" not in second.body["items"][2]["metadata"]
    third = web.get(PODS, limit=3, continue_=second.body["metadata"]["continue"])
    assert names(third) == ["p6"] and "continue" not in third.body["metadata"]
    assert names(web.get(PODS)) == ["p0", "p1", "p2", "p3", "p3a", "p5", "p6"]


def test_a_page_of_a_forgotten_state(server: ApiServer, web: Web) -> None:
    server.load([pod(f"p{number}") for number in range(4)])
    token = web.get(PODS, limit=2).body["metadata"]["continue"]
    server.delete("Pod", "p2", "default")
    server.compact()
    gone = web.get(PODS, limit=2, continue_=token)
    assert (gone.code, gone.reason) == (410, "Expired")
    assert gone.message.startswith("The provided continue parameter is too old")
    rest = web.get(PODS, limit=2, continue_=gone.body["metadata"]["continue"])
    assert names(rest) == ["p3"]  # what is there now, in full knowledge
    for wrong in ("x", "e30", "!!", "bnVsbA"):
        assert web.get(PODS, continue_=wrong).reason == "BadRequest"
    assert web.get(PODS, continue_=token, resourceVersion="7").code == 400


def test_versions_of_a_list(server: ApiServer, web: Web) -> None:
    server.load([pod("a"), pod("b")])
    old = web.get(PODS)
    server.delete("Pod", "a", "default")
    now = server.revision()
    assert names(web.get(PODS, resourceVersion="")) == ["b"]
    assert names(web.get(PODS, resourceVersion="0")) == ["b"]
    assert names(web.get(PODS, resourceVersion=old.version)) == ["b"]
    match = "NotOlderThan"
    found = web.get(PODS, resourceVersion=old.version, resourceVersionMatch=match)
    assert names(found) == ["b"] and found.version == str(now)
    exact = web.get(PODS, resourceVersion=old.version, resourceVersionMatch="Exact")
    assert names(exact) == ["a", "b"] and exact.version == old.version
    # A limit with a version means that version.
    assert names(web.get(PODS, resourceVersion=old.version, limit=5)) == ["a", "b"]
    early = web.get(PODS, resourceVersion=str(now + 100))
    assert (early.code, early.reason) == (504, "Timeout")
    assert early.headers["Retry-After"] == "1"
    assert "Too large resource version" in early.message
    server.compact()
    late = web.get(PODS, resourceVersion=old.version, resourceVersionMatch="Exact")
    assert (late.code, late.reason) == (410, "Expired")


@pytest.mark.parametrize(
    "query",
    [
        {"resourceVersionMatch": "Exact"},
        {"resourceVersionMatch": "Sometimes", "resourceVersion": "5"},
        {"resourceVersionMatch": "Exact", "resourceVersion": "0"},
        {"sendInitialEvents": "true"},
    ],
)
def test_versions_that_make_no_sense(web: Web, query: dict[str, str]) -> None:
    assert web.get(PODS, **query).reason == "Invalid"


def test_a_version_is_a_number(web: Web) -> None:
    wrong = web.get(PODS, resourceVersion="new")
    assert (wrong.code, wrong.reason) == (400, "BadRequest")
    assert 'strconv.ParseUint: parsing "new": invalid syntax' in wrong.message
    assert web.get(PODS, resourceVersion="new", watch="1").code == 500


def test_the_watch_cache_knows_no_pages(server: ApiServer, web: Web) -> None:
    server.load([pod(f"p{number}") for number in range(4)])
    whole = web.get(PODS, limit=2, resourceVersion="0")
    assert len(names(whole)) == 4 and "continue" not in whole.body["metadata"]


def test_label_selectors(server: ApiServer, web: Web) -> None:
    server.load(
        [
            pod("a", {"app": "web", "tier": "front"}),
            pod("b", {"app": "web", "weight": "5"}),
            pod("c", {"app": "db"}),
            pod("d"),
        ]
    )
    for selector, wanted in (
        ("app=web", "ab"),
        ("app==web,tier", "a"),
        ("app!=web", "cd"),
        ("app in (web,db),!tier", "bc"),
        ("app notin (web)", "cd"),
        ("weight>4", "b"),
        ("weight<5", ""),
        ("!app", "d"),
        ("", "abcd"),
    ):
        assert "".join(names(web.get(PODS, labelSelector=selector))) == wanted, selector
    for wrong in ("a=b=c", "in (x)", "a in x", "a in (x", "=x", "a>b", "a,", "!", "a b", "-a"):
        answer = web.get(PODS, labelSelector=wrong)
        assert answer.reason == "BadRequest", wrong


def test_field_selectors(server: ApiServer, web: Web) -> None:
    pods = [pod("a", nodeName="n1"), pod("b", nodeName="n2")]
    pods[1]["status"] = {"phase": "Running", "podIP": "10.0.0.2"}
    other = pod("c", nodeName="n1")
    other["metadata"]["namespace"] = "kube-system"
    server.load([*pods, other])
    for selector, wanted in (
        ("spec.nodeName=n1", "ac"),
        ("spec.nodeName!=n1", "b"),
        ("metadata.name=b", "b"),
        ("metadata.namespace=kube-system", "c"),
        ("status.phase=Running", "b"),
        ("status.podIP=10.0.0.2,spec.nodeName==n2", "b"),
    ):
        assert "".join(names(web.get(ALL, fieldSelector=selector))) == wanted, selector
    for path, wrong in ((ALL, "spec.image=x"), (LEASES, "spec.nodeName=x"), (ALL, "x")):
        assert web.get(path, fieldSelector=wrong).reason == "BadRequest"


def test_keys_are_in_the_order_of_etcd(server: ApiServer, web: Web) -> None:
    for namespace in ("a", "a-b", "a0"):
        server.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        item = pod("p")
        item["metadata"]["namespace"] = namespace
        server.create(item)
    found = [item["metadata"]["namespace"] for item in web.get(ALL).body["items"]]
    assert found == ["a-b", "a", "a0"]


def test_many_pods_at_once(server: ApiServer, web: Web) -> None:
    """10,000 objects by one call, and their JSON is written once for all lists and watches."""
    count = server.load([pod(f"p{number:05}", {"pad": "x" * 60}) for number in range(10_000)])
    assert count == 10_000
    assert len(names(web.get(ALL))) == 10_000
    pages, token = 0, ""
    while pages == 0 or token:
        answer = web.get(ALL, limit=2000, **({"continue": token} if token else {}))
        token = answer.body["metadata"].get("continue", "")
        pages += 1
    assert pages == 5
    record = server._cluster.store.collection(("", "pods")).get("default/p00000")
    assert record is not None and record.body is record.body
