# SPDX-License-Identifier: Apache-2.0
"""Raw Kubernetes objects (as decoded from JSON or YAML) to facts. Pure.

Only fields that the agent uses are looked at, and only those are validated, by the rules of the
API server (k8s.io/kubernetes/pkg/apis/core/validation). Objects without status and objects with
fields unknown here are fine. Policies are the exception: every field of a policy counts, so
`policy.parse` refuses what it does not know.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from sys import intern

from agent.core.events import Fact, Namespace, Pod, ResourceKey
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
from identity.ipcache import NamedPort
from identity.selectors import label_key_problem, label_value_problem
from policy.parse import PolicyError, parse_network_policy

_PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
_PHASES = frozenset(("", "Pending", "Running", "Succeeded", "Failed", "Unknown"))
_FINISHED = frozenset(("Succeeded", "Failed"))

_DNS_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_DNS_SUBDOMAIN = re.compile(
    r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*"
)
_PORT_NAME = re.compile(r"(?=.{1,15}\Z)(?=.*[a-z])[a-z0-9]+(?:-[a-z0-9]+)*")
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")

NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"


@dataclass(frozen=True, slots=True)
class Ignored:
    """An object of a kind that the agent does not use, with the reason."""

    key: ResourceKey
    note: str


def list_items(obj: object) -> tuple[Object, ...] | None:
    """The objects in a List (or PodList, NetworkPolicyList...); None when `obj` is not a list.

    Typed lists come from the API server without `kind` and `apiVersion` on their items; these
    are filled in from the list. Raises TranslateError when `items` is not a list of objects.
    """
    if not isinstance(obj, Mapping):
        return None
    kind = obj.get("kind")
    if not isinstance(kind, str) or not is_list_kind(kind) or "spec" in obj or "items" not in obj:
        return None
    items = obj["items"]
    if items is None:
        return ()
    if not isinstance(items, list):
        raise TranslateError("items", f"must be a list, not {type_name(items)}")
    return tuple(typed_item(item, kind, obj.get("apiVersion"), i) for i, item in enumerate(items))


def is_list_kind(kind: str) -> bool:
    """Whether an object of this kind is a collection of others (upstream: meta.IsListType)."""
    return kind.endswith("List")


def typed_item(item: object, list_kind: str, api_version: object, index: int) -> Object:
    """One item of a list, with kind and apiVersion taken from a typed list where it has none."""
    if not isinstance(item, Mapping):
        raise TranslateError(f"items[{index}]", f"must be an object, not {type_name(item)}")
    kind = list_kind.removesuffix("List")
    if not kind or "kind" in item:
        return item
    return {"apiVersion": api_version, "kind": kind, **item}


def translate(obj: object) -> Fact | Ignored:
    """One object (not a list) to its fact, or `Ignored`. Raises TranslateError."""
    if not isinstance(obj, Mapping):
        raise TranslateError("", f"a Kubernetes object is expected, not {type_name(obj)}")
    kind = required_text(obj, "kind", "kind")
    api_version = required_text(obj, "apiVersion", "apiVersion")
    if is_list_kind(kind) and "items" in obj and "spec" not in obj:
        raise TranslateError("kind", "a list within a list: put its items into the outer one")
    known = _KINDS.get(kind)
    if known is None or _foreign(api_version):
        return Ignored(_loose_key(kind, obj), f"{api_version} {kind} is not used by bristle")
    versions, namespaced, translator = known
    key = _key(kind, obj, namespaced)
    if api_version not in versions:
        raise TranslateError(
            "apiVersion", f"must be {versions[0]} for a {kind}, not {api_version}", key
        )
    if translator is None:
        return Ignored(key, f"{kind} is not used yet")
    try:
        return translator(obj, key)
    except PolicyError as error:
        raise TranslateError(error.field, error.message, key) from error
    except TranslateError as error:
        error.key = key
        raise


# ---- kinds -----------------------------------------------------------------------------------


def _pod(obj: Object, key: ResourceKey) -> Pod:
    metadata = mapping_field(obj, "metadata", "metadata")
    spec = mapping_field(obj, "spec", "spec")
    status = mapping_field(obj, "status", "status")
    phase = text_field(status, "phase", "status.phase")
    if phase not in _PHASES:
        known = ", ".join(sorted(_PHASES - {""}))
        raise TranslateError("status.phase", f'unknown phase "{phase}", must be one of {known}')
    host_network = spec.get("hostNetwork")
    if not isinstance(host_network, bool | None):
        raise TranslateError(
            "spec.hostNetwork", f"must be true or false, not {shown(host_network)}"
        )
    ips = _pod_ips(status)
    return Pod(
        namespace=key.namespace,
        name=key.name,
        uid=text_field(metadata, "uid", "metadata.uid"),
        labels=_labels(metadata),
        service_account=_dns_name(spec, "serviceAccountName", "spec.serviceAccountName")
        or "default",
        node_name=_dns_name(spec, "nodeName", "spec.nodeName"),
        host_network=bool(host_network),
        ips=() if phase in _FINISHED else ips,
        ports=_named_ports(spec),
        phase=intern(phase),
        deleted=metadata.get("deletionTimestamp") is not None,
    )


def _namespace(obj: Object, key: ResourceKey) -> Namespace:
    labels = dict(_labels(mapping_field(obj, "metadata", "metadata")))
    labels[NAMESPACE_NAME_LABEL] = key.name  # as the API server does, whatever the manifest says
    return Namespace(key.name, labels)


def _network_policy(obj: Object, key: ResourceKey) -> Fact:
    _refuse_odd_keys(obj, "")
    metadata = mapping_field(obj, "metadata", "metadata")
    plain = {str(name): value for name, value in obj.items()}
    plain["metadata"] = {**metadata, "namespace": key.namespace}
    return parse_network_policy(plain)


_Translator = Callable[[Object, ResourceKey], Fact]
# kind -> accepted versions, whether it lives in a namespace, translator (None: not used yet)
_KINDS: Mapping[str, tuple[tuple[str, ...], bool, _Translator | None]] = {
    "Pod": (("v1",), True, _pod),
    "Namespace": (("v1",), False, _namespace),
    "NetworkPolicy": (("networking.k8s.io/v1",), True, _network_policy),
    "Service": (("v1",), True, None),
    "EndpointSlice": (("discovery.k8s.io/v1",), True, None),
}


def _foreign(api_version: str) -> bool:
    """Another project's group: its NetworkPolicy or Service is not the one meant here."""
    group = api_version.rpartition("/")[0]
    return "." in group and not group.endswith(".k8s.io")


