# SPDX-License-Identifier: Apache-2.0
"""Creating, reading and updating built-in kinds: what is stored, what is refused, and how."""

import gzip
import json
from typing import Any

import pytest

from bench.lab.apiserver import ApiServer
from tests.unit.apiserver.web import (
    EVENTS,
    JSON_PATCH,
    LEASES,
    NODES,
    PODS,
    STRATEGIC,
    Web,
    event,
    lease,
    node,
    pod,
    raw,
)

NAMESPACES = "/api/v1/namespaces"
SERVICES = "/api/v1/namespaces/default/services"
POLICIES = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"


# ---- creation --------------------------------------------------------------------------------


def test_the_server_fills_in_what_is_its_own(web: Web) -> None:
    sent = pod()
    sent["metadata"] |= {"uid": "mine", "creationTimestamp": "2000-01-01T00:00:00Z"}
    sent["status"] = {"phase": "Running", "podIP": "10.0.0.1"}
    answer = web.post(PODS, sent)
    assert answer.code == 201
    meta = answer.body["metadata"]
    assert meta["uid"] != "mine" and meta["creationTimestamp"] > "2020"
    assert int(meta["resourceVersion"]) > 0
    assert answer.body["status"]["phase"] == "Pending" and "podIP" not in answer.body["status"]
    assert answer.body["spec"]["restartPolicy"] == "Always"
    assert web.get(f"{PODS}/a").body == answer.body


def test_a_name_can_be_generated(web: Web) -> None:
    sent = pod()
    del sent["metadata"]["name"]
    sent["metadata"]["generateName"] = "web-"
    names = {web.post(PODS, sent).body["metadata"]["name"] for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("web-") and len(name) == 9 for name in names)


def test_creation_is_refused(web: Web) -> None:
    assert web.post(PODS, pod()).code == 201
    again = web.post(PODS, pod())
    assert (again.code, again.reason) == (409, "AlreadyExists")
    assert again.message == 'pods "a" already exists'
    elsewhere = pod("b")
    elsewhere["metadata"]["namespace"] = "other"
    assert web.post(PODS, elsewhere).code == 400
    lost = web.post("/api/v1/namespaces/none/pods", {**pod("b"), "metadata": {"name": "b"}})
    assert (lost.code, lost.reason) == (404, "NotFound")
    assert lost.message == 'namespaces "none" not found'
    versioned = pod("b")
    versioned["metadata"]["resourceVersion"] = "5"
    assert web.post(PODS, versioned).code == 500
    bad = web.post(PODS, pod("Bad_Name"))
    assert (bad.code, bad.reason, bad.fields) == (422, "Invalid", {"metadata.name"})
    nameless = web.post(PODS, {**pod(), "metadata": {}})
    assert nameless.fields == {"metadata.name"}
    assert web.post("/api/v1/pods", pod("b")).code == 405


def test_another_kind_or_version_is_no_pod(web: Web) -> None:
    assert web.post(PODS, {**pod(), "kind": "Node"}).code == 400
    assert web.post(PODS, {**pod(), "apiVersion": "v2"}).code == 400
    bare = pod()
    del bare["kind"], bare["apiVersion"]
    assert web.post(PODS, bare).code == 201  # the path says it


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"metadata": {"name": "a", "labels": {"a": 1}}}, "labels"),
        ({"spec": {"containers": "none"}}, "spec.containers"),
        ({"spec": {"containers": [], "hostNetwork": "yes"}}, "spec.hostNetwork"),
        ({"spec": {"containers": [], "priority": 1 << 40}}, "spec.priority"),
    ],
)
def test_wrong_types_are_bad_requests(web: Web, change: dict[str, Any], told: str) -> None:
    answer = web.post(PODS, {**pod(), **change})
    assert (answer.code, answer.reason) == (400, "BadRequest")
    assert "cannot be handled as a Pod" in answer.message and told in answer.message


