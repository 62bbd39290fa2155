# SPDX-License-Identifier: Apache-2.0
"""What a configuration comes to on a node, and what the node cannot give."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from agent import applied_config
from agent.applied_config import (
    check_masquerade,
    ifindex,
    ifindex_now,
    map_sizes,
    masquerading,
    with_uplinks,
)
from agent.cleanup import StartError
from agent.config import Config, build
from agent.config_values import Kubernetes, PortRange
from agent.kernel import sysctl
from agent.kernel.links import LinkError
from agent.kernel.netlink import Link

CIDRS = ("10.244.1.0/24",)
GONE = "bri-no-such"


def config(**values: Any) -> Config:
    """dotted__keys with two underscores."""
    plain = {name.replace("__", "."): value for name, value in values.items()}
    return build({"node_name": "me", "source.kubernetes": Kubernetes(None), **plain})


def test_uplinks_that_were_named_are_taken_as_they_are() -> None:
    named = config(devices=("up0", "up1"))
    assert with_uplinks(named) is named


def links(*names: str, mac: str = "02:00:5e:00:53:01") -> list[Link]:
    return [Link(1, name, mac, 1500, True, True, "", "", ()) for name in names]


def test_uplinks_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default routes and by the addresses that the cluster knows; where it cannot be asked,
    those are taken that there were."""
    asked: list[tuple[str, ...]] = []

    def with_addresses(addresses: tuple[str, ...]) -> list[Link]:
        asked.append(addresses)
        return links("up0", "up1")

    monkeypatch.setattr(applied_config, "default_route_devices", lambda: links("up0"))
    monkeypatch.setattr(applied_config, "devices_with", with_addresses)
    monkeypatch.setattr(applied_config, "is_device", lambda name: name != GONE)
    known = with_uplinks(config(), ("192.0.2.1",), ["up0", "up2"])
    assert known.devices == ("up0", "up1") and asked == [("192.0.2.1",)]
    assert with_uplinks(config(), (), ["up1", GONE]).devices == ("up0", "up1")
    assert with_uplinks(config()).devices == ("up0",)


def test_a_device_without_ethernet_is_no_uplink(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [*links("wg0", mac=""), *links("up0")]
    monkeypatch.setattr(applied_config, "default_route_devices", lambda: found)
    assert with_uplinks(config()).devices == ("up0",)
    monkeypatch.setattr(applied_config, "default_route_devices", lambda: links("wg0", mac=""))
    with pytest.raises(StartError, match=r"^devices: "):
        with_uplinks(config())


def test_in_a_cluster_there_must_be_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applied_config, "default_route_devices", list)
    with pytest.raises(StartError, match=r"^devices: .*no default route"):
        with_uplinks(config())


def test_an_uplink_that_is_not_there() -> None:
    with pytest.raises(StartError, match=f"no device '{GONE}'"):
        ifindex(GONE)
    with pytest.raises(LinkError, match=f"no device '{GONE}'"):
        ifindex_now(GONE)


def test_tables_that_follow_from_others() -> None:
    sizes = map_sizes(config(bpf__nat_max=1000, bpf__endpoints_max=100))
    assert (sizes["nat"], sizes["nat_reverse"]) == (1000, 2000)
    assert sizes["addresses"] >= 2 * sizes["endpoints"] == 2 * sizes["devices"] == 200


@pytest.mark.parametrize(
    ("mode", "native", "tunnelled"),
    [
        ("tunnel", (), {4, 6}),
        ("tunnel", (ip_network("10.244.0.0/16"),), {6}),
        ("native", (), set()),
    ],
)
def test_who_is_reached_through_the_tunnel(mode: str, native: Any, tunnelled: set[int]) -> None:
    given = config(
        masquerade__enabled=True, routing__mode=mode, routing__native_cidrs=native
    )  # fmt: skip
    made = masquerading(given, (*CIDRS, "fd00:10:244:1::/64"), 7)
    assert made is not None and made.tunnelled == tunnelled


def test_who_sees_pods_as_they_are() -> None:
    assert masquerading(config(), CIDRS, 7) is None
    other, third = ip_network("10.0.0.0/8"), ip_network("192.0.2.0/24")
    made = masquerading(
        config(
            masquerade__enabled=True, masquerade__exclude=(third,), routing__native_cidrs=(other,)
        ),
        CIDRS,
        7,
    )
    assert made is not None
    assert set(made.exclude) == {ip_network(CIDRS[0]), other, third}
    assert (made.first_port, made.last_port, made.seed) == (61000, 65535, 7)


@pytest.mark.parametrize(
    ("own", "reserved", "refused"),
    [
        ((32768, 60999), (), False),
        ((32768, 61001), (), True),
        ((32768, 61001), (61000,), True),
        ((32768, 61001), (61000, 61001), False),
    ],
)
def test_ports_are_the_nodes_or_the_pods(
    monkeypatch: pytest.MonkeyPatch, own: tuple[int, int], reserved: tuple[int, ...], refused: bool
) -> None:
    monkeypatch.setattr(sysctl, "local_ports", lambda: own)
    monkeypatch.setattr(sysctl, "reserved_ports", lambda: frozenset(reserved))
    one = config(
        masquerade__enabled=True, devices=("up0",), masquerade__ports=PortRange(61000, 65535)
    )
    if not refused:
        check_masquerade(one)
        return
    with pytest.raises(StartError, match="ip_local_reserved_ports=61000-61001"):
        check_masquerade(one)


def test_masquerading_needs_an_uplink() -> None:
    check_masquerade(config())
    with pytest.raises(StartError, match=r"^masquerade\.enabled: needs uplinks"):
        check_masquerade(config(masquerade__enabled=True))