# ---- metadata --------------------------------------------------------------------------------


def _key(kind: str, obj: Object, namespaced: bool) -> ResourceKey:
    metadata = mapping_field(obj, "metadata", "metadata")
    if metadata.get("generateName") and not metadata.get("name"):
        raise TranslateError(
            "metadata.generateName", "only an API server can generate names; give metadata.name"
        )
    name = required_text(metadata, "name", "metadata.name")
    if not (_is_subdomain(name) if namespaced else _DNS_LABEL.fullmatch(name)):
        raise TranslateError(
            "metadata.name",
            f'"{cut(name)}" is no valid name: lower case letters, digits and "-"'
            + (' and "."' if namespaced else ", at most 63 characters"),
        )
    if not namespaced:
        return ResourceKey(kind, "", intern(name))
    namespace = text_field(metadata, "namespace", "metadata.namespace") or "default"
    if not _DNS_LABEL.fullmatch(namespace):
        raise TranslateError(
            "metadata.namespace",
            f'"{cut(namespace)}" is no valid namespace: lower case letters, digits and "-",'
            " at most 63 characters",
        )
    return ResourceKey(kind, intern(namespace), name)


def _loose_key(kind: str, obj: Object) -> ResourceKey:
    """The key of an object that is not used, without complaint about what is wrong with it."""
    metadata = obj.get("metadata")
    if not isinstance(metadata, Mapping):
        return ResourceKey(kind, "", "")
    namespace, name = metadata.get("namespace"), metadata.get("name")
    return ResourceKey(
        kind,
        namespace if isinstance(namespace, str) else "",
        name if isinstance(name, str) else "",
    )


def _labels(metadata: Object) -> Mapping[str, str]:
    labels: dict[str, str] = {}
    for key, value in mapping_field(metadata, "labels", "metadata.labels").items():
        if not isinstance(key, str):
            raise TranslateError(
                "metadata.labels", f"key {shown(key)} is no text: put it in quotes"
            )
        if value is None:
            value = ""  # what the API server makes of a key without a value
        if not isinstance(value, str):
            path = f"metadata.labels[{cut(key)}]"
            raise TranslateError(path, f"{shown(value)} is no text: put it in quotes")
        if problem := label_key_problem(key):
            raise TranslateError("metadata.labels", cut(problem, 500))
        if problem := label_value_problem(value):
            raise TranslateError(f"metadata.labels[{key}]", cut(problem, 500))
        labels[intern(key)] = intern(value)
    return labels


