# SPDX-License-Identifier: Apache-2.0
"""The lab: one node with its agent, an outside host behind its uplink, and pods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from ipaddress import ip_network
from typing import Any

from bench.lab import api_source, manifests
from bench.lab.agent import Agent
from bench.lab.api_source import ApiFolder, LabServer
from bench.lab.manifests import ManifestFolder
from bench.lab.scope import Scope
from bench.lab.station import (
    FAR4,
    FAR6,
    NODE4,
    NODE6,
    OUTSIDE4,
    OUTSIDE6,
    PEER_SYSCTLS,
    UPLINK,
    Pod,
    Station,
    wire_routed,
    wire_uplink,
)

POD_CIDRS = ("10.244.1.0/24", "fd00:10:244:1::/112")


class Lab:
    """A context manager; everything it made is gone afterwards, also after an exception.

    routed: the baseline of benchmarks: pods are wired by the lab, routed by the kernel, and there
        is no agent and no BPF at all.
    uplink_hook: name the uplink in the agent's `devices`.
    start: start the agent at once; else `lab.agent.start()` does it.
    api: facts come from an API server in the node's namespace (`lab.api`), not from a folder.
    config: further keys of the agent's configuration, or other values for those that it has.
    """

    def __init__(
        self,
        *,
        routed: bool = False,
        uplink_hook: bool = True,
        start: bool = True,
        uplink_mtu: int = 1500,
        pod_cidrs: tuple[str, ...] = POD_CIDRS,
        api: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.routed = routed
        self.pod_cidrs = pod_cidrs
        self.pods: dict[str, Pod] = {}
        self._uplink_hook = uplink_hook
        self._uplink_mtu = uplink_mtu
        self._start = start and not routed
        self._extra = dict(config or {})
        self._api = api
        self._stack = ExitStack()
        self._policies: set[str] = set()

    def __enter__(self) -> Lab:
        with ExitStack() as stack:
            self.scope = stack.enter_context(Scope())
            self.node_namespace = self.scope.namespace("node")
            self.outside_namespace = self.scope.namespace("outside")
            wire_uplink(
                self.node_namespace, self.outside_namespace, list(self.pod_cidrs), self._uplink_mtu
            )
            self.node = Station("node", self.node_namespace, NODE4, NODE6)
            self.outside = Station("outside", self.outside_namespace, OUTSIDE4, OUTSIDE6)
            self.far = Station("far", self.outside_namespace, FAR4, FAR6)
            self.manifests: ManifestFolder | ApiFolder = ManifestFolder(self.scope.manifests)
            if self._api:
                self.manifests = ApiFolder(self._serve(stack))
            self.agent = Agent(self.node_namespace, self._config(), self.scope.root / "agent.yaml")
            stack.callback(self.agent.close)
            if self._start:
                self.agent.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _serve(self, stack: ExitStack) -> LabServer:
        place = self.scope.root / "api"
        self.api = api_source.serve(place, "127.0.0.1", self.node_namespace, ["agent"])
        stack.enter_context(self.api)
        api_source.install(self.api)
        taints = ["node.bristle.io/agent-not-ready", "example.org/other"]
        self.api.load([api_source.node("node-1", [NODE4, NODE6], self.pod_cidrs, taints)])
        file = self.scope.root / "kubeconfig"
        api_source.kubeconfig(file, self.api, "agent")
        self._extra = {
            "pod_cidrs": [],
            "source": {"kubernetes": {"kubeconfig": str(file)}},
            **self._extra,
        }
        return self.api

    def _config(self) -> dict[str, Any]:
        return {
            "node_name": "node-1",
            "run_dir": str(self.scope.run_dir),
            "state_dir": str(self.scope.state_dir),
            "bpffs_dir": str(self.scope.bpffs),
            "cgroup_root": str(self.scope.cgroup),
            "pod_cidrs": list(self.pod_cidrs),
            "mtu": 1500,
            "devices": [UPLINK] if self._uplink_hook else [],
            "source": {"manifests": str(self.scope.manifests)},
            **self._extra,
        }

    # ---- facts -------------------------------------------------------------------------------

    def change(
        self,
        file: str,
        objects: Sequence[Mapping[str, Any]],
        settled: Callable[[], bool] = lambda: True,
    ) -> None:
        """Writes a manifest file (removes it for no objects) and returns when it is in force.

        In force means a policy revision that is later than the one before and, where a file means
        several events, that `settled` says so. The file must differ from before. Raises LabError.
        """
        before = self.agent.status().policy_revision
        if objects:
            self.manifests.put(file, objects)
        else:
            self.manifests.remove(file)
        self.agent.wait(
            lambda: self.agent.status().policy_revision > before and settled(),
            f"{file} to be in force",
        )

    def set_policies(self, policies: Sequence[Mapping[str, Any]]) -> None:
        """Makes these NetworkPolicies, by names that were not in use, the only ones there are."""
        names = {f"{p['metadata']['namespace']}/{p['metadata']['name']}" for p in policies}
        if names or self._policies:
            self._policies = names
            self.change("policies", policies, lambda: self.agent.has_policies(names))

    # ---- pods --------------------------------------------------------------------------------

    def add_pod(
        self,
        namespace: str,
        name: str,
        labels: Mapping[str, str] | None = None,
        ports: Iterable[tuple[str, str, int]] = (),
        *,
        manifest: bool = True,
        service_account: str = "default",
        annotations: Mapping[str, str] | None = None,
    ) -> Pod:
        """A pod by its manifest and CNI ADD; its labels are in force when this returns.

        manifest: False: there is one already, or there shall be none; nothing is waited for.
        Raises LabError with what the plugin said.
        """
        if manifest:
            self.manifests.put(
                f"pod-{namespace}-{name}",
                [
                    manifests.pod(
                        namespace,
                        name,
                        labels,
                        ports,
                        service_account=service_account,
                        annotations=annotations,
                    )
                ],
            )
        netns = self.scope.namespace(f"{namespace}-{name}")
        try:
            pod = self._wire(netns, namespace, name)
        except BaseException:
            self.scope.drop(netns)
            raise
        self.pods[pod.name] = pod
        if manifest and not self.routed:
            self.agent.wait_known(pod.name)
        return pod

    def _wire(self, netns: Any, namespace: str, name: str) -> Pod:
        key = f"{namespace}/{name}"
        if self.routed:
            number = len(self.pods) + 10
            hosts = [str(ip_network(cidr)[number]) for cidr in self.pod_cidrs]
            device = f"veth{number}"
            wire_routed(self.node_namespace, netns, device, hosts[0], hosts[1])
            return Pod(key, netns, hosts[0], hosts[1], namespace, name, host_device=device)
        netns.sysctl(PEER_SYSCTLS)
        container = f"{self.scope.prefix}-{namespace}-{name}"
        result = self.cni("ADD", container, str(netns.path), namespace, name)
        addresses = [str(entry["address"]).partition("/")[0] for entry in result["ips"]]
        device = next((i["name"] for i in result["interfaces"] if not i.get("sandbox")), "")
        return Pod(
            key,
            netns,
            next((a for a in addresses if ":" not in a), ""),
            next((a for a in addresses if ":" in a), ""),
            namespace,
            name,
            container,
            result,
            device,
        )

    def delete_pod(self, pod: Pod, *, manifest: bool = True) -> None:
        """CNI DEL, then its namespace and its manifest."""
        if not self.routed:
            self.cni(
                "DEL", pod.container_id, str(pod.namespace.path), pod.pod_namespace, pod.pod_name
            )
        self.scope.drop(pod.namespace)
        if manifest:
            self.manifests.remove(f"pod-{pod.pod_namespace}-{pod.pod_name}")
        self.pods.pop(pod.name, None)

    def cni(
        self,
        command: str,
        container: str,
        netns: str,
        namespace: str = "",
        name: str = "",
        **config: Any,
    ) -> dict[str, Any]:
        """As a container runtime on the node; see Agent.cni."""
        return self.agent.cni(command, container, netns, namespace, name, **config)