def test_unknown_fields_are_dropped_told_or_refused(web: Web) -> None:
    sent = node()
    sent["spec"] = {"bogus": 1}
    sent["metadata"]["more"] = "x"
    warned = web.post(NODES, sent)
    assert warned.code == 201 and warned.body["spec"] == {}
    assert warned.headers["Warning"].startswith('299 - "unknown field \\"')
    sent["metadata"]["name"] = "n2"
    quiet = web.post(NODES, sent, fieldValidation="Ignore")
    assert quiet.code == 201 and "Warning" not in quiet.headers
    sent["metadata"]["name"] = "n3"
    strict = web.post(NODES, sent, fieldValidation="Strict")
    assert strict.code == 400
    assert 'strict decoding error: unknown field "metadata.more"' in strict.message
    twice = b'{"kind":"Node","apiVersion":"v1","metadata":{"name":"n4","name":"n4"}}'
    assert "duplicate field" in web.post(NODES, twice, fieldValidation="Strict").message
    assert web.post(NODES, sent, fieldValidation="Never").fields == {"fieldValidation"}


def test_dry_run_changes_nothing(server: ApiServer, web: Web) -> None:
    before = server.revision()
    assert web.post(PODS, pod(), dryRun="All").code == 201
    assert server.revision() == before and web.get(f"{PODS}/a").code == 404
    web.post(PODS, pod())
    assert web.delete(f"{PODS}/a", dryRun="All").code == 200
    assert web.get(f"{PODS}/a").code == 200
    assert web.post(PODS, pod("b"), dryRun="yes").fields == {"dryRun"}


def test_what_does_not_exist_is_not_found(web: Web) -> None:
    missing = web.get(f"{PODS}/none")
    assert (missing.code, missing.reason) == (404, "NotFound")
    assert missing.message == 'pods "none" not found'
    assert missing.body["details"] == {"name": "none", "kind": "pods"}
    lost = web.get(f"{LEASES}/none")
    assert lost.message == 'leases.coordination.k8s.io "none" not found'
    for path in ("/apis/nope.io/v1/x", "/nothing"):
        assert web.get(path).raw == b"404 page not found\n"
    for path in ("/api/v1/secrets", "/api/v1/pods/x"):
        unknown = web.get(path)
        assert (unknown.code, unknown.reason) == (404, "NotFound")
        assert unknown.message == "the server could not find the requested resource"


# ---- update ----------------------------------------------------------------------------------


def test_an_update_must_fit_the_version(web: Web) -> None:
    first = web.post(NODES, node()).body
    second = web.put(f"{NODES}/n1", {**first, "spec": {"unschedulable": True}})
    assert second.code == 200 and second.version != first["metadata"]["resourceVersion"]
    stale = web.put(f"{NODES}/n1", {**first, "spec": {}})
    assert (stale.code, stale.reason) == (409, "Conflict")
    assert "the object has been modified" in stale.message
    free = web.put(f"{NODES}/n1", node())  # no version: whatever there is
    assert free.code == 200 and "unschedulable" not in free.body["spec"]
    other = {**node(), "metadata": {"name": "n1", "uid": "another"}}
    assert web.put(f"{NODES}/n1", other).code == 409
    assert web.put(f"{NODES}/n1", node("n2")).code == 400
    assert web.put(f"{NODES}/none", node("none")).code == 404
    meta = {"name": "n1", "creationTimestamp": "2000-01-01T00:00:00Z"}
    kept = web.put(f"{NODES}/n1", {**node(), "metadata": meta}).body["metadata"]
    assert kept["creationTimestamp"] == first["metadata"]["creationTimestamp"]


def test_an_update_that_changes_nothing_makes_no_version(server: ApiServer, web: Web) -> None:
    first = web.post(NODES, node()).body
    before = server.revision()
    assert web.put(f"{NODES}/n1", first).body == first
    assert web.patch(f"{NODES}/n1", {}).body == first
    assert web.patch(f"{NODES}/n1/status", {"status": {"conditions": []}}).code == 200
    assert server.revision() == before and server.unchanged_writes() == 3


