# SPDX-License-Identifier: Apache-2.0
"""What the agent does to the node's own network: routes, settings, addresses, filters at pods."""

import os
import sys
import time
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

import pytest

from agent.kernel import bpf, clsact, netlink
from agent.kernel.endpoint_store import read_boot_id
from agent.kernel.node_addresses import (
    AddressAdded,
    AddressRemoved,
    LinkRemoved,
    NetworkMonitor,
    devices_with,
    node_addresses,
)
from agent.kernel.podnet import (
    PodNetwork,
    device_name,
    protect_blocks,
)
from agent.kernel.rtnl import RtnlSocket
from agent.kernel.sysctl import SysctlJournal, enable_forwarding
from agent.kernel.sysctl import read as read_sysctl
from agent.mtu import underlay_mtu
from tests.netns.bare_node import (
    NODE4,
    NODE6,
    MakeNetns,
    Netns,
    add,
    make_node,
    no_programs,
    state,
    wanted,
)

pytestmark = pytest.mark.kernel


@pytest.fixture
def node(make_netns: MakeNetns) -> Netns:
    return make_node(make_netns)


@pytest.fixture
def network() -> PodNetwork:
    return PodNetwork("t", no_programs)


def test_addresses_without_a_pod_are_unreachable(
    node: Netns, network: PodNetwork, make_netns: MakeNetns
) -> None:
    before = state(node)
    blocks = [ip_network("10.244.0.0/24"), ip_network("fd00::/64")]
    for _ in range(2):
        node.run(lambda: protect_blocks(blocks, True))
    for address in ("10.244.0.77", "fd00::77"):
        with pytest.raises(AssertionError, match=r"unreachable|No route"):
            node.ip("route", "get", address)
    add(node, network, make_netns(), wanted(5))
    node.command("ping", "-c1", "-W1", "10.244.0.5")
    node.run(network.remove_devices)
    for _ in range(2):
        node.run(lambda: protect_blocks(blocks, False))
    assert state(node) == before


def test_sysctls_are_recorded_and_restored(node: Netns, tmp_path: Path) -> None:
    node.ip("link", "add", "up.1", "type", "veth", "peer", "name", "far")
    node.command("sysctl", "-qw", "net/ipv6/conf/far/forwarding=1")

    def values() -> dict[str, str | None]:
        return {
            name: read_sysctl(name)
            for device in ("all", "default", "up.1", "far", "lo")
            for name in (
                f"net/ipv4/conf/{device}/forwarding",
                f"net/ipv6/conf/{device}/forwarding",
                f"net/ipv6/conf/{device}/force_forwarding",
                f"net/ipv6/conf/{device}/accept_ra",
            )
        }

    before = node.run(values)
    path = tmp_path / "sysctl.json"
    journal = SysctlJournal(path, read_boot_id())
    node.run(lambda: enable_forwarding(journal, ["up.1"]))
    node.run(journal.set_ipv6_forwarding)  # as older kernels need
    during = node.run(values)
    assert during["net/ipv4/conf/up.1/forwarding"] == "1"
    assert during["net/ipv6/conf/all/forwarding"] == "1"
    assert during["net/ipv4/conf/all/forwarding"] == before["net/ipv4/conf/all/forwarding"]
    after_kill = SysctlJournal(path, read_boot_id())
    after_kill.open()
    node.run(after_kill.restore)
    assert node.run(values) == before
    assert not path.exists()


def test_node_addresses_and_their_changes(node: Netns) -> None:
    assert node.run(node_addresses) == {IPv4Address(NODE4), IPv6Address(NODE6)}
    events: list[object] = []
    monitor = node.run(lambda: NetworkMonitor(events.append))
    monitor.start()
    node.ip("link", "add", "up0", "type", "veth", "peer", "name", "far")
    node.ip("addr", "add", "192.0.2.7/24", "dev", "up0")
    node.ip("addr", "add", "2001:db8::7/64", "dev", "up0")
    node.ip("addr", "add", "169.254.3.3/16", "dev", "up0", "scope", "link")
    index = _index(node, "up0")
    assert IPv6Address("2001:db8::7") in node.run(node_addresses)
    node.ip("link", "del", "up0")
    expected = [
        AddressAdded(index, IPv4Address("192.0.2.7")),
        AddressRemoved(index, IPv4Address("192.0.2.7")),
        AddressRemoved(index, IPv6Address("2001:db8::7")),
        LinkRemoved(index, "up0"),
    ]
    deadline = time.monotonic() + 10
    while not set(expected) <= set(events) and time.monotonic() < deadline:
        time.sleep(0.01)
    monitor.stop()
    assert set(expected) <= set(events)
    assert not any("169.254" in str(event) for event in events)


