# SPDX-License-Identifier: Apache-2.0
"""Objects that the agent writes, with the fields that it knows. Pure.

Names of fields are the API's. What a field's default is, is not sent, but in status, where a false
must be able to follow a true.
"""

from __future__ import annotations

import msgspec

# ---- what all objects have -----------------------------------------------------------------------


class OwnerReference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who owns an object: with the owner goes what it owns."""

    apiVersion: str
    kind: str
    name: str
    uid: str
    controller: bool | None = None
    blockOwnerDeletion: bool | None = None


class Metadata(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """metadata, without managedFields, which belong to the server."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resourceVersion: str = ""
    generation: int | None = None
    creationTimestamp: str | None = None
    deletionTimestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    ownerReferences: tuple[OwnerReference, ...] | None = None
    finalizers: tuple[str, ...] | None = None


class Condition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """metav1.Condition. status: "True", "False", "Unknown". lastTransitionTime: RFC 3339."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    lastTransitionTime: str | None = None
    observedGeneration: int | None = None


# ---- bristle.io/v1alpha1 -------------------------------------------------------------------------


class EndpointAddress(msgspec.Struct, frozen=True):
    ip: str


class EndpointPort(msgspec.Struct, frozen=True):
    """protocol: TCP, UDP or SCTP."""

    name: str
    port: int
    protocol: str


class EndpointNode(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    ip: str = ""


class EndpointSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """addresses: all of the pod's; ipv4 and ipv6 repeat them for listings."""

    identity: int
    addresses: tuple[EndpointAddress, ...]
    node: EndpointNode
    endpointID: int = 0
    ipv4: str = ""
    ipv6: str = ""
    namedPorts: tuple[EndpointPort, ...] = ()


class EndpointStatus(msgspec.Struct, frozen=True, kw_only=True):
    state: str = ""
    ingressEnforcement: bool = False
    egressEnforcement: bool = False
    conditions: tuple[Condition, ...] = ()


class BristleEndpoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Named as its pod, which owns it. The status is written apart."""

    metadata: Metadata
    spec: EndpointSpec
    status: EndpointStatus | None = None


class BristleIdentity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Named by its number. The labels never change."""

    metadata: Metadata
    security_labels: dict[str, str] = msgspec.field(name="security-labels")


class NodeAddress(msgspec.Struct, frozen=True):
    """type: InternalIP and so on, as in core/v1."""

    type: str
    ip: str


class Encapsulation(msgspec.Struct, frozen=True):
    port: int


class BristleNodeSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """routingMode: native or tunnel. encapsulation: with tunnel alone."""

    addresses: tuple[NodeAddress, ...]
    podCIDRs: tuple[str, ...] = ()
    routingMode: str = ""
    encapsulation: Encapsulation | None = None


class Capacity(msgspec.Struct, frozen=True):
    """Entries of a table in the kernel."""

    used: int
    max: int


class BristleNodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    conditions: tuple[Condition, ...] = ()
    capacity: dict[str, Capacity] = {}
    version: str = ""


class BristleNode(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Named as the Node, which owns it. The status is written apart."""

    metadata: Metadata
    spec: BristleNodeSpec
    status: BristleNodeStatus | None = None


# ---- kinds of Kubernetes -------------------------------------------------------------------------


class LeaseSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Times are RFC 3339 with microseconds."""

    holderIdentity: str | None = None
    leaseDurationSeconds: int | None = None
    acquireTime: str | None = None
    renewTime: str | None = None
    leaseTransitions: int | None = None


class Lease(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """coordination.k8s.io/v1."""

    metadata: Metadata
    spec: LeaseSpec = LeaseSpec()


class ObjectReference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which object something is about."""

    apiVersion: str
    kind: str
    name: str
    namespace: str = ""
    uid: str = ""
    resourceVersion: str = ""
    fieldPath: str = ""


class EventSeries(msgspec.Struct, frozen=True):
    count: int
    lastObservedTime: str


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """events.k8s.io/v1. type: Normal or Warning. note: at most 1024 bytes."""

    metadata: Metadata
    eventTime: str | None = None
    reportingController: str = ""
    reportingInstance: str = ""
    action: str = ""
    reason: str = ""
    type: str = ""
    note: str = ""
    regarding: ObjectReference | None = None
    series: EventSeries | None = None
