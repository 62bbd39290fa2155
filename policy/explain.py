# SPDX-License-Identifier: Apache-2.0
"""Who may talk to whom, and why: the naive reading of the policies.

Nothing here is compiled, indexed or cached, and nothing is taken from `policy.resolve`: policies,
pods, namespaces and addresses are read as they stand in their objects. So this is the oracle that
the compiler is held against, and what `bristle policy explain` prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from identity.labels import METADATA_NAME, LabelFilter, namespace_label_key, pod_label_key
from identity.peers import NamedPort
from policy.model import (
    LAST_PORT,
    PROTOCOL_NAMES,
    BlockPeer,
    Direction,
    NetworkPolicy,
    Peer,
    PodPeer,
    PolicyKey,
    Port,
    ReservedRule,
    Rule,
    RuleName,
    RuleRef,
)

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class PodFacts:
    """A pod as policies see it. `labels` None: not known yet. `namespace_labels` are those of the
    namespace's object, empty if that is unknown; `ports` the named container ports."""

    namespace: str
    name: str
    labels: Mapping[str, str] | None = field(default_factory=dict, hash=False)
    namespace_labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    ports: tuple[NamedPort, ...] = ()

    def __str__(self) -> str:
        return f"pod {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Remote:
    """The other side: an address, the pod that has it if one does, and whether it is the subject's
    own node (by provenance, which no address can claim)."""

    address: Address
    pod: PodFacts | None = None
    is_node: bool = False


@dataclass(frozen=True, slots=True)
class Packet:
    """A new connection's first packet. `port` is the destination's, 0 if the protocol has none."""

    direction: Direction
    protocol: int
    port: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a packet passes in one direction, and the rule that says so."""

    allowed: bool
    rule: RuleName


@dataclass(frozen=True, slots=True)
class NearMiss:
    """A rule that does not allow the packet, and why: `failed` holds some of namespace, pod,
    address (no pod has it), block, except, protocol, port; `reason` says it in words."""

    rule: RuleRef
    failed: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision, the policies that isolate the subject in that direction, and for a deny the rule
    that comes nearest to allowing (None if there is no rule at all)."""

    decision: Decision
    isolating: tuple[PolicyKey, ...] = ()
    nearest: NearMiss | None = None


def verdict(
    policies: Iterable[NetworkPolicy],
    subject: PodFacts,
    remote: Remote,
    packet: Packet,
    label_filter: LabelFilter | None = None,
) -> Decision:
    """Whether the subject's policies of the packet's direction let it pass.

    `label_filter` is the agent's: labels it leaves out do not exist for peers.
    """
    if remote.pod is not None and _name(remote.pod) == _name(subject):
        return Decision(True, ReservedRule.SELF)
    isolating = _isolating(policies, subject, packet.direction)
    if not isolating and subject.labels is not None:
        return Decision(True, ReservedRule.NO_POLICY)
    if remote.is_node:
        return Decision(True, ReservedRule.NODE)
    if subject.labels is None:
        return Decision(False, ReservedRule.INIT)
    for policy in isolating:
        for index, rule in enumerate(policy.rules(packet.direction)):
            if not _failures(policy, rule, subject, remote, packet, label_filter):
                return Decision(True, policy.ref(packet.direction, index))
    return Decision(False, ReservedRule.DEFAULT_DENY)


def explain(
    policies: Iterable[NetworkPolicy],
    subject: PodFacts,
    remote: Remote,
    packet: Packet,
    label_filter: LabelFilter | None = None,
) -> Explanation:
    """The verdict with its grounds."""
    policies = tuple(policies)
    decision = verdict(policies, subject, remote, packet, label_filter)
    isolating = _isolating(policies, subject, packet.direction)
    keys = tuple(policy.key for policy in isolating)
    if decision.allowed:
        return Explanation(decision, keys)
    nearest: NearMiss | None = None
    for policy in isolating:
        for index, rule in enumerate(policy.rules(packet.direction)):
            failures = _failures(policy, rule, subject, remote, packet, label_filter)
            if nearest is None or _distance(failures) < _distance(nearest.failed):
                reason = "; ".join(map(str, failures.values()))
                nearest = NearMiss(policy.ref(packet.direction, index), tuple(failures), reason)
    return Explanation(decision, keys, nearest)


# What it takes to make a rule match: a port is nearer than a pod, a pod than a namespace.
_WEIGHT = {
    "port": 1,
    "protocol": 2,
    "pod": 3,
    "except": 4,
    "namespace": 5,
    "block": 9,
    "address": 10,
}


