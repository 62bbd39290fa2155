# SPDX-License-Identifier: Apache-2.0
"""Pods to facts. Pure."""

from collections.abc import Iterator, Mapping
from sys import intern

from agent.core.events import Pod, ResourceKey
from agent.kube.addresses import named_port, one_of_each_family, usable_address
from agent.kube.fields import (
    Object,
    TranslateError,
    list_field,
    mapping_field,
    required_text,
    shown,
    text_field,
    type_name,
)
from agent.kube.metadata import dns_name, labels_of, redirect_of, static_uid_of
from identity.ipcache import NamedPort

PHASES = frozenset(("", "Pending", "Running", "Succeeded", "Failed", "Unknown"))
FINISHED = frozenset(("Succeeded", "Failed"))


def translate_pod(obj: Object, key: ResourceKey) -> Pod:
    """The fact that a pod is. Raises TranslateError with the field at fault."""
    metadata = mapping_field(obj, "metadata", "metadata")
    spec = mapping_field(obj, "spec", "spec")
    status = mapping_field(obj, "status", "status")
    phase = text_field(status, "phase", "status.phase")
    if phase not in PHASES:
        known = ", ".join(sorted(PHASES - {""}))
        raise TranslateError("status.phase", f'unknown phase "{phase}", must be one of {known}')
    host_network = spec.get("hostNetwork")
    if not isinstance(host_network, bool | None):
        raise TranslateError(
            "spec.hostNetwork", f"must be true or false, not {shown(host_network)}"
        )
    ips = pod_ips(status)
    return Pod(
        namespace=key.namespace,
        name=key.name,
        uid=text_field(metadata, "uid", "metadata.uid"),
        labels=labels_of(metadata),
        service_account=dns_name(spec, "serviceAccountName", "spec.serviceAccountName")
        or "default",
        node_name=dns_name(spec, "nodeName", "spec.nodeName"),
        host_network=bool(host_network),
        ips=() if phase in FINISHED else ips,
        ports=named_ports(spec),
        phase=intern(phase),
        deleted=metadata.get("deletionTimestamp") is not None,
        redirect=redirect_of(metadata),
        static_uid=static_uid_of(metadata),
    )


def pod_ips(status: Object) -> tuple[str, ...]:
    """Both families; where podIP contradicts podIPs, podIP counts (as the API server decides)."""
    found = one_of_each_family(_listed_ips(status), "address of the pod")
    single = text_field(status, "podIP", "status.podIP")
    if single:
        address = usable_address(single, "status.podIP", "pod")
        if not found or found[0] != address:
            return (address,)
    return found


def _listed_ips(status: Object) -> Iterator[tuple[str, str]]:
    for i, entry in enumerate(list_field(status, "podIPs", "status.podIPs")):
        path = f"status.podIPs[{i}].ip"
        if not isinstance(entry, Mapping):
            raise TranslateError(
                f"status.podIPs[{i}]", f"must be an object, not {type_name(entry)}"
            )
        yield usable_address(required_text(entry, "ip", path), path, "pod"), path


def named_ports(spec: Object) -> tuple[NamedPort, ...]:
    """Ports with a name, each once, of all containers that run as long as the pod."""
    ports: dict[NamedPort, None] = {}
    for i, container in enumerate(list_field(spec, "containers", "spec.containers")):
        _container_ports(container, f"spec.containers[{i}]", ports)
    for i, container in enumerate(list_field(spec, "initContainers", "spec.initContainers")):
        # A native sidecar runs as long as the pod; other init containers are gone by then.
        if isinstance(container, Mapping) and container.get("restartPolicy") != "Always":
            continue
        _container_ports(container, f"spec.initContainers[{i}]", ports)
    return tuple(ports)


def _container_ports(container: object, path: str, ports: dict[NamedPort, None]) -> None:
    if not isinstance(container, Mapping):
        raise TranslateError(path, f"must be an object, not {type_name(container)}")
    for i, port in enumerate(list_field(container, "ports", f"{path}.ports")):
        named = named_port(port, f"{path}.ports[{i}]", "containerPort")
        if named is not None:
            ports[named] = None
