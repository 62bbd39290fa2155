# SPDX-License-Identifier: Apache-2.0
"""The network between the nodes carries less than before: followed, and said of which pods."""

from __future__ import annotations

import pytest

from bench.lab.cluster import Cluster, Node, Shape
from bench.lab.station import UPLINK, Pod

pytestmark = pytest.mark.kernel

SECONDS = 40.0  # the node is looked at every 15


def mtu_of_pod(pod: Pod) -> int:
    return _mtu(pod.namespace.command(["ip", "-o", "link", "show", "eth0"]))


def _mtu(shown: str) -> int:
    return int(shown.partition(" mtu ")[2].split()[0])


def said(node: Node) -> str:
    status = node.agent.status()
    return next((one.message for one in status.problems if one.what == "mtu of pods"), "")


@pytest.mark.parametrize("mode", ["tunnel", "native"])
def test_pods_that_were_made_for_more(private_mounts: None, mode: str) -> None:
    overhead = 50 if mode == "tunnel" else 0
    with Cluster(Shape(mode=mode, config={"mtu": 0})) as cluster:
        node = cluster.node("node-1")
        former = cluster.add_pod(node, "ns", "former", {"app": "a"})
        assert mtu_of_pod(former) == 1500 - overhead
        assert not said(node)
        node.namespace.ip(f"link set {UPLINK} mtu 1400")
        cluster.wait(lambda: said(node), "the pod to be named", SECONDS)
        assert f"ns/former ({1500 - overhead}) were made with more than the {1400 - overhead}" in (
            said(node)
        )
        assert mtu_of_pod(former) == 1500 - overhead  # its own
        if mode == "tunnel":
            shown = node.namespace.command(["ip", "-o", "link", "show", "bristle_vxlan"])
            assert _mtu(shown) == 1350
        later = cluster.add_pod(node, "ns", "later", {"app": "a"})
        assert mtu_of_pod(later) == 1400 - overhead
        assert "later" not in said(node)
        # A restarted agent knows it at once, and what was done about it ends it.
        cluster.restart(node)
        assert "ns/former" in said(node)
        cluster.delete_pod(former)
        assert not said(node)
        # More than before harms nobody.
        node.namespace.ip(f"link set {UPLINK} mtu 1500")
        cluster.wait(lambda: mtu_of_new(cluster, node) == 1500 - overhead, "the change", SECONDS)
        assert not said(node)


def mtu_of_new(cluster: Cluster, node: Node) -> int:
    pod = cluster.add_pod(node, "ns", "new", {"app": "a"})
    try:
        return mtu_of_pod(pod)
    finally:
        cluster.delete_pod(pod)
