# SPDX-License-Identifier: Apache-2.0
"""Several nodes on one machine: network namespaces joined by a segment, each with an agent.

    node-1 ── up0 ──┐                    node-1 ── up0 ── rt1 ──┐
    node-2 ── up0 ──┼── fabric (bridge)  node-2 ── up0 ── rt2 ──┼── fabric (router)
    outside ─ eth0 ─┘                    outside ─ eth0 ─ rt0 ──┘

A source says where facts come from and what an agent's configuration says of it. The one here
gives every agent a folder with all manifests of the cluster; another may run an API server.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from agent.cli.maps import address_text, prefix_text
from agent.kernel.maps import PinnedMap
from bench.lab import manifests
from bench.lab.agent import REPOSITORY, Agent
from bench.lab.manifests import ManifestFolder, Object
from bench.lab.netns import LabError, Namespace, mount, unmount
from bench.lab.scope import Scope
from bench.lab.station import NODE_SYSCTLS, PEER_SYSCTLS, UPLINK, Pod, Station
from bpf.maps import PEERS, TUNNELS, MapSpec

SEGMENT, ROUTED = "segment", "routed"
"""How the nodes are joined: by one link, or by a router with a link to each."""

POD_NETWORK = ("10.244.{}.0/24", "fd00:10:244:{}::/112")
NODE_NETWORK = ("192.0.2.{}", "2001:db8:1::{}")
ROUTED_NETWORK = ("192.0.{}.{}", "2001:db8:{}::{}")
OUTSIDE_NUMBER = 250
SECONDS = 30.0
_KEPT = REPOSITORY / ".cache" / "lab" / "programs"
"""Bytecode of programs, by names that cover all that goes into them: compiled once for all agents
of all clusters."""


class Source(Protocol):
    """Where the agents have their facts from."""

    def config(self, node: str) -> Mapping[str, Any]:
        """The keys of an agent's configuration that name it."""

    def put(self, name: str, objects: Sequence[Object]) -> None:
        """These objects are what there is under a name; none: nothing is."""


class ManifestSource:
    """A folder for each node, all with the same manifests."""

    def __init__(self, root: Path, nodes: Iterable[str]) -> None:
        self._folders = {name: ManifestFolder(root / name / "manifests") for name in nodes}
        for one in self._folders.values():
            one.folder.mkdir(parents=True, exist_ok=True)

    def config(self, node: str) -> Mapping[str, Any]:
        return {"source": {"manifests": str(self._folders[node].folder)}}

    def put(self, name: str, objects: Sequence[Object]) -> None:
        for folder in self._folders.values():
            if objects:
                folder.put(name, objects)
            else:
                folder.remove(name)


@dataclass(slots=True, eq=False)
class Node:
    """One node: a namespace with an agent. `station` is the node itself as a place."""

    name: str
    number: int
    namespace: Namespace
    addresses: tuple[str, ...]
    pod_cidrs: tuple[str, ...]
    folder: Path
    station: Station
    agent: Agent
    listed: bool = True
    """Whether there is a Node object."""

    @property
    def bpffs(self) -> Path:
        return self.folder / "bpf"


@dataclass(slots=True, eq=False)
class _Placed:
    """A pod, where it runs, and its manifest as of now."""

    pod: Pod
    node: Node
    labels: Mapping[str, str]
    ports: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """What a cluster is like.

    nodes: how many. mode: `routing.mode`. joined: SEGMENT or ROUTED.
    underlay: families that nodes have addresses of. pods: families that pods have.
    mtus: of nodes' uplinks, by node number, where they are not 1500. config: further keys of each
    agent's configuration. hook: whether agents guard the uplink (`devices`).
    """

    nodes: int = 2
    mode: str = "tunnel"
    joined: str = SEGMENT
    underlay: tuple[int, ...] = (4, 6)
    pods: tuple[int, ...] = (4, 6)
    mtus: Mapping[int, int] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    hook: bool = True


