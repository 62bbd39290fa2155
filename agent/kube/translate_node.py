# SPDX-License-Identifier: Apache-2.0
"""Nodes, and what agents publish for each other (group bristle.io), to facts. Pure."""

from collections.abc import Iterator, Mapping
from sys import intern

from agent.core.events import (
    Node,
    PublishedEndpoint,
    PublishedIdentity,
    PublishedNode,
    ResourceKey,
)
from agent.kube.addresses import named_port, network, one_of_each_family, usable_address
from agent.kube.fields import (
    Object,
    TranslateError,
    cut,
    list_field,
    mapping_field,
    required_text,
    shown,
    text_field,
    type_name,
)
from agent.kube.metadata import dns_name
from identity.ipcache import NamedPort
from identity.labels import LabelError, LabelSet
from identity.reserved import CLUSTER_FIRST, CLUSTER_LAST, Reserved

UNUSED_SINCE = "bristle.io/unused-since"
"""Annotation of a BristleIdentity that is marked for deletion."""

_ADDRESS_TYPES = ("InternalIP", "ExternalIP")  # in the order in which they count
_LAST_ENDPOINT = (1 << 32) - 1
# Known by provenance or by being no pod at all: never what a pod of another node is.
_NO_PODS = frozenset((Reserved.HOST, Reserved.WORLD, Reserved.WORLD_IPV4, Reserved.WORLD_IPV6))
_POD_NUMBERS = frozenset(Reserved) - _NO_PODS


def translate_node(obj: Object, key: ResourceKey) -> Node:
    """The fact that a node is. Raises TranslateError with the field at fault."""
    metadata = mapping_field(obj, "metadata", "metadata")
    spec = mapping_field(obj, "spec", "spec")
    status = mapping_field(obj, "status", "status")
    internal, external = _node_addresses(status)
    return Node(
        name=key.name,
        uid=text_field(metadata, "uid", "metadata.uid"),
        addresses=tuple(dict.fromkeys((*internal, *external))),
        pod_cidrs=one_of_each_family(_pod_cidrs(spec), "network of the node's pods"),
        external=frozenset(external).difference(internal),
    )


def _node_addresses(status: Object) -> tuple[list[str], list[str]]:
    """Internal and external ones."""
    found: dict[str, list[str]] = {kind: [] for kind in _ADDRESS_TYPES}
    for i, entry in enumerate(list_field(status, "addresses", "status.addresses")):
        path = f"status.addresses[{i}]"
        if not isinstance(entry, Mapping):
            raise TranslateError(path, f"must be an object, not {type_name(entry)}")
        kind = text_field(entry, "type", f"{path}.type")
        if kind not in found:
            continue  # names, and types of a newer API
        path += ".address"
        found[kind].append(usable_address(required_text(entry, "address", path), path, "node"))
    internal, external = (found[kind] for kind in _ADDRESS_TYPES)
    return internal, external


def _pod_cidrs(spec: Object) -> Iterator[tuple[str, str]]:
    cidrs = list_field(spec, "podCIDRs", "spec.podCIDRs")
    for i, cidr in enumerate(cidrs):
        path = f"spec.podCIDRs[{i}]"
        if not isinstance(cidr, str):
            raise TranslateError(path, f"must be text, not {shown(cidr)}")
        yield network(cidr, path), path
    single = text_field(spec, "podCIDR", "spec.podCIDR")
    if single and not cidrs:
        yield network(single, "spec.podCIDR"), "spec.podCIDR"


def translate_endpoint(obj: Object, key: ResourceKey) -> PublishedEndpoint:
    """What a node says of one of its pods. Raises TranslateError with the field at fault."""
    spec = mapping_field(obj, "spec", "spec")
    node = mapping_field(spec, "node", "spec.node")
    identity = _number(spec.get("identity"), "spec.identity", 1, CLUSTER_LAST)
    if not is_pod_identity(identity):
        raise TranslateError("spec.identity", f"{identity} cannot be the identity of a pod")
    endpoint = spec.get("endpointID")
    return PublishedEndpoint(
        namespace=key.namespace,
        name=key.name,
        identity=identity,
        endpoint=0 if endpoint is None else _number(endpoint, "spec.endpointID", 0, _LAST_ENDPOINT),
        ips=one_of_each_family(_endpoint_ips(spec), "address of the pod"),
        ports=_endpoint_ports(spec),
        node_name=dns_name(node, "name", "spec.node.name"),
        pod_uid=_pod_uid(mapping_field(obj, "metadata", "metadata")),
        node_ip=intern(text_field(node, "ip", "spec.node.ip")),
    )


