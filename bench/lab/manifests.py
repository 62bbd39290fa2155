# SPDX-License-Identifier: Apache-2.0
"""Ordinary Kubernetes manifests: made as plain objects, put into the agent's folder atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Object = dict[str, Any]


def namespace(name: str, labels: Mapping[str, str] | None = None) -> Object:
    """A Namespace (v1)."""
    metadata = {"name": name, "labels": dict(labels or {})}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def pod(
    namespace: str,
    name: str,
    labels: Mapping[str, str] | None = None,
    ports: Iterable[tuple[str, str, int]] = (),
    *,
    node: str = "node-1",
    service_account: str = "default",
    addresses: Sequence[str] = (),
    host_network: bool = False,
    annotations: Mapping[str, str] | None = None,
) -> Object:
    """A Pod (v1). ports: (name, protocol, number) of its one container.

    addresses: `status.podIPs`; pods that CNI gives theirs need none.
    """
    declared = [{"name": n, "protocol": p, "containerPort": number} for n, p, number in ports]
    spec: Object = {
        "nodeName": node,
        "serviceAccountName": service_account,
        "containers": [{"name": "main", "image": "example.org/main:1", "ports": declared}],
    }
    if host_network:
        spec["hostNetwork"] = True
    made: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": dict(labels or {})},
        "spec": spec,
    }
    if annotations:
        made["metadata"]["annotations"] = dict(annotations)
    if addresses:
        made["status"] = {
            "podIP": addresses[0],
            "podIPs": [{"ip": address} for address in addresses],
        }
    return made


def node(name: str, pod_cidrs: Sequence[str], addresses: Sequence[str]) -> Object:
    """A Node (v1)."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDRs": list(pod_cidrs)},
        "status": {"addresses": [{"type": "InternalIP", "address": one} for one in addresses]},
    }


def policy(namespace: str, name: str, spec: Mapping[str, Any]) -> Object:
    """A NetworkPolicy (networking.k8s.io/v1)."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": dict(spec),
    }


def service(
    namespace: str,
    name: str,
    addresses: Sequence[str],
    ports: Iterable[tuple[str, str, int]],
) -> Object:
    """A Service (v1). addresses: `spec.clusterIPs`; without any it is headless.

    ports: (name, protocol, number).
    """
    given = list(addresses) or ["None"]
    spec: Object = {
        "type": "ClusterIP",
        "clusterIP": given[0],
        "clusterIPs": given,
        "ports": _ports(ports),
    }
    if addresses:
        families = ["IPv6" if ":" in one else "IPv4" for one in given]
        spec["ipFamilies"] = families
        spec["ipFamilyPolicy"] = "SingleStack" if len(families) == 1 else "RequireDualStack"
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": namespace, "name": name},
        "spec": spec,
    }


def endpoint_slice(
    namespace: str,
    name: str,
    service: str,
    addresses: Sequence[str],
    ports: Iterable[tuple[str, str, int]],
) -> Object:
    """An EndpointSlice (discovery.k8s.io/v1) of a service. addresses: of one family.

    ports: (name, protocol, number), as the service names them.
    """
    family = "IPv6" if addresses and ":" in addresses[0] else "IPv4"
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": family,
        "endpoints": [{"addresses": [one], "conditions": {"ready": True}} for one in addresses],
        "ports": _ports(ports),
    }


def _ports(ports: Iterable[tuple[str, str, int]]) -> list[Object]:
    return [{"name": n, "protocol": p, "port": number} for n, p, number in ports]


class ManifestFolder:
    """The folder that an agent watches. Files change by rename, so a reader sees all or nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, file: str, objects: Iterable[Mapping[str, Any]]) -> None:
        """Writes `file` (without suffix), one document for each object; replaces what was there."""
        text = "\n---\n".join(json.dumps(item, indent=1) for item in objects)
        self.put_text(file, text)

    def put_text(self, file: str, text: str) -> None:
        """Writes `file` with any text at all."""
        hidden = self.folder.parent / f".{file}.new"
        hidden.write_text(text)
        os.replace(hidden, self.folder / f"{file}.yaml")

    def remove(self, file: str) -> None:
        """Deletes `file`; absent is success."""
        (self.folder / f"{file}.yaml").unlink(missing_ok=True)
