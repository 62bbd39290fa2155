# SPDX-License-Identifier: Apache-2.0
"""The events by which sources deliver facts (`agent.core.facts`, whose names are here, too).

Events are frozen, as facts are: they pass between threads.

A source emits, in this order: facts as it finds them, `SourceSynced` once its first full pass is
complete, and from then on only what changes. Until every source is synced, nothing may be
deleted from the kernel. A rejected object never changes the facts in force.
"""

from dataclasses import dataclass

from agent.core.facts import MIRROR_ANNOTATION as MIRROR_ANNOTATION
from agent.core.facts import REDIRECT_ANNOTATION as REDIRECT_ANNOTATION
from agent.core.facts import SERVICE_LABEL as SERVICE_LABEL
from agent.core.facts import EndpointSlice as EndpointSlice
from agent.core.facts import Fact as Fact
from agent.core.facts import Namespace as Namespace
from agent.core.facts import Node as Node
from agent.core.facts import Pod as Pod
from agent.core.facts import PublishedEndpoint as PublishedEndpoint
from agent.core.facts import PublishedIdentity as PublishedIdentity
from agent.core.facts import PublishedNode as PublishedNode
from agent.core.facts import ResourceKey as ResourceKey
from agent.core.facts import Service as Service
from agent.core.facts import ServicePort as ServicePort
from agent.core.facts import fact_key as fact_key
from policy.model import NetworkPolicy, PolicyKey

# ---- events: facts ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PodUpserted:
    """The pod is new, or one of its fields has changed."""

    source: str
    pod: Pod


@dataclass(frozen=True, slots=True)
class PodRemoved:
    source: str
    key: ResourceKey


@dataclass(frozen=True, slots=True)
class NamespaceUpserted:
    """The namespace is new, or its labels have changed."""

    source: str
    namespace: Namespace


@dataclass(frozen=True, slots=True)
class NamespaceRemoved:
    source: str
    key: ResourceKey


@dataclass(frozen=True, slots=True)
class PolicyUpserted:
    """The policy is new or has changed; it replaces any earlier one of this key as a whole."""

    source: str
    policy: NetworkPolicy


@dataclass(frozen=True, slots=True)
class PolicyRemoved:
    source: str
    key: PolicyKey


@dataclass(frozen=True, slots=True)
class NodeUpserted:
    """The node is new, or its addresses or CIDRs have changed."""

    source: str
    node: Node


@dataclass(frozen=True, slots=True)
class NodeRemoved:
    source: str
    key: ResourceKey


@dataclass(frozen=True, slots=True)
class ServiceUpserted:
    """The service is new, or its addresses or ports have changed."""

    source: str
    service: Service


@dataclass(frozen=True, slots=True)
class ServiceRemoved:
    source: str
    key: ResourceKey


@dataclass(frozen=True, slots=True)
class EndpointSliceUpserted:
    """The slice is new, or its service, addresses or ports have changed."""

    source: str
    slice: EndpointSlice


@dataclass(frozen=True, slots=True)
class EndpointSliceRemoved:
    source: str
    key: ResourceKey


@dataclass(frozen=True, slots=True)
class EndpointPublished:
    """A node says something new of one of its pods. Its own are told to it as well."""

    source: str
    endpoint: PublishedEndpoint


@dataclass(frozen=True, slots=True)
class EndpointWithdrawn:
    source: str
    key: ResourceKey


@dataclass(frozen=True, slots=True)
class IdentityPublished:
    """A number has a meaning now, or was marked or unmarked. Its labels never change."""

    source: str
    identity: PublishedIdentity


@dataclass(frozen=True, slots=True)
class IdentityWithdrawn:
    source: str
    number: int


@dataclass(frozen=True, slots=True)
class NodePublished:
    """A node's agent says something new of how it is reached. Its own are told to it as well."""

    source: str
    node: PublishedNode


@dataclass(frozen=True, slots=True)
class NodeWithdrawn:
    source: str
    key: ResourceKey


