# SPDX-License-Identifier: Apache-2.0
"""Whatever is sent, the server answers with a Status and goes on."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bench.lab.apiserver import ApiServer
from tests.unit.apiserver.web import (
    APPLY,
    CRDS,
    EVENTS,
    JSON,
    JSON_PATCH,
    LEASES,
    MERGE,
    NODES,
    PODS,
    STRATEGIC,
    THINGS,
    Answer,
    Web,
    definition,
    event,
    lease,
    node,
    pod,
    raw,
    thing,
)

NAMESPACES = "/api/v1/namespaces"
SERVICES = "/api/v1/namespaces/default/services"
POLICIES = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
KINDS: dict[str, dict[str, Any]] = {
    PODS: pod("x"),
    NODES: node("x", taints=[{"key": "a", "effect": "NoSchedule"}]),
    LEASES: lease("x", holderIdentity="a"),
    EVENTS: event(),
    THINGS: thing("x", ports=[{"number": 1}]),
    NAMESPACES: {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "x"}},
    SERVICES: {
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": {"name": "x"},
        "spec": {"ports": [{"port": 80, "name": "http"}], "selector": {"a": "b"}},
    },
    POLICIES: {
        "kind": "NetworkPolicy",
        "apiVersion": "networking.k8s.io/v1",
        "metadata": {"name": "x"},
        "spec": {
            "podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]},
            "ingress": [
                {
                    "from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
                    "ports": [{"port": 80, "endPort": 90, "protocol": "TCP"}],
                }
            ],
        },
    },
    SLICES: {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": "x"},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}],
        "ports": [{"port": 80}],
    },
    CRDS: definition(names={"plural": "others", "kind": "Other"}),
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 65), 1 << 65)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=6) | st.sampled_from(["name", "spec"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)


@pytest.fixture(scope="module")
def world() -> Iterator[Web]:
    """A client of a server that all tests of this file share."""
    with ApiServer() as server:
        web = Web(server.url)
        web.post(CRDS, definition())
        for path, item in KINDS.items():
            if path not in (CRDS, NAMESPACES):
                assert web.post(path, {**item, "metadata": {"name": "old"}}).code == 201
        yield web


def in_order(answer: Answer) -> None:
    """A success, or a Status that says what was wrong with the request."""
    assert answer.code < 300 or 400 <= answer.code < 500, answer.body
    if answer.code >= 400 and answer.raw != b"404 page not found\n":
        assert answer.body["kind"] == "Status" and answer.body["code"] == answer.code
        assert answer.body["status"] == "Failure" and answer.body["message"]


# ---- HTTP ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 300 + b"\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_no_http(server: ApiServer, data: bytes) -> None:
    """Go's server answers in plain text."""
    answer = raw(server.port, data)
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")) and b"text/plain" in answer
    assert Web(server.url).get("/readyz").code == 200