def _distance(failures: Iterable[str]) -> int:
    return sum(_WEIGHT[what] for what in failures)


def _nearest(choices: Iterable[dict[str, str]]) -> dict[str, str]:
    return min(choices, key=_distance)


def _name(pod: PodFacts) -> tuple[str, str]:
    return pod.namespace, pod.name


def _isolating(
    policies: Iterable[NetworkPolicy], subject: PodFacts, direction: Direction
) -> list[NetworkPolicy]:
    labels = subject.labels
    if labels is None:
        return []
    found = [
        policy
        for policy in policies
        if policy.namespace == subject.namespace
        and direction in policy.policy_types
        and policy.pod_selector.matches(labels)
    ]
    return sorted(found, key=lambda policy: policy.key)


def _failures(
    policy: NetworkPolicy,
    rule: Rule,
    subject: PodFacts,
    remote: Remote,
    packet: Packet,
    label_filter: LabelFilter | None,
) -> dict[str, str]:
    """What keeps a rule from allowing the packet, in words; empty if it does allow it.

    Of several peers, and of several ports, those that come nearest are told.
    """
    failures: dict[str, str] = {}
    if rule.peers is not None:
        choices = [_peer_failures(policy, peer, remote, label_filter) for peer in rule.peers]
        failures.update(_nearest(choices) if choices else {"pod": "the rule has no peers"})
    if rule.ports is not None:
        owner = subject if packet.direction is Direction.INGRESS else remote.pod
        choices = [_port_failures(port, owner, packet) for port in rule.ports]
        failures.update(_nearest(choices) if choices else {"port": "the rule has no ports"})
    return failures


def _peer_failures(
    policy: NetworkPolicy, peer: Peer, remote: Remote, label_filter: LabelFilter | None
) -> dict[str, str]:
    if isinstance(peer, BlockPeer):
        block = peer.block
        if remote.address not in block.cidr:
            return {"block": f"{remote.address} is not in {block.cidr}"}
        for inner in block.excepts:
            if remote.address in inner:
                return {"except": f"{remote.address} is in {inner}, which {block.cidr} excepts"}
        return {}
    if remote.pod is None:
        return {"address": f"{remote.address} is no pod"}
    if remote.pod.labels is None:
        return {"pod": f"the labels of {remote.pod} are not known yet"}
    return _pod_failures(policy, peer, remote.pod, remote.pod.labels, label_filter)


def _pod_failures(
    policy: NetworkPolicy,
    peer: PodPeer,
    pod: PodFacts,
    labels: Mapping[str, str],
    label_filter: LabelFilter | None,
) -> dict[str, str]:
    failures = {}
    if peer.namespace_selector is None:
        if pod.namespace != policy.namespace:
            failures["namespace"] = f"{pod} is not in namespace {policy.namespace}"
    else:
        own = {**pod.namespace_labels, METADATA_NAME: pod.namespace}
        visible = {
            key: value
            for key, value in own.items()
            if key == METADATA_NAME
            or label_filter is None
            or label_filter.keeps(namespace_label_key(key))
        }
        if not peer.namespace_selector.matches(visible):
            wanted = peer.namespace_selector.canonical()
            failures["namespace"] = f"namespace {pod.namespace} is not selected by {wanted}"
    if peer.pod_selector is not None:
        visible = {
            key: value
            for key, value in labels.items()
            if label_filter is None or label_filter.keeps(pod_label_key(key))
        }
        if not peer.pod_selector.matches(visible):
            failures["pod"] = f"{pod} is not selected by {peer.pod_selector.canonical()}"
    return failures


def _port_failures(port: Port, owner: PodFacts | None, packet: Packet) -> dict[str, str]:
    """`owner` is the pod whose container ports a name means: the destination."""
    if port.protocol != packet.protocol:
        name = PROTOCOL_NAMES.get(packet.protocol, f"protocol {packet.protocol}")
        return {"protocol": f"{name} is not in {port}"}
    if isinstance(port.port, str):
        numbers = [
            own.number
            for own in (owner.ports if owner is not None else ())
            if own.name == port.port and own.protocol == port.protocol
        ]
        if packet.port in numbers:
            return {}
        known = f"is {numbers[0]} there" if numbers else "has no number there"
        return {"port": f"port {packet.port} is not {port}, which {known}"}
    first = 0 if port.port is None else port.port
    last = LAST_PORT if port.port is None else first if port.end is None else port.end
    if first <= packet.port <= last:
        return {}
    return {"port": f"port {packet.port} is not in {port}"}
