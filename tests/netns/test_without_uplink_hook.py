# SPDX-License-Identifier: Apache-2.0
"""With `devices` empty, everything from outside comes by the node's stack; policy is the same."""

from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from agent.core.flow import drop_reason_name
from bench.lab import manifests
from bench.lab.node import Lab
from bench.lab.probe import Prober
from bench.lab.station import OUTSIDE4, OUTSIDE6, UPLINK
from bench.lab.wire import Wire

pytestmark = pytest.mark.kernel

INVALID_SOURCE_IP = 132


@pytest.fixture(scope="module")
def lab(private_mounts: None) -> Iterator[Lab]:
    """A node whose agent guards no uplink."""
    with Lab(uplink_hook=False) as made:
        made.add_pod("one", "a", {"app": "a"})
        made.add_pod("two", "b", {"app": "b"})
        yield made


def test_policy_for_the_outside(lab: Lab) -> None:
    """Ingress from one outside host, egress to another; replies, fragments, everything."""
    outside = [{"ipBlock": {"cidr": f"{OUTSIDE4}/32"}}, {"ipBlock": {"cidr": f"{OUTSIDE6}/128"}}]
    far = [{"ipBlock": {"cidr": c}} for c in ("198.51.100.0/24", "2001:db8:2::/48")]
    lab.set_policies(
        [
            manifests.policy("two", "in", {"podSelector": {}, "ingress": [{"from": outside}]}),
            manifests.policy(
                "one",
                "out",
                {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": far}]},
            ),
        ]
    )
    stations = [*lab.pods.values(), lab.node, lab.outside, lab.far]
    others, pods = ["node", "outside", "far"], list(lab.pods)
    with Prober(stations) as prober:
        cells = prober.cells(others, pods) + prober.cells(pods, [*others, *pods])
        measured = prober.measure(cells)
        denied = {(c.source, c.destination) for c, reached in measured.items() if not reached}
        assert denied == {("far", "two/b"), ("one/a", "outside"), ("one/a", "two/b")}
        assert {(c.source, c.destination) for c, reached in measured.items() if reached}.isdisjoint(
            denied
        )
        large = [c for c, reached in measured.items() if reached and c.protocol == 1]
        assert all(prober.measure(large, size=4000).values())


@pytest.mark.parametrize("family", [4, 6])
def test_spoofed_pod_address_from_outside(lab: Lab, family: int) -> None:
    """The program at the receiver still knows that a pod's packets do not come that way."""
    sender, receiver = lab.pods["one/a"], lab.pods["two/b"]
    ip = IP if family == 4 else IPv6
    reason = drop_reason_name(INVALID_SOURCE_IP)
    with Wire(lab.outside_namespace) as outside, Wire(lab.node_namespace, UPLINK) as uplink:
        frame = (
            Ether(src=outside.mac, dst=uplink.mac)
            / ip(src=sender.address(family), dst=receiver.address(family))
            / UDP(sport=5, dport=80)
        )
        before = lab.agent.metric("bristle_drop_count_total", reason=reason)
        outside.send(bytes(frame))
        assert lab.agent.metric("bristle_drop_count_total", reason=reason) == before + 1