def _dns_name(obj: Object, name: str, path: str) -> str:
    """The name of another object, or nothing."""
    value = text_field(obj, name, path)
    if value and not _is_subdomain(value):
        raise TranslateError(path, f'"{cut(value)}" is no valid name')
    return intern(value)


def _is_subdomain(text: str) -> bool:
    return len(text) <= 253 and _DNS_SUBDOMAIN.fullmatch(text) is not None


# ---- pod addresses and ports -----------------------------------------------------------------


def _pod_ips(status: Object) -> tuple[str, ...]:
    """Both families; where podIP contradicts podIPs, podIP counts (as the API server decides)."""
    found: list[str] = []
    families: set[bool] = set()
    for i, entry in enumerate(list_field(status, "podIPs", "status.podIPs")):
        path = f"status.podIPs[{i}].ip"
        if not isinstance(entry, Mapping):
            raise TranslateError(
                f"status.podIPs[{i}]", f"must be an object, not {type_name(entry)}"
            )
        address = _address(required_text(entry, "ip", path), path)
        is_ipv6 = ":" in address
        if is_ipv6 in families:
            raise TranslateError(
                path, f"a second {'IPv6' if is_ipv6 else 'IPv4'} address of the pod"
            )
        families.add(is_ipv6)
        found.append(address)
    single = text_field(status, "podIP", "status.podIP")
    if single:
        address = _address(single, "status.podIP")
        if not found or found[0] != address:
            return (address,)
    return tuple(found)


def _address(text: str, path: str) -> str:
    """Canonical text of an address that a pod can have."""
    if _IPV4.fullmatch(text):
        first = text.partition(".")[0]
        if first in ("0", "127") or int(first) >= 224:
            raise TranslateError(path, f"{text} cannot be the address of a pod")
        return text
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise TranslateError(path, f'"{cut(text)}" is no IP address') from None
    if address.ipv4_mapped is not None:
        raise TranslateError(path, f"IPv4 in IPv6 notation: write {address.ipv4_mapped}")
    if (
        address.is_unspecified
        or address.is_loopback
        or address.is_multicast
        or address.is_link_local
    ):
        raise TranslateError(path, f"{address} cannot be the address of a pod")
    return str(address)


def _named_ports(spec: Object) -> tuple[NamedPort, ...]:
    ports: list[NamedPort] = []
    for i, container in enumerate(list_field(spec, "containers", "spec.containers")):
        _container_ports(container, f"spec.containers[{i}]", ports)
    for i, container in enumerate(list_field(spec, "initContainers", "spec.initContainers")):
        # A native sidecar runs as long as the pod; other init containers are gone by then.
        if isinstance(container, Mapping) and container.get("restartPolicy") != "Always":
            continue
        _container_ports(container, f"spec.initContainers[{i}]", ports)
    return tuple(ports)


def _container_ports(container: object, path: str, ports: list[NamedPort]) -> None:
    if not isinstance(container, Mapping):
        raise TranslateError(path, f"must be an object, not {type_name(container)}")
    for i, port in enumerate(list_field(container, "ports", f"{path}.ports")):
        where = f"{path}.ports[{i}]"
        if not isinstance(port, Mapping):
            raise TranslateError(where, f"must be an object, not {type_name(port)}")
        name = text_field(port, "name", f"{where}.name")
        if not name:
            continue
        if not _PORT_NAME.fullmatch(name):
            raise TranslateError(
                f"{where}.name",
                f'"{cut(name)}" is no port name: 1 to 15 lower case letters, digits and single "-",'
                " with at least one letter",
            )
        number = port.get("containerPort")
        if type(number) is not int or not 1 <= number <= 65535:
            raise TranslateError(
                f"{where}.containerPort", f"must be 1 to 65535, not {shown(number)}"
            )
        protocol = text_field(port, "protocol", f"{where}.protocol") or "TCP"
        if protocol not in _PROTOCOLS:
            raise TranslateError(
                f"{where}.protocol", f'must be TCP, UDP or SCTP, not "{cut(protocol)}"'
            )
        named = NamedPort(intern(name), _PROTOCOLS[protocol], number)
        if named not in ports:
            ports.append(named)


def _refuse_odd_keys(value: object, path: str) -> None:
    """YAML reads keys such as `on` or `1` as no text; in a policy that must not pass silently."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TranslateError(path, f"key {shown(key)} is no text: put it in quotes")
            _refuse_odd_keys(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            _refuse_odd_keys(inner, f"{path}[{i}]")
