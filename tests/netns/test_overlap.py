# SPDX-License-Identifier: Apache-2.0
"""A pod CIDR that meets the network of the nodes, which is nobody's wish: no pod gets a node's
address, and the node still reaches its neighbours."""

from __future__ import annotations

import json
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import pytest

from agent.kernel.podnet import protect_blocks
from agent.protection import Protection
from bench.lab import manifests
from bench.lab.node import Lab
from bench.lab.station import UPLINK
from tests.netns.bare_node import MakeNetns, Netns

pytestmark = pytest.mark.kernel

BLOCKS = ("10.244.1.0/24", "fd00:10:244:1::/112")
NEIGHBOUR = {4: "10.244.1.9", 6: "fd00:10:244:1::9"}
families = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def node(make_netns: MakeNetns) -> Netns:
    """With a device that a neighbour is behind, who has addresses of the pods' networks; the
    node's are outside of them, in networks around them."""
    made, other = make_netns(), make_netns()
    made.ip("link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", other.path)
    for namespace, device, addresses in (
        (made, "up0", ("10.244.200.1/16", "fd00:10:244::c8/48")),
        (other, "eth0", (f"{NEIGHBOUR[4]}/16", f"{NEIGHBOUR[6]}/48")),
    ):
        namespace.ip("link", "set", device, "up")
        for one in addresses:
            namespace.ip("address", "add", one, "dev", device, *(["nodad"] * (":" in one)))
    return made


def way(node: Netns, family: int) -> str:
    """How packets to the neighbour go."""
    try:
        return node.ip(f"-{family}", "route", "get", NEIGHBOUR[family])
    except AssertionError as error:
        return str(error)


@families
def test_neighbours_within_a_pod_network_are_reached(
    node: Netns, tmp_path: Path, family: int
) -> None:
    node.run(lambda: protect_blocks([ip_network(one) for one in BLOCKS], True))  # of a former agent
    assert "unreachable" in way(node, family) or "No route" in way(node, family)
    protection = Protection(tmp_path)
    node.run(lambda: protection.set_blocks(BLOCKS))
    node.command("ping", "-c1", "-W2", NEIGHBOUR[family])
    assert protection.problems.keys() == {f"pod network {one}" for one in BLOCKS}
    # When the node leaves that network, what is for no pod is unreachable again.
    node.ip("address", "flush", "dev", "up0", "scope", "global")
    node.run(protection.follow)
    assert "dev up0" not in way(node, family) and protection.problems == {}
    assert node.ip(f"-{family}", "route", "show", "proto", "178").startswith("unreachable")
    node.ip("address", "add", "10.244.200.1/16", "dev", "up0")
    node.ip("address", "add", "fd00:10:244::c8/48", "dev", "up0", "nodad")
    node.run(protection.follow)
    node.command("ping", "-c1", "-W2", NEIGHBOUR[family])
    node.run(lambda: protection.set_blocks(["10.9.0.0/24"]))
    assert node.ip("route", "show", "proto", "178").split()[:2] == ["unreachable", "10.9.0.0/24"]
    assert node.ip("-6", "route", "show", "proto", "178") == ""


@families
@pytest.mark.parametrize("lengths", [(24, 112), (28, 120)])
def test_a_connected_network_as_narrow_or_narrower_goes_first(
    node: Netns, tmp_path: Path, family: int, lengths: tuple[int, int]
) -> None:
    """The kernel's own order: an equal one by its metric, a narrower one by its length."""
    node.ip("address", "flush", "dev", "up0", "scope", "global")
    node.ip("address", "add", f"10.244.1.1/{lengths[0]}", "dev", "up0")
    node.ip("address", "add", f"fd00:10:244:1::1/{lengths[1]}", "dev", "up0", "nodad")
    node.run(lambda: protect_blocks([ip_network(one) for one in BLOCKS], True))
    assert "dev up0" in way(node, family)
    node.run(lambda: Protection(tmp_path).set_blocks(BLOCKS))
    assert "dev up0" in way(node, family)


def test_a_tunnel_that_asks_nobody_changes_nothing(node: Netns, tmp_path: Path) -> None:
    """What went into it for no pod might come back out of it."""
    node.ip("address", "flush", "dev", "up0", "scope", "global")
    node.ip("tuntap", "add", "tun0", "mode", "tun")
    node.ip("link", "set", "tun0", "up")
    node.ip("address", "add", "10.244.200.1/16", "dev", "tun0")
    protection = Protection(tmp_path)
    node.run(lambda: protection.set_blocks(BLOCKS))
    assert "tun0" not in way(node, 4) and protection.problems == {}


def test_no_pod_gets_an_address_of_a_node(private_mounts: None) -> None:
    """Neither of this one, which came while the agent ran, nor of another."""
    with Lab() as lab:

        def known(*addresses: str) -> Callable[[], bool]:
            return lambda: all(
                f"{one}/" in json.dumps(lab.agent.cli_json("bpf", "ipcache", "list"))
                for one in addresses
            )

        lab.node_namespace.ip(
            f"address add 10.244.1.2/32 dev {UPLINK}",
            f"address add fd00:10:244:1::2/128 dev {UPLINK} nodad",
        )
        # The last is this node's too, for the cluster, and on none of its devices.
        lab.manifests.put(
            "nodes",
            [
                manifests.node("node-1", [], ["10.244.1.4"]),
                manifests.node("other", [], ["10.244.1.3", "fd00:10:244:1::3"]),
            ],
        )
        lab.agent.wait(
            known("10.244.1.2", "10.244.1.3", "fd00:10:244:1::2", "fd00:10:244:1::3"),
            "the nodes' addresses",
        )
        pod = lab.add_pod("one", "a", {})
        assert (pod.ipv4, pod.ipv6) == ("10.244.1.5", "fd00:10:244:1::4")
        # The network that the pods' one lies in comes while the agent runs.
        assert "unreachable" in lab.node_namespace.command(["ip", "route", "show", "proto", "178"])
        lab.node_namespace.ip(f"address add 10.244.200.1/16 dev {UPLINK}")
        lab.agent.wait(
            lambda: any(
                one.what == "pod network 10.244.1.0/24" for one in lab.agent.status().problems
            ),
            "status to say so",
        )
        routes = lab.node_namespace.command(["ip", "route", "show", "proto", "178"])
        assert "unreachable" not in routes
