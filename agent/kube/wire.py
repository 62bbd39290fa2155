# SPDX-License-Identifier: Apache-2.0
"""Answers of an API server as small typed structures: only the fields that are used. Pure.

msgspec steps over everything else (managedFields, volumes, most of status) without making objects
of it. Items of lists and objects of events stay raw at first, so that one odd object spoils
nothing but itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec
from msgspec import Raw

from agent.core.events import MIRROR_ANNOTATION, REDIRECT_ANNOTATION, SERVICE_LABEL

# Field names are the API's, so no renaming stands between an object and its documentation.


class Meta(msgspec.Struct, gc=False):
    """metadata of an object, as far as every kind needs it."""

    name: str | None = None
    namespace: str | None = None
    uid: str | None = None
    resourceVersion: str | None = None


class Head(msgspec.Struct, gc=False):
    """Which object it is, and in which version."""

    metadata: Meta | None = None


class ListMeta(msgspec.Struct):
    """`continue` is a word of Python's; it alone is renamed."""

    resourceVersion: str | None = None
    continue_: str | None = msgspec.field(default=None, name="continue")


class ListPage(msgspec.Struct):
    """A list, or one chunk of it."""

    metadata: ListMeta | None = None
    items: list[Raw] | None = None


class WatchEvent(msgspec.Struct):
    """One line of a watch. type: ADDED, MODIFIED, DELETED, BOOKMARK or ERROR."""

    type: str
    object: Raw


# ---- pods ------------------------------------------------------------------------------------


class Annotations(msgspec.Struct, gc=False):
    """Of all annotations, which may be many kilobytes, those that are used."""

    redirect: str | None = msgspec.field(default=None, name=REDIRECT_ANNOTATION)
    mirror: str | None = msgspec.field(default=None, name=MIRROR_ANNOTATION)


class PodMeta(msgspec.Struct):
    """labels: their text, which pods of one workload share."""

    name: str
    namespace: str
    uid: str | None = None
    labels: Raw = Raw(b"null")
    deletionTimestamp: str | None = None
    annotations: Annotations | None = None


class ContainerPort(msgspec.Struct, gc=False):
    containerPort: int
    name: str | None = None
    protocol: str | None = None


class Container(msgspec.Struct):
    ports: list[ContainerPort] | None = None
    restartPolicy: str | None = None


class PodSpec(msgspec.Struct):
    containers: list[Container] | None = None
    initContainers: list[Container] | None = None
    nodeName: str | None = None
    serviceAccountName: str | None = None
    hostNetwork: bool | None = None


class PodIP(msgspec.Struct, gc=False):
    ip: str


class PodStatus(msgspec.Struct):
    phase: str | None = None
    podIP: str | None = None
    podIPs: list[PodIP] | None = None


class PodObject(msgspec.Struct):
    """v1 Pod."""

    metadata: PodMeta
    spec: PodSpec | None = None
    status: PodStatus | None = None


# ---- what agents publish ---------------------------------------------------------------------


class Owner(msgspec.Struct, gc=False):
    """meta/v1 OwnerReference."""

    kind: str
    uid: str


class EndpointMeta(msgspec.Struct, gc=False):
    name: str
    namespace: str
    ownerReferences: list[Owner] | None = None


class EndpointAddress(msgspec.Struct, gc=False):
    ip: str


class EndpointPort(msgspec.Struct, gc=False):
    name: str
    port: int
    protocol: str | None = None


class EndpointNode(msgspec.Struct, gc=False):
    name: str | None = None
    ip: str | None = None


class EndpointSpec(msgspec.Struct):
    identity: int
    endpointID: int | None = None
    addresses: list[EndpointAddress] | None = None
    namedPorts: list[EndpointPort] | None = None
    node: EndpointNode | None = None


class EndpointObject(msgspec.Struct):
    """bristle.io/v1alpha1 BristleEndpoint."""

    metadata: EndpointMeta
    spec: EndpointSpec


# ---- services ------------------------------------------------------------------------------------


class ServiceMeta(msgspec.Struct, gc=False):
    name: str
    namespace: str


class PortObject(msgspec.Struct, gc=False):
    """A port of a service or of a slice. One of a service has a number."""

    port: int | None = None
    name: str | None = None
    protocol: str | None = None


class ServiceSpec(msgspec.Struct):
    type: str | None = None
    clusterIP: str | None = None
    clusterIPs: list[str] | None = None
    ports: list[PortObject] | None = None


class ServiceObject(msgspec.Struct):
    """v1 Service."""

    metadata: ServiceMeta
    spec: ServiceSpec


