# SPDX-License-Identifier: Apache-2.0
"""The world of the scale benchmark: 10,000 pods in 1,000 identities, 1,000 policies.

Every policy selects the 10 pods of one identity and lets in three peer selectors, each of which
matches 5 % of the identities, and an IP block, on two ports. The last one selects its whole
namespace and lets everything in.
"""

from __future__ import annotations

import ipaddress
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.lab import manifests
from bench.lab.manifests import Object

NAMESPACES = 50
APPS = 20  # in a namespace: each is an identity
PODS = 10  # of an identity
GROUPS = 20  # of identities, in each of three ways
_PER_FILE = 1000
_NODE = "node-1"


@dataclass(frozen=True, slots=True)
class PodSpec:
    """A pod of the world; local ones have no address in their manifest, CNI gives it."""

    namespace: str
    name: str
    labels: dict[str, str]
    address: str

    def manifest(self, local: bool, **changed: str) -> Object:
        """Its manifest, with other labels if asked for."""
        labels = {**self.labels, **changed}
        ports = [("web", "TCP", 8080)]
        if local:
            return manifests.pod(self.namespace, self.name, labels, ports)
        node = f"node-{2 + int(ipaddress.ip_address(self.address)) % 98}"
        return manifests.pod(
            self.namespace, self.name, labels, ports, node=node, addresses=[self.address]
        )


@dataclass(frozen=True, slots=True)
class World:
    """All of it. local: the pods of this node, each of another identity."""

    namespaces: tuple[str, ...]
    pods: tuple[PodSpec, ...]
    local: tuple[PodSpec, ...]
    policies: tuple[Object, ...]

    @staticmethod
    def make(local: int) -> World:
        """The same world each time."""
        dice = random.Random(2)
        identities = [(f"ns-{n}", f"app-{a}") for n in range(NAMESPACES) for a in range(APPS)]
        groups = []
        for kind in "abc":
            values = [f"{kind}-{i % GROUPS}" for i in range(len(identities))]
            dice.shuffle(values)
            groups.append(values)
        pods = []
        policies = []
        for i, (namespace, app) in enumerate(identities):
            labels = {"app": app, **{kind: groups[g][i] for g, kind in enumerate("abc")}}
            for p in range(PODS):
                address = str(ipaddress.ip_address("10.128.0.1") + i * PODS + p)
                pods.append(PodSpec(namespace, f"{app}-{p}", labels, address))
            policies.append(_policy(i, namespace, app, dice))
        policies[-1] = manifests.policy(
            identities[-1][0],
            "everything",
            {"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}]}]},
        )
        step = len(identities) // local
        mine = tuple(pods[i * step * PODS] for i in range(local))
        names = tuple(f"ns-{n}" for n in range(NAMESPACES))
        return World(names, tuple(pods), mine, tuple(policies))

    def objects(self, without: Sequence[PodSpec] = ()) -> Iterator[list[Object]]:
        """All manifests, a list for each file."""
        left = {(one.namespace, one.name) for one in without}
        mine = {(one.namespace, one.name) for one in self.local}
        yield [manifests.namespace(name, {"team": f"team-{name[3:]}"}) for name in self.namespaces]
        pods = [one for one in self.pods if (one.namespace, one.name) not in left]
        for at in range(0, len(pods), _PER_FILE):
            yield [
                one.manifest((one.namespace, one.name) in mine) for one in pods[at : at + _PER_FILE]
            ]
        yield list(self.policies)

    def write(self, folder: Path, kind: str, without: Sequence[PodSpec] = ()) -> int:
        """Writes all manifests as `json` (Lists) or `yaml` (documents); gives the bytes."""
        size = 0
        for number, objects in enumerate(self.objects(without)):
            if kind == "json":
                text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
            else:
                text = "---\n".join(_yaml(one) for one in objects)
            (folder / f"world-{number}.{kind}").write_text(text)
            size += len(text)
        return size


def _policy(number: int, namespace: str, app: str, dice: random.Random) -> Object:
    block = f"172.{16 + number // 256}.{number % 256}.0/24"
    spec = {
        "podSelector": {"matchLabels": {"app": app}},
        "policyTypes": ["Ingress"],
        "ingress": [
            {
                "from": [
                    *(
                        {
                            "namespaceSelector": {},
                            "podSelector": {
                                "matchLabels": {kind: f"{kind}-{dice.randrange(GROUPS)}"}
                            },
                        }
                        for kind in "abc"
                    ),
                    {"ipBlock": {"cidr": block, "except": [block.replace(".0/24", ".16/28")]}},
                ],
                "ports": [{"protocol": "TCP", "port": port} for port in (80, 443)],
            }
        ],
    }
    return manifests.policy(namespace, app, spec)


def _yaml(value: object, indent: int = 0) -> str:
    """As people write it: block style. Strings are quoted, so that any is one."""
    space = "  " * indent
    if isinstance(value, dict) and value:
        lines = []
        for key, inner in value.items():
            nested = isinstance(inner, dict | list) and inner
            text = "\n" + _yaml(inner, indent + 1) if nested else f" {_yaml(inner)}\n"
            lines.append(f"{space}{key}:{text}")
        return "".join(lines)
    if isinstance(value, list) and value:
        lines = []
        for inner in value:
            text = _yaml(inner, indent + 1) if isinstance(inner, dict | list) else ""
            lines.append(
                f"{space}- {text[len(space) + 2 :]}" if text else f"{space}- {_yaml(inner)}\n"
            )
        return "".join(lines)
    return json.dumps(value)
