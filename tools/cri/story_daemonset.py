# SPDX-License-Identifier: Apache-2.0
"""The agent itself as a pod of the runtime that it gives the network to: the DaemonSet's pod."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from bench.lab import manifests
from bench.lab.manifests import ManifestFolder
from bench.lab.scope import cgroup2
from bench.lab.station import UPLINK
from tools.cri import daemon_set
from tools.cri.client import Sandbox
from tools.cri.node import CONFLIST, POD_CIDRS, Failure, Node
from tools.cri.report import Report
from tools.cri.story_failures import refused
from tools.cri.story_pods import Pod, reached, run, serves

_SYS_RESOURCE = 24


def tell(node: Node, report: Report) -> None:
    """Leaves no agent behind."""
    if node.image is None:
        return
    node.agent.stop()
    node.cleanup()
    node.containerd.load(node.image)
    recorder = (node.bin_dir / "bristle-cni").read_bytes()
    (node.bin_dir / "bristle-cni").unlink()
    daemon = _Daemon(node, report)
    node.wait(lambda: not node.cri.network()[0], "NetworkReady to be false")
    for name in ("bpffs", "relay"):
        daemon.run(name)
    report.note("its init containers mount a BPF file system and install the relay")
    daemon.start()
    node.wait(lambda: node.cri.network()[0], "NetworkReady", 120)
    report.note("its agent makes NetworkReady true")
    pods = [run(node, name) for name in ("web", "cart")]
    for pod in pods:
        node.wait(lambda pod=pod: serves(node, pod), f"{pod.sandbox.name} to listen")  # type: ignore[misc]
    report.check(reached(node, pods[1], pods[0]) == {4, 6}, "pods run and talk, both families")
    deny = manifests.policy("shop", "deny", {"podSelector": {}, "policyTypes": ["Ingress"]})
    node.manifests.put("policies", [deny])
    node.wait(lambda: not reached(node, pods[1], pods[0]), "the default deny")
    report.note("and policy is enforced")
    _killed(node, report, daemon, pods)
    daemon.stop()
    daemon.use("cleanup=true")
    said = daemon.run("cleanup")
    report.check(CONFLIST in said, "the pod that cleans up takes the runtime's file back", said)
    daemon.run("relay")
    report.check(not (node.bin_dir / "bristle-cni").exists(), "and the relay")
    node.wait(lambda: not node.cri.network()[0], "NetworkReady to be false")
    report.check(not node.devices(), "NetworkReady is false again, and no device is left")
    (node.bin_dir / "bristle-cni").write_bytes(recorder)
    (node.bin_dir / "bristle-cni").chmod(0o755)
    node.manifests = daemon.former_manifests


def _killed(node: Node, report: Report, daemon: _Daemon, pods: list[Pod]) -> None:
    daemon.stop(kill=True)
    report.check(not reached(node, pods[1], pods[0]), "with its agent killed policy stays in force")
    said = refused(node, pods[0].sandbox, 1)
    report.check("bristle agent" in said, "and a sandbox is refused", said)
    daemon.start()
    node.wait(daemon.is_ready, "the next agent's container", 60)
    node.manifests.remove("policies")
    node.wait(lambda: reached(node, pods[1], pods[0]) == {4, 6}, "the policy to go")
    report.note("its next container takes over")
    for pod in pods:
        node.cri.stop(pod.identity)
        node.cri.remove(pod.identity)
    report.check(not node.devices(), "and removes pods")


class _Daemon:
    """kubelet's work for the one pod."""

    def __init__(self, node: Node, report: Report) -> None:
        self._node, self._report = node, report
        self._attempt = 0
        self._agent = ""
        self._config = node.work / "config"
        self.former_manifests = node.manifests
        (self._config / "manifests").mkdir(parents=True)
        node.manifests = ManifestFolder(self._config / "manifests")
        node.manifests.put("namespace", [manifests.namespace("shop")])
        (self._config / "agent.yaml").write_text(yaml.safe_dump(self._agent_config()))
        # kubelet makes the folders, DirectoryOrCreate.
        for folder in ("/run/bristle", "/var/lib/bristle"):
            Path(folder).mkdir(exist_ok=True)
        self.use()
        self._sandbox = Sandbox(
            "bristle-1", f"{node.cgroup}/burstable", "kube-system", host_network=True
        )
        self._pod = node.cri.run(self._sandbox)

    def _agent_config(self) -> dict[str, Any]:
        """Of a standalone agent instead of a cluster's."""
        return {
            "pod_cidrs": POD_CIDRS,
            "devices": [UPLINK],
            "source": {"manifests": "/etc/bristle/manifests"},
            "masquerade": {"enabled": True},
            "cgroup_root": "/host/sys/fs/cgroup",
            "cni": {"conf_dir": "/host/etc/cni/net.d", "exclusive": True},
            "health": {"address": "127.0.0.1:9879"},
        }

    def use(self, *settings: str) -> None:
        """The manifest with further values of the chart."""
        self._spec = daemon_set.pod(
            f"cni.binPath={self._node.bin_dir}",
            f"cni.confPath={self._node.conf_dir}",
            f"cgroup.hostRoot={cgroup2()}",
            *settings,
        )

    def run(self, name: str) -> str:
        """An init container, to its end; its output. Raises Failure."""
        container = self._start(name)

        def ended() -> Any:
            status = self._node.cri.call("ContainerStatus", container_id=container).status
            return status if status.state == 2 else None

        status = self._node.wait(ended, f"container {name} to end", 60)
        if status.exit_code:
            raise Failure(f"container {name}: status {status.exit_code}\n{self._log(name)}")
        return self._log(name)

    def start(self) -> None:
        """The agent's container."""
        self._agent = self._start("agent")

    def stop(self, kill: bool = False) -> None:
        """Ends it as kubelet does, or at once."""
        timeout = 0 if kill else 15
        self._node.cri.call("StopContainer", container_id=self._agent, timeout=timeout)

    def is_ready(self) -> bool:
        """What `bristle status` says in its container."""
        return self._node.cri.execute(self._agent, [daemon_set.IMAGE_ENTRY, "status"])[0] == 0

    def _start(self, name: str) -> str:
        containers = [*self._spec["initContainers"], *self._spec["containers"]]
        (found,) = [one for one in containers if one["name"] == name]
        self._attempt += 1
        volumes = {
            **daemon_set.host_paths(self._spec),
            "config": str(self._config),
            "tmp": str(self._node.work / "tmp"),
        }
        fields = {"spec.nodeName": "node-1", "metadata.namespace": "kube-system"}
        config = daemon_set.container_config(
            found, volumes=volumes, fields=fields, lacking=_lacking(), attempt=self._attempt
        )
        return self._node.cri.start_container(self._pod, self._sandbox, config)

    def _log(self, name: str) -> str:
        folder = Path(self._sandbox.config()["log_directory"])
        text = (folder / f"{name}_{self._attempt}.log").read_text(errors="replace")
        return "\n".join(line.split(" ", 3)[-1] for line in text.splitlines()[-30:])


def _lacking() -> set[str]:
    """The capability that some machines do not have to give, and the agent can do without."""
    status = Path("/proc/self/status").read_text()
    (mask,) = re.findall(r"^CapBnd:\t(\w+)$", status, re.M)
    return set() if int(mask, 16) >> _SYS_RESOURCE & 1 else {"SYS_RESOURCE"}