def test_leases_demand_their_version(web: Web) -> None:
    times = {"acquireTime": "2024-01-01T00:00:00.000000Z"}
    first = web.put(f"{LEASES}/l", lease(holderIdentity="a", **times))
    assert first.code == 201  # an update may create one
    refused = web.put(f"{LEASES}/l", lease(holderIdentity="b"))
    assert (refused.code, refused.fields) == (422, {"metadata.resourceVersion"})
    first.body["spec"]["holderIdentity"] = ""
    assert web.put(f"{LEASES}/l", first.body).code == 200
    assert web.put(f"{LEASES}/l", first.body).code == 409


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ({"renewTime": "2024-01-01T00:00:00Z"}, 400),  # six digits are a must
        ({"renewTime": "2024-01-01T00:00:00.000Z"}, 400),
        ({"renewTime": 5}, 400),
        ({"renewTime": "2024-01-01T00:00:00.123456+02:00"}, 201),
        ({"leaseDurationSeconds": 0}, 422),
        ({"leaseDurationSeconds": 1.5}, 400),
        ({"leaseTransitions": -1}, 422),
        ({"preferredHolder": "x"}, 422),
    ],
)
def test_leases_are_checked(web: Web, spec: dict[str, Any], code: int) -> None:
    answer = web.post(LEASES, lease(**spec))
    assert answer.code == code
    if code == 201:
        assert answer.body["spec"]["renewTime"] == "2023-12-31T22:00:00.123456Z"


# ---- nodes, pods and their status ------------------------------------------------------------


def test_status_and_the_rest_are_apart(web: Web) -> None:
    web.post(PODS, pod(nodeName="n1"))
    update = web.get(f"{PODS}/a").body
    update["status"] = {"phase": "Running", "podIP": "10.0.0.1"}
    update["metadata"]["labels"] = {"new": "yes"}
    assert "podIP" not in web.put(f"{PODS}/a", update).body["status"]
    update = web.get(f"{PODS}/a").body
    update["status"] = {"phase": "Running", "podIP": "10.0.0.1"}
    update["spec"]["containers"][0]["image"] = "other"
    done = web.put(f"{PODS}/a/status", update).body
    assert done["status"]["podIPs"] == [{"ip": "10.0.0.1"}]
    assert done["spec"]["containers"][0]["image"] == "example.org/main:1"
    assert web.get(f"{PODS}/a/status").body == done
    bad = web.patch(f"{PODS}/a/status", {"status": {"podIPs": [{"ip": "x"}], "podIP": "x"}})
    assert (bad.code, bad.fields) == (422, {"status.podIPs[0]"})
    assert web.delete(f"{PODS}/a/status").code == 405


def test_a_pods_spec_stays(web: Web) -> None:
    web.post(PODS, pod())
    moved = web.patch(f"{PODS}/a", {"spec": {"nodeName": "n2"}})
    assert (moved.code, moved.fields) == (422, {"spec"})
    containers = [{"name": "main", "image": "other"}]
    kept = web.patch(f"{PODS}/a", {"spec": {"containers": containers}}, STRATEGIC)
    assert kept.code == 200 and kept.body["spec"]["containers"][0]["image"] == "other"


