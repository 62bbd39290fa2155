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
from typing import NamedTuple

from identity.ipcache import NamedPort
from policy.model import NetworkPolicy, PolicyKey


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

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("Pod", self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace (core/v1).

    labels: always with `kubernetes.io/metadata.name`, which the API server sets on every
        namespace and policies select by.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("Namespace", "", self.name)


Fact = Pod | Namespace | NetworkPolicy


def fact_key(fact: Fact) -> ResourceKey:
    """The key of any fact. Policy kinds are named by the policy itself."""
    if isinstance(fact, Pod | Namespace):
        return fact.key
    return ResourceKey(fact.kind, fact.namespace, fact.name)


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


FactEvent = (
    PodUpserted | PodRemoved | NamespaceUpserted | NamespaceRemoved | PolicyUpserted | PolicyRemoved
)
Event = (
    FactEvent
    | ResourceRejected
    | RejectionCleared
    | ResourceIgnored
    | SourceSynced
    | SourceStale
    | SourceFailed
)
