# SPDX-License-Identifier: Apache-2.0
"""The naive evaluator against cases worked out by hand from the NetworkPolicy API's documentation.

It is the oracle for everything else, so nothing here is computed.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from identity.ipcache import NamedPort
from identity.labels import LabelFilter
from policy.explain import Packet, PodFacts, Remote, explain, verdict
from policy.model import SCTP, TCP, UDP, Direction, NetworkPolicy, ReservedRule, RuleRef
from policy.parse import parse_network_policy

IN, OUT = Direction.INGRESS, Direction.EGRESS
ICMP = 1
HTTP = (NamedPort("http", TCP, 8080), NamedPort("dns", UDP, 53))
TEAM = {"team": "x"}
WEB = PodFacts("a", "web", {"app": "web"}, TEAM, HTTP)
DB = PodFacts("a", "db", {"app": "db"}, TEAM, (NamedPort("http", TCP, 81),))
OTHER = PodFacts("b", "web", {"app": "web"}, {"team": "y"}, HTTP)
STRANGER = PodFacts("b", "new", None)

ADDRESSES = {"10.0.0.2": DB, "10.0.1.3": OTHER, "10.0.1.4": STRANGER, "10.0.0.1": WEB}
MATCH_DB = {"matchLabels": {"app": "db"}}
ANY_POD_OF_X = {"namespaceSelector": {"matchLabels": TEAM}}


def remote(address: str) -> Remote:
    return Remote(ip_address(address), ADDRESSES.get(address))


def policy(name: str = "p", namespace: str = "a", **spec: Any) -> NetworkPolicy:
    return parse_network_policy(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        }
    )


def ingress(*peers: dict[str, Any], ports: Any = None) -> dict[str, Any]:
    return {"ingress": [{"from": list(peers), "ports": ports}]}


def egress(*peers: dict[str, Any], ports: Any = None) -> dict[str, Any]:
    return {"policyTypes": ["Egress"], "egress": [{"to": list(peers), "ports": ports}]}


# Policies on pod a/web: what comes from or goes to an address, protocol and port; may it?
CASES: list[tuple[str, dict[str, Any], list[tuple[str, int, int, bool]], Direction]] = [
    ("no rules isolate", {}, [("10.0.0.2", TCP, 80, False), ("8.8.8.8", ICMP, 0, False)], IN),
    ("ingress only", {"policyTypes": ["Ingress"]}, [("10.0.0.2", TCP, 80, True)], OUT),
    ("egress too", {"policyTypes": ["Egress"]}, [("10.0.0.2", TCP, 80, False)], OUT),
    (
        "egress rules imply the type",
        {"egress": [{"to": [{"podSelector": MATCH_DB}]}]},
        [("10.0.0.2", TCP, 80, True), ("10.0.1.3", TCP, 80, False)],
        OUT,
    ),
    ("and ingress with it", {"egress": [{}]}, [("10.0.0.2", TCP, 80, False)], IN),
    ("selects others", {"podSelector": MATCH_DB}, [("10.0.0.2", TCP, 80, True)], IN),
    (
        "an empty rule allows everything",
        {"ingress": [{}]},
        [("8.8.8.8", TCP, 0, True), ("10.0.1.4", ICMP, 0, True), ("::1", 47, 0, True)],
        IN,
    ),
    (
        "pods of the same namespace",
        ingress({"podSelector": {}}),
        [("10.0.0.2", TCP, 80, True), ("10.0.1.3", TCP, 80, False), ("8.8.8.8", TCP, 80, False)],
        IN,
    ),
    (
        "pods of every namespace, known ones only",
        ingress({"namespaceSelector": {}}),
        [("10.0.0.2", TCP, 1, True), ("10.0.1.3", TCP, 1, True), ("10.0.1.4", TCP, 1, False)],
        IN,
    ),
    (
        "namespace and pod",
        ingress({**ANY_POD_OF_X, "podSelector": {"matchLabels": {"app": "web"}}}),
        [("10.0.0.2", TCP, 80, False), ("10.0.1.3", TCP, 80, False)],
        IN,
    ),
    (
        "namespace or pod",
        ingress(ANY_POD_OF_X, {"podSelector": {"matchLabels": {"app": "web"}}}),
        [("10.0.0.2", TCP, 80, True), ("10.0.1.3", TCP, 80, False)],
        IN,
    ),
    (
        "a namespace by its name, which need not be among its labels",
        ingress({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "b"}}}),
        [("10.0.1.3", TCP, 80, True), ("10.0.0.2", TCP, 80, False)],
        IN,
    ),
    (
        "blocks are about addresses, of pods too",
        ingress({"ipBlock": {"cidr": "10.0.0.0/16", "except": ["10.0.1.0/24"]}}),
        [("10.0.0.2", TCP, 80, True), ("10.0.1.3", TCP, 80, False), ("10.1.0.1", TCP, 80, False)],
        IN,
    ),
    (
        "of one family only",
        ingress({"ipBlock": {"cidr": "0.0.0.0/0"}}),
        [("8.8.8.8", TCP, 80, True), ("2001:db8::1", TCP, 80, False)],
        IN,
    ),
    (
        "ports leave ICMP out",
        ingress(ports=[{"protocol": "UDP"}, {"port": 80}]),
        [
            ("8.8.8.8", UDP, 9, True),
            ("8.8.8.8", TCP, 80, True),
            ("8.8.8.8", TCP, 81, False),
            ("8.8.8.8", SCTP, 80, False),
            ("8.8.8.8", ICMP, 0, False),
        ],
        IN,
    ),
    (
        "a range has both its ends",
        ingress(ports=[{"port": 100, "endPort": 200, "protocol": "SCTP"}]),
        [
            ("8.8.8.8", SCTP, 99, False),
            ("8.8.8.8", SCTP, 100, True),
            ("8.8.8.8", SCTP, 200, True),
            ("8.8.8.8", SCTP, 201, False),
            ("8.8.8.8", TCP, 150, False),
        ],
        IN,
    ),
    (
        "a named ingress port is the subject's",
        ingress(ports=[{"port": "http"}, {"port": "dns"}]),
        [
            ("10.0.0.2", TCP, 8080, True),
            ("10.0.0.2", TCP, 81, False),
            ("10.0.0.2", UDP, 53, False),  # dns/TCP is meant, and there is none
        ],
        IN,
    ),
    (
        "a named egress port is the peer's",
        egress(ports=[{"port": "http"}]),
        [
            ("10.0.0.2", TCP, 81, True),
            ("10.0.0.2", TCP, 8080, False),
            ("10.0.1.3", TCP, 8080, True),
            ("8.8.8.8", TCP, 8080, False),
        ],
        OUT,
    ),
    (
        "a peer and a port of one rule must both match",
        ingress({"podSelector": MATCH_DB}, ports=[{"port": 80}]),
        [("10.0.0.2", TCP, 80, True), ("10.0.0.2", TCP, 81, False), ("10.0.1.3", TCP, 80, False)],
        IN,
    ),
    ("itself", {}, [("10.0.0.1", TCP, 80, True)], IN),
]


@pytest.mark.parametrize(
    ("spec", "probes", "direction"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_documented_behaviour(
    spec: dict[str, Any], probes: list[tuple[str, int, int, bool]], direction: Direction
) -> None:
    policies = [policy(**{"podSelector": {"matchLabels": {"app": "web"}}, **spec})]
    for address, protocol, port, allowed in probes:
        decision = verdict(policies, WEB, remote(address), Packet(direction, protocol, port))
        assert decision.allowed is allowed, (address, protocol, port)


def test_policies_add_up_and_the_first_that_allows_is_named() -> None:
    policies = [
        policy("z", **ingress({"podSelector": MATCH_DB})),
        policy("y", **ingress(ports=[{"port": 80}])),
        policy("other", "b", ingress=[{}]),
        policy("x"),
    ]
    packet = Packet(IN, TCP, 80)
    decision = verdict(policies, WEB, remote("10.0.0.2"), packet)
    assert decision.rule == RuleRef("NetworkPolicy", "a", "y", IN, 0)
    decision = verdict(policies, WEB, remote("10.0.0.2"), Packet(IN, TCP, 81))
    assert str(decision.rule) == "NetworkPolicy a/z ingress[0]"
    assert verdict(policies[1:], WEB, remote("10.0.0.2"), Packet(IN, TCP, 81)).rule == 0


def test_decisions_that_no_policy_makes() -> None:
    deny = [policy(policyTypes=["Ingress", "Egress"])]
    for direction in Direction:
        packet = Packet(direction, TCP, 80)
        node = Remote(ip_address("10.0.0.9"), None, is_node=True)
        assert verdict(deny, WEB, node, packet).rule is ReservedRule.NODE
        assert verdict([], STRANGER, node, packet).rule is ReservedRule.NODE
        assert verdict([], STRANGER, remote("8.8.8.8"), packet).rule is ReservedRule.INIT
        assert verdict([], WEB, remote("8.8.8.8"), packet).rule is ReservedRule.NO_POLICY
        assert verdict([], WEB, node, packet).rule is ReservedRule.NO_POLICY
        assert verdict(deny, WEB, remote("10.0.0.1"), packet).rule is ReservedRule.SELF


def test_a_label_that_the_filter_leaves_out_does_not_exist_for_peers() -> None:
    policies = [
        policy(podSelector={"matchLabels": {"app": "web"}}, **ingress({"podSelector": MATCH_DB}))
    ]
    packet, hidden = Packet(IN, TCP, 80), LabelFilter.of(["!app"])
    assert verdict(policies, WEB, remote("10.0.0.2"), packet).allowed
    assert verdict(policies, WEB, remote("10.0.0.2"), packet, hidden).rule == 0


@pytest.mark.parametrize(
    ("address", "packet", "rule", "failed", "says"),
    [
        ("10.0.0.2", Packet(IN, TCP, 81), 0, ("port",), "port 81 is not in 80/TCP"),
        ("10.0.0.2", Packet(IN, UDP, 80), 0, ("protocol",), "UDP is not in 80/TCP"),
        ("10.0.1.3", Packet(IN, TCP, 80), 0, ("namespace", "pod"), "not in namespace a"),
        ("192.168.0.9", Packet(IN, TCP, 80), 1, ("except",), "which 192.168.0.0/16 excepts"),
        ("10.0.1.4", Packet(IN, TCP, 80), 0, ("pod",), "not known yet"),
        ("8.8.8.8", Packet(IN, TCP, 80), 1, ("block",), "8.8.8.8 is not in 192.168.0.0/16"),
    ],
)
def test_the_nearest_rule_is_told(
    address: str, packet: Packet, rule: int, failed: tuple[str, ...], says: str
) -> None:
    block = {"cidr": "192.168.0.0/16", "except": ["192.168.0.0/24"]}
    rules = [
        {"from": [{"podSelector": MATCH_DB}], "ports": [{"port": 80}]},
        {"from": [{"ipBlock": block}]},
    ]
    found = explain([policy(ingress=rules)], WEB, remote(address), packet)
    assert found.decision.rule is ReservedRule.DEFAULT_DENY
    assert [str(key) for key in found.isolating] == ["NetworkPolicy a/p"]
    assert found.nearest is not None
    assert (found.nearest.rule.index, found.nearest.failed) == (rule, failed)
    assert says in found.nearest.reason


def test_there_is_no_nearest_rule_where_there_is_none() -> None:
    assert explain([policy()], WEB, remote("8.8.8.8"), Packet(IN, TCP, 80)).nearest is None
    allowed = explain([policy(ingress=[{}])], WEB, remote("8.8.8.8"), Packet(IN, TCP, 80))
    assert allowed.nearest is None and allowed.decision.allowed