def test_node_conditions_merge_and_taints_do_not(web: Web) -> None:
    taints = [{"key": "a", "effect": "NoSchedule"}, {"key": "b", "effect": "NoExecute"}]
    web.post(NODES, node(taints=taints))
    for kind in ("Ready", "NetworkUnavailable"):
        change = {"status": {"conditions": [{"type": kind, "status": "False"}]}}
        assert web.patch(f"{NODES}/n1/status", change, STRATEGIC).code == 200
    change = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    done = web.patch(f"{NODES}/n1/status", change, STRATEGIC).body
    found = {entry["type"]: entry["status"] for entry in done["status"]["conditions"]}
    assert found == {"Ready": "True", "NetworkUnavailable": "False"}
    assert done["spec"]["taints"] == taints
    only = {"spec": {"taints": [{"key": "c", "effect": "NoSchedule"}]}}
    assert web.patch(f"{NODES}/n1", only, STRATEGIC).body["spec"] == only["spec"]
    twice = {"spec": {"taints": [{"key": "c", "effect": "NoSchedule"}] * 2}}
    assert web.patch(f"{NODES}/n1", twice).fields == {"spec.taints[1]"}
    wrong = {"spec": {"taints": [{"key": "c d", "effect": "Never"}]}}
    assert web.patch(f"{NODES}/n1", wrong).fields == {
        "spec.taints[0].key",
        "spec.taints[0].effect",
    }


def test_a_patch_may_name_the_version(web: Web) -> None:
    first = web.post(NODES, node()).body
    labels = {"metadata": {"labels": {"a": "b"}}}
    assert web.patch(f"{NODES}/n1", labels).code == 200
    labels["metadata"]["resourceVersion"] = first["metadata"]["resourceVersion"]
    assert web.patch(f"{NODES}/n1", labels).reason == "Conflict"
    step = {"op": "test", "path": "/spec/unschedulable", "value": True}
    failed = web.patch(f"{NODES}/n1", [step], JSON_PATCH)
    assert (failed.code, failed.reason) == (422, "Invalid")
    assert web.patch(f"{NODES}/n1", {"metadata": {"name": "n2"}}).code == 400
    assert web.patch(f"{NODES}/none", {}).code == 404
    bad = web.patch(f"{NODES}/n1", {"spec": {"taints": "x"}})
    assert (bad.code, bad.fields) == (422, {"patch"})


# ---- events ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"eventTime": None}, "eventTime"),
        ({"reportingController": ""}, "reportingController"),
        ({"reportingInstance": ""}, "reportingInstance"),
        ({"action": ""}, "action"),
        ({"reason": ""}, "reason"),
        ({"reason": "x" * 129}, "reason"),
        ({"note": "é" * 513}, "message"),
        ({"type": "Error"}, "type"),
        ({"deprecatedCount": 2}, "count"),
        ({"deprecatedSource": {"component": "x"}}, "source"),
        (
            {"series": {"count": 1, "lastObservedTime": "2024-05-01T10:00:00.000000Z"}},
            "series.count",
        ),
        ({"metadata": {"name": "Bad_name"}}, "metadata.name"),
        ({"metadata": {}}, "metadata.name"),
    ],
)
def test_events_need_what_they_need(web: Web, change: dict[str, Any], field: str) -> None:
    answer = web.post(EVENTS, event(**change))
    assert answer.code == 422 and field in answer.fields


def test_events_are_seen_in_both_forms(web: Web) -> None:
    made = web.post(EVENTS, event())
    assert made.code == 201 and made.body["note"] == "table is full"
    old = web.get("/api/v1/namespaces/default/events/e").body
    assert (old["apiVersion"], old["message"]) == ("v1", "table is full")
    assert old["involvedObject"]["name"] == "a"
    assert old["reportingComponent"] == "example.io/agent"
    listed = web.get("/api/v1/events", fieldSelector="involvedObject.name=a,reason=Refused")
    assert [item["metadata"]["name"] for item in listed.body["items"]] == ["e"]
    fixed = web.patch(f"{EVENTS}/e", {"note": "other"})
    assert fixed.fields == {"message"}
    series = {"series": {"count": 2, "lastObservedTime": "2024-05-01T10:01:00.000000Z"}}
    assert web.patch(f"{EVENTS}/e", series).body["series"]["count"] == 2
    astray = event(metadata={"name": "f"}, regarding={"kind": "Node", "name": "n"})
    assert web.post(EVENTS, astray).code == 201  # cluster-wide objects: in default
    web.post(NAMESPACES, {"metadata": {"name": "other"}})
    astray["metadata"] = {"name": "f", "namespace": "other"}
    refused = web.post(EVENTS.replace("default", "other"), astray)
    assert refused.fields == {"involvedObject.namespace"}


