# SPDX-License-Identifier: Apache-2.0
"""Kubernetes objects to facts: every field used, every error named."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.events import Namespace, Pod, ResourceKey
from agent.kube.fields import TranslateError
from agent.kube.translate import Ignored, list_items, translate
from identity.ipcache import NamedPort
from policy.model import NetworkPolicy


def pod(**changes: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, **changes}


def test_pod_with_everything() -> None:
    obj = pod(
        metadata={
            "name": "web-0",
            "namespace": "shop",
            "uid": "u-1",
            "labels": {"app": "web", "example.com/tier": ""},
            "deletionTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [{"manager": "kubectl"}],
        },
        spec={
            "nodeName": "node-1",
            "hostNetwork": True,
            "serviceAccountName": "seller",
            "containers": [
                {
                    "name": "a",
                    "ports": [{"name": "http", "containerPort": 80}, {"containerPort": 1}],
                },
                {"name": "b", "ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]},
            ],
            "initContainers": [
                {"restartPolicy": "Always", "ports": [{"name": "mesh", "containerPort": 15001}]},
                {"ports": [{"name": "once", "containerPort": 9}]},
            ],
        },
        status={
            "phase": "Running",
            "podIP": "10.0.0.1",
            "podIPs": [{"ip": "10.0.0.1"}, {"ip": "FD00:0::1"}],
            "qosClass": "BestEffort",
        },
    )
    assert translate(obj) == Pod(
        namespace="shop",
        name="web-0",
        uid="u-1",
        labels={"app": "web", "example.com/tier": ""},
        service_account="seller",
        node_name="node-1",
        host_network=True,
        ips=("10.0.0.1", "fd00::1"),
        ports=(
            NamedPort("http", 6, 80),
            NamedPort("dns", 17, 53),
            NamedPort("mesh", 6, 15001),
        ),
        phase="Running",
        deleted=True,
    )


def test_pod_with_next_to_nothing() -> None:
    assert translate(pod(spec=None, status=None)) == Pod("default", "p")


@pytest.mark.parametrize(
    ("status", "ips"),
    [
        ({"podIP": "10.0.0.1"}, ("10.0.0.1",)),
        ({"podIPs": [{"ip": "fd00::1"}]}, ("fd00::1",)),
        ({"podIP": "10.0.0.9", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]}, ("10.0.0.9",)),
        ({"podIP": "10.0.0.1", "phase": "Succeeded"}, ()),
        ({"podIP": "10.0.0.1", "phase": "Failed"}, ()),
        ({"podIP": "", "podIPs": []}, ()),
    ],
)
def test_pod_addresses(status: dict[str, Any], ips: tuple[str, ...]) -> None:
    fact = translate(pod(status=status))
    assert isinstance(fact, Pod)
    assert fact.ips == ips


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"metadata": {}}, "metadata.name", "required"),
        ({"metadata": {"generateName": "x-"}}, "metadata.generateName", "only an API server"),
        ({"metadata": {"name": "P"}}, "metadata.name", "no valid name"),
        ({"metadata": {"name": "a" * 254}}, "metadata.name", "no valid name"),
        ({"metadata": {"name": 5}}, "metadata.name", "put it in quotes"),
        (
            {"metadata": {"name": "p", "namespace": "a.b"}},
            "metadata.namespace",
            "no valid namespace",
        ),
        (
            {"metadata": {"name": "p", "labels": {"a": True}}},
            "metadata.labels[a]",
            "true is no text",
        ),
        ({"metadata": {"name": "p", "labels": {True: "a"}}}, "metadata.labels", "true is no text"),
        ({"metadata": {"name": "p", "labels": {"a/b/c": ""}}}, "metadata.labels", "a/b/c"),
        ({"metadata": {"name": "p", "labels": {"a": "-"}}}, "metadata.labels[a]", "'-'"),
        ({"metadata": {"name": "p", "labels": {"a": "x" * 64}}}, "metadata.labels[a]", "63"),
        ({"metadata": {"name": "p", "labels": []}}, "metadata.labels", "must be an object"),
        ({"metadata": "p"}, "metadata", "must be an object, not text"),
        ({"spec": {"nodeName": 5}}, "spec.nodeName", "must be text, not 5"),
        ({"spec": {"hostNetwork": "true"}}, "spec.hostNetwork", "must be true or false"),
        ({"spec": {"containers": {}}}, "spec.containers", "must be a list"),
        ({"spec": {"containers": [5]}}, "spec.containers[0]", "must be an object"),
        ({"status": {"phase": "running"}}, "status.phase", "unknown phase"),
        ({"status": {"podIP": "10.0.0.01"}}, "status.podIP", "no IP address"),
        ({"status": {"podIP": "127.0.0.1"}}, "status.podIP", "cannot be the address of a pod"),
        ({"status": {"podIP": "fe80::1"}}, "status.podIP", "cannot be the address of a pod"),
        ({"status": {"podIP": "::ffff:10.0.0.1"}}, "status.podIP", "write 10.0.0.1"),
        ({"status": {"podIPs": [{}]}}, "status.podIPs[0].ip", "required"),
        (
            {"status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]}},
            "status.podIPs[1].ip",
            "second IPv4",
        ),
        ({"apiVersion": "v1beta1"}, "apiVersion", "must be v1 for a Pod"),
        ({"apiVersion": None}, "apiVersion", "required"),
        ({"kind": ""}, "kind", "required"),
    ],
)
def test_what_is_wrong_with_a_pod(changes: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(TranslateError) as caught:
        translate(pod(**changes))
    assert caught.value.field == field
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("port", "field"),
    [
        ({"name": "http", "containerPort": 0}, "containerPort"),
        ({"name": "http", "containerPort": 65536}, "containerPort"),
        ({"name": "http", "containerPort": "80"}, "containerPort"),
        ({"name": "http", "containerPort": True}, "containerPort"),
        ({"name": "http"}, "containerPort"),
        ({"name": "http", "containerPort": 80, "protocol": "tcp"}, "protocol"),
        ({"name": "80", "containerPort": 80}, "name"),
        ({"name": "a--b", "containerPort": 80}, "name"),
        ({"name": "a" * 16, "containerPort": 80}, "name"),
    ],
)
def test_what_is_wrong_with_a_port(port: dict[str, Any], field: str) -> None:
    with pytest.raises(TranslateError) as caught:
        translate(pod(spec={"containers": [{}, {"ports": [port]}]}))
    assert caught.value.field == f"spec.containers[1].ports[0].{field}"
    assert caught.value.key == ResourceKey("Pod", "default", "p")


def test_namespace_always_has_its_name_as_label() -> None:
    labels = {"zone": "a", "kubernetes.io/metadata.name": "lie"}
    obj = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}}
    assert translate(obj) == Namespace("shop", {"zone": "a", "kubernetes.io/metadata.name": "shop"})


def policy(spec: Any, **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "np", **metadata},
        "spec": spec,
    }


def test_policy_errors_keep_their_field_and_get_their_key() -> None:
    fact = translate(policy({"podSelector": {}}))
    assert isinstance(fact, NetworkPolicy)
    assert (fact.namespace, fact.name) == ("default", "np")
    with pytest.raises(TranslateError) as caught:
        translate(
            policy({"podSelector": {}, "ingress": [{"ports": [{"port": 0}]}]}, namespace="shop")
        )
    assert caught.value.field == "spec.ingress[0].ports[0].port"
    assert caught.value.key == ResourceKey("NetworkPolicy", "shop", "np")
    with pytest.raises(TranslateError) as caught:
        translate(policy({"podSelector": {"matchLabels": {True: "x"}}}))
    assert caught.value.field == "spec.podSelector.matchLabels"


@pytest.mark.parametrize(
    "obj",
    [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}},
        {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "s"}},
        {"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy", "metadata": 5},
        {"apiVersion": "v1", "kind": "ConfigMap"},
    ],
)
def test_other_kinds_are_ignored_with_a_note(obj: dict[str, Any]) -> None:
    result = translate(obj)
    assert isinstance(result, Ignored)
    assert result.key.kind == obj["kind"]
    assert obj["kind"] in result.note


def test_outdated_versions_are_refused_and_not_ignored() -> None:
    with pytest.raises(TranslateError) as caught:
        translate({**policy({}), "apiVersion": "extensions/v1beta1"})
    assert caught.value.field == "apiVersion"
    assert caught.value.key == ResourceKey("NetworkPolicy", "default", "np")


def test_lists() -> None:
    typed = {"kind": "PodList", "apiVersion": "v1", "items": [{"metadata": {"name": "p"}}]}
    items = list_items(typed)
    assert items is not None
    assert translate(items[0]) == Pod("default", "p")
    assert list_items({"kind": "List", "items": None}) == ()
    assert list_items(pod()) is None
    with pytest.raises(TranslateError, match=r"items\[1\]"):
        list_items({"kind": "List", "items": [{}, 5]})
    with pytest.raises(TranslateError, match="list within a list"):
        translate({"apiVersion": "v1", "kind": "List", "items": []})


_FIELDS = [
    *("apiVersion", "kind", "metadata", "spec", "status", "name", "namespace", "labels", "items"),
    *("podIPs", "podIP", "ip", "phase", "hostNetwork", "containers", "ports", "containerPort"),
    *("protocol", "podSelector", "matchLabels", "ingress", "from", "v1", "Pod", "Namespace", "p"),
    *("networking.k8s.io/v1", "NetworkPolicy"),
]
_JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(_FIELDS) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(_FIELDS) | st.text() | st.booleans(), inner, max_size=5)
    ),
    max_leaves=30,
)


@given(
    st.sampled_from(["Pod", "Namespace"]),
    st.fixed_dictionaries({"name": st.just("p")}, optional={"labels": _JUNK, "namespace": _JUNK}),
    _JUNK,
    _JUNK,
)
def test_any_object_is_translated_or_refused(
    kind: str, metadata: Any, spec: Any, status: Any
) -> None:
    objects = [
        {"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec, "status": status},
        policy(spec, **metadata),
        spec,
        status,
    ]
    for obj in objects:
        try:
            for item in list_items(obj) or (obj,):
                translate(item)
        except TranslateError as error:
            assert error.message
            str(error).encode("utf-8")