def test_connections_are_kept(server: ApiServer, web: Web) -> None:
    connection = web.connection()
    for _ in range(3):
        connection.request("GET", PODS)
        assert connection.getresponse().read().startswith(b'{"kind":"PodList"')
    port = connection.sock.getsockname()[1]
    connection.request("GET", PODS)
    connection.getresponse().read()
    assert connection.sock.getsockname()[1] == port
    connection.close()
    both = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n" * 2
    assert raw(server.port, both).count(b"HTTP/1.1 200 OK") == 2
    old = raw(server.port, b"GET /readyz HTTP/1.0\r\n\r\n")
    assert b"Connection: close" in old and old.endswith(b"ok")
    head = raw(server.port, b"HEAD /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b"Content-Length: 2" in head and head.endswith(b"\r\n\r\n")


def test_bodies_in_chunks(server: ApiServer, web: Web) -> None:
    body = json.dumps(node()).encode()
    half = len(body) // 2
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:half], body[half:]))
    head = (
        f"POST {NODES} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    )
    answer = raw(server.port, head.encode() + chunks + b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created")
    assert web.get(f"{NODES}/n1").code == 200


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes(world: Web, data: bytes) -> None:
    port = int(world.url.rpartition(":")[2])
    with contextlib.suppress(ConnectionError):  # the server may hang up
        raw(port, data + b"\r\n\r\n")
    assert world.get("/readyz").body == "ok"


# ---- bodies ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b"\xff\xfe",
        b'{"a":NaN}',
        b'{"kind":"Node","apiVersion":"v1","metadata":[]}',
        b'{"kind":["Node"],"apiVersion":"v1"}',
        b'{"kind":"Node","apiVersion":"v1","metadata":{"name":"\\ud800"}}',
        b'{"a":' * 20_000,
        b"[" * 2000 + b"]" * 2000,
        b'{"a":' * 2000 + b"1" + b"}" * 2000,
        b'{"kind":"Node","apiVersion":"v1","metadata":{"name":"x"},"spec":'
        + b'{"a":' * 900
        + b"1"
        + b"}" * 901,
        b'{"metadata":{"name":"x","generation":1e400}}',
    ],
)
def test_bodies_that_are_no_objects(world: Web, body: bytes) -> None:
    empty_patch = body == b"[]"
    for method, path, media in (
        ("POST", NODES, JSON),
        ("POST", THINGS, JSON),
        ("PUT", f"{NODES}/old", JSON),
        ("PATCH", f"{NODES}/old", MERGE),
        ("PATCH", f"{NODES}/old", JSON_PATCH),
        ("PATCH", f"{THINGS}/old", APPLY),
    ):
        answer = world.ask(method, path, body, media, fieldManager="x")
        if not (empty_patch and media == JSON_PATCH):
            assert 400 <= answer.code < 500, (method, media, answer.body)
        in_order(answer)


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to everything in a document."""
    yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(inner, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value in one place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@settings(
    max_examples=400,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.data(), st.sampled_from(sorted(KINDS)), VALUES)
def test_objects_with_one_wrong_part(world: Web, data: Any, path: str, value: Any) -> None:
    """Every kind, with anything at all in any one place."""
    item = {**KINDS[path], "status": {"conditions": [{"type": "A", "status": "True"}]}}
    place = data.draw(st.sampled_from(list(paths(item))))
    changed = replaced(item, place, value)
    try:
        body = json.dumps(changed, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    in_order(world.ask("POST", path, body, dryRun="All", fieldValidation="Warn"))
    if path not in (CRDS, NAMESPACES):
        old = {**item, "metadata": {**item["metadata"], "name": "old"}}
        changed = replaced(old, place, value) if place != ("metadata", "name") else old
        body = json.dumps(changed).encode()
        for media in (MERGE, STRATEGIC, APPLY):
            answer = world.ask("PATCH", f"{path}/old", body, media, dryRun="All", fieldManager="x")
            in_order(answer)
        in_order(world.ask("PATCH", f"{path}/old/status", body, MERGE, dryRun="All"))
        in_order(world.ask("PUT", f"{path}/old", body, dryRun="All"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VALUES)
@example([{"op": "remove", "path": "/metadata"}])
@example([{"op": "remove", "path": "/metadata/name"}])
@example([{"op": "replace", "path": "", "value": 1}])
@example([{"op": "replace", "path": "/spec", "value": 1}])
def test_patches_of_any_kind(world: Web, value: Any) -> None:
    for media in (JSON_PATCH, MERGE, STRATEGIC):
        for path in (f"{NODES}/old", f"{THINGS}/old"):
            in_order(world.patch(path, value, media, dryRun="All"))
    step = [{"op": "add", "path": "/metadata/labels", "value": value}]
    in_order(world.patch(f"{NODES}/old", step, JSON_PATCH, dryRun="All"))


# ---- paths and parameters --------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE"]),
    st.lists(
        st.sampled_from(["api", "apis", "v1", "namespaces", "nodes", "status", "", "..", "%2F"])
        | TEXT,
        max_size=7,
    ),
)
def test_any_path(world: Web, method: str, parts: list[str]) -> None:
    path = "/" + "/".join(part if part == "%2F" else quote(part, safe="") for part in parts)
    if method == "DELETE" and "nodes" in parts:
        return  # would succeed
    in_order(world.ask(method, path, dryRun="All"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "limit",
                "continue",
                "resourceVersion",
                "resourceVersionMatch",
                "labelSelector",
                "fieldSelector",
                "timeoutSeconds",
                "sendInitialEvents",
                "allowWatchBookmarks",
            ]
        ),
        TEXT | st.sampled_from(["0", "-1", "999999999999999999999", "Exact", "true"]),
    )
)
def test_any_parameters(world: Web, query: dict[str, str]) -> None:
    answer = world.get(f"{NODES}?{urlencode(query)}")
    if answer.code != 504:  # a version that is yet to come
        in_order(answer)
