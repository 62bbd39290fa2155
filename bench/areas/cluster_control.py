# SPDX-License-Identifier: Apache-2.0
"""Three nodes of a cluster of 10,000 pods and 1,000 policies, over an API server: what the agents
need from a fact in the API to its being in force. Part of the area `cluster`.

Pods of other nodes are there as their nodes would publish them. Everything runs on one machine:
three agents, the API server and this program share its CPUs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from agent.kernel.maps import PinnedMap
from bench import report
from bench.areas.measure import median, percentile, summary
from bench.areas.scale import memory
from bench.areas.world import World
from bench.lab import manifests
from bench.lab.api_source import ApiSource, LabServer
from bench.lab.cluster import Cluster, Node, Shape
from bench.lab.manifests import Object
from bench.lab.netns import LabError
from bench.report import Claim
from bpf import maps
from identity.cluster import candidates
from identity.labels import DEFAULT, pod_labels

NODES = 3
LOCAL = 10  # pods of each of these nodes
ROUNDS = 100
ADDS = 40
IDLE_SECONDS = 20.0
_PAUSE = 0.05
_PATIENCE = 60.0
_NAMESPACE = "bench"


def run() -> list[Claim]:
    """All claims of this part. Takes about three minutes."""
    report.say(f"{NODES} nodes, 10,000 pods and 1,000 policies from an API server")
    shape = Shape(nodes=NODES, mode="tunnel")
    with Cluster(shape, source=ApiSource, start=False) as cluster, ExitStack() as stack:
        assert isinstance(cluster.source, ApiSource)
        api = stack.enter_context(cluster.source.served(cluster.outside))
        world = World.make(LOCAL)
        for items in _objects(world):
            api.load(items)
        cluster.put("bench", [manifests.namespace(_NAMESPACE)])
        began = time.monotonic()
        cluster.start()
        started = time.monotonic() - began
        for node in cluster.nodes.values():
            for number in range(LOCAL):
                _add(cluster, node, f"pod-{node.number}-{number}", {"app": f"app-{number}"})
        claims = [Claim(f"{NODES} agents at once, from nothing to in force", started, None, "s")]
        claims += _additions(cluster)
        claims += _policies(cluster, api)
        claims += _idle(cluster)
        claims += memory(cluster.node("node-1").agent.pid, "10,000 pods, API server", 250)
        return claims


def _objects(world: World) -> Iterator[list[Object]]:
    """The world as the API server has it, with what nodes published of its pods."""
    spaces = {name: {"team": f"team-{name[3:]}"} for name in world.namespaces}
    yield [manifests.namespace(name, labels) for name, labels in spaces.items()]
    numbers: dict[str, int] = {}
    taken: set[int] = set()
    identities, endpoints = [], []
    for n, pod in enumerate(world.pods):
        spaced = {**spaces[pod.namespace], "kubernetes.io/metadata.name": pod.namespace}
        labels = pod_labels(pod.labels, pod.namespace, spaced, "default", DEFAULT)
        key = labels.canonical()
        if key not in numbers:
            numbers[key] = next(one for one in candidates(labels) if one not in taken)
            taken.add(numbers[key])
            identities.append({
                "apiVersion": "bristle.io/v1alpha1", "kind": "BristleIdentity",
                "metadata": {"name": str(numbers[key])}, "security-labels": dict(labels),
            })  # fmt: skip
        endpoints.append({
            "apiVersion": "bristle.io/v1alpha1", "kind": "BristleEndpoint",
            "metadata": {"name": pod.name, "namespace": pod.namespace},
            "spec": {
                "endpointID": n + 1, "identity": numbers[key], "ipv4": pod.address,
                "addresses": [{"ip": pod.address}], "node": {"name": f"far-{n % 97}"},
                "namedPorts": [{"name": "web", "port": 8080, "protocol": "TCP"}],
            },
        })  # fmt: skip
    yield identities
    for at in range(0, len(endpoints), 1000):
        yield endpoints[at : at + 1000]
    yield list(world.policies)


def _add(cluster: Cluster, node: Node, name: str, labels: dict[str, str]) -> float:
    """A pod made in the API, and its ADD by the relay at once; seconds from the one's end to the
    other's."""
    cluster.put(f"pod-{name}", [manifests.pod(_NAMESPACE, name, labels, node=node.name)])
    began = time.monotonic()
    netns = cluster.scope.namespace(f"{_NAMESPACE}-{name}")
    made = time.monotonic() - began
    cluster.cni(node, "ADD", f"{cluster.scope.prefix}-{name}", netns, _NAMESPACE, name)
    return time.monotonic() - began - made