# ---- services, slices, policies --------------------------------------------------------------


def test_services_get_addresses_that_stay(web: Web) -> None:
    sent: dict[str, Any] = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}}
    made = web.post(SERVICES, sent).body
    assert made["spec"]["clusterIP"].startswith("10.96.")
    assert made["spec"]["clusterIPs"] == [made["spec"]["clusterIP"]]
    assert made["spec"]["ports"] == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    assert web.put(f"{SERVICES}/s", sent).body["spec"] == made["spec"]
    moved = web.patch(f"{SERVICES}/s", {"spec": {"clusterIP": "10.96.9.9", "clusterIPs": None}})
    assert moved.code == 422
    sent["metadata"]["name"] = "dual"
    sent["spec"] |= {"ipFamilyPolicy": "PreferDualStack", "type": "NodePort"}
    dual = web.post(SERVICES, sent).body["spec"]
    assert len(dual["clusterIPs"]) == 2 and dual["ports"][0]["nodePort"] >= 30000
    unnamed = {"metadata": {"name": "t"}, "spec": {"ports": [{"port": 80}, {"port": 81}]}}
    assert web.post(SERVICES, unnamed).fields == {"spec.ports[0].name", "spec.ports[1].name"}
    assert web.post(SERVICES, {"metadata": {"name": "1t"}, "spec": {}}).code == 422


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"ingress": [{"from": [{}]}]}, "spec.ingress[0].from[0]"),
        ({"ingress": [{"ports": [{"port": 0}]}]}, "spec.ingress[0].ports[0].port"),
        (
            {"ingress": [{"ports": [{"port": "x", "endPort": 9}]}]},
            "spec.ingress[0].ports[0].endPort",
        ),
        (
            {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/9"]}}]}]},
            "spec.egress[0].to[0].ipBlock.except[0]",
        ),
        (
            {"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]}]},
            "spec.egress[0].to[0]",
        ),
        (
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}},
            "spec.podSelector.matchExpressions[0].values",
        ),
        ({"policyTypes": ["Both"]}, "spec.policyTypes[0]"),
    ],
)
def test_policies_are_checked(web: Web, spec: dict[str, Any], field: str) -> None:
    answer = web.post(POLICIES, {"metadata": {"name": "p"}, "spec": {"podSelector": {}, **spec}})
    assert (answer.code, answer.fields) == (422, {field})


def test_policies_keep_empty_selectors_and_drop_empty_lists(web: Web) -> None:
    spec: dict[str, Any] = {
        "podSelector": {},
        "ingress": [{"from": [{"namespaceSelector": {}}], "ports": []}],
    }
    made = web.post(POLICIES, {"metadata": {"name": "p"}, "spec": spec}).body
    assert made["spec"]["ingress"] == [{"from": [{"namespaceSelector": {}}]}]
    assert made["spec"]["policyTypes"] == ["Ingress"] and made["metadata"]["generation"] == 1
    more = web.patch(f"{POLICIES}/p", {"spec": {"egress": [{}]}}).body
    assert more["metadata"]["generation"] == 2
    named = web.patch(f"{POLICIES}/p", {"metadata": {"labels": {"a": "b"}}}).body
    assert named["metadata"]["generation"] == 2


