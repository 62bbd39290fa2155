# SPDX-License-Identifier: Apache-2.0
"""Nodes, and what agents publish, to facts: every field used, every error named."""

import json
from pathlib import Path
from typing import Any

import pytest

from agent.core.events import (
    Event,
    Node,
    NodeUpserted,
    PublishedEndpoint,
    PublishedIdentity,
    PublishedNode,
    ResourceIgnored,
)
from agent.kube.fields import TranslateError
from agent.kube.kinds import BRISTLE_NODE
from agent.kube.manifests import ManifestSource
from agent.kube.translate import CLUSTER_KINDS, Ignored, translate
from agent.kube.translate_wire import translate_raw
from identity.ipcache import NamedPort
from identity.labels import LabelSet


def node(spec: Any = None, *addresses: tuple[str, str], **metadata: Any) -> dict[str, Any]:
    listed = [{"type": kind, "address": address} for kind, address in addresses]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "ip-10-0-0-1.example.internal", **metadata},
        "spec": spec,
        "status": {"addresses": listed},
    }


def test_a_node_with_everything() -> None:
    obj = node(
        {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "FD00:1::/64"]},
        ("Hostname", "ip-10-0-0-1"),
        ("ExternalIP", "198.51.100.7"),
        ("InternalIP", "192.0.2.1"),
        ("InternalDNS", "ip-10-0-0-1.example.internal"),
        ("InternalIP", "FD00::A"),
        ("ExternalIP", "192.0.2.1"),
        uid="u-1",
    )
    assert translate(obj) == Node(
        name="ip-10-0-0-1.example.internal",
        uid="u-1",
        addresses=("192.0.2.1", "fd00::a", "198.51.100.7"),
        pod_cidrs=("10.244.1.0/24", "fd00:1::/64"),
        external=frozenset({"198.51.100.7"}),
    )


def test_a_node_with_next_to_nothing() -> None:
    name = "ip-10-0-0-1.example.internal"
    assert translate({**node(), "status": None}) == Node(name)
    assert translate(node({"podCIDR": "10.244.1.0/24"})) == Node(name, pod_cidrs=("10.244.1.0/24",))
    # The API takes a network with further bits, and means the network.
    assert translate(node({"podCIDRs": ["10.244.1.9/24"]})) == Node(
        name, pod_cidrs=("10.244.1.0/24",)
    )


@pytest.mark.parametrize(
    ("obj", "field"),
    [
        (node(None, ("InternalIP", "nonsense")), "status.addresses[0].address"),
        (node(None, ("InternalIP", "127.0.0.1")), "status.addresses[0].address"),
        (node(None, ("InternalIP", "")), "status.addresses[0].address"),
        (node({"podCIDRs": ["10.244.1.0/24", "10.244.2.0/24"]}), "spec.podCIDRs[1]"),
        (node({"podCIDRs": ["10.244.1.0/33"]}), "spec.podCIDRs[0]"),
        (node({"podCIDRs": ["10.244.1.0"]}), "spec.podCIDRs[0]"),
        (node({"podCIDRs": [5]}), "spec.podCIDRs[0]"),
        (node({"podCIDR": "x/24"}), "spec.podCIDR"),
        (node(name="A"), "metadata.name"),
    ],
)
def test_what_is_wrong_with_a_node(obj: Any, field: str) -> None:
    with pytest.raises(TranslateError) as caught:
        translate(obj)
    assert caught.value.field == field


GROUP = "bristle.io/v1alpha1"


def published(spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": GROUP,
        "kind": "BristleEndpoint",
        "metadata": {"name": "web-0", "namespace": "shop"},
        "spec": spec,
    }


def test_an_endpoint_of_another_node() -> None:
    obj = published(
        {
            "endpointID": 7,
            "identity": 4711,
            "ipv4": "10.244.2.9",
            "ipv6": "fd00::9",
            "addresses": [{"ip": "10.244.2.9"}, {"ip": "FD00::9"}],
            "namedPorts": [{"name": "dns", "port": 53, "protocol": "UDP"}],
            "node": {"name": "node-2", "ip": "192.0.2.2"},
        }
    )
    assert translate(obj, CLUSTER_KINDS) == PublishedEndpoint(
        namespace="shop",
        name="web-0",
        identity=4711,
        endpoint=7,
        ips=("10.244.2.9", "fd00::9"),
        ports=(NamedPort("dns", 17, 53),),
        node_name="node-2",
        node_ip="192.0.2.2",
    )


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "spec.identity"),
        ({"identity": 1}, "spec.identity"),  # host: known by provenance alone
        ({"identity": 9}, "spec.identity"),
        ({"identity": 200}, "spec.identity"),
        ({"identity": 65536}, "spec.identity"),
        ({"identity": True}, "spec.identity"),
        ({"identity": 300, "endpointID": -1}, "spec.endpointID"),
        ({"identity": 300, "addresses": [{"ip": "127.0.0.1"}]}, "spec.addresses[0].ip"),
        ({"identity": 300, "addresses": [{"ip": "10.0.0.1"}] * 2}, "spec.addresses[1].ip"),
        ({"identity": 300, "namedPorts": [{"port": 1}]}, "spec.namedPorts[0].name"),
        ({"identity": 300, "node": {"name": "A"}}, "spec.node.name"),
    ],
)
def test_what_is_wrong_with_an_endpoint(spec: Any, field: str) -> None:
    with pytest.raises(TranslateError) as caught:
        translate(published(spec), CLUSTER_KINDS)
    assert caught.value.field == field


