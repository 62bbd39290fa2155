# SPDX-License-Identifier: Apache-2.0
"""Objects as the API server sends them mean what `translate` says, only faster."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from agent.core.events import (
    EndpointSlice,
    Fact,
    Pod,
    PublishedEndpoint,
    ResourceKey,
    Service,
    ServicePort,
)
from agent.kube.fields import TranslateError
from agent.kube.kinds import (
    ENDPOINT,
    ENDPOINT_SLICE,
    IDENTITY,
    NAMESPACE,
    NETWORK_POLICY,
    NODE,
    POD,
    SERVICE,
    WATCHED,
    Kind,
)
from agent.kube.translate import CLUSTER_KINDS, Ignored, translate
from agent.kube.translate_wire import translate_ordinary, translate_raw
from agent.kube.wire import WireError, decode_event, decode_head, decode_page
from policy.model import NetworkPolicy

Outcome = Fact | tuple[str, str, ResourceKey | None]


def slow(kind: Kind, obj: Any) -> Outcome:
    try:
        typed = {**obj, "kind": kind.name, "apiVersion": kind.api_version}
        fact = translate(typed, CLUSTER_KINDS)
    except TranslateError as error:
        return (error.field, error.message, error.key)
    assert not isinstance(fact, Ignored)
    return fact


def fast(kind: Kind, obj: Any) -> Outcome:
    try:
        return translate_raw(kind, json.dumps(obj).encode())
    except TranslateError as error:
        return (error.field, error.message, error.key)


# ---- objects, mostly valid ---------------------------------------------------------------------

ODD: SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, -1, 1.0, "", "x", "A b", [], {}, [None], {"a": None}, [{}]]
)


def mostly(good: SearchStrategy[Any], bad: SearchStrategy[Any] = ODD) -> SearchStrategy[Any]:
    """One in sixty is bad: an object has dozens of values, and most objects should be good."""
    return st.integers(0, 59).flatmap(lambda n: bad if n == 17 else good)


def one_of(*good: Any, bad: tuple[Any, ...]) -> SearchStrategy[Any]:
    return mostly(st.sampled_from(good), st.sampled_from(bad) | ODD)


def obj(required: dict[str, Any], optional: dict[str, Any]) -> SearchStrategy[Any]:
    extra = {"unknownField": st.sampled_from([None, {"deep": [1]}, "text"])}
    return mostly(st.fixed_dictionaries(required, optional=optional | extra))


NAME = one_of("a", "web-0", "shop.example", bad=("A", "a_b", "x" * 254))
NAMESPACE_NAME = one_of("default", "shop", bad=("a.b", "x" * 64))
LABELS = st.dictionaries(
    one_of("app", "example.com/tier", bad=("bad key", "a/b/c", "ä")).filter(
        lambda key: isinstance(key, str)
    ),
    one_of("", "web", bad=("-bad", "x" * 64)),
    max_size=3,
)
ADDRESS = one_of(
    *("10.0.0.1", "10.0.0.2", "fd00::1", "FD00:0::2"),
    bad=(
        *("127.0.0.1", "0.1.2.3", "224.0.0.1", "10.0.0.01", "10.0.0.256", "nonsense"),
        *("fe80::1", "::1", "::", "ff02::1", "::ffff:10.0.0.1", "fd00::1%eth0"),
    ),
)
NETWORK = one_of(
    *("10.244.1.0/24", "10.244.1.9/24", "fd00:1::/64"), bad=("10.0.0.1", "x/24", "::ffff:0:0/96")
)
PORT_NUMBER = one_of(1, 80, 65535, bad=(65536, 0, 80.0, 1 << 70))
PORT_NAME = one_of("http", "dns", bad=("80", "a--b", "x" * 16))
PROTOCOL = one_of("TCP", "UDP", "SCTP", bad=("ICMP", "tcp"))
PORT = obj({"containerPort": PORT_NUMBER}, {"name": PORT_NAME, "protocol": PROTOCOL})
CONTAINERS = mostly(
    st.lists(
        obj(
            {},
            {
                "ports": mostly(st.lists(PORT, max_size=3)),
                "restartPolicy": one_of("Always", bad=("Never",)),
            },
        ),
        max_size=3,
    )
)


def metadata(name: SearchStrategy[Any] = NAME, **more: Any) -> SearchStrategy[Any]:
    return obj(
        {"name": name, "namespace": NAMESPACE_NAME},
        {
            "uid": mostly(st.just("u-1")),
            "labels": mostly(LABELS),
            "deletionTimestamp": mostly(st.just("2026-01-01T00:00:00Z")),
            "managedFields": st.just([{"manager": "kubectl", "fieldsV1": {"f:a": {}}}]),
            **more,
        },
    )


PHASE = one_of("Running", "Pending", "Succeeded", "Failed", "Unknown", bad=("Odd",))
MIRROR = st.sampled_from([{}, {"kubernetes.io/config.mirror": "u-3"}])
PODS = obj(
    {"metadata": metadata(annotations=mostly(MIRROR))},
    {
        "spec": obj(
            {},
            {
                "containers": CONTAINERS,
                "initContainers": CONTAINERS,
                "nodeName": NAME,
                "serviceAccountName": NAME,
                "hostNetwork": mostly(st.booleans()),
            },
        ),
        "status": obj(
            {},
            {
                "phase": PHASE,
                "podIP": ADDRESS,
                "podIPs": mostly(st.lists(obj({"ip": ADDRESS}, {}), max_size=3)),
            },
        ),
    },
)
NODES = obj(
    {"metadata": metadata()},
    {
        "spec": obj({}, {"podCIDR": NETWORK, "podCIDRs": mostly(st.lists(NETWORK, max_size=3))}),
        "status": obj(
            {},
            {
                "addresses": mostly(
                    st.lists(
                        obj(
                            {"address": ADDRESS},
                            {"type": one_of("InternalIP", "ExternalIP", "Hostname", bad=("New",))},
                        ),
                        max_size=4,
                    )
                )
            },
        ),
    },
)
ENDPOINTS = obj(
    {
        "metadata": metadata(),
        "spec": obj(
            {"identity": one_of(3, 5, 8, 256, 65535, bad=(0, 1, 9, 200, 65536, 1 << 24))},
            {
                "endpointID": one_of(0, 1, (1 << 32) - 1, bad=(1 << 32, 1 << 70)),
                "addresses": mostly(st.lists(obj({"ip": ADDRESS}, {}), max_size=3)),
                "namedPorts": mostly(
                    st.lists(
                        obj({"name": PORT_NAME, "port": PORT_NUMBER, "protocol": PROTOCOL}, {}),
                        max_size=3,
                    )
                ),
                "node": obj({"name": NAME}, {"ip": ADDRESS}),
            },
        ),
    },
    {},
)
MARKED = mostly(st.dictionaries(st.just("bristle.io/unused-since"), mostly(st.text())))
IDENTITIES = obj(
    {
        "metadata": metadata(
            one_of("256", "4711", "65535", bad=("0256", "255", "65536", "x", "٣٣٣")),
            annotations=MARKED,
        ),
        "security-labels": mostly(
            st.dictionaries(
                st.sampled_from(["k8s:app"] * 9 + ["a=b"]), one_of("", "web", bad=("a;b",))
            )
        ),
    },
    {},
)
SERVICE_NUMBER = one_of(*range(80, 90), bad=(65536, 0, 80.0, 1 << 70))
SERVICE_PORT_NAME = one_of(
    *("http", "dns", "80", "a--b", "x" * 63, "metrics", "grpc"), bad=("A", "a.b", "x" * 64)
)
NAMED_PORT = obj({"port": SERVICE_NUMBER, "name": SERVICE_PORT_NAME}, {"protocol": PROTOCOL})
SERVICE_PORTS = mostly(
    st.lists(NAMED_PORT, max_size=3)
    | st.lists(obj({"port": SERVICE_NUMBER}, {"protocol": PROTOCOL}), max_size=1)
)
CLUSTER_IPS = st.sampled_from(
    [
        *({}, {"clusterIP": ""}, {"clusterIP": "None"}, {"clusterIP": "10.0.0.1"}),
        *({"clusterIP": "None", "clusterIPs": ["None"]}, {"clusterIPs": ["FD00::1"]}),
        *({"clusterIP": "10.0.0.1", "clusterIPs": one} for one in ([], ["10.0.0.1"], ["None"])),
        {"clusterIP": "FD00::1", "clusterIPs": ["FD00::1", "10.0.0.1"]},
        *({"clusterIPs": one} for one in (["None", "10.0.0.1"], ["", "10.0.0.1"], [""])),
        {"clusterIP": "10.0.0.1", "clusterIPs": ["fd00::1", "10.0.0.1"]},
    ]
) | st.fixed_dictionaries(
    {}, optional={"clusterIP": ADDRESS, "clusterIPs": mostly(st.lists(ADDRESS, max_size=3))}
)
SERVICES = obj(
    {
        "metadata": metadata(),
        "spec": mostly(
            st.builds(
                lambda spec, addresses: {**spec, **addresses},
                st.fixed_dictionaries(
                    {},
                    optional={
                        "type": one_of("ClusterIP", "NodePort", "ExternalName", bad=("New",)),
                        "ports": SERVICE_PORTS,
                        "selector": st.just({"app": "web"}),
                    },
                ),
                CLUSTER_IPS,
            )
        ),
    },
    {},
)
SERVICE_LABELS = st.dictionaries(
    st.sampled_from(["kubernetes.io/service-name", "bad key"]),
    one_of("", "web", bad=("-bad", "x" * 64)),
)
FAMILY = {"IPv4": ("10.0.0.1", "10.0.0.2"), "IPv6": ("fd00::1", "FD00:0::2"), "FQDN": ("a.b",)}


def slices(family: str) -> SearchStrategy[Any]:
    address = mostly(st.sampled_from(FAMILY[family]), ADDRESS)
    endpoints = obj(
        {"addresses": mostly(st.lists(address, min_size=1, max_size=3))},
        {"conditions": st.just({"ready": False}), "nodeName": NAME},
    )
    ports = obj({}, {"port": SERVICE_NUMBER, "name": SERVICE_PORT_NAME, "protocol": PROTOCOL})
    return obj(
        {
            "metadata": metadata(labels=mostly(SERVICE_LABELS)),
            "addressType": one_of(family, bad=("IPv5",)),
        },
        {
            "endpoints": mostly(st.lists(endpoints, max_size=3)),
            "ports": mostly(st.lists(ports, max_size=3)),
        },
    )


SLICES = st.sampled_from(sorted(FAMILY)).flatmap(slices)
KINDS = [
    (POD, PODS, 800),
    (ENDPOINT, ENDPOINTS, 400),
    (NODE, NODES, 200),
    (SERVICE, SERVICES, 800),
    (ENDPOINT_SLICE, SLICES, 800),
    (IDENTITY, IDENTITIES, 200),
    (NAMESPACE, obj({"metadata": metadata()}, {}), 100),
]


@pytest.mark.parametrize(("kind", "objects", "examples"), KINDS, ids=lambda one: "")
def test_both_ways_give_the_same_fact_or_refuse_the_same_field(
    kind: Kind, objects: SearchStrategy[Any], examples: int
) -> None:
    @given(objects)
    @settings(max_examples=examples)
    def check(drawn: Any) -> None:
        whole = drawn if isinstance(drawn, dict) else {"metadata": drawn}
        assert fast(kind, whole) == slow(kind, whole)

    check()


def ordinary(kind: Kind, obj: Any) -> Fact | None:
    return translate_ordinary(kind, json.dumps(obj).encode())


def test_ordinary_objects_take_the_fast_way() -> None:
    meta = {"name": "web-0", "namespace": "shop", "uid": "u", "labels": {"app": "web"}}
    port = {"name": "http", "containerPort": 80}
    pod = {
        "metadata": {**meta, "managedFields": [{}], "annotations": {"a": "b"}},
        "spec": {"containers": [{"ports": [port]}], "nodeName": "n", "hostNetwork": False},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]},
    }
    assert isinstance(ordinary(POD, pod), Pod)
    assert isinstance(ordinary(POD, {"metadata": meta}), Pod)
    endpoint = {
        "metadata": meta,
        "spec": {
            "identity": 4711,
            "endpointID": 7,
            "addresses": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            "ipv4": "10.0.0.1",
            "namedPorts": [{"name": "http", "port": 80, "protocol": "TCP"}],
            "node": {"name": "node-1", "ip": "192.0.2.1"},
        },
    }
    found = ordinary(ENDPOINT, endpoint)
    assert isinstance(found, PublishedEndpoint)
    assert (found.identity, found.ips) == (4711, ("10.0.0.1", "fd00::1"))


def test_ordinary_services_and_slices_take_the_fast_way() -> None:
    meta = {"name": "web", "namespace": "shop", "uid": "u", "managedFields": [{}]}
    port = {"name": "http", "protocol": "TCP", "port": 80, "targetPort": "http"}
    given = ["10.96.0.11", "fd00::b"]
    for addresses, found in ((given, tuple(given)), (["None"], ())):
        spec = {"clusterIP": addresses[0], "clusterIPs": addresses, "ports": [port]}
        service = ordinary(SERVICE, {"metadata": meta, "spec": spec, "status": {}})
        assert service == Service("shop", "web", found, (ServicePort("http", 6, 80),))
    labelled = {**meta, "labels": {"app": "web", "kubernetes.io/service-name": "web"}}
    one = {"addresses": ["10.0.0.1"], "conditions": {"ready": False}, "targetRef": {"kind": "Pod"}}
    part = {"metadata": labelled, "addressType": "IPv4", "endpoints": [one, one], "ports": [port]}
    assert ordinary(ENDPOINT_SLICE, part) == EndpointSlice(
        "shop", "web", "web", ("10.0.0.1",), (ServicePort("http", 6, 80),)
    )
    empty = {"metadata": labelled, "addressType": "IPv4", "endpoints": None, "ports": None}
    assert ordinary(ENDPOINT_SLICE, empty) == EndpointSlice("shop", "web", "web")


def test_slices_share_their_ports() -> None:
    def part(name: str) -> EndpointSlice:
        ports = [{"name": "http", "port": 8080, "protocol": "TCP"}]
        meta = {"name": name, "namespace": "shop"}
        fact = fast(ENDPOINT_SLICE, {"metadata": meta, "addressType": "IPv4", "ports": ports})
        assert isinstance(fact, EndpointSlice)
        return fact

    assert part("a").ports is part("b").ports


def test_pods_of_one_workload_share_their_labels_and_ports() -> None:
    def pod(name: str) -> Pod:
        containers = [{"ports": [{"name": "http", "containerPort": 80}]}]
        meta = {"name": name, "namespace": "shop", "labels": {"app": "web", "tier": "front"}}
        fact = fast(POD, {"metadata": meta, "spec": {"containers": containers}})
        assert isinstance(fact, Pod)
        return fact

    one, other = pod("a"), pod("b")
    assert one.labels is other.labels
    assert one.ports is other.ports


# ---- policies ----------------------------------------------------------------------------------


def policy(spec: Any, **more: Any) -> dict[str, Any]:
    meta = {"name": "np", "namespace": "shop", "uid": "u", "managedFields": [{}], "newField": 1}
    return {"metadata": meta, "spec": spec, **more}


def test_new_metadata_of_a_policy_is_harmless() -> None:
    fact = fast(NETWORK_POLICY, policy({"podSelector": {}}, status={"conditions": []}))
    assert isinstance(fact, NetworkPolicy)
    assert (fact.namespace, fact.name, fact.uid) == ("shop", "np", "u")


@pytest.mark.parametrize(
    ("obj", "field"),
    [
        (policy({"podSelector": {}, "denyAll": True}), "spec.denyAll"),
        (policy({"ingress": [{"from": [{"fqdn": "x"}]}]}), "spec.ingress[0].from[0].fqdn"),
        (policy({"ingress": [{"unless": []}]}), "spec.ingress[0].unless"),
        (policy({"podSelector": {"matchNames": ["a"]}}), "spec.podSelector.matchNames"),
        (policy({}, enforcement={"mode": "Audit"}), "enforcement"),
    ],
)
def test_new_fields_that_could_weaken_a_policy_are_refused_by_name(obj: Any, field: str) -> None:
    outcome = fast(NETWORK_POLICY, obj)
    assert isinstance(outcome, tuple)
    assert outcome[0] == field
    assert outcome[2] == ResourceKey("NetworkPolicy", "shop", "np")


# ---- whatever bytes ----------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["metadata", "spec", "status", "items", "type", "object", "name"])
            | st.text(),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
@example(b'{"metadata":{"name":"\xff"}}')
@example(b'{"metadata":{"name":"\\ud800"}}')
@example(b"[" * 100_000)
@example(b'{"metadata":' * 50_000)
@settings(max_examples=400)
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    for kind in WATCHED:
        try:
            translate_raw(kind, data)
        except TranslateError as error:
            str(error).encode("utf-8")
    for decode in (decode_page, decode_event, decode_head):
        try:
            decode(data)
        except WireError as error:
            str(error).encode("utf-8")


def test_one_odd_item_does_not_spoil_the_page() -> None:
    body = {"metadata": {"resourceVersion": "5"}, "items": [{"metadata": 5}, {}, None, [1]]}
    page = decode_page(json.dumps(body).encode())
    assert len(page.items or ()) == 4
    with pytest.raises(TranslateError):
        translate_raw(NODE, (page.items or [])[0])
    with pytest.raises(TranslateError):
        translate_raw(IDENTITY, msgspec.Raw(b"null"))