class SliceLabels(msgspec.Struct, gc=False):
    """Of all labels the one that is used."""

    service: str | None = msgspec.field(default=None, name=SERVICE_LABEL)


class SliceMeta(msgspec.Struct):
    name: str
    namespace: str
    labels: SliceLabels | None = None


class SliceEndpoint(msgspec.Struct):
    """Ready or not: a connection may outlast that."""

    addresses: list[str]


class SliceObject(msgspec.Struct):
    """discovery.k8s.io/v1 EndpointSlice."""

    metadata: SliceMeta
    addressType: str
    endpoints: list[SliceEndpoint] | None = None
    ports: list[PortObject] | None = None


# ---- objects whose fields are looked at one by one --------------------------------------------

Wanted = Mapping[str, tuple[str, ...] | None]
"""Fields of an object, and of each the inner fields; None: all of it."""

_NAMES: Final = ("name", "generateName", "namespace", "uid", "deletionTimestamp")
_POD_SPEC: Final = ("containers", "initContainers", "nodeName", "serviceAccountName", "hostNetwork")
_ANNOTATED: Final = (*_NAMES, "labels", "annotations")

WANTED: Final[Mapping[str, Wanted]] = {
    "Pod": {"metadata": _ANNOTATED, "spec": _POD_SPEC, "status": ("phase", "podIP", "podIPs")},
    "Namespace": {"metadata": _ANNOTATED},
    "Node": {"metadata": _NAMES, "spec": ("podCIDR", "podCIDRs"), "status": ("addresses",)},
    # Nothing of a policy may be overlooked but its metadata, where a newer API may have more.
    "NetworkPolicy": {"metadata": _NAMES, "spec": None},
    "Service": {"metadata": _NAMES, "spec": ("type", "clusterIP", "clusterIPs", "ports")},
    "EndpointSlice": {
        "metadata": (*_NAMES, "labels"),
        "addressType": None,
        "endpoints": None,
        "ports": None,
    },
    "BristleEndpoint": {"metadata": (*_NAMES, "ownerReferences"), "spec": None},
    "BristleIdentity": {"metadata": (*_NAMES, "annotations"), "security-labels": None},
    "BristleNode": {"metadata": _NAMES, "spec": ("routingMode", "encapsulation")},
}
"""By kind, what its translator looks at."""

_FIELDS: Final = msgspec.json.Decoder(dict[str, Raw])
_ANY: Final = msgspec.json.Decoder()


def plain_object(raw: bytes | Raw, wanted: Wanted) -> object:
    """The object as `json.loads` gives it, with the wanted fields; others are there with None for
    a value, so that it is known that they are there. Anything else than an object: as it is.

    Raises msgspec.DecodeError for what is no JSON.
    """
    try:
        fields = _FIELDS.decode(raw)
    except msgspec.ValidationError:
        return _ANY.decode(raw)
    return {
        name: _part(value, wanted[name]) if name in wanted else None
        for name, value in fields.items()
    }


def _part(raw: Raw, wanted: tuple[str, ...] | None) -> object:
    if wanted is None:
        return _ANY.decode(raw)
    try:
        fields = _FIELDS.decode(raw)
    except msgspec.ValidationError:
        return _ANY.decode(raw)
    return {name: _ANY.decode(value) for name, value in fields.items() if name in wanted}


# ---- decoding ----------------------------------------------------------------------------------

_PAGE: Final = msgspec.json.Decoder(ListPage)
_EVENT: Final = msgspec.json.Decoder(WatchEvent)
_HEAD: Final = msgspec.json.Decoder(Head)


class WireError(ValueError):
    """Bytes that are not what the API promises."""


def decode_page(body: bytes) -> ListPage:
    """A list. Raises WireError."""
    return _decode(_PAGE, body)


def decode_event(line: bytes) -> WatchEvent:
    """A line of a watch. Raises WireError."""
    return _decode(_EVENT, line)


def decode_head(raw: bytes | Raw) -> Meta:
    """The metadata of any object. Raises WireError if it has none."""
    head = _decode(_HEAD, raw)
    if head.metadata is None:
        raise WireError("an object without metadata")
    return head.metadata


_T = TypeVar("_T")


def _decode(decoder: msgspec.json.Decoder[_T], data: bytes | Raw) -> _T:
    try:
        return decoder.decode(data)
    # Not every kind of bad UTF-8 is msgspec's own error, and nesting may exhaust the stack.
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise WireError(str(error)) from None