def test_the_network_is_as_narrow_as_its_narrowest_uplink(node: Netns) -> None:
    for name, mtu in (("up0", "1380"), ("up1", "1410")):
        node.ip("link", "add", name, "mtu", mtu, "type", "veth", "peer", "name", f"far-{name}")
    assert node.run(lambda: underlay_mtu(["up1"])) == 1410
    assert node.run(lambda: underlay_mtu(["up0", "up1"])) == 1380
    node.ip("link", "set", "up0", "mtu", "1500")
    assert node.run(lambda: underlay_mtu(["up0", "up1"])) == 1410
    # One that is gone for the moment says nothing.
    assert node.run(lambda: underlay_mtu(["up0", "gone"])) == 1500
    assert node.run(lambda: underlay_mtu(["gone"])) == 0
    assert node.run(lambda: underlay_mtu([])) == 0


def test_addresses_of_services_are_not_the_nodes(node: Netns) -> None:
    """kube-proxy in mode ipvs gives its device those of all services. Were they the node's, any
    policy would let pods through to them. One that the node has elsewhere is its own."""
    before = node.run(node_addresses)
    node.ip("link", "add", "kube-ipvs0", "type", "bridge")
    node.ip("link", "set", "kube-ipvs0", "up")
    for address in ("10.96.0.10/32", "fd00:96::10/128", f"{NODE4}/32"):
        node.ip("addr", "add", address, "dev", "kube-ipvs0")
    assert node.run(node_addresses) == before


def test_devices_by_the_addresses_that_others_know(node: Netns) -> None:
    def found(*addresses: str) -> list[str]:
        return [link.name for link in node.run(lambda: devices_with(addresses))]

    for name in ("up0", "kube-ipvs0"):
        node.ip("link", "add", name, "type", "bridge")
    node.ip("addr", "add", "192.0.2.7/24", "dev", "up0")
    for name in ("kube-ipvs0", "lo"):
        node.ip("addr", "add", "192.0.2.8/32", "dev", name)
    assert found("192.0.2.7", "2001:db8::7") == ["up0"]
    assert not found("192.0.2.8") and not found("192.0.2.9") and not found()


def _index(node: Netns, name: str) -> int:
    def work() -> int:
        with RtnlSocket() as rtnl:
            return netlink.get_link(rtnl, name).index

    return node.run(work)


def test_clsact_programs_are_attached_replaced_and_removed(
    node: Netns, make_netns: MakeNetns
) -> None:
    def program(verdict: int) -> int:
        move = (0xB7).to_bytes(1) + b"\0\0\0" + verdict.to_bytes(4, sys.byteorder)
        return bpf.program_load(
            bpf.ProgramType.SCHED_CLS, move + b"\x95" + bytes(7), "t", licence="GPL"
        )

    accept, drop = program(0), program(2)
    attached: list[tuple[int, int]] = []

    def attach(ifindex: int, name: str) -> None:
        with RtnlSocket() as rtnl:
            assert clsact.attached(rtnl, ifindex) == (0, 0)
            clsact.attach(rtnl, ifindex, accept, drop)
            attached.append(clsact.attached(rtnl, ifindex))

    wiring = add(node, PodNetwork("t", attach), make_netns(), wanted(5))
    ids = bpf.program_info(accept).id, bpf.program_info(drop).id
    assert attached == [ids]
    with pytest.raises(AssertionError):
        node.command("ping", "-c1", "-W1", "10.244.0.5")

    def replace() -> None:
        with RtnlSocket() as rtnl:
            clsact.attach(rtnl, wiring.host_ifindex, drop, accept)
            assert clsact.attached(rtnl, wiring.host_ifindex) == ids[::-1]
            clsact.attach(rtnl, wiring.host_ifindex, accept, accept)

    node.run(replace)
    node.command("ping", "-c1", "-W1", "10.244.0.5")

    def detach() -> None:
        with RtnlSocket() as rtnl:
            for _ in range(2):
                clsact.detach(rtnl, wiring.host_ifindex)
            assert clsact.attached(rtnl, wiring.host_ifindex) == (0, 0)

    node.run(detach)
    assert device_name(1) == "bri00000001"
    os.close(accept)
    os.close(drop)
