# SPDX-License-Identifier: Apache-2.0
"""A small kubelet's side of the container runtime interface: calls, and what kubelet puts in them.

The stubs are made at run time from the api.proto that Debian packages, so this tree holds no copy.
"""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_tools import protoc

CALL_SECONDS = 60.0


class CriError(Exception):
    """A call that the runtime refused, with its own words."""


def generate(proto: Path, folder: Path) -> None:
    """Python stubs of api.proto in `folder`, which is put on the path. Raises CriError."""
    text = proto.read_text()
    # Options for Go's generator alone; their file is in another package.
    text = re.sub(r"^(import|option) .*gogoproto.*\n", "", text, flags=re.M)
    (folder / "cri_api.proto").write_text(text)
    arguments = ["", f"-I{folder}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    if protoc.main([*arguments, "cri_api.proto"]) != 0:
        raise CriError(f"no stubs can be made of {proto}")
    sys.path.insert(0, str(folder))


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What kubelet knows of a pod before it runs; the same for each attempt."""

    name: str
    cgroup: str
    namespace: str = "shop"
    uid: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    host_port: int = 0
    host_network: bool = False
    sysctls: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)

    def config(self, attempt: int = 0) -> dict[str, Any]:
        """PodSandboxConfig, as kubelet fills it (kuberuntime_sandbox.go)."""
        uid = self.uid or f"uid-{self.name}"
        made: dict[str, Any] = {
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "uid": uid,
                "attempt": attempt,
            },
            "hostname": "" if self.host_network else self.name,
            "log_directory": f"/run/pods/{self.namespace}_{self.name}_{uid}",
            "dns_config": {
                "servers": ["10.96.0.10"],
                "searches": [f"{self.namespace}.svc.cluster.local", "svc.cluster.local"],
                "options": ["ndots:5"],
            },
            "labels": {
                **self.labels,
                "io.kubernetes.pod.name": self.name,
                "io.kubernetes.pod.namespace": self.namespace,
                "io.kubernetes.pod.uid": uid,
            },
            "annotations": {
                "kubernetes.io/config.seen": "2026-01-01T00:00:00.000000000Z",
                "kubernetes.io/config.source": "api",
                **self.annotations,
            },
            "linux": {
                "cgroup_parent": f"{self.cgroup}/pod{uid}",
                "security_context": {
                    "namespace_options": {"network": 2 * self.host_network, "pid": 1, "ipc": 0}
                },
                "sysctls": self.sysctls,
            },
        }
        if self.host_port:
            made["port_mappings"] = [
                {"protocol": 0, "container_port": 8080, "host_port": self.host_port}
            ]
        return made


class Cri:
    """The runtime on a socket. A context manager."""

    def __init__(self, socket: Path) -> None:
        self.messages: Any = importlib.import_module("cri_api_pb2")
        services: Any = importlib.import_module("cri_api_pb2_grpc")
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._runtime = services.RuntimeServiceStub(self._channel)

    def __enter__(self) -> Cri:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, method: str, seconds: float = CALL_SECONDS, **fields: Any) -> Any:
        """One call; the answer's message. Raises CriError."""
        request = getattr(self.messages, f"{method}Request")(**fields)
        try:
            return getattr(self._runtime, method)(request, timeout=seconds)
        except grpc.RpcError as error:
            said: Any = error
            raise CriError(f"{method}: {said.code().name}: {said.details()}") from error

    def network(self) -> tuple[bool, str]:
        """The condition NetworkReady: whether it holds, and why not."""
        for condition in self.call("Status").status.conditions:
            if condition.type == "NetworkReady":
                return bool(condition.status), str(condition.message)
        raise CriError("Status: there is no condition NetworkReady")

    def run(self, sandbox: Sandbox, attempt: int = 0) -> str:
        """RunPodSandbox; the sandbox's id. Raises CriError."""
        return str(self.call("RunPodSandbox", config=sandbox.config(attempt)).pod_sandbox_id)

    def stop(self, sandbox: str) -> None:
        """StopPodSandbox. Raises CriError."""
        self.call("StopPodSandbox", pod_sandbox_id=sandbox)

    def remove(self, sandbox: str) -> None:
        """RemovePodSandbox. Raises CriError."""
        self.call("RemovePodSandbox", pod_sandbox_id=sandbox)

    def addresses(self, sandbox: str) -> list[str]:
        """What PodSandboxStatus gives: the first one, then the others. Raises CriError."""
        status = self.call("PodSandboxStatus", pod_sandbox_id=sandbox).status
        return [status.network.ip, *(one.ip for one in status.network.additional_ips)]

    def ready(self) -> dict[str, str]:
        """Sandboxes that run: id by pod name."""
        listed = self.call("ListPodSandbox").items
        return {one.metadata.name: one.id for one in listed if one.state == 0}

    def sandboxes(self) -> list[str]:
        """Ids of all sandboxes, also of those that do not run."""
        return [one.id for one in self.call("ListPodSandbox").items]

    def start(
        self, pod: str, sandbox: Sandbox, image: str, command: list[str], attempt: int = 0
    ) -> str:
        """CreateContainer and StartContainer with this machine's /usr; its id. Raises CriError."""
        config = {
            "metadata": {"name": "main", "attempt": attempt},
            "image": {"image": image},
            "command": command,
            "log_path": "main.log",
            "mounts": [{"container_path": "/usr", "host_path": "/usr", "readonly": True}],
            "linux": {"security_context": {"capabilities": {"add_capabilities": ["NET_RAW"]}}},
        }
        return self.start_container(pod, sandbox, config)

    def start_container(self, pod: str, sandbox: Sandbox, config: dict[str, Any]) -> str:
        """CreateContainer and StartContainer of a ContainerConfig; its id. Raises CriError."""
        made = self.call(
            "CreateContainer",
            pod_sandbox_id=pod,
            config=config,
            sandbox_config=sandbox.config(),
        )
        self.call("StartContainer", container_id=made.container_id)
        return str(made.container_id)

    def execute(self, container: str, command: list[str]) -> tuple[int, str]:
        """ExecSync: exit status and what it printed. Raises CriError."""
        done = self.call("ExecSync", container_id=container, cmd=command, timeout=20)
        return int(done.exit_code), (done.stdout + done.stderr).decode(errors="replace")
