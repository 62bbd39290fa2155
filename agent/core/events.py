# SPDX-License-Identifier: Apache-2.0
"""Facts about the cluster, and the events by which sources deliver them.

A fact is the part of a Kubernetes object that the agent uses, so two facts are equal when nothing
that matters to the agent differs. Facts and events are frozen: they pass between threads.

A source emits, in this order: facts as it finds them, `SourceSynced` once its first full pass is
complete, and from then on only what changes. Until every source is synced, nothing may be
deleted from the kernel. A rejected object never changes the facts in force.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from identity.ipcache import NamedPort
from identity.labels import LabelSet
from policy.model import NetworkPolicy, PolicyKey

REDIRECT_ANNOTATION: Final = "bristle.io/socket-redirect"
MIRROR_ANNOTATION: Final = "kubernetes.io/config.mirror"
"""Of an object that stands for a static pod: the uid that the kubelet gave that pod, which is the
one that runtimes know; the object's own is another."""


class ResourceKey(NamedTuple):
    """Which object of the API is meant; `namespace` is empty for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        name = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {name}"


# ---- facts -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod (core/v1).

    labels: as in the manifest, without any prefix; never modified after construction.
    ips: `status.podIPs` in canonical text, at most one of each family; empty once the pod has
        finished (phase Succeeded or Failed), because its addresses may then be given to others.
        A host-network pod has its node's addresses.
    ports: named container ports, in the order of the containers, native sidecars last.
    phase: `status.phase`, empty when the manifest has none.
    deleted: deletion has begun (`metadata.deletionTimestamp`); the pod still runs.
    redirect: the annotation `bristle.io/socket-redirect` as it is, empty when there is none.
    static_uid: of a static pod, what its runtime takes for its uid; empty for other pods.
    """

    namespace: str
    name: str
    uid: str = ""
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    service_account: str = "default"
    node_name: str = ""
    host_network: bool = False
    ips: tuple[str, ...] = ()
    ports: tuple[NamedPort, ...] = ()
    phase: str = ""
    deleted: bool = False
    redirect: str = ""
    static_uid: str = ""

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("Pod", self.namespace, self.name)

    def may_be(self, uid: str) -> bool:
        """Whether a runtime that speaks of a pod of this name and this uid, empty where it does not
        say, means this one, and not one that had the name before or has it since."""
        return not (uid and self.uid) or uid in (self.uid, self.static_uid)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace (core/v1).

    labels: always with `kubernetes.io/metadata.name`, which the API server sets on every
        namespace and policies select by.
    redirect: as a pod's, for those of its pods that have none.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    redirect: str = ""

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("Namespace", "", self.name)


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster (core/v1).

    addresses: `status.addresses` of types InternalIP and ExternalIP in canonical text, internal
        ones first, in their order; empty while the kubelet has not told them.
    pod_cidrs: `spec.podCIDRs` in canonical text, at most one of each family.
    external: those of the addresses that are of type ExternalIP alone. A cloud may translate them
        on their way, so no device of the node need have them.
    """

    name: str
    uid: str = ""
    addresses: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    external: frozenset[str] = frozenset()

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("Node", "", self.name)


@dataclass(frozen=True, slots=True)
class PublishedEndpoint:
    """What the node of a pod says of it to the other nodes (BristleEndpoint).

    identity: number of a `PublishedIdentity`, or a reserved one.
    ips: the pod's addresses in canonical text, at most one of each family.
    node_name: the node that published it; that of this node are its own work.
    pod_uid: of the pod that it is about; another pod of the same name has another.
    """

    namespace: str
    name: str
    identity: int
    endpoint: int = 0
    ips: tuple[str, ...] = ()
    ports: tuple[NamedPort, ...] = ()
    node_name: str = ""
    pod_uid: str = ""

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("BristleEndpoint", self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class PublishedIdentity:
    """A number of the cluster and the label set that it stands for (BristleIdentity).

    unused_since: when it was marked for deletion, because no endpoint had it (RFC 3339); empty: it
        is in use.
    """

    number: int
    labels: LabelSet
    unused_since: str = ""

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("BristleIdentity", "", str(self.number))


@dataclass(frozen=True, slots=True)
class PublishedNode:
    """How a node's agent says that packets for its pods travel (BristleNode).

    routing_mode: native or tunnel; empty: it does not say, as older agents do not, nor do those
        that know of no other node.
    tunnel_port: UDP port of its tunnel; 0: it does not say, or has none.
    """

    name: str
    routing_mode: str = ""
    tunnel_port: int = 0

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("BristleNode", "", self.name)


Fact = (
    Pod | Namespace | NetworkPolicy | Node | PublishedEndpoint | PublishedIdentity | PublishedNode
)


def fact_key(fact: Fact) -> ResourceKey:
    """The key of any fact. Policy kinds are named by the policy itself."""
    if isinstance(fact, NetworkPolicy):
        return ResourceKey(fact.kind, fact.namespace, fact.name)
    return fact.key


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
