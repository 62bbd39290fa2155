# SPDX-License-Identifier: Apache-2.0
"""NetworkPolicy (networking.k8s.io/v1) from JSON or YAML, checked as the API server checks it.

Source: pkg/apis/networking/validation and pkg/apis/networking/v1/defaults.go of Kubernetes.
Stricter than upstream in four ways, each because the looser reading hides a mistake: CIDRs with
host bits, IPv4-mapped CIDRs, a policy type named twice, and unknown fields are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv6Network, ip_interface, ip_network
from typing import Any, Final, NoReturn

from identity.peers import IPBlock, Network
from identity.selectors import EVERYTHING, Selector, SelectorError, parse_selector
from policy.model import (
    LAST_PORT,
    PROTOCOLS,
    TCP,
    BlockPeer,
    Direction,
    NetworkPolicy,
    Peer,
    PodPeer,
    Port,
    Rule,
)

API_VERSION: Final = "networking.k8s.io/v1"
KIND: Final = "NetworkPolicy"

_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_PORT_NAME: Final = re.compile(r"(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
_PREFIX: Final = re.compile(r"[0-9a-fA-F:.]+/(0|[1-9][0-9]{0,2})")
_TYPES: Final = {"Ingress": Direction.INGRESS, "Egress": Direction.EGRESS}
_TOP_FIELDS: Final = ("apiVersion", "kind", "metadata", "spec", "status")
_METADATA_FIELDS: Final = (
    "name",
    "namespace",
    "uid",
    "labels",
    "annotations",
    "generateName",
    "selfLink",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "ownerReferences",
    "finalizers",
    "clusterName",
    "managedFields",
)


class PolicyError(ValueError):
    """A policy that is refused whole. `field` is the path of what is wrong, as the API names it,
    `resource` is `namespace/name` as far as it is known."""

    def __init__(self, field: str, message: str, resource: str = "") -> None:
        super().__init__(f"{KIND} {resource}: {field}: {message}")
        self.field = field
        self.message = message
        self.resource = resource


def parse_network_policy(obj: object) -> NetworkPolicy:
    """The policy that a document holds. A missing namespace is `default`, as for kubectl.

    Raises PolicyError, with the first wrong field, and nothing else.
    """
    resource = _resource(obj)
    try:
        return _parse(obj)
    except _Wrong as error:
        raise PolicyError(error.field, error.message, resource) from None
    except SelectorError as error:
        raise PolicyError(error.field, error.message, resource) from None


class _Wrong(Exception):
    def __init__(self, field: str, message: str) -> None:
        self.field = field
        self.message = message


def _parse(obj: object) -> NetworkPolicy:
    if not isinstance(obj, Mapping):
        _refuse("", f"the document must be a mapping, not {_kind(obj)}")
    _known(obj, "", _TOP_FIELDS)
    if obj.get("apiVersion") != API_VERSION:
        _refuse("apiVersion", f"{obj.get('apiVersion')!r} is not {API_VERSION}")
    if obj.get("kind") != KIND:
        _refuse("kind", f"{obj.get('kind')!r} is not {KIND}")
    metadata = _mapping(obj, "metadata", "metadata", _METADATA_FIELDS)
    name = _name(metadata, "name", _SUBDOMAIN, "a lower case DNS subdomain", None)
    namespace = _name(metadata, "namespace", _LABEL, "a lower case DNS label", "default")
    uid = metadata.get("uid") or ""
    if not isinstance(uid, str):
        _refuse("metadata.uid", f"must be a string, not {_kind(uid)}")
    spec = _mapping(obj, "spec", "spec", ("podSelector", "policyTypes", "ingress", "egress"))
    ingress = _rules(spec, Direction.INGRESS)
    egress = _rules(spec, Direction.EGRESS)
    return NetworkPolicy(
        namespace=namespace,
        name=name,
        uid=uid,
        pod_selector=_selector(spec, "podSelector", "spec") or EVERYTHING,
        policy_types=_policy_types(spec, egress),
        ingress=ingress,
        egress=egress,
    )


def _policy_types(spec: Mapping[Any, Any], egress: tuple[Rule, ...]) -> frozenset[Direction]:
    found: list[Direction] = []
    for index, item in enumerate(_list(spec, "policyTypes", "spec")):
        path = f"spec.policyTypes[{index}]"
        direction = _TYPES.get(item) if isinstance(item, str) else None
        if direction is None:
            _refuse(path, f"{item!r} is not one of Ingress, Egress")
        if direction in found:
            _refuse(path, f"{item} is named twice; name it once")
        found.append(direction)
    if not found:
        # Every policy is about ingress unless it says otherwise; about egress if it has such rules.
        found = [Direction.INGRESS, Direction.EGRESS] if egress else [Direction.INGRESS]
    return frozenset(found)


def _rules(spec: Mapping[Any, Any], direction: Direction) -> tuple[Rule, ...]:
    rules = []
    peers_field = direction.peers_field
    for index, item in enumerate(_list(spec, direction.field, "spec")):
        path = f"spec.{direction.field}[{index}]"
        rule = _item(item, path, ("ports", peers_field))
        peers = tuple(
            _peer(one, f"{path}.{peers_field}[{i}]")
            for i, one in enumerate(_list(rule, peers_field, path))
        )
        ports = tuple(
            _port(one, f"{path}.ports[{i}]") for i, one in enumerate(_list(rule, "ports", path))
        )
        rules.append(Rule(peers or None, ports or None))
    return tuple(rules)


def _peer(obj: object, path: str) -> Peer:
    peer = _item(obj, path, ("podSelector", "namespaceSelector", "ipBlock"))
    pods = _selector(peer, "podSelector", path)
    namespaces = _selector(peer, "namespaceSelector", path)
    if peer.get("ipBlock") is not None:
        if pods is not None or namespaces is not None:
            _refuse(path, "ipBlock cannot stand together with a selector; make two peers of it")
        return BlockPeer(_block(peer["ipBlock"], f"{path}.ipBlock"))
    if pods is None and namespaces is None:
        _refuse(path, "must have a podSelector, a namespaceSelector or an ipBlock")
    return PodPeer(namespaces, pods)


def _block(obj: object, path: str) -> IPBlock:
    block = _item(obj, path, ("cidr", "except"))
    cidr = _cidr(block.get("cidr"), f"{path}.cidr")
    excepts = []
    for index, item in enumerate(_list(block, "except", path)):
        at = f"{path}.except[{index}]"
        inner = _cidr(item, at)
        # Of one family, of course; and smaller: a block without addresses is no peer.
        if (
            inner.version != cidr.version
            or inner.prefixlen <= cidr.prefixlen
            or inner.network_address not in cidr
        ):
            _refuse(at, f"{inner} must lie inside {cidr} and be smaller")
        excepts.append(inner)
    return IPBlock(cidr, tuple(excepts))


def _cidr(value: object, path: str) -> Network:
    if not isinstance(value, str) or not value:
        _refuse(path, f"must be a CIDR such as 192.168.1.0/24 or 2001:db8::/64, not {value!r}")
    if not _PREFIX.fullmatch(value):
        _refuse(path, f"{value!r} is not an address, '/' and a prefix length")
    try:
        network = ip_interface(value).network
    except ValueError as error:
        _refuse(path, f"{value!r} is no CIDR: {error}")
    try:
        ip_network(value)
    except ValueError:
        _refuse(path, f"{value} has bits set beyond its prefix length; {network} is meant?")
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        _refuse(path, f"{value} is IPv4 mapped into IPv6; write it as IPv4")
    return network


def _port(obj: object, path: str) -> Port:
    fields = _item(obj, path, ("protocol", "port", "endPort"))
    protocol = TCP
    if fields.get("protocol") is not None:
        name = fields["protocol"]
        if not isinstance(name, str) or name not in PROTOCOLS:
            _refuse(f"{path}.protocol", f"{name!r} is not one of {', '.join(PROTOCOLS)}")
        protocol = PROTOCOLS[name]
    port, end = fields.get("port"), fields.get("endPort")
    if isinstance(port, str):
        if len(port) > 15 or not _PORT_NAME.fullmatch(port):
            _refuse(
                f"{path}.port",
                f"{port!r} is no port name: 1 to 15 of a-z, 0-9 and single '-' inside, with a "
                "letter; a number stands without quotes",
            )
    elif port is not None:
        _port_number(port, f"{path}.port")
    if end is not None:
        if not isinstance(port, int):
            what = "a port name" if isinstance(port, str) else "no port"
            _refuse(f"{path}.endPort", f"needs a numeric port beside it, and there is {what}")
        if _port_number(end, f"{path}.endPort") < port:
            _refuse(f"{path}.endPort", f"{end} is below port {port}")
    return Port(protocol, port, end)


def _port_number(value: object, path: str) -> int:
    # A bool is an int to Python, not to the API.
    if type(value) is not int or not 1 <= value <= LAST_PORT:
        _refuse(path, f"{value!r} is not a port number from 1 to {LAST_PORT}")
    return value


def _selector(obj: Mapping[Any, Any], name: str, path: str) -> Selector | None:
    value = obj.get(name)
    return None if value is None else parse_selector(value, f"{path}.{name}")


def _name(
    metadata: Mapping[Any, Any], field: str, syntax: re.Pattern[str], rule: str, default: str | None
) -> str:
    value = metadata.get(field)
    if value is None or value == "":
        if default is None:
            _refuse(f"metadata.{field}", "is missing")
        return default
    if not isinstance(value, str) or len(value) > 253 or not syntax.fullmatch(value):
        _refuse(f"metadata.{field}", f"{value!r} is not {rule}")
    return value


def _item(obj: object, path: str, known: tuple[str, ...]) -> Mapping[Any, Any]:
    if not isinstance(obj, Mapping):
        _refuse(path, f"must be a mapping, not {_kind(obj)}")
    _known(obj, path, known)
    return obj


def _mapping(
    obj: Mapping[Any, Any], name: str, path: str, known: tuple[str, ...]
) -> Mapping[Any, Any]:
    value = obj.get(name)
    return {} if value is None else _item(value, path, known)


def _list(obj: Mapping[Any, Any], name: str, path: str) -> list[Any]:
    value = obj.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        _refuse(f"{path}.{name}", f"must be a list, not {_kind(value)}")
    return value


def _known(obj: Mapping[Any, Any], path: str, known: tuple[str, ...]) -> None:
    for key in obj:
        if key not in known:
            at = f"{path}.{key}" if path else str(key)
            _refuse(at, f"unknown field; known here are {', '.join(known)}")


def _resource(obj: object) -> str:
    """`namespace/name`, as well as it can be told from a document that may be wrong."""
    metadata = obj.get("metadata") if isinstance(obj, Mapping) else None
    if not isinstance(metadata, Mapping):
        return "?"
    return f"{metadata.get('namespace') or 'default'}/{metadata.get('name') or '?'}"


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


def _refuse(field: str, message: str) -> NoReturn:
    raise _Wrong(field or "document", message)
