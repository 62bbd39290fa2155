# SPDX-License-Identifier: Apache-2.0
"""`policy explain`: model and loaded program give one answer, for whomever it is asked."""

from collections.abc import Iterator

import pytest

from bench.lab import manifests
from bench.lab.node import Lab
from bench.lab.station import NODE4, NODE6, OUTSIDE4, OUTSIDE6

pytestmark = pytest.mark.kernel

ISOLATED = {
    "podSelector": {"matchLabels": {"app": "b"}},
    "policyTypes": ["Ingress", "Egress"],
    "ingress": [
        {"from": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}}]},
        {"from": [{"namespaceSelector": {}}], "ports": [{"port": 80}]},
    ],
}


@pytest.fixture(scope="module")
def asked(lab: Lab) -> Iterator[Lab]:
    """one/a is open, two/b isolated in both directions, and one/late has no labels yet."""
    lab.add_pod("one", "a", {"app": "a"})
    lab.add_pod("two", "b", {"app": "b"})
    lab.add_pod("one", "late", manifest=False)
    lab.set_policies([manifests.policy("two", "isolated", ISOLATED)])
    yield lab
    lab.set_policies([])


OTHERS = (
    "one/a",
    "two/b",
    "one/late",
    NODE4,
    NODE6,
    OUTSIDE4,
    OUTSIDE6,
    "192.0.2.200",
    "0.0.0.0/0",
)


@pytest.mark.parametrize("pod", ["one/a", "two/b", "one/late"])
@pytest.mark.parametrize("other", OTHERS)
def test_model_and_kernel_agree(asked: Lab, pod: str, other: str) -> None:
    for source, destination in ((pod, other), (other, pod)):
        for protocol, port in ((6, 80), (17, 53), (132, 9), (1, 0)):
            answer = asked.agent.explain(source, destination, protocol, port)
            for part in (answer.egress, answer.ingress):
                assert part.agrees, (source, destination, protocol, port, part)
                assert part.kernel.available or not part.evaluated


def test_it_leaves_no_trace(asked: Lab) -> None:
    before = asked.agent.cli_json("bpf", "ct", "list"), asked.agent.flows(4096)
    asked.agent.explain("one/a", "two/b", 6, 80)
    asked.agent.explain("one/a", "two/b", 6, 81)
    assert (asked.agent.cli_json("bpf", "ct", "list"), asked.agent.flows(4096)) == before


def test_a_network_of_several_peers_is_said_to_be_one(asked: Lab) -> None:
    part = asked.agent.explain("192.0.2.0/24", "two/b", 6, 81).ingress
    assert part.allowed and "192.0.2.128/25" in part.note, part.note
    assert not asked.agent.explain("192.0.2.128/25", "two/b", 6, 81).ingress.note


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fe80::1%eth0", "from: fe80::1%eth0 has a zone, which no packet carries"),
        ("10.1.2.3/8", "from: 10.1.2.3/8 has host bits set: write 10.0.0.0/8, or 10.1.2.3"),
        ("::ffff:10.1.2.3", "from: ::ffff:10.1.2.3 is IPv4 mapped into IPv6: write it as IPv4"),
        ("one/nobody", "from: there is no pod one/nobody"),
    ],
)
def test_what_cannot_be_asked_about(asked: Lab, text: str, says: str) -> None:
    arguments = ("policy", "explain", "--from", text, "--to", "two/b", "--port", "80/tcp")
    done = asked.agent.cli(*arguments, check=False)
    assert (done.returncode, done.stderr) == (1, f"Error: {says}\n")


def test_a_policy_that_looks_at_labels_left_out_says_so(asked: Lab) -> None:
    expression = {"key": "pod-template-hash", "operator": "DoesNotExist"}
    peers = [{"podSelector": {"matchLabels": {"app": "a"}, "matchExpressions": [expression]}}]
    spec = {
        "podSelector": {"matchLabels": {"pod-template-hash": "x"}},
        "ingress": [{"from": peers}],
    }
    objects = [
        manifests.policy("two", name, one) for name, one in (("odd", spec), ("new", ISOLATED))
    ]
    asked.set_policies(objects)
    new, odd = sorted(asked.agent.policies().policies, key=lambda one: one.name)
    assert not new.reason
    assert odd.reason.startswith("the label filter leaves out pod-template-hash: In and Exists")
    assert "filter leaves out" in asked.agent.cli("policy", "get").stdout
