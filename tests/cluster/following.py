# SPDX-License-Identifier: Apache-2.0
"""A source that follows the server of a test, and what it has said so far."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from agent.core.events import (
    EndpointPublished,
    EndpointSliceRemoved,
    EndpointSliceUpserted,
    EndpointWithdrawn,
    Event,
    Fact,
    FactEvent,
    IdentityPublished,
    IdentityWithdrawn,
    NamespaceRemoved,
    NamespaceUpserted,
    NodePublished,
    NodeRemoved,
    NodeUpserted,
    NodeWithdrawn,
    Origin,
    PodRemoved,
    PodUpserted,
    PolicyRemoved,
    PolicyUpserted,
    RejectionCleared,
    ResourceKey,
    ResourceRejected,
    ServiceRemoved,
    ServiceUpserted,
    SourceFailed,
    SourceStale,
    SourceSynced,
    fact_key,
)
from agent.kube.access import Access, Timeouts
from agent.kube.cluster import ClusterSource
from agent.kube.credentials import from_kubeconfig
from agent.kube.reflector import Timing
from bench.lab import manifests
from bench.lab.apiserver import write_kubeconfig
from bench.lab.kubeapi.choice import Server

NODE = "node-1"
DEFINITIONS = Path(__file__).parents[2] / "deploy" / "chart" / "crds"
PATIENCE = 60.0  # seconds; only a failing test waits so long
FAST = Timing(settled=0.05, first_wait=0.01, longest_wait=0.05, patience=0.2, page=3)

Object = dict[str, Any]


def install_definitions(server: Server) -> None:
    """The project's own kinds, as they are deployed."""
    for path in sorted(DEFINITIONS.glob("*.yaml")):
        server.create(yaml.safe_load(path.read_text()))


def access_to(server: Server, folder: Path, token: str = "") -> Access:
    """By a kubeconfig file in `folder`."""
    config = folder / "kubeconfig"
    write_kubeconfig(config, server.url, token, server.ca)
    return Access(from_kubeconfig(config), f"bristle/0.1 ({NODE})", Timeouts(5.0, 30.0))


def pod(name: str, app: str = "web", node: str = NODE, **more: Any) -> Object:
    """A Pod of the namespace shop."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": app}, **more},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "example.org/a:1"}]},
    }


def node(name: str, address: str = "192.0.2.1", cidr: str = "10.244.1.0/24") -> Object:
    """A Node with one address and one network."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }


def namespace(name: str, **labels: str) -> Object:
    """A Namespace."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def policy(name: str, spec: Any = None) -> Object:
    """A NetworkPolicy of the namespace shop."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": spec or {"podSelector": {}},
    }


def endpoint(name: str, identity: int = 4711, address: str = "10.244.2.1") -> Object:
    """A BristleEndpoint of the namespace shop, of another node."""
    spec = {"identity": identity, "addresses": [{"ip": address}], "node": {"name": "node-2"}}
    meta = {"name": name, "namespace": "shop"}
    kind = {"apiVersion": "bristle.io/v1alpha1", "kind": "BristleEndpoint"}
    return {**kind, "metadata": meta, "spec": spec}


def identity(number: int, **labels: str) -> Object:
    """A BristleIdentity."""
    kind = {"apiVersion": "bristle.io/v1alpha1", "kind": "BristleIdentity"}
    return {**kind, "metadata": {"name": str(number)}, "security-labels": labels or {"k8s:a": "b"}}


def service(name: str = "web", address: str = "10.96.0.80") -> Object:
    """A Service of the namespace shop."""
    return manifests.service("shop", name, [address], [("http", "TCP", 80)])


def endpoint_slice(*addresses: str, name: str = "web-1", service: str = "web") -> Object:
    """An EndpointSlice of the namespace shop."""
    ports = [("http", "TCP", 80)]
    return manifests.endpoint_slice("shop", name, service, addresses, ports)


def published_node(name: str, mode: str = "tunnel", port: int = 8472) -> Object:
    """A BristleNode."""
    kind = {"apiVersion": "bristle.io/v1alpha1", "kind": "BristleNode"}
    spec = {"addresses": [], "routingMode": mode, "encapsulation": {"port": port}}
    return {**kind, "metadata": {"name": name}, "spec": spec}


