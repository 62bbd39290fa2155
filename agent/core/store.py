# SPDX-License-Identifier: Apache-2.0
"""The facts in force, and which of them have changed since they were last looked at.

Applying an event is cheap and decides nothing: what the facts mean is computed in ``desired``
from all of them together, so their order never matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agent.core.endpoint import Endpoint
from agent.core.events import (
    EndpointPublished,
    EndpointSlice,
    EndpointSliceRemoved,
    EndpointSliceUpserted,
    EndpointWithdrawn,
    Event,
    IdentityPublished,
    IdentityWithdrawn,
    Namespace,
    NamespaceRemoved,
    NamespaceUpserted,
    Node,
    NodePublished,
    NodeRemoved,
    NodeUpserted,
    NodeWithdrawn,
    Origin,
    Pod,
    PodRemoved,
    PodUpserted,
    PolicyRemoved,
    PolicyUpserted,
    PublishedEndpoint,
    PublishedIdentity,
    PublishedNode,
    RejectionCleared,
    ResourceIgnored,
    ResourceKey,
    ResourceRejected,
    Service,
    ServiceRemoved,
    ServiceUpserted,
    SourceFailed,
    SourceStale,
    SourceSynced,
)
from policy.model import NetworkPolicy

PodKey = tuple[str, str]
"""Namespace and name."""

ServiceKey = tuple[str, str]
"""Namespace and name."""


@dataclass(slots=True)
class Changes:
    """Keys of what may differ from before; a key that is in no table any more was removed.

    services: those that differ themselves, or of which a slice does.
    """

    pods: set[PodKey] = field(default_factory=set)
    namespaces: set[str] = field(default_factory=set)
    policies: set[ResourceKey] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    services: set[ServiceKey] = field(default_factory=set)
    identities: set[int] = field(default_factory=set)
    endpoints: set[int] = field(default_factory=set)
    node_addresses: bool = False
    tunnel_device: bool = False

    def __bool__(self) -> bool:
        return bool(
            self.pods
            or self.namespaces
            or self.policies
            or self.nodes
            or self.services
            or self.identities
            or self.endpoints
            or self.node_addresses
            or self.tunnel_device
        )


@dataclass(frozen=True, slots=True)
class SourceState:
    """How far a source is. ``detail`` says why it is not healthy."""

    synced: bool = False
    healthy: bool = True
    detail: str = ""


class Store:
    """All facts. ``sources`` are those that must deliver before anything is written."""

    def __init__(self, sources: Iterable[str]) -> None:
        self.pods: dict[PodKey, Pod] = {}
        self.namespaces: dict[str, Namespace] = {}
        self.policies: dict[ResourceKey, NetworkPolicy] = {}
        self.nodes: dict[str, Node] = {}
        self.services: dict[ServiceKey, Service] = {}
        self.slices: dict[tuple[str, str], EndpointSlice] = {}
        self.published: dict[PodKey, PublishedEndpoint] = {}
        self.identities: dict[int, PublishedIdentity] = {}
        self.published_nodes: dict[str, PublishedNode] = {}
        self.endpoints: dict[int, Endpoint] = {}
        self.node_addresses: frozenset[str] = frozenset()
        self.tunnel_device = 0
        """Index of the tunnel's device; 0: there is none."""
        self.uplink_addresses: dict[tuple[int, int], str] = {}
        self.rejections: dict[tuple[str, Origin], ResourceRejected] = {}
        self.sources: dict[str, SourceState] = {name: SourceState() for name in sources}
        self._slices_of: dict[ServiceKey, set[str]] = {}
        self._pods_of: dict[str, set[PodKey]] = {}
        self._endpoints_of: dict[PodKey, set[int]] = {}
        self._changes = Changes()

    @property
    def synced(self) -> bool:
        """Every source has delivered its first full state."""
        return all(state.synced for state in self.sources.values())

    def apply(self, event: Event) -> None:
        """Take one event of a source."""
        match event:
            case PodUpserted(pod=pod):
                self._put_pod(pod)
            case PodRemoved(key=key):
                self._drop_pod((key.namespace, key.name))
            case NamespaceUpserted(namespace=namespace):
                self.namespaces[namespace.name] = namespace
                self._changes.namespaces.add(namespace.name)
            case NamespaceRemoved(key=key):
                self.namespaces.pop(key.name, None)
                self._changes.namespaces.add(key.name)
            case PolicyUpserted(policy=policy):
                self.put_policy(ResourceKey(policy.kind, policy.namespace, policy.name), policy)
            case PolicyRemoved(key=key):
                self.put_policy(ResourceKey(key.kind, key.namespace, key.name), None)
            case NodeUpserted(node=node):
                self.nodes[node.name] = node
                self._changes.nodes.add(node.name)
            case NodeRemoved(key=key):
                self.nodes.pop(key.name, None)
                self._changes.nodes.add(key.name)
            case ServiceUpserted(service=service):
                self.services[service.namespace, service.name] = service
                self._changes.services.add((service.namespace, service.name))
            case ServiceRemoved(key=key):
                self.services.pop((key.namespace, key.name), None)
                self._changes.services.add((key.namespace, key.name))
            case EndpointSliceUpserted(slice=part):
                self._drop_slice((part.namespace, part.name))
                self._put_slice(part)
            case EndpointSliceRemoved(key=key):
                self._drop_slice((key.namespace, key.name))
            case EndpointPublished(endpoint=endpoint):
                self.published[endpoint.namespace, endpoint.name] = endpoint
                self._changes.pods.add((endpoint.namespace, endpoint.name))
            case EndpointWithdrawn(key=key):
                self.published.pop((key.namespace, key.name), None)
                self._changes.pods.add((key.namespace, key.name))
            case IdentityPublished(identity=identity):
                self.identities[identity.number] = identity
                self._changes.identities.add(identity.number)
            case IdentityWithdrawn(number=number):
                self.identities.pop(number, None)
                self._changes.identities.add(number)
            case NodePublished(node=told):
                self.published_nodes[told.name] = told
                self._changes.nodes.add(told.name)
            case NodeWithdrawn(key=key):
                self.published_nodes.pop(key.name, None)
                self._changes.nodes.add(key.name)
            case ResourceRejected(source=source, origin=origin):
                self.rejections[source, origin] = event
            case RejectionCleared(source=source, origin=origin):
                self.rejections.pop((source, origin), None)
            case SourceSynced(source=source):
                self.sources[source] = SourceState(synced=True)
            case (
                SourceStale(source=source, reason=reason)
                | SourceFailed(source=source, reason=reason)
            ):
                synced = self.sources.get(source, SourceState()).synced
                self.sources[source] = SourceState(synced, healthy=False, detail=reason)
            case ResourceIgnored():
                pass

    def put_policy(self, key: ResourceKey, policy: NetworkPolicy | None) -> None:
        """A policy, in place of the one with its key; None: there is none."""
        if policy is None:
            self.policies.pop(key, None)
        else:
            self.policies[key] = policy
        self._changes.policies.add(key)

    def policy_changed(self, key: ResourceKey) -> bool:
        """Whether `take_changes` would name this policy."""
        return key in self._changes.policies

    def look_again(self, pods: Iterable[PodKey]) -> None:
        """Count these pods as changed: what they could not have before may be there now."""
        self._changes.pods.update(pods)

    def put_endpoint(self, endpoint: Endpoint) -> None:
        """An endpoint exists."""
        self.drop_endpoint(endpoint.id)
        self.endpoints[endpoint.id] = endpoint
        self._endpoints_of.setdefault(endpoint.pod_key, set()).add(endpoint.id)
        self._changes.endpoints.add(endpoint.id)
        self._changes.pods.add(endpoint.pod_key)

    def drop_endpoint(self, number: int) -> None:
        """An endpoint is gone; an unknown one is no error."""
        endpoint = self.endpoints.pop(number, None)
        if endpoint is None:
            return
        owned = self._endpoints_of[endpoint.pod_key]
        owned.discard(number)
        if not owned:
            del self._endpoints_of[endpoint.pod_key]
        self._changes.endpoints.add(number)
        self._changes.pods.add(endpoint.pod_key)

    def set_node_addresses(self, addresses: Iterable[str]) -> None:
        """All addresses that the node's own stack receives, in canonical text."""
        wanted = frozenset(addresses)
        if wanted != self.node_addresses:
            self.node_addresses = wanted
            self._changes.node_addresses = True

    def set_tunnel_device(self, index: int) -> None:
        """The device that tunnels begin and end at."""
        if index != self.tunnel_device:
            self.tunnel_device = index
            self._changes.tunnel_device = True

    def set_uplink_addresses(self, addresses: Mapping[tuple[int, int], str]) -> None:
        """What pods look like on an uplink: {(ifindex, family 4 or 6): address of the node}."""
        if addresses != self.uplink_addresses:
            self.uplink_addresses = dict(addresses)
            self._changes.node_addresses = True

    @property
    def changed(self) -> bool:
        """Whether `take_changes` would give any."""
        return bool(self._changes)

    def take_changes(self) -> Changes:
        """What has changed since the last call."""
        changes, self._changes = self._changes, Changes()
        return changes

    def pods_of(self, namespace: str) -> Iterable[PodKey]:
        """Pods of a namespace that are known."""
        return tuple(self._pods_of.get(namespace, ()))

    def slices_of(self, service: ServiceKey) -> tuple[EndpointSlice, ...]:
        """Slices of a service, whether it is known or not, by name."""
        names = sorted(self._slices_of.get(service, ()))
        return tuple(self.slices[service[0], name] for name in names)

    def endpoints_of(self, pod: PodKey) -> tuple[Endpoint, ...]:
        """Endpoints of a pod on this node, by id."""
        return tuple(self.endpoints[one] for one in sorted(self._endpoints_of.get(pod, ())))

    def pod_of(self, endpoint: Endpoint) -> Pod | None:
        """The pod that an endpoint is of; None while only another pod of its name is known."""
        pod = self.pods.get(endpoint.pod_key)
        return pod if pod is not None and pod.may_be(endpoint.pod_uid) else None

    def namespace_labels(self, namespace: str) -> Mapping[str, str]:
        """Labels of a namespace; of one that is not known, only its name."""
        known = self.namespaces.get(namespace)
        return known.labels if known else {}

    def _put_pod(self, pod: Pod) -> None:
        key = (pod.namespace, pod.name)
        self.pods[key] = pod
        self._pods_of.setdefault(pod.namespace, set()).add(key)
        self._changes.pods.add(key)

    def _drop_pod(self, key: PodKey) -> None:
        if self.pods.pop(key, None) is None:
            return
        owned = self._pods_of[key[0]]
        owned.discard(key)
        if not owned:
            del self._pods_of[key[0]]
        self._changes.pods.add(key)

    def _put_slice(self, part: EndpointSlice) -> None:
        self.slices[part.namespace, part.name] = part
        if part.service:
            service = (part.namespace, part.service)
            self._slices_of.setdefault(service, set()).add(part.name)
            self._changes.services.add(service)

    def _drop_slice(self, key: tuple[str, str]) -> None:
        part = self.slices.pop(key, None)
        if part is None or not part.service:
            return
        service = (part.namespace, part.service)
        owned = self._slices_of[service]
        owned.discard(part.name)
        if not owned:
            del self._slices_of[service]
        self._changes.services.add(service)
