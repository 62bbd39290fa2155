# SPDX-License-Identifier: Apache-2.0
"""Results of every version, held against the rules of the CNI specification."""

import ipaddress
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.errors import CniError, ErrorCode
from cni.results import (
    DNS,
    NEWEST,
    VERSIONS,
    Interface,
    IPConfig,
    Result,
    Route,
    error_json,
    merge,
    parse_result,
)

text = st.text("abcdefgh0123456789-", min_size=1, max_size=8)
interfaces = st.builds(
    Interface,
    name=text,
    mac=st.sampled_from(["", "02:00:00:00:00:01"]),
    sandbox=st.sampled_from(["", "/var/run/netns/blue", "/var/run/netns/red"]),
    mtu=st.sampled_from([0, 1500, 9000]),
    socket_path=st.sampled_from(["", "/run/vhost.sock"]),
    pci_id=st.sampled_from(["", "0000:00:1f.6"]),
)
v4, v6 = st.ip_addresses(v=4), st.ip_addresses(v=6)
number = st.none() | st.integers(0, 2**32 - 1)


@st.composite
def ip_configs(draw: st.DrawFn, count: int) -> IPConfig:
    address = draw(v4 | v6)
    gateway = draw(st.none() | (v4 if address.version == 4 else v6))
    length = draw(st.integers(0, address.max_prefixlen))
    index = draw(st.none() | st.integers(0, count - 1)) if count else None
    return IPConfig(ipaddress.ip_interface((address, length)), gateway, index)


@st.composite
def routes(draw: st.DrawFn) -> Route:
    address = draw(v4 | v6)
    length = draw(st.integers(0, address.max_prefixlen))
    return Route(
        ipaddress.ip_network((address, length), strict=False),
        draw(st.none() | (v4 if address.version == 4 else v6)),
        mtu=draw(number),
        advmss=draw(number),
        priority=draw(number),
        table=draw(number),
        scope=draw(st.none() | st.integers(0, 255)),
    )


@st.composite
def results(draw: st.DrawFn) -> Result:
    devices = draw(st.lists(interfaces, max_size=3, unique_by=lambda i: (i.name, i.sandbox)))
    return Result(
        tuple(devices),
        tuple(draw(st.lists(ip_configs(len(devices)), max_size=3, unique=True))),
        tuple(draw(st.lists(routes(), max_size=3, unique=True))),
        draw(st.builds(DNS, st.just(("10.0.0.10",)) | st.just(()), text, st.just(("a.b",)))),
    )


# ---- the rules of the specification ----------------------------------------------------------

INTERFACE_KEYS = {"name", "mac", "sandbox"}
ROUTE_KEYS = {"dst", "gw"}
NEW_INTERFACE_KEYS = {"mtu", "socketPath", "pciID"}
NEW_ROUTE_KEYS = {"mtu", "advmss", "priority", "table", "scope"}


def conforms(result: Any, version: str) -> None:
    """Asserts what the specification of this version says of a result."""
    assert result["cniVersion"] == version
    assert result.keys() <= {"cniVersion", "interfaces", "ips", "routes", "dns"}
    newest = version == "1.1.0"
    for interface in result["interfaces"]:
        assert interface["name"]
        assert interface.keys() <= INTERFACE_KEYS | (NEW_INTERFACE_KEYS if newest else set())
    for ip in result["ips"]:
        address = ipaddress.ip_interface(ip["address"])
        assert "/" in ip["address"]
        if version in ("0.3.1", "0.4.0"):
            assert ip["version"] == str(address.version)  # required until 0.4.0
        else:
            assert "version" not in ip  # removed by 1.0.0
        assert ip.keys() <= {"address", "gateway", "interface", "version"}
        if "gateway" in ip:
            assert ipaddress.ip_address(ip["gateway"]).version == address.version
        if "interface" in ip:
            assert 0 <= ip["interface"] < len(result["interfaces"])
    for route in result.get("routes", []):
        assert route.keys() <= ROUTE_KEYS | (NEW_ROUTE_KEYS if newest else set())
        destination = ipaddress.ip_network(route["dst"])
        if "gw" in route:
            assert ipaddress.ip_address(route["gw"]).version == destination.version
    assert result.get("dns", {}).keys() <= {"nameservers", "domain", "search", "options"}