def _pod_uid(metadata: Object) -> str:
    path = "metadata.ownerReferences"
    for i, owner in enumerate(list_field(metadata, "ownerReferences", path)):
        if not isinstance(owner, Mapping):
            raise TranslateError(f"{path}[{i}]", f"must be an object, not {type_name(owner)}")
        if required_text(owner, "kind", f"{path}[{i}].kind") == "Pod":
            return required_text(owner, "uid", f"{path}[{i}].uid")
    return ""


def is_pod_identity(number: int) -> bool:
    """Whether a pod of another node can have it."""
    return CLUSTER_FIRST <= number <= CLUSTER_LAST or number in _POD_NUMBERS


def _endpoint_ips(spec: Object) -> Iterator[tuple[str, str]]:
    """`addresses` count; `ipv4` and `ipv6` only repeat them for listings."""
    for i, entry in enumerate(list_field(spec, "addresses", "spec.addresses")):
        path = f"spec.addresses[{i}]"
        if not isinstance(entry, Mapping):
            raise TranslateError(path, f"must be an object, not {type_name(entry)}")
        path += ".ip"
        yield usable_address(required_text(entry, "ip", path), path, "pod"), path


def _endpoint_ports(spec: Object) -> tuple[NamedPort, ...]:
    ports: dict[NamedPort, None] = {}
    for i, entry in enumerate(list_field(spec, "namedPorts", "spec.namedPorts")):
        path = f"spec.namedPorts[{i}]"
        port = named_port(entry, path, "port")
        if port is None:
            raise TranslateError(f"{path}.name", "is required")
        ports[port] = None
    return tuple(ports)


def translate_identity(obj: Object, key: ResourceKey) -> PublishedIdentity:
    """What a number stands for. Raises TranslateError with the field at fault."""
    name = key.name
    number = int(name) if name.isascii() and name.isdigit() and len(name) <= 5 else 0
    if str(number) != name or not CLUSTER_FIRST <= number <= CLUSTER_LAST:
        raise TranslateError(
            "metadata.name",
            f'"{cut(name)}" is no number from {CLUSTER_FIRST} to {CLUSTER_LAST}',
        )
    path = "security-labels"
    labels: dict[str, str] = {}
    for label, value in mapping_field(obj, "security-labels", path).items():
        if not isinstance(label, str):
            raise TranslateError(path, f"key {shown(label)} is no text")
        if not isinstance(value, str):
            raise TranslateError(f"{path}[{cut(label)}]", f"must be text, not {shown(value)}")
        labels[label] = value
    if not labels:
        raise TranslateError(path, "is required")
    annotations = mapping_field(
        mapping_field(obj, "metadata", "metadata"), "annotations", "metadata.annotations"
    )
    unused_since = text_field(annotations, UNUSED_SINCE, f"metadata.annotations[{UNUSED_SINCE}]")
    try:
        return PublishedIdentity(number, LabelSet(labels), unused_since)
    except LabelError as error:
        raise TranslateError(path, cut(str(error), 500)) from None


def translate_published_node(obj: Object, key: ResourceKey) -> PublishedNode:
    """What a node's agent says of itself. Raises TranslateError with the field at fault."""
    spec = mapping_field(obj, "spec", "spec")
    tunnel = mapping_field(spec, "encapsulation", "spec.encapsulation")
    port = tunnel.get("port")
    return PublishedNode(
        name=key.name,
        routing_mode=text_field(spec, "routingMode", "spec.routingMode"),
        tunnel_port=0 if port is None else _number(port, "spec.encapsulation.port", 1, 65535),
    )


def _number(value: object, path: str, first: int, last: int) -> int:
    if type(value) is not int or not first <= value <= last:
        raise TranslateError(path, f"must be {first} to {last}, not {shown(value)}")
    return value
