# SPDX-License-Identifier: Apache-2.0
"""Services and endpoint slices to facts: every field used, every error named."""

import json
from pathlib import Path
from typing import Any

import pytest

from agent.core.events import (
    EndpointSlice,
    EndpointSliceRemoved,
    EndpointSliceUpserted,
    Event,
    ResourceKey,
    Service,
    ServicePort,
    ServiceRemoved,
    ServiceUpserted,
    SourceSynced,
)
from agent.kube.fields import TranslateError
from agent.kube.manifests import ManifestSource
from agent.kube.translate import translate
from bench.lab import manifests

HTTP, DNS = ("http", "TCP", 80), ("dns", "UDP", 53)


def service(spec: Any, **metadata: Any) -> dict[str, Any]:
    meta = {"namespace": "shop", "name": "web", **metadata}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


def endpoint_slice(*addresses: str, **fields: Any) -> dict[str, Any]:
    made = manifests.endpoint_slice("shop", "web-1", "web", addresses, [("http", "TCP", 8080)])
    return {**made, **fields}


def test_a_service_with_everything() -> None:
    obj = manifests.service("shop", "web", ["10.96.0.11", "FD00::B"], [HTTP, DNS])
    obj["spec"] |= {"selector": {"app": "web"}, "fieldOfTomorrow": {"deep": [None]}}
    obj["spec"]["ports"][0] |= {"targetPort": "http", "nodePort": 30080, "appProtocol": "h2c"}
    fact = translate(obj)
    assert fact == Service(
        namespace="shop",
        name="web",
        cluster_ips=("10.96.0.11", "fd00::b"),
        ports=(ServicePort("http", 6, 80), ServicePort("dns", 17, 53)),
    )
    assert isinstance(fact, Service)
    assert fact.key == ResourceKey("Service", "shop", "web")


@pytest.mark.parametrize(
    ("spec", "addresses"),
    [
        (None, ()),  # no API server has given it an address
        ({"clusterIP": "10.96.0.11"}, ("10.96.0.11",)),  # as users write it
        ({"clusterIP": "10.96.0.11", "clusterIPs": []}, ("10.96.0.11",)),
        ({"clusterIPs": ["10.96.0.11"]}, ("10.96.0.11",)),
        ({"clusterIP": "fd00::", "clusterIPs": ["fd00::", "10.96.0.1"]}, ("fd00::", "10.96.0.1")),
        ({"clusterIP": "None"}, ()),
        ({"clusterIP": "None", "clusterIPs": ["None"]}, ()),
        ({"type": "ExternalName", "externalName": "example.org"}, ()),
        ({"type": "ExternalName", "clusterIP": "10.96.0.11"}, ()),  # has kept a former one
        ({"type": "TypeOfTomorrow", "clusterIP": "10.96.0.11"}, ("10.96.0.11",)),
    ],
)  # fmt: skip
def test_addresses_of_a_service(spec: Any, addresses: tuple[str, ...]) -> None:
    assert translate(service(spec)) == Service("shop", "web", addresses)


def test_a_single_port_needs_no_name_and_is_tcp() -> None:
    fact = translate(service({"ports": [{"port": 443}]}))
    assert fact == Service("shop", "web", ports=(ServicePort("", 6, 443),))
    both = [{"name": name, "port": 53, "protocol": name.upper()} for name in ("tcp", "udp")]
    fact = translate(service({"ports": both}))
    assert isinstance(fact, Service)
    assert len(fact.ports) == 2


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (5, "spec"),
        ({"type": 5}, "spec.type"),
        ({"clusterIP": "nonsense"}, "spec.clusterIP"),
        ({"clusterIP": "127.0.0.1"}, "spec.clusterIP"),
        ({"clusterIP": 10}, "spec.clusterIP"),
        ({"clusterIPs": "10.96.0.11"}, "spec.clusterIPs"),
        ({"clusterIPs": ["10.96.0.11", "nonsense"]}, "spec.clusterIPs[1]"),
        ({"clusterIPs": ["10.96.0.11", None]}, "spec.clusterIPs[1]"),
        ({"clusterIPs": ["10.96.0.11", "10.96.0.12"]}, "spec.clusterIPs[1]"),
        ({"clusterIPs": ["10.96.0.11", "None"]}, "spec.clusterIPs[1]"),
        ({"clusterIP": "10.96.0.12", "clusterIPs": ["10.96.0.11"]}, "spec.clusterIPs[0]"),
        ({"ports": {}}, "spec.ports"),
        ({"ports": [5]}, "spec.ports[0]"),
        ({"ports": [{}]}, "spec.ports[0].port"),
        ({"ports": [{"port": 0}]}, "spec.ports[0].port"),
        ({"ports": [{"port": 65536}]}, "spec.ports[0].port"),
        ({"ports": [{"port": "80"}]}, "spec.ports[0].port"),
        ({"ports": [{"port": True}]}, "spec.ports[0].port"),
        ({"ports": [{"port": 80, "protocol": "tcp"}]}, "spec.ports[0].protocol"),
        ({"ports": [{"port": 80, "name": "Web"}]}, "spec.ports[0].name"),
        ({"ports": [{"port": 80, "name": "a"}, {"port": 81}]}, "spec.ports[1].name"),
        ({"ports": [{"port": n, "name": "a"} for n in (80, 81)]}, "spec.ports[1].name"),
        ({"ports": [{"port": 80, "name": n} for n in "ab"]}, "spec.ports[1]"),
    ],
)
def test_what_is_wrong_with_a_service(spec: Any, field: str) -> None:
    with pytest.raises(TranslateError) as caught:
        translate(service(spec))
    assert caught.value.field == field
    assert caught.value.key == ResourceKey("Service", "shop", "web")


