# SPDX-License-Identifier: Apache-2.0
"""An API server for a lab's agents, and manifests that go there instead of into a folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from bench.lab.agent import REPOSITORY
from bench.lab.apiserver import ApiServerProcess, write_kubeconfig
from bench.lab.kubeapi import KubeApi, binaries
from bench.lab.manifests import Object, namespace
from bench.lab.netns import Namespace
from bench.lab.station import Station

PORT = 6443
LabServer = ApiServerProcess | KubeApi
CRDS = REPOSITORY / "deploy" / "chart" / "crds"


def serve(folder: Path, address: str, place: Namespace, users: Sequence[str]) -> LabServer:
    """A server with TLS, a token for each user (`token-<user>`), bristle's resources and the usual
    namespaces. It runs once the context is entered; `install` then."""
    tokens = {f"token-{user}": user for user in users}
    if binaries() is not None:
        return KubeApi(folder, address, PORT, wrap=place.argv, enter=place.run, tokens=tokens)
    return ApiServerProcess(folder, address, PORT, wrap=place.argv, tls=True, tokens=tokens)


def install(server: LabServer) -> None:
    """What a fresh cluster with bristle's resources has."""
    for file in sorted(CRDS.glob("*.yaml")):
        server.create(yaml.safe_load(file.read_text()))
    server.load([namespace(name) for name in ("default", "kube-system")])


def kubeconfig(path: Path, server: LabServer, user: str) -> None:
    """A kubeconfig file for one of the users."""
    write_kubeconfig(path, server.url, f"token-{user}", server.ca)


def node(
    name: str, addresses: Sequence[str], pod_cidrs: Sequence[str], taints: Sequence[str] = ()
) -> Object:
    """A Node as kubelet and controllers make it. taints: keys, of effect NoSchedule."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {
            "podCIDR": pod_cidrs[0],
            "podCIDRs": list(pod_cidrs),
            "taints": [{"key": key, "effect": "NoSchedule"} for key in taints],
        },
        "status": {
            "addresses": [{"type": "InternalIP", "address": one} for one in addresses],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


class ApiFolder:
    """Stands for a ManifestFolder: what is put into a "file" is in the API server."""

    def __init__(self, server: LabServer) -> None:
        self.server = server
        self._files: dict[str, set[tuple[str, str, str]]] = {}
        self._namespaces: set[str] = set()

    def put(self, file: str, objects: Iterable[Mapping[str, Any]]) -> None:
        """Objects that the file had before and has no more are deleted. Namespaces that objects
        are in, and no file has, are made."""
        items = [dict(one) for one in objects]
        for item in items:
            item["metadata"] = {"uid": f"uid-{item['metadata']['name']}", **item["metadata"]}
        wanted = {_key(item) for item in items}
        self._namespaces |= {key[2] for key in wanted if key[0] == "v1/Namespace"}
        lacking = {key[1] for key in wanted} - self._namespaces - {"", "default", "kube-system"}
        self._namespaces |= lacking
        self.server.load([*(namespace(name) for name in sorted(lacking)), *items])
        for key in sorted(self._files.get(file, set()) - wanted):
            self._delete(key)
        self._files[file] = wanted

    def put_text(self, file: str, text: str) -> None:
        """As `put`, for documents of YAML."""
        self.put(file, [one for one in yaml.safe_load_all(text) if one])

    def remove(self, file: str) -> None:
        """Deletes what the file had; absent is success."""
        for key in sorted(self._files.pop(file, set())):
            self._delete(key)

    def _delete(self, key: tuple[str, str, str]) -> None:
        kind, namespace, name = key
        self.server.delete(kind, name, namespace, grace=0)


def _key(item: Mapping[str, Any]) -> tuple[str, str, str]:
    kind = f"{item['apiVersion']}/{item['kind']}"
    return kind, item["metadata"].get("namespace", ""), item["metadata"]["name"]


class ApiSource:
    """Facts of a Cluster from one API server, a token and a kubeconfig for each node.

    Give it as `source`; then, before the agents start, have it `served` from a place that the nodes
    reach. What was put until then waits.

        with Cluster(shape, source=ApiSource, start=False) as cluster, \\
                cluster.source.served(cluster.outside) as server:
            cluster.start()
    """

    def __init__(self, root: Path, nodes: Sequence[str]) -> None:
        self._root = root
        self._nodes = tuple(nodes)
        self._folder: ApiFolder | None = None
        self._waiting: dict[str, list[Object]] = {}

    def config(self, node: str) -> Mapping[str, Any]:
        """Pod CIDRs come from the Node object."""
        return {
            "source": {"kubernetes": {"kubeconfig": str(self._kubeconfig(node))}},
            "pod_cidrs": [],
        }

    def put(self, name: str, objects: Sequence[Object]) -> None:
        """Namespaces, nodes, pods, policies and services alike."""
        if self._folder is None:
            self._waiting[name] = list(objects)
        elif objects:
            self._folder.put(name, objects)
        else:
            self._folder.remove(name)

    @contextmanager
    def served(self, place: Station) -> Iterator[LabServer]:
        """The server runs at a place's IPv4 address until the end of the context."""
        with serve(self._root / "api", place.ipv4, place.namespace, self._nodes) as server:
            install(server)
            self._folder = ApiFolder(server)
            for node in self._nodes:
                kubeconfig(self._kubeconfig(node), server, node)
            for name, objects in self._waiting.items():
                self.put(name, objects)
            yield server

    def _kubeconfig(self, node: str) -> Path:
        return self._root / f"kubeconfig-{node}"
