# SPDX-License-Identifier: Apache-2.0
"""What the parser takes, what it refuses and under which field's name, and that it never breaks."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.model import SCTP, TCP, UDP, BlockPeer, Direction, NetworkPolicy, PodPeer, Port
from policy.parse import PolicyError, parse_network_policy
from policy.render import render_network_policy
from tests.unit.policy import worlds

IN, OUT = Direction.INGRESS, Direction.EGRESS


def document(**spec: object) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "a", "uid": "u", "labels": {"any": "thing"}},
        "spec": spec,
    }


def parse(**spec: object) -> NetworkPolicy:
    return parse_network_policy(document(**spec))


def from_peer(**peer: object) -> dict[str, Any]:
    return {"ingress": [{"from": [peer]}]}


def from_port(**port: object) -> dict[str, Any]:
    return {"egress": [{"ports": [port]}]}


@pytest.mark.parametrize(
    ("spec", "types"),
    [
        ({}, {IN}),
        ({"policyTypes": []}, {IN}),
        ({"policyTypes": None, "egress": []}, {IN}),
        ({"egress": None}, {IN}),
        ({"egress": [{}]}, {IN, OUT}),
        ({"policyTypes": ["Egress"]}, {OUT}),
        ({"policyTypes": ["Egress"], "ingress": [{}]}, {OUT}),
        ({"policyTypes": ["Ingress"], "egress": [{}]}, {IN}),
        ({"policyTypes": ["Egress", "Ingress"]}, {IN, OUT}),
    ],
)
def test_policy_types_and_their_default(spec: dict[str, Any], types: set[Direction]) -> None:
    policy = parse(podSelector={}, **spec)
    assert policy.policy_types == types
    for direction in Direction:
        assert direction in types or not policy.rules(direction)


def test_absent_and_empty_lists_of_a_rule_mean_anything() -> None:
    absent: list[dict[str, Any]] = [{}, {"from": None, "ports": None}, {"from": [], "ports": []}]
    for rule in absent:
        (one,) = parse(ingress=[rule]).ingress
        assert one.peers is None and one.ports is None
    assert parse(ingress=[]).ingress == parse(ingress=None).ingress == ()


def test_peers_keep_what_is_absent_apart_from_what_is_empty() -> None:
    (rule,) = parse(
        ingress=[
            {
                "from": [
                    {"podSelector": {}},
                    {"namespaceSelector": {}, "podSelector": None},
                    {"namespaceSelector": {"matchLabels": {"x": "y"}}, "podSelector": {}},
                    {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.2.0.0/16", "10.1.0.0/16"]}},
                ]
            }
        ]
    ).ingress
    own, everywhere, chosen, block = rule.peers or ()
    assert isinstance(own, PodPeer) and own.namespace_selector is None
    assert isinstance(everywhere, PodPeer) and everywhere.pod_selector is None
    assert isinstance(chosen, PodPeer) and chosen.pod_selector is not None
    assert isinstance(block, BlockPeer)
    assert block.block.canonical() == "10.0.0.0/8 except 10.1.0.0/16,10.2.0.0/16"


@pytest.mark.parametrize(
    ("port", "parsed"),
    [
        ({}, Port(TCP)),
        ({"protocol": None, "port": None, "endPort": None}, Port(TCP)),
        ({"protocol": "UDP"}, Port(UDP)),
        ({"port": 1, "endPort": 65535, "protocol": "SCTP"}, Port(SCTP, 1, 65535)),
        ({"port": 80, "endPort": 80}, Port(TCP, 80, 80)),
        ({"port": "http-alt2"}, Port(TCP, "http-alt2")),
        ({"port": "8080-tcp"}, Port(TCP, "8080-tcp")),
    ],
)
def test_ports(port: dict[str, Any], parsed: Port) -> None:
    assert parse(egress=[{"ports": [port]}]).egress[0].ports == (parsed,)


IN0 = "spec.ingress[0].from[0]"
OUT0 = "spec.egress[0].ports[0]"
EXCEPT0 = f"{IN0}.ipBlock.except[0]"


@pytest.mark.parametrize(
    ("spec", "field", "says"),
    [
        ({"podselector": {}}, "spec.podselector", "unknown field"),
        ({"podSelector": []}, "spec.podSelector", "mapping"),
        ({"podSelector": {"matchLabels": {"a": 1}}}, "spec.podSelector.matchLabels[a]", "quotes"),
        ({"podSelector": {"matchLabels": {"-a": "b"}}}, "spec.podSelector.matchLabels", "'-a'"),
        (
            {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}},
            "spec.podSelector.matchExpressions[0].operator",
            "In, NotIn, Exists, DoesNotExist",
        ),
        ({"policyTypes": ["ingress"]}, "spec.policyTypes[0]", "Ingress, Egress"),
        ({"policyTypes": ["Egress", "Egress"]}, "spec.policyTypes[1]", "twice"),
        ({"ingress": {}}, "spec.ingress", "list"),
        ({"ingress": [None]}, "spec.ingress[0]", "mapping"),
        ({"ingress": [{"to": []}]}, "spec.ingress[0].to", "unknown field"),
        ({"egress": [{"from": []}]}, "spec.egress[0].from", "unknown field"),
        (from_peer(), IN0, "must have"),
        (from_peer(ipBlock={"cidr": "10.0.0.0/8"}, podSelector={}), IN0, "together"),
        (from_peer(ipBlock={}), f"{IN0}.ipBlock.cidr", "must be a CIDR"),
        (from_peer(ipBlock={"cidr": "10.0.0.1/8"}), f"{IN0}.ipBlock.cidr", "10.0.0.0/8 is meant"),
        (from_peer(ipBlock={"cidr": "10.0.0.0"}), f"{IN0}.ipBlock.cidr", "prefix length"),
        (from_peer(ipBlock={"cidr": "10.0.0.0/33"}), f"{IN0}.ipBlock.cidr", "no CIDR"),
        (from_peer(ipBlock={"cidr": "10.0.0.0/255.0.0.0"}), f"{IN0}.ipBlock.cidr", "prefix length"),
        (from_peer(ipBlock={"cidr": "010.0.0.0/8"}), f"{IN0}.ipBlock.cidr", "no CIDR"),
        (from_peer(ipBlock={"cidr": "::ffff:10.0.0.0/104"}), f"{IN0}.ipBlock.cidr", "as IPv4"),
        (from_peer(ipBlock={"cidr": "fe80::%eth0/64"}), f"{IN0}.ipBlock.cidr", "prefix length"),
        (from_peer(ipBlock={"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}), EXCEPT0, "inside"),
        (from_peer(ipBlock={"cidr": "10.0.0.0/8", "except": ["10.0.0.0/8"]}), EXCEPT0, "smaller"),
        (from_peer(ipBlock={"cidr": "10.0.0.0/8", "except": ["0.0.0.0/0"]}), EXCEPT0, "inside"),
        (from_peer(ipBlock={"cidr": "10.0.0.0/8", "except": ["fd00::/64"]}), EXCEPT0, "inside"),
        (from_port(protocol="ICMP"), f"{OUT0}.protocol", "TCP, UDP, SCTP"),
        (from_port(protocol="tcp"), f"{OUT0}.protocol", "TCP, UDP, SCTP"),
        (from_port(port=0), f"{OUT0}.port", "1 to 65535"),
        (from_port(port=65536), f"{OUT0}.port", "1 to 65535"),
        (from_port(port=True), f"{OUT0}.port", "1 to 65535"),
        (from_port(port=80.0), f"{OUT0}.port", "1 to 65535"),
        (from_port(port="80"), f"{OUT0}.port", "without quotes"),
        (from_port(port="Http"), f"{OUT0}.port", "port name"),
        (from_port(port="a--b"), f"{OUT0}.port", "port name"),
        (from_port(port="sixteen-letters-"), f"{OUT0}.port", "port name"),
        (from_port(port=80, endPort=79), f"{OUT0}.endPort", "below port 80"),
        (from_port(port=80, endPort=65536), f"{OUT0}.endPort", "1 to 65535"),
        (from_port(port="http", endPort=81), f"{OUT0}.endPort", "port name"),
        (from_port(endPort=81), f"{OUT0}.endPort", "no port"),
    ],
)
def test_what_is_refused_names_its_field(spec: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse(**spec)
    assert (caught.value.field, caught.value.resource) == (field, "a/p")
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"apiVersion": "extensions/v1beta1"}, "apiVersion"),
        ({"kind": "Pod"}, "kind"),
        ({"specs": {}}, "specs"),
        ({"metadata": {"namespace": "a"}}, "metadata.name"),
        ({"metadata": {"name": "P"}}, "metadata.name"),
        ({"metadata": {"name": "p", "namespace": "a.b"}}, "metadata.namespace"),
        ({"metadata": {"name": "p", "namespce": "a"}}, "metadata.namespce"),
        ({"spec": []}, "spec"),
    ],
)
def test_the_outside_of_the_document(change: dict[str, Any], field: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_network_policy(document() | change)
    assert caught.value.field == field


def test_a_namespace_defaults_and_a_missing_spec_isolates() -> None:
    doc = document() | {"metadata": {"name": "p"}, "status": {}}
    del doc["spec"]
    policy = parse_network_policy(doc)
    assert str(policy.key) == "NetworkPolicy default/p"
    assert policy.policy_types == {IN} and policy.pod_selector.matches({})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["In", "Exists", "TCP", "Ingress", "10.0.0.0/8", "::/0", "/8", "\n", "a\n"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8) | st.integers() | st.none(), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=600, deadline=None)
@given(random=st.randoms(use_true_random=False), value=json_values)
def test_a_mutilated_document_gives_a_policy_or_a_policy_error(random: Random, value: Any) -> None:
    doc = copy.deepcopy(worlds.document(random, "p"))
    at: Any = doc
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            if isinstance(at, list):
                at.append(value)
            else:
                at["key"] = value
            break
        key = random.choice(keys)
        if not isinstance(at[key], dict | list) or random.random() < 0.25:
            at[key] = value
            break
        at = at[key]
    _parse_or_refuse(doc)


@settings(max_examples=200, deadline=None)
@given(json_values)
def test_anything_at_all_gives_a_policy_error(value: Any) -> None:
    with pytest.raises(PolicyError):
        parse_network_policy(value)


def _parse_or_refuse(doc: object) -> None:
    try:
        assert isinstance(parse_network_policy(doc), NetworkPolicy)
    except PolicyError as error:
        assert error.field and error.message and str(error)


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False))
def test_what_is_rendered_parses_to_the_same_policy(random: Random) -> None:
    policy = parse_network_policy(worlds.document(random, "p"))
    rendered = render_network_policy(policy)
    assert parse_network_policy(json.loads(json.dumps(rendered))) == policy


def test_rendering_keeps_what_a_plain_form_would_lose() -> None:
    twice = [{"key": "app", "operator": "In", "values": [one]} for one in ("a", "b")]
    policy = parse(podSelector={"matchExpressions": twice}, policyTypes=["Egress"], ingress=[{}])
    rendered = render_network_policy(policy)
    assert parse_network_policy(rendered) == policy
    assert rendered["metadata"] == {"name": "p", "namespace": "a", "uid": "u"}
    assert rendered["spec"] == {
        "podSelector": {"matchLabels": {"app": "a"}, "matchExpressions": twice[1:]},
        "policyTypes": ["Egress"],
        "ingress": [{}],
    }
