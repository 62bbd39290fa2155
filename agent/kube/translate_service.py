# SPDX-License-Identifier: Apache-2.0
"""Services and endpoint slices to facts. Pure."""

from collections.abc import Iterator, Mapping
from sys import intern

from agent.core.events import SERVICE_LABEL, EndpointSlice, ResourceKey, Service, ServicePort
from agent.kube.addresses import one_of_each_family, port_number, protocol_of, usable_address
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
from agent.kube.metadata import is_dns_label
from identity.selectors import label_value_problem

EXTERNAL_NAME = "ExternalName"
HEADLESS = "None"
NAMES = "FQDN"
"""addressType of a slice that has names in place of addresses."""

ADDRESS_TYPES = ("IPv4", "IPv6", NAMES)


def translate_service(obj: Object, key: ResourceKey) -> Service:
    """The fact that a service is. Raises TranslateError with the field at fault."""
    spec = mapping_field(obj, "spec", "spec")
    named = text_field(spec, "type", "spec.type") == EXTERNAL_NAME
    return Service(
        namespace=key.namespace,
        name=key.name,
        cluster_ips=() if named else _cluster_ips(spec),
        ports=service_ports(list_field(spec, "ports", "spec.ports")),
    )


def _cluster_ips(spec: Object) -> tuple[str, ...]:
    listed = list_field(spec, "clusterIPs", "spec.clusterIPs")
    single = text_field(spec, "clusterIP", "spec.clusterIP")
    if not listed:
        if single in ("", HEADLESS):
            return ()
        return (usable_address(single, "spec.clusterIP", "service"),)
    if single and listed[0] != single:
        raise TranslateError("spec.clusterIPs[0]", f'must be spec.clusterIP, "{cut(single)}"')
    if listed == [HEADLESS]:
        return ()
    return one_of_each_family(_listed_ips(listed), "address of the service")


def _listed_ips(listed: list[object]) -> Iterator[tuple[str, str]]:
    for i, text in enumerate(listed):
        path = f"spec.clusterIPs[{i}]"
        if not isinstance(text, str):
            raise TranslateError(path, f"must be text, not {shown(text)}")
        yield usable_address(text, path, "service"), path


def service_ports(entries: list[object]) -> tuple[ServicePort, ...]:
    """`spec.ports` of a service. Where there are several, each has a name. Raises TranslateError.

    One number and protocol may be there once: else it could not be told which port is meant.
    """
    found = tuple(_ports(entries, "spec.ports"))
    seen: set[tuple[int, int]] = set()
    for i, port in enumerate(found):
        if not port.name and len(found) > 1:
            raise TranslateError(f"spec.ports[{i}].name", "is required where there are several")
        if (port.protocol, port.port) in seen:
            raise TranslateError(f"spec.ports[{i}]", "the same protocol and port once more")
        seen.add((port.protocol, port.port))
    return found


def translate_endpoint_slice(obj: Object, key: ResourceKey) -> EndpointSlice:
    """The fact that an endpoint slice is. Raises TranslateError with the field at fault."""
    metadata = mapping_field(obj, "metadata", "metadata")
    labels = mapping_field(metadata, "labels", "metadata.labels")
    return EndpointSlice(
        namespace=key.namespace,
        name=key.name,
        service=service_name(text_field(labels, SERVICE_LABEL, _LABEL_PATH)),
        addresses=_addresses(obj),
        ports=slice_ports(list_field(obj, "ports", "ports")),
    )


_LABEL_PATH = f"metadata.labels[{SERVICE_LABEL}]"


def service_name(label: str) -> str:
    """The label's value, checked. Raises TranslateError."""
    if problem := label_value_problem(label):
        raise TranslateError(_LABEL_PATH, cut(problem, 500))
    return intern(label)


def _addresses(obj: Object) -> tuple[str, ...]:
    family = required_text(obj, "addressType", "addressType")
    if family not in ADDRESS_TYPES:
        known = ", ".join(ADDRESS_TYPES)
        raise TranslateError("addressType", f'must be one of {known}, not "{cut(family)}"')
    if family == NAMES:
        return ()
    found: dict[str, None] = {}
    for i, endpoint in enumerate(list_field(obj, "endpoints", "endpoints")):
        path = f"endpoints[{i}]"
        if not isinstance(endpoint, Mapping):
            raise TranslateError(path, f"must be an object, not {type_name(endpoint)}")
        listed = list_field(endpoint, "addresses", f"{path}.addresses")
        if not listed:
            raise TranslateError(f"{path}.addresses", "is required")
        for j, text in enumerate(listed):
            found[_address(text, family, f"{path}.addresses[{j}]")] = None
    return tuple(found)


def _address(text: object, family: str, path: str) -> str:
    if not isinstance(text, str):
        raise TranslateError(path, f"must be text, not {shown(text)}")
    address = usable_address(text, path, "endpoint")
    if (":" in address) is not (family == "IPv6"):
        raise TranslateError(path, f"{address} is no {family} address, as addressType says")
    return address


def slice_ports(entries: list[object]) -> tuple[ServicePort, ...]:
    """`ports` of a slice; those without a number are left out. Raises TranslateError."""
    return tuple(_ports(entries, "ports", lenient=True))


def _ports(entries: list[object], where: str, *, lenient: bool = False) -> Iterator[ServicePort]:
    """lenient: a port need not have a number."""
    names: set[str] = set()
    for i, entry in enumerate(entries):
        path = f"{where}[{i}]"
        if not isinstance(entry, Mapping):
            raise TranslateError(path, f"must be an object, not {type_name(entry)}")
        if lenient and entry.get("port") is None:
            continue
        name = text_field(entry, "name", f"{path}.name")
        if name and not is_dns_label(name):
            raise TranslateError(
                f"{path}.name",
                f'"{cut(name)}" is no port name: lower case letters, digits and "-",'
                " at most 63 characters",
            )
        if name and name in names:
            raise TranslateError(f"{path}.name", f'a second port "{name}"')
        names.add(name)
        number = port_number(entry, "port", f"{path}.port")
        yield ServicePort(intern(name), protocol_of(entry, path), number)
