# SPDX-License-Identifier: Apache-2.0
"""The check's side of a live cluster, through the official client. Its errors end here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from agent.connectivity.judge import Attempt
from agent.connectivity.runner import ClusterError
from agent.connectivity.world import Object

_REQUEST_SECONDS: Final = 20.0
_PAUSE: Final = 1.0
_NOT_FOUND, _CONFLICT = 404, 409


class LiveCluster:
    """A cluster by a kubeconfig file, or from within. Raises ClusterError."""

    def __init__(
        self,
        kubeconfig: Path | None,
        context: str | None,
        *,
        pod_seconds: float,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        import kubernetes.client
        import kubernetes.config

        try:
            if kubeconfig is None and context is None and _in_cluster():
                kubernetes.config.load_incluster_config()
            else:
                kubernetes.config.load_kube_config(str(kubeconfig) if kubeconfig else None, context)
        except Exception as error:  # the loaders have no common base
            raise ClusterError(f"no way to a cluster: {error}") from None
        self._core = kubernetes.client.CoreV1Api()
        self._policies = kubernetes.client.NetworkingV1Api()
        self._pod_seconds = pod_seconds
        self._sleep = sleep

    def nodes(self) -> list[str]:
        """See `Cluster`."""
        with _explained("list the nodes"):
            found = self._core.list_node(_request_timeout=_REQUEST_SECONDS).items
        usable = [
            (bool([t for t in node.spec.taints or [] if t.effect != "PreferNoSchedule"]),
             node.metadata.name)
            for node in found
            if not node.spec.unschedulable
            and any(c.type == "Ready" and c.status == "True"
                    for c in (node.status.conditions if node.status else None) or [])
        ]  # fmt: skip
        return [name for _, name in sorted(usable)]

    def create(self, item: Object) -> None:
        """See `Cluster`."""
        with _explained(f"make {_called(item)}"):
            self._call("create", item, item)

    def delete(self, item: Object) -> None:
        """See `Cluster`."""
        with _explained(f"remove {_called(item)}", absent=True):
            self._call("delete", item, item["metadata"]["name"])

    def wait_pods(self, namespaces: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
        """See `Cluster`."""
        deadline = time.monotonic() + self._pod_seconds
        while True:
            pods: list[Any] = []
            for namespace in namespaces:
                with _explained(f"list the pods of {namespace}"):
                    pods += self._core.list_namespaced_pod(
                        namespace, _request_timeout=_REQUEST_SECONDS
                    ).items
            addresses = {
                pod.metadata.name: [one.ip for one in pod.status.pod_i_ps or []]
                for pod in pods
                if _ready(pod)
            }
            if all(addresses.get(name) for name in names):
                return addresses
            if time.monotonic() >= deadline:
                waiting = [pod for pod in pods if pod.metadata.name not in addresses]
                raise ClusterError(self._why_not(waiting))
            self._sleep(_PAUSE)

    def service_addresses(self, namespace: str, name: str) -> list[str]:
        """See `Cluster`."""
        with _explained(f"read service {namespace}/{name}"):
            spec = self._core.read_namespaced_service(
                name, namespace, _request_timeout=_REQUEST_SECONDS
            ).spec
        found = list(spec.cluster_i_ps or []) or [spec.cluster_ip]
        if not found[0]:
            raise ClusterError(f"service {namespace}/{name} has no cluster address")
        return found

    def run(self, namespace: str, pod: str, command: Sequence[str]) -> Attempt:
        """See `Cluster`. What keeps it from running is the attempt's output."""
        from kubernetes.stream import stream

        try:
            session = stream(
                self._core.connect_get_namespaced_pod_exec,
                pod,
                namespace,
                command=list(command),
                stdout=True,
                stderr=True,
                stdin=False,
                tty=False,
                _preload_content=False,
            )
            session.run_forever(timeout=_REQUEST_SECONDS)
            output = session.read_all()
            return Attempt(session.returncode, output)
        except Exception as error:  # of websocket, urllib3, the client, and for a missing status
            return Attempt(None, f"exec in {namespace}/{pod}: {_said(error)}")

    def _call(self, verb: str, item: Object, argument: Any) -> None:
        namespace = item["metadata"].get("namespace")
        match item["kind"]:
            case "Namespace":
                method = getattr(self._core, f"{verb}_namespace")
            case "NetworkPolicy":
                method = getattr(self._policies, f"{verb}_namespaced_network_policy")
            case kind:
                method = getattr(self._core, f"{verb}_namespaced_{kind.lower()}")
        if namespace is None:
            method(argument, _request_timeout=_REQUEST_SECONDS)
        elif verb == "create":
            method(namespace, argument, _request_timeout=_REQUEST_SECONDS)
        else:
            method(argument, namespace, _request_timeout=_REQUEST_SECONDS)

    def _why_not(self, waiting: Sequence[Any]) -> str:
        """What the cluster itself says of pods that do not get ready."""
        lines = [f"after {self._pod_seconds:g} s these pods are not ready:"]
        lines += [f"  {pod.metadata.name}: {_state(pod)}" for pod in waiting]
        if waiting and not any(pod.spec.node_name for pod in waiting):
            lines.append("none was given a node: is a scheduler running?")
        elif waiting and not any(pod.status.container_statuses for pod in waiting):
            lines.append("no kubelet has taken them up: is one running on their nodes?")
        return "\n".join(lines)


def _state(pod: Any) -> str:
    """A line from phase, conditions and containers."""
    said = [f"phase {pod.status.phase or 'unknown'}"]
    if pod.spec.node_name:
        said.append(f"on {pod.spec.node_name}")
    for condition in pod.status.conditions or []:
        if condition.status != "True" and (condition.message or condition.reason):
            said.append(condition.message or condition.reason)
            break
    for container in pod.status.container_statuses or []:
        waiting = container.state.waiting if container.state else None
        if waiting is not None:
            said.append(f"{waiting.reason}: {waiting.message or ''}".rstrip(": "))
    return "; ".join(said)


def _ready(pod: Any) -> bool:
    conditions = (pod.status.conditions if pod.status else None) or []
    return any(one.type == "Ready" and one.status == "True" for one in conditions)


def _called(item: Object) -> str:
    place = item["metadata"].get("namespace", "")
    return f"{item['kind']} {place + '/' if place else ''}{item['metadata']['name']}"


@contextmanager
def _explained(what: str, *, absent: bool = False) -> Iterator[None]:
    """The client's exceptions as a ClusterError. absent: 404 is success, and 409 (on its way)."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ApiException as error:
        if not absent or error.status not in (_NOT_FOUND, _CONFLICT):
            raise ClusterError(f"cannot {what}: {_said(error)}") from None
    except HTTPError as error:
        raise ClusterError(f"cannot {what}: the API server does not answer: {error}") from None


def _said(error: BaseException) -> str:
    """The server's own words, where there are any."""
    body = getattr(error, "body", None)
    if body:
        try:
            return str(json.loads(body)["message"])
        except (ValueError, KeyError, TypeError):
            pass
    return str(getattr(error, "reason", None) or error) or type(error).__name__


def _in_cluster() -> bool:
    return Path("/var/run/secrets/kubernetes.io/serviceaccount/token").exists()
