# SPDX-License-Identifier: Apache-2.0
"""What a source said when it was last good, in a file: an agent that starts over a document that is
invalid by now does not take back what was in force.

Facts are written as the manifests that they could have come from, so any release reads them.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from agent.core.events import (
    MIRROR_ANNOTATION,
    REDIRECT_ANNOTATION,
    SERVICE_LABEL,
    EndpointSlice,
    Fact,
    Namespace,
    Node,
    Pod,
    Service,
    ServicePort,
)
from agent.kube.fields import TranslateError
from agent.kube.translate import Ignored, translate
from agent.kube.translate_service import NAMES
from agent.state_file import write_durably
from policy.model import PROTOCOL_NAMES, NetworkPolicy
from policy.render import render_network_policy

_log = logging.getLogger(__name__)

REMEMBERED: Final = frozenset(("NetworkPolicy", "Namespace"))
"""Kinds that keep pods from others. Of a pod that is forgotten nothing is allowed."""

_UNUSABLE: Final = (OSError, ValueError, LookupError, TypeError, AttributeError)
_SOME_TIME: Final = "1970-01-01T00:00:00Z"


class Definition(NamedTuple):
    """A valid definition of a resource, and where in its file it is."""

    fact: Fact
    number: int = 1
    item: int | None = None


class LastGood:
    """The file of one source. What another folder said is not for this one.

    folder: a path, or the name of a source whose "files" are objects.
    """

    def __init__(self, path: Path, folder: str) -> None:
        self._path = path
        self._folder = folder
        self._texts: dict[str, tuple[list[Definition], str]] = {}
        self._written = b""

    def load(self) -> dict[str, tuple[Definition, ...]]:
        """Definitions by the path of their manifest. What cannot be read is left out, and told."""
        files: dict[str, tuple[Definition, ...]] = {}
        try:
            data = self._path.read_bytes()
            self._written = _digest(data)
            found = json.loads(data)
            if found["folder"] == self._folder:
                for file, entries in found["files"].items():
                    read = [one for entry in entries for one in self._read(entry)]
                    files[file] = tuple(read)
                    if len(read) == len(entries):
                        self._texts[file] = read, _named(file, entries)
        except FileNotFoundError:
            pass
        except _UNUSABLE as error:
            _log.error("%s: %s; what is invalid now has no last good state", self._path, error)
        return files

    def _read(self, entry: Mapping[str, Any]) -> Iterable[Definition]:
        """One, or none: another release may have understood more."""
        try:
            yield _definition(entry)
        except _UNUSABLE as error:
            _log.error("%s: %s; one resource has no last good state", self._path, error)

    def save(self, files: Mapping[str, Iterable[Definition]]) -> None:
        """Only what differs from the last time is rendered, and written only if something does.
        Raises StateFileError."""
        texts: dict[str, tuple[list[Definition], str]] = {}
        for file, found in sorted(files.items()):
            definitions = list(found)
            known = self._texts.get(file)
            texts[file] = (
                known
                if known is not None and known[0] == definitions
                else (definitions, _named(file, map(_entry, definitions)))
            )
        self._texts = texts
        body = ", ".join(text for _, text in texts.values())
        value = f'{{"folder": {json.dumps(self._folder)}, "files": {{{body}}}}}'
        digest = _digest(data := value.encode())
        if digest != self._written:
            write_durably(self._path, data)
            self._written = digest


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data).digest()


def _named(file: str, entries: Iterable[Mapping[str, Any]]) -> str:
    return f"{json.dumps(file)}: {json.dumps([*entries])}"


def _entry(one: Definition) -> Mapping[str, Any]:
    return {"document": one.number, "item": one.item, "object": manifest_of(one.fact)}


def _definition(entry: Mapping[str, Any]) -> Definition:
    try:
        fact = translate(entry["object"])
    except TranslateError as error:
        raise ValueError(str(error)) from error
    if isinstance(fact, Ignored):
        raise ValueError(fact.note)
    return Definition(fact, int(entry["document"]), entry["item"])


def manifest_of(fact: Fact) -> dict[str, Any]:
    """A manifest that means this fact, of types that JSON has."""
    match fact:
        case NetworkPolicy():
            return render_network_policy(fact)
        case Namespace():
            metadata = {"name": fact.name, "labels": dict(fact.labels)}
            annotations = _annotations({REDIRECT_ANNOTATION: fact.redirect})
            return _object("Namespace", metadata | annotations)
        case Node():
            addresses = [{"type": "InternalIP", "address": one} for one in fact.addresses]
            return _object(
                "Node",
                {"name": fact.name, "uid": fact.uid},
                spec={"podCIDRs": list(fact.pod_cidrs)},
                status={"addresses": addresses},
            )
        case Pod():
            return _pod(fact)
        case Service():
            return _object(
                "Service",
                {"name": fact.name, "namespace": fact.namespace},
                spec={"clusterIPs": list(fact.cluster_ips), "ports": _ports(fact.ports)},
            )
        case EndpointSlice():
            return _slice(fact)
        case _:
            raise ValueError(f"{type(fact).__name__} is in no manifest")


def _pod(pod: Pod) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": pod.name,
        "namespace": pod.namespace,
        "uid": pod.uid,
        "labels": dict(pod.labels),
        **_annotations({REDIRECT_ANNOTATION: pod.redirect, MIRROR_ANNOTATION: pod.static_uid}),
    }
    if pod.deleted:
        metadata["deletionTimestamp"] = _SOME_TIME
    ports = [
        {"name": one.name, "protocol": PROTOCOL_NAMES[one.protocol], "containerPort": one.number}
        for one in pod.ports
    ]
    return _object(
        "Pod",
        metadata,
        spec={
            "serviceAccountName": pod.service_account,
            "nodeName": pod.node_name,
            "hostNetwork": pod.host_network,
            "containers": [{"name": "all", "ports": ports}],
        },
        status={"phase": pod.phase, "podIPs": [{"ip": one} for one in pod.ips]},
    )


def _slice(part: EndpointSlice) -> dict[str, Any]:
    labels = {SERVICE_LABEL: part.service} if part.service else {}
    family = NAMES
    if part.addresses:
        family = "IPv6" if ":" in part.addresses[0] else "IPv4"
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": part.name, "namespace": part.namespace, "labels": labels},
        "addressType": family,
        "endpoints": [{"addresses": [one]} for one in part.addresses],
        "ports": _ports(part.ports),
    }


def _ports(ports: Iterable[ServicePort]) -> list[dict[str, Any]]:
    return [
        {"name": one.name, "protocol": PROTOCOL_NAMES[one.protocol], "port": one.port}
        for one in ports
    ]


def _object(kind: str, metadata: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **parts}


def _annotations(values: Mapping[str, str]) -> dict[str, Any]:
    return {"annotations": {key: value for key, value in values.items() if value}}