class Follower:
    """A context manager: a running source. Every fact event is checked to say something new."""

    def __init__(self, access: Access, timing: Timing = FAST, **options: Any) -> None:
        self.events: list[Event] = []
        self.facts: dict[ResourceKey, Fact] = {}
        self.rejections: dict[Origin, ResourceRejected] = {}
        self.vain: list[Event] = []
        self._changed = threading.Condition()
        self.source = ClusterSource(access, NODE, self._hear, timing=timing, **options)

    def __enter__(self) -> Follower:
        self.source.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.source.stop()
        assert not self.vain, self.vain

    def _hear(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            if isinstance(event, FactEvent):
                self._apply(event)
            elif isinstance(event, ResourceRejected):
                self.rejections[event.origin] = event
            elif isinstance(event, RejectionCleared):
                del self.rejections[event.origin]
            self._changed.notify_all()

    def _apply(self, event: FactEvent) -> None:
        fact, gone = _parts(event)
        if fact is not None:
            if self.facts.get(fact_key(fact)) == fact:
                self.vain.append(event)
            self.facts[fact_key(fact)] = fact
        elif gone is not None and self.facts.pop(gone, None) is None:
            self.vain.append(event)

    def wait(self, ready: Callable[[], object], what: str = "") -> None:
        """Until `ready`, looked at after every event and now and then."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while not ready():
                if time.monotonic() > deadline:
                    tail = "\n".join(str(event) for event in self.events[-20:])
                    raise AssertionError(f"never happened: {what}\n{tail}")
                self._changed.wait(0.02)

    def synced(self) -> None:
        """Until the source is in order, which it may be already."""
        self.wait(lambda: isinstance(self.report, SourceSynced), "synced")

    def stale(self) -> str:
        """Until the source is stale or has failed; why."""
        self.wait(lambda: isinstance(self.report, SourceStale | SourceFailed), "stale")
        assert isinstance(self.report, SourceStale | SourceFailed)
        return self.report.reason

    def said(self, text: str) -> None:
        """Until the source's last report is trouble, and names this."""
        self.wait(
            lambda: (
                isinstance(self.report, SourceStale | SourceFailed) and text in self.report.reason
            ),
            text,
        )

    @property
    def report(self) -> SourceSynced | SourceStale | SourceFailed | None:
        """What the source said of itself last."""
        reports = (SourceSynced, SourceStale, SourceFailed)
        return next((e for e in reversed(self.events) if isinstance(e, reports)), None)

    def settled(self, server: Server) -> list[FactEvent]:
        """Fact events since the last call, up to a sign that is sent now: an object of each kind
        that comes and goes in the order of that kind's other changes."""
        number = len(self.events)
        name = f"sign-{number}"
        signs = [
            pod(name),
            node(name),
            published_node(name),
            namespace(name),
            policy(name),
            service(name),
            endpoint_slice(name=name),
            endpoint(name),
            identity(60_000 + number % 5000),
        ]
        for sign in signs:
            server.load([sign])
        keys = {
            ResourceKey(s["kind"], s["metadata"].get("namespace", ""), s["metadata"]["name"])
            for s in signs
        }
        self.wait(lambda: keys <= self.facts.keys(), "signs")
        for sign in signs:
            meta = sign["metadata"]
            server.delete(sign["kind"], meta["name"], meta.get("namespace", ""), grace=0)
        self.wait(lambda: not keys & self.facts.keys(), "signs gone")
        with self._changed:
            events: list[FactEvent] = [e for e in self.events if isinstance(e, FactEvent)]
            begin, self._settled = self._settled, len(events)
            return [event for event in events[begin:] if not _about(event, keys)]

    _settled = 0


def _about(event: FactEvent, keys: set[ResourceKey]) -> bool:
    fact, gone = _parts(event)
    return (gone if fact is None else fact_key(fact)) in keys


def _parts(event: FactEvent) -> tuple[Fact | None, ResourceKey | None]:
    """The fact that has come, or the key of one that is gone."""
    match event:
        case PodUpserted(pod=fact):
            return fact, None
        case NamespaceUpserted(namespace=fact):
            return fact, None
        case NodeUpserted(node=fact):
            return fact, None
        case ServiceUpserted(service=fact):
            return fact, None
        case EndpointSliceUpserted(slice=fact):
            return fact, None
        case NodePublished(node=fact):
            return fact, None
        case PolicyUpserted(policy=fact):
            return fact, None
        case EndpointPublished(endpoint=fact):
            return fact, None
        case IdentityPublished(identity=fact):
            return fact, None
        case IdentityWithdrawn(number=number):
            return None, ResourceKey("BristleIdentity", "", str(number))
        case PolicyRemoved(key=policy_key):
            return None, ResourceKey(*policy_key)
        case (
            PodRemoved(key=key)
            | NamespaceRemoved(key=key)
            | NodeRemoved(key=key)
            | ServiceRemoved(key=key)
            | EndpointSliceRemoved(key=key)
            | NodeWithdrawn(key=key)
            | EndpointWithdrawn(key=key)
        ):
            return None, key