def _additions(cluster: Cluster) -> list[Claim]:
    report.say(f"{ADDS} pods of known labels, and {ADDS} of new ones")
    node = cluster.node("node-1")
    claims = []
    for what, bar, label in (("known labels", 20.0, None), ("labels that nobody had", None, "v")):
        times = []
        for n in range(ADDS):
            labels = {"app": "app-1"} if label is None else {"app": "app-1", label: str(n)}
            times.append(_add(cluster, node, f"{what.split()[0]}-{n}", labels) * 1000)
            time.sleep(_PAUSE)
        raw = {**summary(times), "rounds": times}
        claims.append(Claim(f"pod created to ADD returned, {what}, median",
                            median(times), bar, "ms", raw=raw))  # fmt: skip
        claims.append(Claim("  99th percentile", percentile(times, 99), None, "ms"))
    return claims


def _policies(cluster: Cluster, api: LabServer) -> list[Claim]:
    """A policy for pods of all nodes comes, changes and goes; in force when every node's kernel has
    moved its pod to another table."""
    report.say(f"{ROUNDS} policies, from the API to every node's kernel")
    times: list[float] = []
    with ExitStack() as stack:
        tables: list[Callable[[], int]] = []
        for node in cluster.nodes.values():
            opened = stack.enter_context(PinnedMap.open(maps.ENDPOINTS, node.bpffs / "maps"))
            number = node.agent.endpoint(f"{_NAMESPACE}/pod-{node.number}-3").id

            def table(opened: PinnedMap = opened, number: int = number) -> int:  # type: ignore[type-arg]
                value = opened.lookup(number)
                return value.ingress_table if value is not None else -1

            tables.append(table)
        for turn in range(ROUNDS):
            before = [one() for one in tables]
            rule = {"from": [{"podSelector": {"matchLabels": {"app": f"app-{turn}"}}}]}
            spec = {"podSelector": {"matchLabels": {"app": "app-3"}}, "ingress": [rule]}
            name = f"p-{turn}"
            began = time.monotonic()
            api.create(manifests.policy(_NAMESPACE, name, spec))
            while any(one() == old for one, old in zip(tables, before, strict=True)):
                time.sleep(0.0005)
                if time.monotonic() - began > _PATIENCE:
                    raise LabError(f"policy {name} is not in force everywhere")
            times.append((time.monotonic() - began) * 1000)
            time.sleep(_PAUSE)
    raw = {**summary(times), "rounds": times}
    return [
        Claim("policy created to in force on every node, median", median(times), 100, "ms",
              raw=raw),
        Claim("  99th percentile", percentile(times, 99), 300, "ms"),
    ]  # fmt: skip


def _idle(cluster: Cluster) -> list[Claim]:
    """Of one CPU, while nothing changes."""
    report.say(f"idle for {IDLE_SECONDS:.0f} s")
    time.sleep(5)
    pids = {node.name: node.agent.pid for node in cluster.nodes.values()}
    before = {name: _cpu(pid) for name, pid in pids.items()}
    time.sleep(IDLE_SECONDS)
    shares = {name: (_cpu(pid) - before[name]) / IDLE_SECONDS * 100 for name, pid in pids.items()}
    return [Claim("agent idle, share of a CPU", max(shares.values()), 1, "%", raw=shares)]


def _cpu(pid: int) -> float:
    """Seconds of CPU time that a process has used (proc(5), stat, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