def without_news(result: Result) -> Result:
    """What versions before 1.1.0 can say."""
    return replace(
        result,
        interfaces=tuple(Interface(i.name, i.mac, i.sandbox) for i in result.interfaces),
        routes=tuple(Route(r.dst, r.gw) for r in result.routes),
    )


@given(results(), st.sampled_from(VERSIONS))
def test_results_conform_and_survive_every_version(result: Result, version: str) -> None:
    written = json.loads(result.encode(version))
    conforms(written, version)
    kept = result if version == "1.1.0" else without_news(result)
    assert parse_result(written) == kept


@given(results(), st.sampled_from(VERSIONS), st.sampled_from(VERSIONS))
def test_conversion_by_way_of_another_version(result: Result, via: str, to: str) -> None:
    converted = parse_result(json.loads(result.encode(via))).to_json(to)
    conforms(converted, to)
    direct = result if (via, to) == ("1.1.0", "1.1.0") else without_news(result)
    assert converted == direct.to_json(to)


@given(results(), results(), st.sampled_from(VERSIONS))
def test_merge_keeps_all_and_points_right(before: Result, ours: Result, version: str) -> None:
    merged = merge(before, ours)
    conforms(merged.to_json(version), version)
    place = [(i.name, i.sandbox) for i in merged.interfaces]
    assert place[: len(before.interfaces)] == [(i.name, i.sandbox) for i in before.interfaces]
    assert len(set(place)) == len(place)
    assert merged.ips[: len(before.ips)] == before.ips
    assert merged.routes[: len(before.routes)] == before.routes

    def of(result: Result) -> set[tuple[str, Any]]:
        names = [(i.name, i.sandbox) for i in result.interfaces]
        return {
            (str(ip.address), None if ip.interface is None else names[ip.interface])
            for ip in result.ips
        }

    assert of(merged) == of(before) | of(ours)
    assert set(merged.routes) == set(before.routes) | set(ours.routes)
    assert merge(None, ours) == ours and merge(before, Result()) == before


def test_the_specifications_own_example() -> None:
    """Section "Example: chained": bridge before us, as 0.4.0 writes it."""
    previous: dict[str, Any] = {
        "ips": [{"version": "4", "address": "10.0.0.5/32", "interface": 2}],
        "interfaces": [
            {"name": "cni0", "mac": "00:11:22:33:44:55"},
            {"name": "veth3243", "mac": "55:44:33:22:11:11"},
            {"name": "eth0", "mac": "99:88:77:66:55:44", "sandbox": "/var/run/netns/blue"},
        ],
        "dns": {"nameservers": ["10.1.0.1"]},
    }
    ours = Result(
        (Interface("bri1"), Interface("eth0", sandbox="/var/run/netns/blue", mtu=1400)),
        (IPConfig(ipaddress.ip_interface("fd00::5/128"), None, 1),),
    )
    assert merge(parse_result(previous), ours).to_json("0.4.0") == {
        "cniVersion": "0.4.0",
        "interfaces": [*previous["interfaces"], {"name": "bri1"}],
        "ips": [
            {"version": "4", "address": "10.0.0.5/32", "interface": 2},
            {"version": "6", "address": "fd00::5/128", "interface": 2},
        ],
        "dns": previous["dns"],
    }


@pytest.mark.parametrize("code", list(ErrorCode))
def test_error_objects(code: ErrorCode) -> None:
    assert error_json(CniError(code, "m")) == {"cniVersion": NEWEST, "code": code, "msg": "m"}
    assert error_json(CniError(code, "m", "d"), "0.3.1")["details"] == "d"
    # The specification reserves 0-99 and names these.
    assert code >= 100 or code in (1, 2, 3, 4, 5, 6, 7, 11, 50, 51)
