# SPDX-License-Identifier: Apache-2.0
"""Tokens, permissions, TLS."""

import ssl
from collections.abc import Iterator

import pytest

from bench.lab.kubeapi.choice import Server, open_server
from tests.unit.apiserver.web import (
    CRDS,
    NODES,
    PODS,
    THINGS,
    Web,
    context_of,
    definition,
    node,
    pod,
    thing,
)

TOKENS = ("secret", "fresh")


@pytest.fixture
def closed() -> Iterator[Server]:
    """A server that knows one token."""
    with open_server(tokens={"secret": "agent"}) as made:
        yield made


def test_without_a_token_one_is_anonymous(closed: Server) -> None:
    web = Web(closed.url, context=context_of(closed))
    refused = web.get("/api/v1/pods")
    assert (refused.code, refused.reason) == (403, "Forbidden")
    assert refused.message == (
        'pods is forbidden: User "system:anonymous" cannot list resource "pods" in API group "" '
        "at the cluster scope"
    )
    assert web.get("/readyz").code == 200 and web.get("/version").code == 200
    assert web.get("/apis").message == (
        'forbidden: User "system:anonymous" cannot get path "/apis"'
    )


def test_tokens_are_rotated(closed: Server) -> None:
    old, new = (Web(closed.url, token, context=context_of(closed)) for token in TOKENS)
    assert old.get(PODS).code == 200
    assert (new.get(PODS).code, new.get(PODS).reason) == (401, "Unauthorized")
    with old.watch(PODS) as watch:
        closed.set_tokens({"fresh": "agent"})
        assert old.get(PODS).code == 401 and new.get(PODS).code == 200
        closed.create(pod())
        assert watch.named() == ("ADDED", "a")  # what has begun goes on


def test_another_scheme_is_no_token(closed: Server) -> None:
    web = Web(closed.url, context=context_of(closed))
    for value in ("Basic eDp5", "Bearer", "secret"):
        answer = web.ask("GET", PODS, headers={"Authorization": value})
        assert answer.code == 403 and "system:anonymous" in answer.message


def test_verbs_are_revoked(closed: Server) -> None:
    web = Web(closed.url, "secret", context=context_of(closed))
    closed.deny("agent", "list", "pods")
    closed.deny("agent", "patch", "nodes/status")
    closed.deny("agent", namespace="kube-system")
    closed.create(node())
    assert web.get(PODS).message == (
        'pods is forbidden: User "agent" cannot list resource "pods" in API group "" in the '
        'namespace "default"'
    )
    assert web.get(PODS, watch="1", timeoutSeconds="1").code == 200
    refused = web.patch(f"{NODES}/n1/status", {"status": {}})
    assert refused.message == (
        'nodes "n1" is forbidden: User "agent" cannot patch resource "nodes/status" in API group '
        '"" at the cluster scope'
    )
    assert refused.body["details"] == {"name": "n1", "kind": "nodes"}
    assert web.patch(f"{NODES}/n1", {}).code == 200
    assert web.get("/api/v1/namespaces/kube-system/services").code == 403
    closed.allow_all_again()
    assert web.get(PODS).code == 200


def test_rules_of_a_role(closed: Server) -> None:
    web = Web(closed.url, "secret", context=context_of(closed))
    closed.create(definition())
    closed.create(node())
    closed.set_rules(
        "agent",
        [
            {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["list", "watch"]},
            {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
            {"apiGroups": ["example.io"], "resources": ["*"], "verbs": ["patch"]},
            {
                "apiGroups": [""],
                "resources": ["services"],
                "verbs": ["get", "list"],
                "resourceNames": ["one"],
            },
        ],
    )
    assert web.get(PODS).code == 200 and web.get(f"{PODS}/a").code == 403
    assert web.patch(f"{NODES}/n1/status", {}).code == 200
    assert web.patch(f"{NODES}/n1", {}).code == 403
    services = "/api/v1/namespaces/default/services"
    assert web.get(f"{services}/one").code == 404
    assert web.get(f"{services}/two").code == 403
    # One name by a field selector is that name.
    assert web.get(services, fieldSelector="metadata.name=one").code == 200
    assert web.get(services, fieldSelector="metadata.name=two").code == 403
    assert web.get(services).code == 403
    # An apply that creates is a creation as well.
    refused = web.apply(f"{THINGS}/t", thing())
    assert refused.code == 403 and "cannot create resource" in refused.message
    closed.create(thing())
    assert web.apply(f"{THINGS}/t", thing(size=2), force="true").code == 200
    closed.set_rules("agent", None)
    assert web.get(CRDS).code == 200


def test_tls() -> None:
    with open_server(tls=True, tokens={"secret": "agent"}) as server:
        assert server.url.startswith("https://") and server.ca is not None
        context = ssl.create_default_context(cafile=str(server.ca))
        web = Web(server.url, "secret", context=context)
        assert web.post(PODS, pod()).code == 201
        with web.watch(PODS) as watch:
            assert watch.named() == ("ADDED", "a")
            server.create(pod("b"))
            assert watch.named() == ("ADDED", "b")
        with pytest.raises(ssl.SSLCertVerificationError):
            Web(server.url, context=ssl.create_default_context()).get(PODS)
        with pytest.raises(OSError):
            Web(server.url.replace("https", "http")).get(PODS)
        server.stop()
        server.start()
        assert web.get(f"{PODS}/a").code == 200  # the same certificate
