# SPDX-License-Identifier: Apache-2.0
"""Answers of an API server that are errors, as types."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kube.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    error_from,
    verb_and_resource,
)


@pytest.mark.parametrize(
    ("status", "reason", "kind"),
    [
        (400, "BadRequest", Invalid),
        (401, "Unauthorized", Unauthorized),
        (403, "Forbidden", Forbidden),
        (404, "NotFound", NotFound),
        (409, "Conflict", Conflict),
        (409, "AlreadyExists", AlreadyExists),
        (410, "Expired", Gone),
        (422, "Invalid", Invalid),
        (429, "TooManyRequests", TooManyRequests),
        (500, "InternalError", ApiError),
        (503, "ServiceUnavailable", Unavailable),
    ],
)
def test_each_status_has_its_type(status: int, reason: str, kind: type[ApiError]) -> None:
    body = {"kind": "Status", "code": status, "reason": reason, "message": "because"}
    for given_status in (status, 0):
        error = error_from(given_status, json.dumps(body).encode(), verb="list", resource="pods")
        assert type(error) is kind
        assert (error.status, error.reason) == (status, reason)
        assert error.message.startswith("list pods: because")


def test_forbidden_names_verb_and_resource() -> None:
    error = error_from(403, b"", verb="patch", resource="nodes/status")
    assert isinstance(error, Forbidden)
    assert (error.verb, error.resource) == ("patch", "nodes/status")


def test_of_a_long_refusal_begin_and_end_are_kept() -> None:
    """Of a patch, the whole object stands between what was refused and why."""
    why = 'strict decoding error: unknown field "spec.bogus"'
    text = f' "" is invalid: patch: Invalid value: "{"x" * 5000}": {why}'
    body = json.dumps({"kind": "Status", "message": text, "reason": "Invalid"}).encode()
    found = error_from(422, body, verb="patch", resource="bristleendpoints")
    assert found.message.startswith('patch bristleendpoints:  "" is invalid: patch: ')
    assert why in found.message
    assert len(found.message) < 600


def test_how_long_the_server_asks_to_wait() -> None:
    body = b'{"kind":"Status","details":{"retryAfterSeconds":7}}'
    assert error_from(429, body).retry_after == 7.0
    assert error_from(429, body, retry_after="3").retry_after == 3.0
    assert error_from(429, b"", retry_after="Wed, 21 Oct 2026 07:28:00 GMT").retry_after is None


def test_a_proxy_that_answers_in_its_own_words() -> None:
    error = error_from(502, b"<html>\x1b[31mBad Gateway</html>")
    assert isinstance(error, Unavailable)
    assert "Bad Gateway" in error.message
    assert "\x1b" not in error.message


@given(st.integers(0, 999), st.binary(), st.none() | st.text())
def test_any_answer_is_some_error(status: int, body: bytes, retry_after: str | None) -> None:
    error = error_from(status, body, retry_after=retry_after)
    assert error.message
    str(error).encode("utf-8")


@pytest.mark.parametrize(
    ("method", "path", "watch", "expected"),
    [
        ("GET", "/api/v1/pods", False, ("list", "pods")),
        ("GET", "/api/v1/pods", True, ("watch", "pods")),
        ("GET", "/api/v1/namespaces/shop/pods/web", False, ("get", "pods")),
        ("GET", "/api/v1/namespaces/shop", False, ("get", "namespaces")),
        ("PATCH", "/api/v1/nodes/n/status", False, ("patch", "nodes/status")),
        ("PUT", "/apis/bristle.io/v1alpha1/bristlenodes/n", False, ("update", "bristlenodes")),
        ("POST", "/apis/coordination.k8s.io/v1/namespaces/x/leases", False, ("create", "leases")),
        ("DELETE", "/apis/g/v1/namespaces/x/things/y", False, ("delete", "things")),
        ("GET", "/version", False, ("", "")),
    ],
)
def test_what_rbac_calls_a_request(
    method: str, path: str, watch: bool, expected: tuple[str, str]
) -> None:
    assert verb_and_resource(method, path, watch=watch) == expected