def test_slices_are_checked(web: Web) -> None:
    good = {
        "metadata": {"name": "s"},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"]}],
        "ports": [{"port": 80}],
    }
    made = web.post(SLICES, good)
    assert made.code == 201 and made.body["ports"] == [{"port": 80, "name": "", "protocol": "TCP"}]
    assert web.patch(f"{SLICES}/s", {"addressType": "IPv6"}).fields >= {"addressType"}
    wrong = {**good, "metadata": {"name": "t"}, "addressType": "IPv6"}
    assert web.post(SLICES, wrong).fields == {"endpoints[0].addresses[0]"}
    none = {**good, "metadata": {"name": "t"}, "endpoints": [{"addresses": []}]}
    assert web.post(SLICES, none).fields == {"endpoints[0].addresses"}


# ---- media types and sizes -------------------------------------------------------------------


def test_media_types(web: Web) -> None:
    body = json.dumps(node()).encode()
    assert web.ask("POST", NODES, body, "text/plain").reason == "UnsupportedMediaType"
    assert web.ask("POST", NODES, body, "application/vnd.kubernetes.protobuf").code == 415
    assert web.ask("PATCH", f"{NODES}/n1", {}, "application/json").code == 415
    yaml = b"kind: Node\napiVersion: v1\nmetadata: {name: n1, annotations: {t: '2024-01-01'}}\n"
    assert web.ask("POST", NODES, yaml, "application/yaml; charset=utf-8").code == 201
    for accept, code in (
        ("application/json", 200),
        ("application/vnd.kubernetes.protobuf,application/json;q=0.9", 200),
        ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", 200),
        ("application/vnd.kubernetes.protobuf", 406),
        ("text/html", 406),
        ("*/*", 200),
    ):
        answer = web.ask("GET", NODES, headers={"Accept": accept})
        assert answer.code == code, accept
    partial = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
    (item,) = web.ask("GET", NODES, headers={"Accept": partial}).body["items"]
    assert set(item) == {"kind", "apiVersion", "metadata"}
    assert item["kind"] == "PartialObjectMetadata"


def test_large_objects_are_refused(server: ApiServer, web: Web) -> None:
    big = lease(holderIdentity="x" * (1 << 21))
    assert web.post(LEASES, big).code == 500  # etcd's limit
    notes = {"metadata": {"annotations": {"a": "x" * (1 << 18)}}}
    assert web.post(LEASES, lease()).code == 201
    assert web.patch(f"{LEASES}/l", notes).fields == {"metadata.annotations"}
    head = f"POST {LEASES} HTTP/1.1\r\nHost: x\r\nContent-Length: {4 << 20}\r\n\r\n"
    answer = raw(server.port, head.encode())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["reason"] == "RequestEntityTooLarge"


def test_large_answers_are_compressed_if_asked(server: ApiServer, web: Web) -> None:
    server.load([pod(f"p{number}", {"pad": "x" * 60}) for number in range(1000)])
    plain = web.get(PODS)
    assert plain.headers["Transfer-Encoding"] == "chunked"
    packed = web.ask("GET", PODS, headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.raw) == plain.raw


# ---- discovery -------------------------------------------------------------------------------


def test_discovery(web: Web) -> None:
    assert web.get("/version").body["major"] == "1"
    for path in ("/healthz", "/readyz", "/livez", "/readyz/ping"):
        assert web.get(path).body == "ok"
    assert web.get("/api").body["versions"] == ["v1"]
    groups = {group["name"] for group in web.get("/apis").body["groups"]}
    assert {"networking.k8s.io", "discovery.k8s.io", "coordination.k8s.io"} <= groups
    core = {entry["name"]: entry for entry in web.get("/api/v1").body["resources"]}
    assert core["pods"]["namespaced"] and not core["nodes"]["namespaced"]
    assert "pods/status" in core and "events" in core
    one = web.get("/apis/coordination.k8s.io").body
    assert one["preferredVersion"]["groupVersion"] == "coordination.k8s.io/v1"
    (entry,) = web.get("/apis/coordination.k8s.io/v1").body["resources"]
    assert entry["kind"] == "Lease"
