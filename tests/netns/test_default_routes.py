# SPDX-License-Identifier: Apache-2.0
"""Which devices the default routes name, in a namespace with three uplinks."""

from __future__ import annotations

import pytest

from agent.kernel.default_routes import default_route_devices, default_route_mtu
from tests.netns.bare_node import MakeNetns, Netns

pytestmark = pytest.mark.kernel

GATEWAYS = {4: ("192.0.2.2", "198.51.100.2"), 6: ("2001:db8::2", "2001:db8:1::2")}
UPLINKS = ("up0", "up1", "up2")


@pytest.fixture
def node(make_netns: MakeNetns) -> Netns:
    made = make_netns()
    for name, mtu in zip(UPLINKS, ("1380", "1390", "1410"), strict=True):
        made.ip("link", "add", name, "mtu", mtu, "type", "veth", "peer", "name", f"far-{name}")
        made.ip("link", "set", name, "up")
        made.ip("link", "set", f"far-{name}", "up")
    for name, *addresses in (
        ("up0", "192.0.2.1/24", "2001:db8::1/64"),
        ("up1", "198.51.100.1/24", "2001:db8:1::1/64"),
    ):
        for address in addresses:
            made.ip("address", "add", address, "dev", name, *(["nodad"] * (":" in address)))
    return made


def devices(node: Netns) -> list[str]:
    return [link.name for link in node.run(default_route_devices)]


def test_the_preferred_one_counts(node: Netns) -> None:
    assert devices(node) == [] and node.run(default_route_mtu) == 0
    node.ip("-6", "route", "add", "default", "dev", "up2")
    assert devices(node) == ["up2"] and node.run(default_route_mtu) == 1410
    node.ip("route", "add", "default", "dev", "up1", "metric", "200")
    node.ip("route", "add", "10.0.0.0/8", "dev", "up2")
    assert devices(node) == ["up1", "up2"] and node.run(default_route_mtu) == 1390
    node.ip("route", "add", "default", "dev", "up0", "metric", "100")
    assert devices(node) == ["up0", "up2"] and node.run(default_route_mtu) == 1380
    node.ip("route", "add", "unreachable", "default", "metric", "1")
    assert devices(node) == ["up0", "up2"]


@pytest.mark.parametrize("family", [4, 6])
def test_all_next_hops_of_a_route(node: Netns, family: int) -> None:
    first, second = GATEWAYS[family]
    node.ip(
        f"-{family}", "route", "add", "default",
        "nexthop", "via", second, "nexthop", "via", first, "weight", "5",
    )  # fmt: skip
    assert devices(node) == ["up1", "up0"]
    assert node.run(default_route_mtu) == 1380
    node.ip(f"-{family}", "route", "add", "default", "dev", "up2", "metric", "5000")
    assert devices(node) == ["up1", "up0"]


def test_routes_of_the_same_metric(node: Netns) -> None:
    """As two routers on two links announce them."""
    for name in ("up0", "up1"):
        node.ip("-6", "route", "append", "default", "dev", name, "proto", "ra", "metric", "1024")
    assert sorted(devices(node)) == ["up0", "up1"]


@pytest.mark.parametrize("compatible", ["1", "0"])
@pytest.mark.parametrize("family", [4, 6])
def test_nexthop_objects(node: Netns, family: int, compatible: str) -> None:
    """One, and a group; with 0 the kernel does not repeat them in the route."""
    node.command("sysctl", "-q", "-w", f"net.ipv4.nexthop_compat_mode={compatible}")
    for number, gateway, device in zip("12", GATEWAYS[family], UPLINKS, strict=False):
        node.ip("nexthop", "add", "id", number, "via", gateway, "dev", device)
    node.ip("nexthop", "add", "id", "3", "group", "1/2")
    node.ip(f"-{family}", "route", "add", "default", "nhid", "2", "metric", "50")
    assert devices(node) == ["up1"]
    node.ip(f"-{family}", "route", "add", "default", "nhid", "3", "metric", "5")
    assert devices(node) == ["up0", "up1"]
