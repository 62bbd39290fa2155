# SPDX-License-Identifier: Apache-2.0
"""Policy cases: a fixed world, the policies of one case, and what is expected of it twice over:
by lines that a human wrote, and by the naive evaluator."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import yaml

from agent.core.events import Namespace as NamespaceFact
from agent.core.events import Pod as PodFact
from agent.kube.translate import translate
from bench.lab import manifests
from bench.lab.manifests import Object
from bench.lab.probe import ICMP, ICMPV6, SCTP, TCP, UDP, Cell
from bench.lab.station import Station
from policy.explain import Packet, PodFacts, Remote, verdict
from policy.model import Direction, NetworkPolicy
from policy.parse import parse_network_policy

NODE_ALWAYS = "allow node <-> pods any"
_LINE = re.compile(r"(allow|deny) (\S+) (->|<->) (\S+) (\S+)(?: ipv([46]))?")
_PLACEHOLDER = re.compile(r"\$\{([^}]+?)\.([46])(?:/(\d+))?\}")
_PROTOCOLS = {"tcp": TCP, "udp": UDP, "sctp": SCTP, "icmp": ICMP}


@dataclass(frozen=True, slots=True)
class World:
    """Namespaces and pods as manifests, by name and by "ns/name"."""

    namespaces: Mapping[str, Object]
    pods: Mapping[str, Object]

    @staticmethod
    def load(*paths: Path) -> World:
        """Reads ordinary manifests; other kinds of objects are left out."""
        objects = [o for path in paths for o in yaml.safe_load_all(path.read_text())]
        return World(
            {o["metadata"]["name"]: o for o in objects if o["kind"] == "Namespace"},
            {_key(o): o for o in objects if o["kind"] == "Pod"},
        )

    def with_labels(
        self, namespaces: Mapping[str, Mapping[str, str]], pods: Mapping[str, Mapping[str, str]]
    ) -> World:
        """The same with other labels, which replace all of an object's former ones."""
        return World(
            {n: _labelled(o, namespaces.get(n)) for n, o in self.namespaces.items()},
            {n: _labelled(o, pods.get(n)) for n, o in self.pods.items()},
        )

    def host_network(self, pod: str) -> bool:
        """Whether a pod has its node's network."""
        return bool(self.pods[pod]["spec"].get("hostNetwork"))

    def facts(self) -> dict[str, PodFacts]:
        """Every pod that has a network of its own, for the naive evaluator."""
        labels: dict[str, Mapping[str, str]] = {}
        for name, item in self.namespaces.items():
            namespace = translate(item)
            assert isinstance(namespace, NamespaceFact)
            labels[name] = namespace.labels
        found = {}
        for key, item in self.pods.items():
            pod = translate(item)
            assert isinstance(pod, PodFact)
            if not pod.host_network:
                found[key] = PodFacts(
                    pod.namespace, pod.name, pod.labels, labels.get(pod.namespace, {}), pod.ports
                )
        return found


@dataclass(frozen=True, slots=True)
class Case:
    """One case as written. policies: "ns/name" -> spec, with placeholders for addresses."""

    name: str
    about: str
    policies: Mapping[str, Any]
    expect: Sequence[str]
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    pods: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def manifests(self, stations: Iterable[Station], pod_cidrs: Sequence[str]) -> list[Object]:
        """Its NetworkPolicy objects, named after the case, with addresses filled in."""
        places = {station.name: station for station in stations}

        def fill(match: re.Match[str]) -> str:
            name, family, length = match[1], int(match[2]), match[3]
            if name == "pods":
                return next(c for c in pod_cidrs if ip_network(c).version == family)
            address = places[name].address(family)
            return str(ip_network(f"{address}/{length}", strict=False)) if length else address

        filled = json.loads(_PLACEHOLDER.sub(fill, json.dumps(self.policies)))
        made = []
        for key, spec in filled.items():
            namespace, name = key.split("/")
            made.append(manifests.policy(namespace, f"{self.name}.{name}", spec))
        return made

    def by_hand(self, cells: Iterable[Cell], pods: set[str]) -> dict[Cell, bool]:
        """What the lines expect: the last line that matches a cell counts. Cells that no line
        mentions are left out. Raises ValueError for a line that mentions no cell at all."""
        cells = list(cells)
        expected: dict[Cell, bool] = {}
        for line in (*self.expect, NODE_ALWAYS):
            matches, allowed = _parse_line(line, pods)
            mentioned = {cell: allowed for cell in cells if matches(cell)}
            if not mentioned:
                raise ValueError(f"{self.name}: this line mentions nothing: {line}")
            expected.update(mentioned)
        return expected


