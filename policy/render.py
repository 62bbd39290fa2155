# SPDX-License-Identifier: Apache-2.0
"""A policy as the Kubernetes document that it could have come from: the inverse of `parse`.

Defaults are written out: policy types, and the protocol of every port.
"""

from __future__ import annotations

from typing import Any

from identity.selectors import Operator, Selector
from policy.model import (
    PROTOCOL_NAMES,
    BlockPeer,
    Direction,
    NetworkPolicy,
    Peer,
    Port,
    Rule,
)
from policy.parse import API_VERSION


def render_network_policy(policy: NetworkPolicy) -> dict[str, Any]:
    """The document, of types that JSON has. `parse_network_policy` gives the same policy again."""
    metadata = {"name": policy.name, "namespace": policy.namespace}
    if policy.uid:
        metadata["uid"] = policy.uid
    spec: dict[str, Any] = {
        "podSelector": _selector(policy.pod_selector),
        "policyTypes": [one.field.capitalize() for one in sorted(policy.policy_types)],
    }
    # Not `policy.rules`: those of a direction that the types leave out are shown as written.
    for direction, rules in (
        (Direction.INGRESS, policy.ingress),
        (Direction.EGRESS, policy.egress),
    ):
        if rules:
            spec[direction.field] = [_rule(one, direction) for one in rules]
    return {"apiVersion": API_VERSION, "kind": policy.kind, "metadata": metadata, "spec": spec}


def _rule(rule: Rule, direction: Direction) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if rule.peers is not None:
        found[direction.peers_field] = [_peer(one) for one in rule.peers]
    if rule.ports is not None:
        found["ports"] = [_port(one) for one in rule.ports]
    return found


def _peer(peer: Peer) -> dict[str, Any]:
    if isinstance(peer, BlockPeer):
        block: dict[str, Any] = {"cidr": str(peer.block.cidr)}
        if peer.block.excepts:
            block["except"] = [str(one) for one in peer.block.excepts]
        return {"ipBlock": block}
    selectors = (
        ("namespaceSelector", peer.namespace_selector),
        ("podSelector", peer.pod_selector),
    )
    return {name: _selector(one) for name, one in selectors if one is not None}


def _port(port: Port) -> dict[str, Any]:
    found: dict[str, Any] = {"protocol": PROTOCOL_NAMES[port.protocol]}
    if port.port is not None:
        found["port"] = port.port
    if port.end is not None:
        found["endPort"] = port.end
    return found


def _selector(selector: Selector) -> dict[str, Any]:
    """`matchLabels` where it can say it: a key once, with one value."""
    labels: dict[str, str] = {}
    expressions: list[dict[str, Any]] = []
    for one in selector.requirements:
        if one.operator is Operator.IN and len(one.values) == 1 and one.key not in labels:
            labels[one.key] = one.values[0]
            continue
        expression: dict[str, Any] = {"key": one.key, "operator": one.operator.value}
        if one.values:
            expression["values"] = list(one.values)
        expressions.append(expression)
    found: dict[str, Any] = {}
    if labels:
        found["matchLabels"] = labels
    if expressions:
        found["matchExpressions"] = expressions
    return found
