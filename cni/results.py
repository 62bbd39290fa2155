# SPDX-License-Identifier: Apache-2.0
"""CNI results: one model, read from and written as any supported spec version. Pure.

Source: CNI spec, section "Section 5: Result Types" (1.0.0, 1.1.0) and "Result" (0.3.1, 0.4.0).
What differs between versions:

* 0.3.1 and 0.4.0: each of `ips` has a `version` "4" or "6"; 1.0.0 removed it.
* 1.1.0 added `mtu`, `socketPath`, `pciID` of interfaces, and `mtu`, `advmss`, `priority`,
  `table`, `scope` of routes. They are left out for older versions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from cni import fields
from cni.errors import CniError
from cni.fields import Address, Network

VERSIONS: Final = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Spec versions that bristle speaks, oldest first. The relay has the same list."""
NEWEST: Final = VERSIONS[-1]

JsonObject = dict[str, object]


def at_least(version: str, least: str) -> bool:
    """Whether a supported version is `least` or newer."""
    return VERSIONS.index(version) >= VERSIONS.index(least)


@dataclass(frozen=True, slots=True)
class Interface:
    """A network device. `sandbox` is the namespace's path, empty for a device of the host."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0
    """Bytes; 0 is not stated, as with the following two. 1.1.0."""
    socket_path: str = ""
    pci_id: str = ""

    def to_json(self, version: str) -> JsonObject:
        """The spec's object, without what is empty."""
        out: JsonObject = {"name": self.name, "mac": self.mac, "sandbox": self.sandbox}
        if at_least(version, "1.1.0"):
            out |= {"mtu": self.mtu, "socketPath": self.socket_path, "pciID": self.pci_id}
        return {key: value for key, value in out.items() if value or key == "name"}


@dataclass(frozen=True, slots=True)
class IPConfig:
    """An address with its prefix length. `interface` is an index into the result's interfaces."""

    address: fields.Interface
    gateway: Address | None = None
    interface: int | None = None

    def to_json(self, version: str) -> JsonObject:
        """The spec's object; 0.3.1 and 0.4.0 state the address family."""
        out: JsonObject = {"address": str(self.address)}
        if not at_least(version, "1.0.0"):
            out["version"] = str(self.address.version)
        if self.gateway is not None:
            out["gateway"] = str(self.gateway)
        if self.interface is not None:
            out["interface"] = self.interface
        return out


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the pod. None is not stated; all but the first two are of 1.1.0."""

    dst: Network
    gw: Address | None = None
    mtu: int | None = None
    """Bytes."""
    advmss: int | None = None
    """Bytes."""
    priority: int | None = None
    table: int | None = None
    scope: int | None = None
    """As in rtnetlink: 0 global, 253 link, 254 host."""

    def to_json(self, version: str) -> JsonObject:
        """The spec's object, without what is not stated."""
        out: JsonObject = {"dst": str(self.dst)}
        if self.gw is not None:
            out["gw"] = str(self.gw)
        if at_least(version, "1.1.0"):
            newer = {name: getattr(self, name) for name in _ROUTE_NUMBERS}
            out |= {name: value for name, value in newer.items() if value is not None}
        return out


_ROUTE_NUMBERS: Final = {
    "mtu": 0xFFFFFFFF,
    "advmss": 0xFFFFFFFF,
    "priority": 0xFFFFFFFF,
    "table": 0xFFFFFFFF,
    "scope": 255,
}


@dataclass(frozen=True, slots=True)
class DNS:
    """Resolver settings for the pod."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def to_json(self) -> JsonObject:
        """The spec's object, without what is empty."""
        out: JsonObject = {
            "nameservers": list(self.nameservers),
            "domain": self.domain,
            "search": list(self.search),
            "options": list(self.options),
        }
        return {key: value for key, value in out.items() if value}

    def __bool__(self) -> bool:
        return bool(self.nameservers or self.domain or self.search or self.options)


@dataclass(frozen=True, slots=True)
class Result:
    """What ADD made. Independent of the spec version."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = DNS()

    def to_json(self, version: str) -> JsonObject:
        """The spec's object in a supported version. `interfaces` and `ips` are always there."""
        out: JsonObject = {
            "cniVersion": version,
            "interfaces": [interface.to_json(version) for interface in self.interfaces],
            "ips": [ip.to_json(version) for ip in self.ips],
        }
        if self.routes:
            out["routes"] = [route.to_json(version) for route in self.routes]
        if self.dns:
            out["dns"] = self.dns.to_json()
        return out

    def encode(self, version: str) -> bytes:
        """The JSON text that ADD prints."""
        return json.dumps(self.to_json(version)).encode() + b"\n"