class Cluster:
    """A context manager; everything it made is gone afterwards, also after an exception.

    source: makes the source of facts of a cluster with these nodes; None: manifest folders.
    start: start all agents at once; else `cluster.start()`.
    """

    def __init__(
        self,
        shape: Shape | None = None,
        *,
        source: Callable[[Path, Sequence[str]], Source] | None = None,
        start: bool = True,
    ) -> None:
        self.shape = shape or Shape()
        self.nodes: dict[str, Node] = {}
        self.pods: dict[str, Pod] = {}
        self._placed: dict[str, _Placed] = {}
        self._make_source = source or ManifestSource
        self._start = start
        self._stack = ExitStack()
        self._files: set[str] = set()

    def __enter__(self) -> Cluster:
        with ExitStack() as stack:
            self.scope = stack.enter_context(Scope())
            numbers = range(1, self.shape.nodes + 1)
            self.source: Source = self._make_source(
                self.scope.root, [f"node-{number}" for number in numbers]
            )
            self.fabric = self.scope.namespace("fabric")
            self.fabric.sysctl({**NODE_SYSCTLS, **PEER_SYSCTLS})
            if self.shape.joined == SEGMENT:
                self.fabric.ip("link add br0 type bridge", "link set br0 up")
            self.outside_namespace = self.scope.namespace("outside")
            self.outside = self._join(self.outside_namespace, OUTSIDE_NUMBER, "eth0", "outside")
            for number in numbers:
                self._add_node(stack, number)
            self.list_nodes()
            if self._start:
                self.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ---- nodes -----------------------------------------------------------------------------------

    def _add_node(self, stack: ExitStack, number: int) -> None:
        name = f"node-{number}"
        namespace = self.scope.namespace(name)
        station = self._join(namespace, number, UPLINK, name)
        folder = self.scope.root / name
        for inner in ("run", "state", "bpf"):
            (folder / inner).mkdir(parents=True)
        if _KEPT.is_dir():
            shutil.copytree(_KEPT, folder / "run" / "programs")
        mount("bpf", folder / "bpf")
        stack.callback(unmount, folder / "bpf")
        cidrs = tuple(POD_NETWORK[family == 6].format(number) for family in self.shape.pods)
        config = {
            "node_name": name,
            "run_dir": str(folder / "run"),
            "state_dir": str(folder / "state"),
            "bpffs_dir": str(folder / "bpf"),
            "cgroup_root": str(self.scope.cgroup),
            "pod_cidrs": list(cidrs),
            "devices": [UPLINK] if self.shape.hook else [],
            "routing": {"mode": self.shape.mode},
            **self.source.config(name),
            **self.shape.config,
        }
        agent = Agent(namespace, config, folder / "agent.yaml")
        stack.callback(agent.close)
        addresses = tuple(station.address(family) for family in self.shape.underlay)
        self.nodes[name] = Node(name, number, namespace, addresses, cidrs, folder, station, agent)

    def _join(self, namespace: Namespace, number: int, device: str, name: str) -> Station:
        """Connects a namespace with the segment, or with the router by a link of its own."""
        mtu = self.shape.mtus.get(number, 1500)
        inner = f"rt{number}"
        namespace.sysctl({**PEER_SYSCTLS, **NODE_SYSCTLS})
        self.fabric.ip(
            f"link add {inner} mtu {mtu} type veth peer name {device} mtu {mtu}"
            f" netns {namespace.name}"
        )
        for where, which in ((namespace, device), (self.fabric, inner)):
            where.sysctl({f"ipv6.conf.{which}.accept_dad": 0})
        own = _addresses(self.shape.joined, number)
        gateways = _addresses(self.shape.joined, number, gateway=True)
        namespace.ip(f"link set {device} up")
        self.fabric.ip(f"link set {inner} up")
        if self.shape.joined == SEGMENT:
            self.fabric.ip(f"link set {inner} master br0")
        for family in (4, 6):
            if family not in self.shape.underlay and number != OUTSIDE_NUMBER:
                continue
            nodad = " nodad" if family == 6 else ""
            length = 24 if family == 4 else 64
            anywhere = "default" if family == 4 else "::/0"
            place = family == 6
            namespace.ip(f"address add {own[place]}/{length} dev {device}{nodad}")
            if self.shape.joined == ROUTED:
                self.fabric.ip(f"address add {gateways[place]}/{length} dev {inner}{nodad}")
                namespace.ip(f"route add {anywhere} via {gateways[place]}")
            elif number != OUTSIDE_NUMBER:
                there = _addresses(SEGMENT, OUTSIDE_NUMBER)[place]
                namespace.ip(f"route add {anywhere} via {there}")
        return Station(
            name,
            namespace,
            own[0] if 4 in self.shape.underlay else "",
            own[1] if 6 in self.shape.underlay else "",
        )

    def list_nodes(self) -> None:
        """Makes the Node objects what `nodes` says: those that are `listed`."""
        self.put(
            "nodes",
            [
                manifests.node(one.name, one.pod_cidrs, one.addresses)
                for one in self.nodes.values()
                if one.listed
            ],
        )

    def route_pods(self, outside: bool = True) -> None:
        """Routes to all pods in the fabric's router and in the outside host: what the network of
        a cloud would have."""
        for node in self.nodes.values():
            for cidr in node.pod_cidrs:
                address = next(a for a in node.addresses if (":" in a) == (":" in cidr))
                if self.shape.joined == ROUTED:
                    self.fabric.ip(f"route replace {cidr} via {address}")
                elif outside:
                    self.outside_namespace.ip(f"route replace {cidr} via {address}")

    def start(self) -> None:
        """Starts all agents that do not run, at the same time; returns when all are ready."""
        idle = [one for one in self.nodes.values() if not _runs(one.agent)]
        for node in idle:
            node.agent.launch()
        for node in idle:
            node.agent.wait_ready()
            _keep(node.folder / "run" / "programs")

    def node(self, node: str | Node) -> Node:
        """A node by itself or by name."""
        return node if isinstance(node, Node) else self.nodes[node]

    def node_of(self, pod: Pod) -> Node:
        """Where a pod runs."""
        return self._placed[pod.name].node

    def kill(self, node: str | Node) -> None:
        """Kills a node's agent."""
        self.node(node).agent.kill()

    def restart(self, node: str | Node) -> None:
        """Kills a node's agent, and starts another one."""
        self.kill(node)
        self.node(node).agent.start()

    # ---- facts -----------------------------------------------------------------------------------

    def put(self, name: str, objects: Sequence[Object]) -> None:
        """Hands objects to the source; does not wait."""
        self.source.put(name, objects)

    def change(self, name: str, objects: Sequence[Object], settled: Callable[[], bool]) -> None:
        """Hands objects to the source and waits until `settled`. Raises LabError."""
        self.put(name, objects)
        self.wait(settled, f"{name} to be in force")

    def set_namespaces(self, namespaces: Mapping[str, Mapping[str, str]]) -> None:
        """Makes these namespaces, with labels, the ones that there are; does not wait."""
        self.put("namespaces", [manifests.namespace(*one) for one in namespaces.items()])

    def set_policies(self, policies: Sequence[Mapping[str, Any]]) -> None:
        """Makes these NetworkPolicies, by names that were not in use, the only ones there are, on
        every node whose agent runs."""
        names = {f"{p['metadata']['namespace']}/{p['metadata']['name']}" for p in policies}
        running = [one.agent for one in self.nodes.values() if _runs(one.agent)]
        self.change(
            "policies",
            [dict(one) for one in policies],
            lambda: all(agent.has_policies(names) for agent in running),
        )

    def wait(self, ready: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
        """Asks until the answer is true. Raises LabError with what the agents said last."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if ready():
                return
            time.sleep(0.01)
        logs = "\n".join(f"--- {n.name}\n{n.agent.tail(8)}" for n in self.nodes.values())
        raise LabError(f"waited {seconds} s in vain for {what}\n{logs}")

    # ---- pods ------------------------------------------------------------------------------------

    def add_pod(
        self,
        node: str | Node,
        namespace: str,
        name: str,
        labels: Mapping[str, str] | None = None,
        ports: Iterable[tuple[str, str, int]] = (),
    ) -> Pod:
        """A pod by CNI ADD on its node, and by its manifest everywhere; when this returns, every
        running agent knows it by its labels. Raises LabError."""
        there = self.node(node)
        netns = self.scope.namespace(f"{namespace}-{name}")
        try:
            netns.sysctl(PEER_SYSCTLS)
            pod = self._wire(there, netns, namespace, name)
        except BaseException:
            self.scope.drop(netns)
            raise
        self.pods[pod.name] = pod
        self._placed[pod.name] = _Placed(pod, there, dict(labels or {}), tuple(ports))
        self._show(pod)
        there.agent.wait_known(pod.name)
        self.wait_peers()
        return pod

    def relabel(self, pod: Pod, labels: Mapping[str, str]) -> None:
        """Gives a pod other labels; does not wait."""
        self._placed[pod.name].labels = dict(labels)
        self._show(pod)

    def _show(self, pod: Pod) -> None:
        placed = self._placed[pod.name]
        addresses = [one for one in (pod.ipv4, pod.ipv6) if one]
        self.put(
            f"pod-{pod.pod_namespace}-{pod.pod_name}",
            [
                manifests.pod(
                    pod.pod_namespace, pod.pod_name, placed.labels, placed.ports,
                    node=placed.node.name, addresses=addresses,
                )
            ],
        )  # fmt: skip

    def delete_pod(self, pod: Pod) -> None:
        """CNI DEL, then its namespace and its manifest."""
        node = self._placed.pop(pod.name).node
        self.cni(node, "DEL", pod.container_id, pod.namespace, pod.pod_namespace, pod.pod_name)
        self.scope.drop(pod.namespace)
        self.put(f"pod-{pod.pod_namespace}-{pod.pod_name}", [])
        self.pods.pop(pod.name, None)

    def identities(self, node: str | Node) -> dict[str, int]:
        """The identity that a node's table gives each prefix ("10.0.0.1/32")."""
        with _table(self.node(node), PEERS) as peers:
            return {
                prefix_text(key.address, key.prefix_length): value.identity
                for key, value in peers.items()
            }

    def tunnels(self, node: str | Node) -> dict[str, str]:
        """The outer address by which a node reaches each prefix, empty for along the route."""
        with _table(self.node(node), TUNNELS) as tunnels:
            return {
                prefix_text(key.address, key.prefix_length): address_text(value.remote)
                if any(value.remote)
                else ""
                for key, value in tunnels.items()
            }

    def wait_peers(self) -> None:
        """Until every running agent's table has every pod's address."""
        wanted = {
            f"{address}/{128 if ':' in address else 32}"
            for pod in self.pods.values()
            for address in (pod.ipv4, pod.ipv6)
            if address
        }
        running = [one for one in self.nodes.values() if _runs(one.agent)]
        self.wait(
            lambda: all(wanted <= self.identities(one).keys() for one in running),
            "every node to know every pod",
        )

    def _wire(self, node: Node, netns: Namespace, namespace: str, name: str) -> Pod:
        container = f"{self.scope.prefix}-{namespace}-{name}"
        result = self.cni(node, "ADD", container, netns, namespace, name)
        addresses = [str(entry["address"]).partition("/")[0] for entry in result["ips"]]
        device = next((i["name"] for i in result["interfaces"] if not i.get("sandbox")), "")
        return Pod(
            f"{namespace}/{name}",
            netns,
            next((a for a in addresses if ":" not in a), ""),
            next((a for a in addresses if ":" in a), ""),
            namespace,
            name,
            container,
            result,
            device,
        )

    def cni(
        self, node: Node, command: str, container: str, netns: Namespace, namespace: str, name: str
    ) -> dict[str, Any]:
        """As a container runtime on a node; see Agent.cni."""
        return node.agent.cni(command, container, str(netns.path), namespace, name)


@contextmanager
def _table(node: Node, spec: MapSpec[Any, Any]) -> Iterator[PinnedMap[Any, Any]]:
    opened = PinnedMap.open(spec, node.bpffs / "maps", any_size=True)
    try:
        yield opened
    finally:
        opened.close()


def _keep(programs: Path) -> None:
    _KEPT.mkdir(parents=True, exist_ok=True)
    for file in programs.iterdir():
        if not (_KEPT / file.name).exists():
            half = _KEPT.parent / f"{os.getpid()}-{file.name}"
            shutil.copyfile(file, half)
            os.replace(half, _KEPT / file.name)


def _addresses(joined: str, number: int, gateway: bool = False) -> tuple[str, str]:
    if joined == SEGMENT:
        return NODE_NETWORK[0].format(number), NODE_NETWORK[1].format(f"{number:x}")
    host = 1 if gateway else 2
    # 192.0.1xx.0/24 is documentation's and nobody's; one link for each.
    return ROUTED_NETWORK[0].format(100 + number if number < 100 else number, host), (
        ROUTED_NETWORK[1].format(f"{0x100 + number:x}", host)
    )


def _runs(agent: Agent) -> bool:
    try:
        return bool(agent.pid)
    except LabError:
        return False
