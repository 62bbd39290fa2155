# SPDX-License-Identifier: Apache-2.0
"""Random worlds (policies, pods, addresses) for the policy tests, drawn from any `random.Random`.

Small vocabularies, so that selectors, blocks and ports often meet. Policies are made as documents
and go through the parser.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from random import Random
from typing import Any

from identity.allocator import IdentityAllocator
from identity.ipcache import HOST_CLASS, IPCache, NamedPort, PeerClass
from identity.labels import LabelFilter, pod_labels
from identity.reserved import Reserved
from policy.explain import PodFacts, Remote
from policy.model import Direction, NetworkPolicy, Port
from policy.parse import parse_network_policy
from policy.resolve import PolicyRepository, Table

NAMESPACES = ("a", "b", "c")
LABELS = {
    "app": ("web", "db", "dns"),
    "tier": ("1", "2"),
    "pod-template-hash": ("x1", "x2"),
    # Looks like the key that holds a pod's namespace.
    "io.kubernetes.pod.namespace": ("a", "b"),
}
NAMESPACE_LABELS = {"team": ("x", "y"), "env": ("prod", ""), "kubernetes.io/metadata.name": ("a",)}
CIDRS = (
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/28",
    "10.0.0.4/30",
    "10.0.0.5/32",
    "10.0.0.6/31",
    "192.168.0.0/16",
    "192.168.1.0/24",
    "::/0",
    "fd00::/64",
    "fd00::4/126",
    "fd00::5/128",
    "2001:db8::/32",
)
OUTSIDE = ("192.168.1.7", "192.168.2.7", "8.8.8.8", "2001:db8::7", "2001:dead::1", "10.0.0.15")
PORTS = (1, 53, 80, 81, 1024, 8080, 65535)
NAMES = ("http", "dns", "sig")
NAMED = tuple(
    NamedPort(name, protocol, number)
    for name, protocol, number in (
        ("http", 6, 80),
        ("http", 6, 8080),
        ("http", 17, 80),
        ("dns", 17, 53),
        ("dns", 6, 53),
        ("sig", 132, 81),
    )
)
PROBED_PROTOCOLS = (6, 17, 132, 1, 47)
FILTERS = (LabelFilter.of(()), LabelFilter.of(("!pod-template-hash", "!tier")))


def selector(random: Random, vocabulary: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if random.random() < 0.5:
        key = random.choice(sorted(vocabulary))
        found["matchLabels"] = {key: random.choice(vocabulary[key])}
    if random.random() < 0.4:
        key = random.choice([*sorted(vocabulary), "absent"])
        operator = random.choice(("In", "NotIn", "Exists", "DoesNotExist"))
        expression: dict[str, Any] = {"key": key, "operator": operator}
        if operator in ("In", "NotIn"):
            values = vocabulary.get(key, ("none",))
            expression["values"] = random.sample(values, random.randint(1, len(values)))
        found["matchExpressions"] = [expression]
    return found


def block(random: Random) -> dict[str, Any]:
    cidr = random.choice(CIDRS)
    outer = ip_network(cidr)
    inside = [
        one
        for one in CIDRS
        if one != cidr
        and ip_network(one).version == outer.version
        and ip_network(one).network_address in outer
        and ip_network(one).prefixlen > outer.prefixlen
    ]
    found: dict[str, Any] = {"cidr": cidr}
    if inside and random.random() < 0.5:
        found["except"] = random.sample(inside, random.randint(1, min(2, len(inside))))
    return found


def peer(random: Random) -> dict[str, Any]:
    kind = random.randrange(4)
    if kind == 0:
        return {"ipBlock": block(random)}
    found = {}
    if kind in (1, 3):
        found["podSelector"] = selector(random, LABELS)
    if kind in (2, 3):
        found["namespaceSelector"] = selector(random, NAMESPACE_LABELS)
    return found


def port(random: Random) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if random.random() < 0.8:
        found["protocol"] = random.choice(("TCP", "TCP", "UDP", "SCTP"))
    kind = random.randrange(6)
    if kind == 1:
        found["port"] = random.choice(NAMES)
    elif kind > 1:
        found["port"] = random.choice(PORTS)
        if kind > 3:
            found["endPort"] = random.choice([one for one in PORTS if one >= found["port"]])
    return found


def rule(random: Random, peers_field: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if random.random() < 0.8:
        found[peers_field] = [peer(random) for _ in range(random.randint(0, 2))]
    if random.random() < 0.75:
        found["ports"] = [port(random) for _ in range(random.randint(0, 3))]
    return found


def document(random: Random, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = {"podSelector": selector(random, LABELS)}
    for direction, peers_field in (("ingress", "from"), ("egress", "to")):
        if random.random() < 0.8:
            rules = [rule(random, peers_field) for _ in range(random.choice((0, 1, 1, 2)))]
            spec[direction] = rules
    types = random.choice((None, None, [], ["Ingress"], ["Egress"], ["Egress", "Ingress"]))
    if types is not None:
        spec["policyTypes"] = types
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": random.choice(NAMESPACES)},
        "spec": spec,
    }


def labels(random: Random, vocabulary: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {key: random.choice(vocabulary[key]) for key in vocabulary if random.random() < 0.6}


@dataclass
class World:
    """Policies and pods as the agent would have them, and the tables and classes made of them."""

    policies: list[NetworkPolicy]
    pods: dict[str, PodFacts]  # by address; a pod may have two
    label_filter: LabelFilter
    repository: PolicyRepository = field(default_factory=PolicyRepository)
    identities: IdentityAllocator = field(default_factory=IdentityAllocator)

    def __post_init__(self) -> None:
        self.ipcache = IPCache(self.identities.acquire)
        for policy in self.policies:
            self.repository.upsert(policy)
        self.ipcache.set_blocks(self.repository.blocks())
        self.ipcache.set_port_names(self.repository.port_names())
        for address, pod in self.pods.items():
            made = Reserved.INIT.labels
            if pod.labels is not None:
                known = pod.namespace_labels or None
                made = pod_labels(pod.labels, pod.namespace, known, "default", self.label_filter)
            number = self.identities.acquire(made)
            self.ipcache.upsert(address, number, made, pod.ports)
        self.ipcache.resolve()

    def table(self, direction: Direction, pod: PodFacts) -> Table | None:
        if pod.labels is None:
            return Table.init(direction)
        return self.repository.table_for(direction, pod.namespace, pod.labels, pod.ports)

    def peer_class(self, remote: Remote) -> PeerClass:
        return HOST_CLASS if remote.is_node else self.ipcache.lookup(remote.address)

    def remotes(self, random: Random, count: int) -> list[Remote]:
        found = [Remote(ip_address(a), pod) for a, pod in self.pods.items()]
        found += [Remote(ip_address(a)) for a in OUTSIDE]
        return [*random.sample(found, min(count, len(found))), Remote(IPv4Address(1), None, True)]

    def ports(self) -> list[int]:
        """Every port at which a verdict could change, and its neighbours."""
        every: list[Port] = [
            one
            for policy in self.policies
            for rule in (*policy.ingress, *policy.egress)
            for one in rule.ports or ()
        ]
        edges = {one.port for one in every} | {one.end for one in every}
        numbers = {edge for edge in edges if isinstance(edge, int)}
        if any(isinstance(edge, str) for edge in edges):
            numbers |= {one.number for one in NAMED}
        around = {number + step for number in numbers for step in (-1, 0, 1)} | {0, 65535}
        return sorted(number for number in around if 0 <= number <= 65535)


def world(random: Random, most_policies: int = 4) -> World:
    policies = [
        parse_network_policy(document(random, f"p{index}"))
        for index in range(random.randint(0, most_policies))
    ]
    namespaces = {
        name: labels(random, NAMESPACE_LABELS) if random.random() < 0.8 else {}
        for name in NAMESPACES
    }
    pods = {}
    for index in range(random.randint(2, 6)):
        namespace = random.choice(NAMESPACES)
        pod = PodFacts(
            namespace,
            f"pod{index}",
            labels(random, LABELS) if random.random() < 0.9 else None,
            namespaces[namespace],
            tuple(random.sample(NAMED, random.randint(0, 3))),
        )
        pods[str(IPv4Address("10.0.0.2") + index)] = pod
        if random.random() < 0.7:
            pods[str(IPv6Address("fd00::2") + index)] = pod
    return World(policies, pods, random.choice(FILTERS))
