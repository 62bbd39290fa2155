# SPDX-License-Identifier: Apache-2.0
"""The custom resources, installed from their files: what they take, and what they refuse."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.lab.apiserver.errors import ApiError
from bench.lab.apiserver.server import ApiServer
from tests.unit.deploy.models import faults

CRDS = sorted((Path(__file__).resolve().parents[3] / "deploy/chart/crds").glob("*.yaml"))

IDENTITY = {
    "apiVersion": "bristle.io/v1alpha1",
    "kind": "BristleIdentity",
    "metadata": {"name": "4711", "labels": {"io.kubernetes.pod.namespace": "shop"}},
    "security-labels": {"k8s:app": "cart", "k8s:io.kubernetes.pod.namespace": "shop"},
}
ENDPOINT = {
    "apiVersion": "bristle.io/v1alpha1",
    "kind": "BristleEndpoint",
    "metadata": {"name": "cart-1", "namespace": "default"},
    "spec": {
        "endpointID": 17,
        "identity": 4711,
        "addresses": [{"ip": "10.244.1.7"}, {"ip": "fd00:10:244:1::7"}],
        "ipv4": "10.244.1.7",
        "ipv6": "fd00:10:244:1::7",
        "namedPorts": [
            {"name": "http", "port": 8080, "protocol": "TCP"},
            {"name": "http", "port": 9090, "protocol": "TCP"},
        ],
        "node": {"name": "node-1", "ip": "192.0.2.1"},
    },
}
NODE = {
    "apiVersion": "bristle.io/v1alpha1",
    "kind": "BristleNode",
    "metadata": {"name": "node-1"},
    "spec": {
        "addresses": [
            {"type": "InternalIP", "ip": "192.0.2.1"},
            {"type": "InternalIP", "ip": "2001:db8::1"},
            {"type": "Hostname", "ip": "node-1"},
        ],
        "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"],
        "routingMode": "tunnel",
        "encapsulation": {"port": 8472},
    },
}
CONDITION = {
    "type": "Ready",
    "status": "True",
    "reason": "DatapathInForce",
    "message": "",
    "lastTransitionTime": "2026-01-02T03:04:05Z",
}


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    """An API server with the resources installed."""
    with ApiServer() as running:
        for path in CRDS:
            running.create(yaml.safe_load(path.read_text()))
        yield running


@pytest.mark.parametrize("path", CRDS, ids=lambda path: path.stem)
def test_definitions_have_no_unknown_field(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    assert faults("V1CustomResourceDefinition", document) == []
    assert document["metadata"]["name"] == path.stem + ".bristle.io"


def test_names_and_columns() -> None:
    found = {}
    for path in CRDS:
        spec = yaml.safe_load(path.read_text())["spec"]
        (version,) = spec["versions"]
        assert version["name"] == "v1alpha1"
        shown = [c["name"] for c in version["additionalPrinterColumns"] if not c.get("priority")]
        found[spec["names"]["shortNames"][0]] = (
            spec["names"]["kind"], spec["scope"], "subresources" in version, shown,
        )  # fmt: skip
    assert found == {
        "bid": ("BristleIdentity", "Cluster", False, ["Namespace", "Age"]),
        "bep": ("BristleEndpoint", "Namespaced", True,
                ["Security Identity", "Ingress Enforcement", "Egress Enforcement",
                 "Endpoint State", "IPv4", "IPv6", "Age"]),
        "bn": ("BristleNode", "Cluster", True, ["Internal IP", "Pod CIDRs", "Ready", "Age"]),
    }  # fmt: skip


@pytest.mark.parametrize("item", [IDENTITY, ENDPOINT, NODE], ids=lambda item: item["kind"])
def test_a_good_object_is_kept_as_it_is(server: ApiServer, item: dict[str, Any]) -> None:
    made = server.create(item)
    for key in item.keys() - {"metadata"}:
        assert made[key] == item[key]
    server.delete(item["kind"], item["metadata"]["name"], item["metadata"].get("namespace", ""))


@pytest.mark.parametrize(
    ("item", "path", "value"),
    [
        (IDENTITY, "metadata.name", "255"),
        (IDENTITY, "metadata.name", "65536"),
        (IDENTITY, "metadata.name", "cart"),
        (IDENTITY, "security-labels", {}),
        (IDENTITY, "security-labels", {"k8s:app": 1}),
        (IDENTITY, "security-labels", None),
        (ENDPOINT, "spec.identity", 0),
        (ENDPOINT, "spec.identity", 65536),
        (ENDPOINT, "spec.identity", "4711"),
        (ENDPOINT, "spec.addresses", []),
        (ENDPOINT, "spec.addresses", [{"ip": "10.244.1.7/32"}]),
        (ENDPOINT, "spec.addresses", [{"ip": "10.0.0.1"}, {"ip": "10.0.0.1"}]),
        (ENDPOINT, "spec.addresses", [{"ip": f"10.0.0.{n}"} for n in range(3)]),
        (ENDPOINT, "spec.namedPorts", [{"name": "http", "port": 0, "protocol": "TCP"}]),
        (ENDPOINT, "spec.namedPorts", [{"name": "http", "port": 80, "protocol": "ICMP"}]),
        (ENDPOINT, "spec.namedPorts", [{"name": "HTTP", "port": 80, "protocol": "TCP"}]),
        (ENDPOINT, "spec.node", {"ip": "192.0.2.1"}),
        (NODE, "spec.addresses", [{"type": "Street", "ip": "192.0.2.1"}]),
        (NODE, "spec.podCIDRs", ["10.244.1.0"]),
        (NODE, "spec.podCIDRs", ["10.244.1.0/24", "10.244.1.0/24"]),
        (NODE, "spec.routingMode", "geneve"),
        (NODE, "spec.encapsulation", {"port": 65536}),
    ],
)
def test_a_bad_object_is_refused(
    server: ApiServer, item: dict[str, Any], path: str, value: Any
) -> None:
    bad = copy.deepcopy(item)
    *folders, last = path.split(".")
    place = bad
    for folder in folders:
        place = place[folder]
    place[last] = value
    if value is None:
        del place[last]
    with pytest.raises(ApiError) as caught:
        server.create(bad)
    assert caught.value.code == 422


@pytest.mark.parametrize(
    ("item", "status"),
    [
        (ENDPOINT, {"state": "ready", "ingressEnforcement": True, "egressEnforcement": False,
                    "conditions": [CONDITION]}),
        (NODE, {"conditions": [CONDITION], "capacity": {"ct": {"used": 1, "max": 262144}},
                "version": "0.1"}),
    ],
    ids=["BristleEndpoint", "BristleNode"],
)  # fmt: skip
def test_status_is_written_apart(
    server: ApiServer, item: dict[str, Any], status: dict[str, Any]
) -> None:
    name, namespace = item["metadata"]["name"], item["metadata"].get("namespace", "")
    assert "status" not in server.create({**item, "status": status})
    made = server.patch(item["kind"], name, {"status": status}, namespace, status=True)
    assert made["status"] == status and made["spec"] == item["spec"]
    bad = {"status": {"conditions": [{**CONDITION, "status": "Maybe"}]}}
    with pytest.raises(ApiError):
        server.patch(item["kind"], name, bad, namespace, status=True)
    server.delete(item["kind"], name, namespace)
