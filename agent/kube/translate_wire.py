# SPDX-License-Identifier: Apache-2.0
"""Objects as an API server sends them to facts: `agent.kube.translate`, but fast. Pure.

Of pods, endpoints and slices there are tens of thousands, and nearly all are ordinary. These are
decoded into structures (`agent.kube.wire`) and become facts at once. Whatever is not quite as
expected is left to `translate`, which says what it means or what is wrong with it; so the two
cannot differ but in speed, which tests hold them to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from sys import intern
from typing import Final

import msgspec
from msgspec import Raw

from agent.core.events import EndpointSlice, Fact, Pod, PublishedEndpoint, Service, ServicePort
from agent.kube.addresses import named_port, usable_address
from agent.kube.fields import TranslateError
from agent.kube.kinds import Kind
from agent.kube.metadata import is_dns_label, is_subdomain, labels_of
from agent.kube.translate import CLUSTER_KINDS, Ignored, translate
from agent.kube.translate_node import is_pod_identity
from agent.kube.translate_pod import FINISHED, PHASES
from agent.kube.translate_service import (
    EXTERNAL_NAME,
    HEADLESS,
    service_name,
    service_ports,
    slice_ports,
)
from agent.kube.wire import (
    WANTED,
    ContainerPort,
    EndpointObject,
    EndpointPort,
    Owner,
    PodObject,
    PodSpec,
    PodStatus,
    PortObject,
    ServiceObject,
    ServiceSpec,
    SliceEndpoint,
    SliceObject,
    plain_object,
)
from identity.ipcache import NamedPort

_POD: Final = msgspec.json.Decoder(PodObject)
_ENDPOINT: Final = msgspec.json.Decoder(EndpointObject)
_SERVICE: Final = msgspec.json.Decoder(ServiceObject)
_SLICE: Final = msgspec.json.Decoder(SliceObject)
_LAST_ENDPOINT: Final = (1 << 32) - 1


def translate_raw(kind: Kind, raw: bytes | Raw) -> Fact:
    """One object of a watched kind to its fact. Raises TranslateError, and nothing else."""
    fact = translate_ordinary(kind, raw)
    return fact if fact is not None else _thorough(kind, raw)


def translate_ordinary(kind: Kind, raw: bytes | Raw) -> Fact | None:
    """The same for an ordinary object of a kind that there are many of; None for all others."""
    fast = _FAST.get(kind.name)
    try:
        return fast(raw) if fast is not None else None
    except (msgspec.DecodeError, UnicodeError, RecursionError, _OddError, TranslateError):
        return None


def _thorough(kind: Kind, raw: bytes | Raw) -> Fact:
    try:
        obj = plain_object(raw, WANTED[kind.name])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise TranslateError("", f"cannot be decoded: {error}") from None
    if isinstance(obj, dict):
        # Items of typed lists do not say it.
        obj.update(apiVersion=kind.api_version, kind=kind.name)
    fact = translate(obj, CLUSTER_KINDS)
    assert not isinstance(fact, Ignored), "watched kinds have translators"
    return fact


class _OddError(Exception):
    """Not ordinary: to be looked at thoroughly."""


# ---- pods ------------------------------------------------------------------------------------


def _pod(raw: bytes | Raw) -> Pod:
    obj = _POD.decode(raw)
    meta = obj.metadata
    spec, status = obj.spec or _NO_SPEC, obj.status or _NO_STATUS
    phase = status.phase or ""
    if phase not in PHASES:
        raise _OddError
    ips = _pod_ips(status)
    namespace, name = _place(meta.namespace, meta.name)
    return Pod(
        namespace=namespace,
        name=name,
        uid=meta.uid or "",
        labels=_labels(bytes(meta.labels)),
        service_account=_name(spec.serviceAccountName or "") or "default",
        node_name=_name(spec.nodeName or ""),
        host_network=bool(spec.hostNetwork),
        ips=() if phase in FINISHED else ips,
        ports=_pod_ports(spec),
        phase=intern(phase),
        deleted=meta.deletionTimestamp is not None,
        redirect=intern(meta.annotations.redirect or "") if meta.annotations else "",
        static_uid=(meta.annotations.mirror or "") if meta.annotations else "",
    )


_NO_SPEC: Final = PodSpec()
_NO_STATUS: Final = PodStatus()


def _pod_ips(status: PodStatus) -> tuple[str, ...]:
    listed, single = status.podIPs, status.podIP
    if not listed:
        return (usable_address(single, "", ""),) if single else ()
    found = tuple(usable_address(one.ip, "", "") for one in listed)
    if len(found) > 2 or (len(found) == 2 and (":" in found[0]) is (":" in found[1])):
        raise _OddError
    if single and usable_address(single, "", "") != found[0]:
        raise _OddError
    return found


def _pod_ports(spec: PodSpec) -> tuple[NamedPort, ...]:
    found: list[tuple[str, str, int]] = []
    for container in spec.containers or ():
        if container.ports:
            _container_ports(container.ports, found)
    for container in spec.initContainers or ():
        if container.ports and container.restartPolicy == "Always":
            _container_ports(container.ports, found)
    return _ports(tuple(found)) if found else ()


def _container_ports(ports: list[ContainerPort], found: list[tuple[str, str, int]]) -> None:
    for port in ports:
        if port.name:
            found.append((port.name, port.protocol or "", port.containerPort))


# ---- endpoints -------------------------------------------------------------------------------


def _endpoint(raw: bytes | Raw) -> PublishedEndpoint:
    obj = _ENDPOINT.decode(raw)
    spec = obj.spec
    addresses = tuple(usable_address(one.ip, "", "") for one in spec.addresses or ())
    if len(addresses) > 2 or (
        len(addresses) == 2 and (":" in addresses[0]) is (":" in addresses[1])
    ):
        raise _OddError
    number = spec.endpointID or 0
    if not is_pod_identity(spec.identity) or not 0 <= number <= _LAST_ENDPOINT:
        raise _OddError
    namespace, name = _place(obj.metadata.namespace, obj.metadata.name)
    return PublishedEndpoint(
        namespace=namespace,
        name=name,
        identity=spec.identity,
        endpoint=number,
        ips=addresses,
        ports=_endpoint_ports(spec.namedPorts) if spec.namedPorts else (),
        node_name=_name((spec.node.name if spec.node else "") or ""),
        pod_uid=_pod_uid(obj.metadata.ownerReferences),
        node_ip=intern((spec.node.ip if spec.node else "") or ""),
    )


def _pod_uid(owners: list[Owner] | None) -> str:
    for owner in owners or ():
        if not owner.kind or (owner.kind == "Pod" and not owner.uid):
            raise _OddError
        if owner.kind == "Pod":
            return owner.uid
    return ""


def _endpoint_ports(ports: list[EndpointPort]) -> tuple[NamedPort, ...]:
    return _ports(tuple((port.name, port.protocol or "", port.port) for port in ports))


# ---- services --------------------------------------------------------------------------------


def _service(raw: bytes | Raw) -> Service:
    obj = _SERVICE.decode(raw)
    namespace, name = _place(obj.metadata.namespace, obj.metadata.name)
    return Service(
        namespace=namespace,
        name=name,
        cluster_ips=() if obj.spec.type == EXTERNAL_NAME else _cluster_ips(obj.spec),
        ports=_service_ports(_port_texts(obj.spec.ports)),
    )


def _cluster_ips(spec: ServiceSpec) -> tuple[str, ...]:
    listed = spec.clusterIPs or ([spec.clusterIP] if spec.clusterIP else [])
    if listed == [HEADLESS] or not listed:
        if spec.clusterIP not in (None, "", *listed):
            raise _OddError
        return ()
    found = tuple(usable_address(one, "", "") for one in listed)
    if len(found) > 2 or (len(found) == 2 and (":" in found[0]) is (":" in found[1])):
        raise _OddError
    if spec.clusterIP and spec.clusterIP != listed[0]:
        raise _OddError
    return found


def _slice(raw: bytes | Raw) -> EndpointSlice:
    obj = _SLICE.decode(raw)
    namespace, name = _place(obj.metadata.namespace, obj.metadata.name)
    return EndpointSlice(
        namespace=namespace,
        name=name,
        service=_service_name((obj.metadata.labels.service if obj.metadata.labels else "") or ""),
        addresses=_slice_addresses(obj.addressType, obj.endpoints or []),
        ports=_slice_ports(_port_texts(obj.ports)),
    )


def _slice_addresses(family: str, endpoints: list[SliceEndpoint]) -> tuple[str, ...]:
    if family not in ("IPv4", "IPv6"):
        raise _OddError
    found: dict[str, None] = {}
    for endpoint in endpoints:
        if not endpoint.addresses:
            raise _OddError
        for text in endpoint.addresses:
            address = usable_address(text, "", "")
            if (":" in address) is not (family == "IPv6"):
                raise _OddError
            found[address] = None
    return tuple(found)


_PortText = tuple[str, str, int | None]


def _port_texts(ports: list[PortObject] | None) -> tuple[_PortText, ...]:
    return tuple((one.name or "", one.protocol or "", one.port) for one in ports or ())


_FAST: Final[Mapping[str, Callable[[bytes | Raw], Fact]]] = {
    "Pod": _pod,
    "BristleEndpoint": _endpoint,
    "Service": _service,
    "EndpointSlice": _slice,
}


# ---- what many objects share: checked and made once --------------------------------------------


def _place(namespace: str, name: str) -> tuple[str, str]:
    if not is_subdomain(name):
        raise _OddError
    return _namespace(namespace), name


@lru_cache(maxsize=1024)
def _namespace(name: str) -> str:
    if not is_dns_label(name):
        raise _OddError
    return intern(name)


@lru_cache(maxsize=4096)
def _name(name: str) -> str:
    if name and not is_subdomain(name):
        raise _OddError
    return intern(name)


@lru_cache(maxsize=1024)
def _labels(text: bytes) -> Mapping[str, str]:
    """Pods of one workload have them in the same order, so their text is the same."""
    return labels_of({"labels": msgspec.json.decode(text)})


@lru_cache(maxsize=1024)
def _ports(ports: tuple[tuple[str, str, int], ...]) -> tuple[NamedPort, ...]:
    """Each once, checked as elsewhere. Triples of name, protocol and number."""
    found: dict[NamedPort, None] = {}
    for name, protocol, number in ports:
        port = named_port({"name": name, "protocol": protocol, "port": number}, "", "port")
        if port is None:
            raise _OddError
        found[port] = None
    return tuple(found)


@lru_cache(maxsize=4096)
def _service_name(label: str) -> str:
    return service_name(label)


@lru_cache(maxsize=1024)
def _service_ports(ports: tuple[_PortText, ...]) -> tuple[ServicePort, ...]:
    return service_ports(_port_objects(ports))


@lru_cache(maxsize=1024)
def _slice_ports(ports: tuple[_PortText, ...]) -> tuple[ServicePort, ...]:
    return slice_ports(_port_objects(ports))


def _port_objects(ports: tuple[_PortText, ...]) -> list[object]:
    return [{"name": name, "protocol": proto, "port": number} for name, proto, number in ports]