FactEvent = (
    PodUpserted
    | PodRemoved
    | NamespaceUpserted
    | NamespaceRemoved
    | PolicyUpserted
    | PolicyRemoved
    | NodeUpserted
    | NodeRemoved
    | ServiceUpserted
    | ServiceRemoved
    | EndpointSliceUpserted
    | EndpointSliceRemoved
    | EndpointPublished
    | EndpointWithdrawn
    | IdentityPublished
    | IdentityWithdrawn
    | NodePublished
    | NodeWithdrawn
)


def upserted(source: str, fact: Fact) -> FactEvent:
    """The event that says that a fact is new or has changed."""
    match fact:
        case Pod():
            return PodUpserted(source, fact)
        case Namespace():
            return NamespaceUpserted(source, fact)
        case Node():
            return NodeUpserted(source, fact)
        case Service():
            return ServiceUpserted(source, fact)
        case EndpointSlice():
            return EndpointSliceUpserted(source, fact)
        case PublishedEndpoint():
            return EndpointPublished(source, fact)
        case PublishedIdentity():
            return IdentityPublished(source, fact)
        case PublishedNode():
            return NodePublished(source, fact)
        case NetworkPolicy():
            return PolicyUpserted(source, fact)


def removed(source: str, key: ResourceKey) -> FactEvent:
    """The event that says that the fact with a key is gone. Policies have the other kinds."""
    match key.kind:
        case "Pod":
            return PodRemoved(source, key)
        case "Namespace":
            return NamespaceRemoved(source, key)
        case "Node":
            return NodeRemoved(source, key)
        case "Service":
            return ServiceRemoved(source, key)
        case "EndpointSlice":
            return EndpointSliceRemoved(source, key)
        case "BristleEndpoint":
            return EndpointWithdrawn(source, key)
        case "BristleIdentity":
            return IdentityWithdrawn(source, int(key.name))
        case "BristleNode":
            return NodeWithdrawn(source, key)
        case _:
            return PolicyRemoved(source, PolicyKey(*key))


# ---- events: what could not be used ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Origin:
    """The place a document came from.

    file: path below the manifest folder; for other sources whatever names the place.
    document: number of the document in the file, counted from 1; 0 means the file as a whole.
    item: index in `items` when the document is a list, else None.
    """

    file: str
    document: int = 0
    item: int | None = None

    def __str__(self) -> str:
        text = f"{self.file} document {self.document}" if self.document else self.file
        return text if self.item is None else f"{text} items[{self.item}]"


@dataclass(frozen=True, slots=True)
class ResourceRejected:
    """A document cannot be used. What was in force of it before stays in force.

    There is at most one rejection per origin: a later one replaces it, `RejectionCleared` ends it.
    field: path of the field at fault (`spec.ingress[0].ports[1].port`), empty if it is no field.
    resource: which object it is, as far as the document says; None when it does not.
    """

    source: str
    origin: Origin
    field: str
    message: str
    resource: ResourceKey | None = None

    def __str__(self) -> str:
        parts = (self.origin, self.resource, self.field, self.message)
        return ": ".join(str(part) for part in parts if part)


@dataclass(frozen=True, slots=True)
class RejectionCleared:
    """The rejection of this origin is over: it was repaired, or the document is gone."""

    source: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class ResourceIgnored:
    """A well-formed object of a kind that the agent does not use. For information only."""

    source: str
    origin: Origin
    resource: ResourceKey
    note: str


# ---- events: the source itself ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SourceSynced:
    """Everything the source holds has been delivered; sent again when a stale source recovers."""

    source: str


@dataclass(frozen=True, slots=True)
class SourceStale:
    """The source cannot be read any more; its facts stay in force as last known."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class SourceFailed:
    """The source cannot be read and never could; it keeps trying."""

    source: str
    reason: str


Event = (
    FactEvent
    | ResourceRejected
    | RejectionCleared
    | ResourceIgnored
    | SourceSynced
    | SourceStale
    | SourceFailed
)