def load_cases(folder: Path) -> list[Case]:
    """Every case below a folder but its world. Raises ValueError for a name given twice."""
    cases: list[Case] = []
    for path in sorted(folder.glob("*.yaml")):
        if path.name == "world.yaml":
            continue
        for document in yaml.safe_load_all(path.read_text()):
            document["name"] = document.pop("case")
            cases.append(Case(**document))
    names = [case.name for case in cases]
    if len(set(names)) != len(names):
        raise ValueError(f"a case twice: {sorted({n for n in names if names.count(n) > 1})}")
    return cases


class Oracle:
    """The naive evaluator (policy/explain.py), asked about cells.

    is_own_node: whether a station is the very node that a pod runs on.
    """

    def __init__(
        self,
        world: World,
        stations: Iterable[Station],
        policies: Iterable[Mapping[str, Any]],
        is_own_node: Callable[[str, str], bool] = lambda _pod, other: other == "node",
    ) -> None:
        self._facts = world.facts()
        self._stations = {station.name: station for station in stations}
        self._policies: list[NetworkPolicy] = [parse_network_policy(item) for item in policies]
        self._is_own_node = is_own_node

    def allowed(self, cell: Cell) -> bool:
        """Whether the sender's egress and the receiver's ingress policies let it through."""
        source, destination = self._facts.get(cell.source), self._facts.get(cell.destination)
        protocol = cell.protocol
        if protocol == ICMP and cell.family == 6:
            protocol = ICMPV6
        for direction, subject, subject_name, other in (
            (Direction.EGRESS, source, cell.source, cell.destination),
            (Direction.INGRESS, destination, cell.destination, cell.source),
        ):
            if subject is None:
                continue
            remote = Remote(
                address=ip_address(self._stations[other].address(cell.family)),
                pod=self._facts.get(other),
                is_node=self._is_own_node(subject_name, other),
            )
            packet = Packet(direction, protocol, cell.port)
            if not verdict(self._policies, subject, remote, packet).allowed:
                return False
        return True


def differences(expected: Mapping[Cell, bool], measured: Mapping[Cell, bool]) -> list[str]:
    """One line for each cell that is not as expected."""
    words = {True: "allowed", False: "denied"}
    return [
        f"{cell}: expected {words[wanted]}, measured {words[measured[cell]]}"
        for cell, wanted in expected.items()
        if measured[cell] != wanted
    ]


def _parse_line(line: str, pods: set[str]) -> tuple[Callable[[Cell], bool], bool]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"cannot read this expectation: {line}")
    word, left, arrow, right, what, family = match.groups()
    questions = [_question(part) for part in what.split(",")]

    def is_one_of(names: str, station: str) -> bool:
        return any(
            station in pods if name == "pods" else fnmatchcase(station, name)
            for name in names.split("+")
        )

    def matches(cell: Cell) -> bool:
        ways = [(cell.source, cell.destination)]
        if arrow == "<->":
            ways.append((cell.destination, cell.source))
        return (
            any(is_one_of(left, a) and is_one_of(right, b) for a, b in ways)
            and (family is None or int(family) == cell.family)
            and any(
                protocol in (None, cell.protocol) and port in (None, cell.port)
                for protocol, port in questions
            )
        )

    return matches, word == "allow"


def _question(text: str) -> tuple[int | None, int | None]:
    if text == "any":
        return None, None
    name, _, port = text.partition("/")
    return _PROTOCOLS[name], int(port) if port else None


def _key(item: Object) -> str:
    return f"{item['metadata']['namespace']}/{item['metadata']['name']}"


def _labelled(item: Object, labels: Mapping[str, str] | None) -> Object:
    if labels is None:
        return item
    changed = copy.deepcopy(item)
    changed["metadata"]["labels"] = dict(labels)
    return changed