def merge(previous: Result | None, ours: Result) -> Result:
    """The result of a chain: everything of the plugins before us, and ours behind it.

    An interface that they made already (same name, same sandbox) keeps its place, and so all
    indices that point to it; what we state of it replaces what they stated. Addresses and routes
    that are there already are not doubled. Our DNS counts if we state any.
    """
    if previous is None:
        return ours
    interfaces = list(previous.interfaces)
    places = {(item.name, item.sandbox): index for index, item in enumerate(interfaces)}
    moved: list[int] = []
    for item in ours.interfaces:
        place = places.setdefault((item.name, item.sandbox), len(interfaces))
        if place == len(interfaces):
            interfaces.append(item)
        else:
            before = interfaces[place]
            interfaces[place] = Interface(
                name=item.name,
                mac=item.mac or before.mac,
                sandbox=item.sandbox,
                mtu=item.mtu or before.mtu,
                socket_path=item.socket_path or before.socket_path,
                pci_id=item.pci_id or before.pci_id,
            )
        moved.append(place)
    ips = [
        ip if ip.interface is None else replace(ip, interface=moved[ip.interface])
        for ip in ours.ips
    ]
    return Result(
        interfaces=tuple(interfaces),
        ips=tuple(dict.fromkeys((*previous.ips, *ips))),
        routes=tuple(dict.fromkeys((*previous.routes, *ours.routes))),
        dns=ours.dns or previous.dns,
    )


def error_json(error: CniError, version: str = NEWEST) -> JsonObject:
    """The spec's error object."""
    out: JsonObject = {"cniVersion": version, "code": int(error.code), "msg": error.message}
    if error.details:
        out["details"] = error.details
    return out


def versions_json(version: str) -> JsonObject:
    """The answer to VERSION; `version` is the one that was asked with."""
    return {"cniVersion": version, "supportedVersions": list(VERSIONS)}


# ---- reading ---------------------------------------------------------------------------------


def parse_result(value: object, field: str = "prevResult") -> Result:
    """Reads a result of any supported version; errors name the field below `field`.

    Unknown keys are left out, as by the reference implementation. A `version` of an address must
    fit it; an `interface` index must exist.
    """
    top = fields.as_object(value, field)
    interfaces = tuple(
        _parse_interface(item, f"{field}.interfaces[{index}]")
        for index, item in enumerate(fields.as_list(top.get("interfaces"), f"{field}.interfaces"))
    )
    return Result(
        interfaces=interfaces,
        ips=tuple(
            _parse_ip(item, f"{field}.ips[{index}]", len(interfaces))
            for index, item in enumerate(fields.as_list(top.get("ips"), f"{field}.ips"))
        ),
        routes=tuple(
            _parse_route(item, f"{field}.routes[{index}]")
            for index, item in enumerate(fields.as_list(top.get("routes"), f"{field}.routes"))
        ),
        dns=parse_dns(top.get("dns"), f"{field}.dns"),
    )


def parse_dns(value: object, field: str) -> DNS:
    """Reads resolver settings, of a result or of a network configuration."""
    top = fields.as_object(value, field)
    return DNS(
        nameservers=fields.as_strings(top.get("nameservers"), f"{field}.nameservers"),
        domain=fields.as_string(top.get("domain"), f"{field}.domain"),
        search=fields.as_strings(top.get("search"), f"{field}.search"),
        options=fields.as_strings(top.get("options"), f"{field}.options"),
    )


def _parse_interface(value: object, field: str) -> Interface:
    top = fields.as_object(value, field)
    name = fields.as_string(top.get("name"), f"{field}.name")
    if not name:
        raise fields.invalid(f"{field}.name", "is missing")
    return Interface(
        name=name,
        mac=fields.as_string(top.get("mac"), f"{field}.mac"),
        sandbox=fields.as_string(top.get("sandbox"), f"{field}.sandbox"),
        mtu=fields.as_optional_integer(top.get("mtu"), f"{field}.mtu") or 0,
        socket_path=fields.as_string(top.get("socketPath"), f"{field}.socketPath"),
        pci_id=fields.as_string(top.get("pciID"), f"{field}.pciID"),
    )


def _parse_ip(value: object, field: str, interfaces: int) -> IPConfig:
    top = fields.as_object(value, field)
    address = fields.as_interface(top.get("address"), f"{field}.address")
    version = fields.as_string(top.get("version"), f"{field}.version")
    if version and version != str(address.version):
        raise fields.invalid(f"{field}.version", f"is {version!a}, but the address is {address}")
    gateway = fields.as_optional_address(top.get("gateway"), f"{field}.gateway")
    if gateway is not None and gateway.version != address.version:
        raise fields.invalid(f"{field}.gateway", f"{gateway} is of another family than {address}")
    index = fields.as_optional_integer(top.get("interface"), f"{field}.interface")
    if index is not None and index >= interfaces:
        raise fields.invalid(f"{field}.interface", f"there is no interface {index}")
    return IPConfig(address, gateway, index)


def _parse_route(value: object, field: str) -> Route:
    top: Mapping[str, object] = fields.as_object(value, field)
    numbers = {
        name: fields.as_optional_integer(top.get(name), f"{field}.{name}", high)
        for name, high in _ROUTE_NUMBERS.items()
    }
    dst = fields.as_network(top.get("dst"), f"{field}.dst")
    gw = fields.as_optional_address(top.get("gw"), f"{field}.gw")
    if gw is not None and gw.version != dst.version:
        raise fields.invalid(f"{field}.gw", f"{gw} is of another family than {dst}")
    return Route(dst, gw, **numbers)
