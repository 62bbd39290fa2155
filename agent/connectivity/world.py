# SPDX-License-Identifier: Apache-2.0
"""The pods, services and policies of the check, as plain objects. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

Object = dict[str, Any]

PORT: Final = 8080
SERVICE: Final = "server"
MARK: Final = {"app.kubernetes.io/name": "bristle-connectivity"}
_SERVE: Final = (
    'mkdir -p /tmp/www && echo "$POD_NAME" >/tmp/www/index.html &&'
    f" exec httpd -f -p {PORT} -h /tmp/www"
)


@dataclass(frozen=True, slots=True)
class Placement:
    """A pod of the check. home: in the first namespace, else in the other one. remote: on the
    second node. labels: besides `pod`, its name."""

    name: str
    home: bool = True
    remote: bool = False
    server: bool = False
    friend: bool = False


PODS: Final = (
    Placement("client", friend=True),
    Placement("stranger"),
    Placement("outsider", home=False),
    Placement("server-near", server=True),
    Placement("server-far", server=True, remote=True),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """Where the check takes place.

    namespaces: the first one and the other. nodes: the first, and the second one or "" if there
    is none. image: has a shell, wget, httpd and nslookup.
    """

    namespaces: tuple[str, str]
    nodes: tuple[str, str]
    image: str

    @property
    def pods(self) -> tuple[Placement, ...]:
        """Those that can be placed."""
        return tuple(one for one in PODS if self.nodes[1] or not one.remote)

    def namespace(self, pod: Placement) -> str:
        """The pod's namespace."""
        return self.namespaces[0 if pod.home else 1]


def namespaces(setting: Setting) -> list[Object]:
    """Both namespaces; `kubernetes.io/metadata.name` is set by the server."""
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": MARK}}
        for name in setting.namespaces
    ]


def pod(setting: Setting, placement: Placement) -> Object:
    """One pod, within the limits of the restricted Pod Security Standard."""
    container: Object = {
        "name": "main",
        "image": setting.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", _SERVE if placement.server else "exec sleep 3600"],
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
    }
    if placement.server:
        container["ports"] = [{"name": "http", "containerPort": PORT}]
        # The node to the pod: a server that is Ready was reached by its kubelet.
        container["readinessProbe"] = {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1}
    labels = {**MARK, "pod": placement.name, "role": "server" if placement.server else "client"}
    if placement.friend:
        labels["friend"] = "yes"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": placement.name,
            "namespace": setting.namespace(placement),
            "labels": labels,
        },
        "spec": {
            # By affinity, not by nodeName: the scheduler is a part of what has to work.
            "affinity": _on_node(setting.nodes[1 if placement.remote else 0]),
            "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "restartPolicy": "Always",
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65534,
                "runAsGroup": 65534,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
        },
    }


def service(setting: Setting) -> Object:
    """In front of all servers."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": SERVICE, "namespace": setting.namespaces[0], "labels": MARK},
        "spec": {
            "selector": {**MARK, "role": "server"},
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        },
    }


def policy(setting: Setting, name: str, spec: Mapping[str, Any]) -> Object:
    """A NetworkPolicy of the first namespace."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": setting.namespaces[0], "labels": MARK},
        "spec": dict(spec),
    }


def ingress(*sources: Mapping[str, Any]) -> Object:
    """For servers: only these peers may come in."""
    rules = [{"from": [source], "ports": [{"port": "http"}]} for source in sources]
    return {
        "podSelector": {"matchLabels": {"role": "server"}},
        "policyTypes": ["Ingress"],
        "ingress": rules,
    }


def egress(*targets: Mapping[str, Any], ports: Sequence[Mapping[str, Any]] = ()) -> Object:
    """For the client: only these peers may be asked, and any for names."""
    names = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
    rules: list[Object] = [{"to": [target], "ports": list(ports)} for target in targets]
    return {
        "podSelector": {"matchLabels": {"pod": "client"}},
        "policyTypes": ["Egress"],
        "egress": [names, *rules],
    }


def _on_node(name: str) -> Object:
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}
    required = {"nodeSelectorTerms": [term]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