def identity(name: str, labels: Any, annotations: Any = None) -> dict[str, Any]:
    metadata = {"name": name, "annotations": annotations}
    kind = {"apiVersion": GROUP, "kind": "BristleIdentity"}
    return {**kind, "metadata": metadata, "security-labels": labels}


def test_an_identity_and_its_mark() -> None:
    labels = {"k8s:app": "web", "k8s:io.kubernetes.pod.namespace": "shop"}
    marked = {"bristle.io/unused-since": "2026-01-01T00:00:00Z", "other": "x"}
    assert translate(identity("300", labels), CLUSTER_KINDS) == PublishedIdentity(
        300, LabelSet(labels)
    )
    fact = translate(identity("300", labels, marked), CLUSTER_KINDS)
    assert fact == PublishedIdentity(300, LabelSet(labels), "2026-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("obj", "field"),
    [
        (identity("255", {"k8s:a": "b"}), "metadata.name"),
        (identity("65536", {"k8s:a": "b"}), "metadata.name"),
        (identity("0300", {"k8s:a": "b"}), "metadata.name"),
        (identity("web", {"k8s:a": "b"}), "metadata.name"),
        (identity("300", {}), "security-labels"),
        (identity("300", None), "security-labels"),
        (identity("300", {"k8s:a": 5}), "security-labels[k8s:a]"),
        (identity("300", {"k8s:a": "x;y"}), "security-labels"),
    ],
)
def test_what_is_wrong_with_an_identity(obj: Any, field: str) -> None:
    with pytest.raises(TranslateError) as caught:
        translate(obj, CLUSTER_KINDS)
    assert caught.value.field == field


def announced(spec: Any) -> dict[str, Any]:
    return {"apiVersion": GROUP, "kind": "BristleNode", "metadata": {"name": "b"}, "spec": spec}


@pytest.mark.parametrize(
    ("spec", "fact"),
    [
        ({"routingMode": "tunnel", "encapsulation": {"port": 8472}}, ("tunnel", 8472)),
        ({"routingMode": "native", "addresses": 5, "newer": {}}, ("native", 0)),
        ({"addresses": []}, ("", 0)),  # of an older agent
        ({"routingMode": None, "encapsulation": {"port": None}}, ("", 0)),
        ({"encapsulation": None}, ("", 0)),
        (None, ("", 0)),
    ],
)
def test_what_a_node_announces(spec: Any, fact: tuple[str, int]) -> None:
    assert translate(announced(spec), CLUSTER_KINDS) == PublishedNode("b", *fact)
    raw = json.dumps(announced(spec)).encode()
    assert translate_raw(BRISTLE_NODE, raw) == PublishedNode("b", *fact)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"routingMode": 5}, "spec.routingMode"),
        ({"encapsulation": 8472}, "spec.encapsulation"),
        ({"encapsulation": {"port": "8472"}}, "spec.encapsulation.port"),
        ({"encapsulation": {"port": 0}}, "spec.encapsulation.port"),
        ({"encapsulation": {"port": 65536}}, "spec.encapsulation.port"),
    ],
)
def test_what_is_wrong_with_an_announcement(spec: Any, field: str) -> None:
    with pytest.raises(TranslateError) as caught:
        translate(announced(spec), CLUSTER_KINDS)
    assert caught.value.field == field


def test_manifests_have_nodes_but_nothing_that_agents_publish(tmp_path: Path) -> None:
    objects = [node({"podCIDR": "10.244.1.0/24"}), identity("300", {"k8s:a": "b"})]
    (tmp_path / "all.json").write_text(json.dumps({"kind": "List", "items": objects}))
    events: list[Event] = []
    ManifestSource(tmp_path, events.append).scan()
    [upserted] = [event for event in events if isinstance(event, NodeUpserted)]
    assert upserted.node.pod_cidrs == ("10.244.1.0/24",)
    [ignored] = [event for event in events if isinstance(event, ResourceIgnored)]
    assert "BristleIdentity" in ignored.note
    assert isinstance(translate(objects[1]), Ignored)
