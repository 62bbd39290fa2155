# SPDX-License-Identifier: Apache-2.0
"""Facts about the cluster.

A fact is the part of a Kubernetes object that the agent uses, so two facts are equal when nothing
that matters to the agent differs. Facts are frozen: they pass between threads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from identity.ipcache import NamedPort
from identity.labels import LabelSet
from policy.model import NetworkPolicy

REDIRECT_ANNOTATION: Final = "bristle.io/socket-redirect"
MIRROR_ANNOTATION: Final = "kubernetes.io/config.mirror"
"""Of an object that stands for a static pod: the uid that the kubelet gave that pod, which is the
one that runtimes know; the object's own is another."""

SERVICE_LABEL: Final = "kubernetes.io/service-name"
"""Of an endpoint slice: of which service it is."""


class ResourceKey(NamedTuple):
    """Which object of the API is meant; `namespace` is empty for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        name = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {name}"


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
    node_ip: the node's first address, as told; empty: none.
    """

    namespace: str
    name: str
    identity: int
    endpoint: int = 0
    ips: tuple[str, ...] = ()
    ports: tuple[NamedPort, ...] = ()
    node_name: str = ""
    pod_uid: str = ""
    node_ip: str = ""

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


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port of a service or of an endpoint slice. Both are of one port of a service if their names
    are the same.

    name: empty when it has none. protocol: IP protocol number. port: 1 to 65535.
    """

    name: str
    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class Service:
    """A service (core/v1).

    cluster_ips: `spec.clusterIPs` in canonical text, at most one of each family; empty for headless
        services and those of type ExternalName, and while none is given.
    ports: `spec.ports`, in their order.
    """

    namespace: str
    name: str
    cluster_ips: tuple[str, ...] = ()
    ports: tuple[ServicePort, ...] = ()

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("Service", self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """A part of what is behind a service (discovery.k8s.io/v1).

    service: of the same namespace (label `kubernetes.io/service-name`); empty when it names none.
    addresses: of all endpoints, ready or not, each once in canonical text, in their order; empty
        where they are names (addressType FQDN).
    ports: those with a number, in their order. One without a number, which the API takes to mean
        all ports, is left out.
    """

    namespace: str
    name: str
    service: str = ""
    addresses: tuple[str, ...] = ()
    ports: tuple[ServicePort, ...] = ()

    @property
    def key(self) -> ResourceKey:
        return ResourceKey("EndpointSlice", self.namespace, self.name)


Fact = (
    Pod
    | Namespace
    | NetworkPolicy
    | Node
    | Service
    | EndpointSlice
    | PublishedEndpoint
    | PublishedIdentity
    | PublishedNode
)


def fact_key(fact: Fact) -> ResourceKey:
    """The key of any fact. Policy kinds are named by the policy itself."""
    if isinstance(fact, NetworkPolicy):
        return ResourceKey(fact.kind, fact.namespace, fact.name)
    return fact.key