def test_the_message_says_what_a_port_may_be() -> None:
    with pytest.raises(TranslateError, match=r"spec\.ports\[0\]\.port: must be 1 to 65535, not 0"):
        translate(service({"ports": [{"port": 0}]}))


def test_a_slice_has_the_addresses_of_all_endpoints() -> None:
    endpoints = [
        {"addresses": ["10.0.0.2"], "conditions": {"ready": True}, "nodeName": "node-1"},
        {"addresses": ["10.0.0.1", "10.0.0.2"], "conditions": {"ready": False}},
        {"addresses": ["10.0.0.3"], "conditions": {"terminating": True}, "hints": {}},
    ]
    fact = translate(endpoint_slice(endpoints=endpoints))
    assert fact == EndpointSlice(
        namespace="shop",
        name="web-1",
        service="web",
        addresses=("10.0.0.2", "10.0.0.1", "10.0.0.3"),
        ports=(ServicePort("http", 6, 8080),),
    )
    assert isinstance(fact, EndpointSlice)
    assert fact.key == ResourceKey("EndpointSlice", "shop", "web-1")


def test_slices_of_other_kinds() -> None:
    fact = translate(endpoint_slice("FD00::A"))
    assert isinstance(fact, EndpointSlice)
    assert fact.addresses == ("fd00::a",)
    names = [{"addresses": ["example.org"]}]
    fact = translate(endpoint_slice(addressType="FQDN", endpoints=names))
    assert isinstance(fact, EndpointSlice)
    assert fact.addresses == ()
    meta = {"namespace": "shop", "name": "web-1", "labels": {"app": 5}}
    bare = endpoint_slice(metadata=meta, endpoints=None, ports=None)
    assert translate(bare) == EndpointSlice("shop", "web-1")


def test_ports_without_a_number_are_left_out() -> None:
    ports = [{"name": "any"}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"port": None}]
    fact = translate(endpoint_slice(ports=ports))
    assert isinstance(fact, EndpointSlice)
    assert fact.ports == (ServicePort("dns", 17, 53),)


LABEL = "kubernetes.io/service-name"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"addressType": None}, "addressType"),
        ({"addressType": "IPv5"}, "addressType"),
        ({"addressType": 4}, "addressType"),
        ({"endpoints": {}}, "endpoints"),
        ({"endpoints": [5]}, "endpoints[0]"),
        ({"endpoints": [{}]}, "endpoints[0].addresses"),
        ({"endpoints": [{"addresses": ["10.0.0.1", 5]}]}, "endpoints[0].addresses[1]"),
        ({"endpoints": [{"addresses": ["nonsense"]}]}, "endpoints[0].addresses[0]"),
        ({"endpoints": [{"addresses": ["127.0.0.1"]}]}, "endpoints[0].addresses[0]"),
        ({"endpoints": [{"addresses": ["fd00::1"]}]}, "endpoints[0].addresses[0]"),
        ({"ports": 5}, "ports"),
        ({"ports": [None]}, "ports[0]"),
        ({"ports": [{"port": 65536}]}, "ports[0].port"),
        ({"ports": [{"port": 80, "protocol": "ICMP"}]}, "ports[0].protocol"),
        ({"ports": [{"port": 80, "name": "Web"}]}, "ports[0].name"),
        ({"ports": [{"port": 80, "name": "a"}] * 2}, "ports[1].name"),
        ({"metadata": {"name": "s", "labels": {LABEL: 5}}}, f"metadata.labels[{LABEL}]"),
        ({"metadata": {"name": "s", "labels": {LABEL: "-"}}}, f"metadata.labels[{LABEL}]"),
        ({"metadata": {"name": "S"}}, "metadata.name"),
        ({"apiVersion": "discovery.k8s.io/v1beta1"}, "apiVersion"),
    ],
)
def test_what_is_wrong_with_a_slice(fields: Any, field: str) -> None:
    with pytest.raises(TranslateError) as caught:
        translate(endpoint_slice(**fields))
    assert caught.value.field == field


def test_manifests_have_services_and_slices(tmp_path: Path) -> None:
    file = tmp_path / "all.json"
    made = manifests.service("shop", "web", ["10.96.0.11"], [HTTP])
    file.write_text(json.dumps({"kind": "List", "items": [endpoint_slice("10.0.0.1"), made]}))
    events: list[Event] = []
    source = ManifestSource(tmp_path, events.append)
    source.scan()
    kinds = [type(event) for event in events]
    assert kinds == [ServiceUpserted, EndpointSliceUpserted, SourceSynced]
    events.clear()
    file.unlink()
    source.scan()
    assert [type(event) for event in events] == [EndpointSliceRemoved, ServiceRemoved]
