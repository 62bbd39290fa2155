# SPDX-License-Identifier: Apache-2.0
"""Rules of services, endpoint slices and network policies (pure)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from bench.lab.apiserver.errors import (
    Object,
    Problem,
    duplicate,
    forbidden_field,
    invalid_value,
    required,
    too_many,
    unsupported,
)
from bench.lab.apiserver.kinds import Strategy
from bench.lab.apiserver.podrules import PROTOCOLS
from bench.lab.apiserver.validation import (
    dns_label,
    label_value,
    labels,
    port_name,
    port_number,
    qualified_name,
    subdomain,
)

TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
FAMILIES = ("IPv4", "IPv6")
SERVICE_NETWORKS = {"IPv4": "10.96.0.0/16", "IPv6": "fd00:10:96::/112"}


class ServiceStrategy(Strategy):
    """Services: addresses and node ports are given out once, in ascending order."""

    create_on_update = True
    fields = frozenset({"spec.clusterIP", "spec.type"})

    def __init__(self) -> None:
        self._given = dict.fromkeys(FAMILIES, 10)
        self._node_port = 30000

    def complete(self, item: Object) -> None:
        spec = item.setdefault("spec", {})
        self._defaults(spec)
        self._addresses(spec)
        item.setdefault("status", {}).setdefault("loadBalancer", {})

    def prepare_create(self, item: Object) -> None:
        item.pop("status", None)
        self.complete(item)

    def prepare_update(self, item: Object, old: Object) -> None:
        spec, before = item.setdefault("spec", {}), old["spec"]
        if spec.get("clusterIP") and spec["clusterIP"] != before.get("clusterIP"):
            spec.setdefault("clusterIPs", [spec["clusterIP"]])
        for key in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if key in before and spec.get("type", "ClusterIP") != "ExternalName":
                spec.setdefault(key, before[key])
        ports = {(p["port"], p["protocol"]): p.get("nodePort") for p in before.get("ports") or []}
        for port in spec.get("ports") or []:
            known = ports.get((port.get("port"), port.get("protocol", "TCP")))
            if known and spec.get("type") in ("NodePort", "LoadBalancer"):
                port.setdefault("nodePort", known)
        self.complete(item)
        item["status"] = old.get("status", {})

    def _defaults(self, spec: Object) -> None:
        spec.setdefault("type", "ClusterIP")
        spec.setdefault("sessionAffinity", "None")
        if spec["sessionAffinity"] == "ClientIP":
            spec.setdefault("sessionAffinityConfig", {"clientIP": {"timeoutSeconds": 10800}})
        if spec["type"] != "ExternalName":
            spec.setdefault("internalTrafficPolicy", "Cluster")
        if spec["type"] in ("NodePort", "LoadBalancer"):
            spec.setdefault("externalTrafficPolicy", "Cluster")
        if spec["type"] == "LoadBalancer":
            spec.setdefault("allocateLoadBalancerNodePorts", True)
        for port in spec.get("ports") or []:
            port.setdefault("protocol", "TCP")
            port.setdefault("targetPort", port.get("port"))

    def _addresses(self, spec: Object) -> None:
        if spec["type"] == "ExternalName":
            return
        spec.setdefault("ipFamilyPolicy", "SingleStack")
        dual = spec["ipFamilyPolicy"] != "SingleStack"
        given = spec.get("clusterIPs") or ([spec["clusterIP"]] if spec.get("clusterIP") else [])
        if "ipFamilies" not in spec:
            known = [f"IPv{_version(address)}" for address in given if _version(address)]
            spec["ipFamilies"] = known or ["IPv4"]
            others = [family for family in FAMILIES if family not in spec["ipFamilies"]]
            if dual:
                spec["ipFamilies"] += others
        if not given:
            given = [self._next(family) for family in spec["ipFamilies"] if family in FAMILIES]
        elif given != ["None"]:
            missing = spec["ipFamilies"][len(given) :]
            given = [*given, *(self._next(family) for family in missing if family in FAMILIES)]
        spec["clusterIPs"] = given
        spec["clusterIP"] = given[0] if given else ""
        if spec["type"] in ("NodePort", "LoadBalancer"):
            for port in spec.get("ports") or []:
                if "nodePort" not in port:
                    self._node_port += 1
                    port["nodePort"] = self._node_port

    def _next(self, family: str) -> str:
        self._given[family] += 1
        return str(ipaddress.ip_network(SERVICE_NETWORKS[family])[self._given[family]])

    def validate(self, item: Object) -> Iterator[Problem]:
        spec = item["spec"]
        ports = spec.get("ports") or []
        if spec["type"] not in TYPES:
            yield unsupported("spec.type", spec["type"], TYPES)
        if not ports and spec["type"] != "ExternalName" and spec.get("clusterIP") != "None":
            yield required("spec.ports")
        if spec["type"] == "ExternalName" and not spec.get("externalName"):
            yield required("spec.externalName")
        if spec["sessionAffinity"] not in ("ClientIP", "None"):
            choice = ("ClientIP", "None")
            yield unsupported("spec.sessionAffinity", spec["sessionAffinity"], choice)
        yield from labels(spec.get("selector") or {}, "spec.selector")
        for number, address in enumerate(spec.get("clusterIPs") or []):
            if address != "None" and not _version(address):
                text = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
                yield invalid_value(f"spec.clusterIPs[{number}]", address, text)
        for key in ("internalTrafficPolicy", "externalTrafficPolicy"):
            if spec.get(key) not in (None, "Cluster", "Local"):
                yield unsupported(f"spec.{key}", spec[key], ("Cluster", "Local"))
        yield from self._ports(ports)

    def _ports(self, ports: list[Object]) -> Iterator[Problem]:
        names: set[str] = set()
        used: set[tuple[object, str]] = set()
        for number, port in enumerate(ports):
            path = f"spec.ports[{number}]"
            name = port.get("name", "")
            if not name and len(ports) > 1:
                yield required(f"{path}.name")
            elif name:
                yield from _each(f"{path}.name", name, dns_label(name))
                if name in names:
                    yield duplicate(f"{path}.name", name)
                names.add(name)
            number_of = port.get("port", 0)
            yield from _each(f"{path}.port", number_of, port_number(number_of))
            yield from _target(f"{path}.targetPort", port.get("targetPort"))
            if port["protocol"] not in PROTOCOLS:
                yield unsupported(f"{path}.protocol", port["protocol"], PROTOCOLS)
            if (number_of, port["protocol"]) in used:
                yield duplicate(path, {"port": number_of, "protocol": port["protocol"]})
            used.add((number_of, port["protocol"]))

    def validate_update(self, item: Object, old: Object) -> Iterator[Problem]:
        before, now = old["spec"].get("clusterIP"), item["spec"].get("clusterIP")
        if before and item["spec"]["type"] != "ExternalName" and now != before:
            yield invalid_value("spec.clusterIPs[0]", [now], "may not change once set")


def _version(address: object) -> int:
    try:
        return ipaddress.ip_address(str(address)).version
    except ValueError:
        return 0


def _target(path: str, value: object) -> Iterator[Problem]:
    complaints = port_name(value) if isinstance(value, str) else port_number(value)
    yield from _each(path, value, complaints)


class EndpointSliceStrategy(Strategy):
    """Endpoint slices: addresses of one family, which is fixed."""

    generation = True

    def complete(self, item: Object) -> None:
        item.setdefault("endpoints", [])
        for port in item.get("ports") or []:
            port.setdefault("name", "")
            port.setdefault("protocol", "TCP")

    def validate(self, item: Object) -> Iterator[Problem]:
        family = item.get("addressType", "")
        if not family:
            yield required("addressType")
        elif family not in (*FAMILIES, "FQDN"):
            yield unsupported("addressType", family, (*FAMILIES, "FQDN"))
        endpoints, ports = item["endpoints"], item.get("ports") or []
        if len(endpoints) > 1000:
            yield too_many("endpoints", len(endpoints), 1000)
        for number, endpoint in enumerate(endpoints):
            path = f"endpoints[{number}]"
            addresses = endpoint.get("addresses") or []
            if not addresses:
                yield required(f"{path}.addresses", "must contain at least 1 address")
            if len(addresses) > 100:
                yield too_many(f"{path}.addresses", len(addresses), 100)
            for index, address in enumerate(addresses):
                yield from self._address(f"{path}.addresses[{index}]", address, family)
        names: set[str] = set()
        if len(ports) > 100:
            yield too_many("ports", len(ports), 100)
        for number, port in enumerate(ports):
            path = f"ports[{number}]"
            name = port["name"]
            if name:
                yield from _each(f"{path}.name", name, dns_label(name))
            if name in names:
                yield duplicate(f"{path}.name", name)
            names.add(name)
            if port["protocol"] not in PROTOCOLS:
                yield unsupported(f"{path}.protocol", port["protocol"], PROTOCOLS)

    def _address(self, path: str, address: str, family: str) -> Iterator[Problem]:
        if family == "FQDN":
            yield from _each(path, address, subdomain(address))
        elif family in FAMILIES and f"IPv{_version(address)}" != family:
            yield invalid_value(path, address, f"must be a valid {family} address")

    def validate_update(self, item: Object, old: Object) -> Iterator[Problem]:
        if item.get("addressType") != old.get("addressType"):
            yield invalid_value("addressType", item.get("addressType"), "field is immutable")


class NetworkPolicyStrategy(Strategy):
    """Network policies."""

    generation = True

    def complete(self, item: Object) -> None:
        spec = item.setdefault("spec", {})
        spec.setdefault("podSelector", {})
        if not spec.get("policyTypes"):
            spec["policyTypes"] = ["Ingress", *(["Egress"] if spec.get("egress") else [])]
        for rule in [*(spec.get("ingress") or []), *(spec.get("egress") or [])]:
            for port in rule.get("ports") or []:
                port.setdefault("protocol", "TCP")

    def validate(self, item: Object) -> Iterator[Problem]:
        spec = item["spec"]
        yield from label_selector("spec.podSelector", spec["podSelector"])
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for number, rule in enumerate(spec.get(direction) or []):
                path = f"spec.{direction}[{number}]"
                for index, port in enumerate(rule.get("ports") or []):
                    yield from self._port(f"{path}.ports[{index}]", port)
                for index, peer in enumerate(rule.get(peers) or []):
                    yield from self._peer(f"{path}.{peers}[{index}]", peer)
        types = spec["policyTypes"]
        if len(types) > 2:
            yield invalid_value("spec.policyTypes", types, "may not specify more than two")
        for number, kind in enumerate(types):
            if kind not in ("Ingress", "Egress"):
                yield unsupported(f"spec.policyTypes[{number}]", kind, ("Egress", "Ingress"))

    def _port(self, path: str, port: Object) -> Iterator[Problem]:
        if port["protocol"] not in PROTOCOLS:
            yield unsupported(f"{path}.protocol", port["protocol"], PROTOCOLS)
        value = port.get("port")
        if value is not None:
            yield from _target(f"{path}.port", value)
        end = port.get("endPort")
        if end is not None:
            if value is None:
                yield required(f"{path}.port", "must be specified when `endPort` is set")
            elif isinstance(value, str):
                text = "may not be specified when `port` is non-numeric"
                yield invalid_value(f"{path}.endPort", end, text)
            elif end < value:
                text = "must be greater than or equal to `port`"
                yield invalid_value(f"{path}.endPort", end, text)
            yield from _each(f"{path}.endPort", end, port_number(end))

    def _peer(self, path: str, peer: Object) -> Iterator[Problem]:
        selectors = [key for key in ("podSelector", "namespaceSelector") if key in peer]
        for key in selectors:
            yield from label_selector(f"{path}.{key}", peer[key])
        block = peer.get("ipBlock")
        if block is not None:
            yield from _ip_block(f"{path}.ipBlock", block)
            if selectors:
                text = "may not specify both ipBlock and another peer"
                yield forbidden_field(path, text)
        elif not selectors:
            yield required(path, "must specify a peer")


def _ip_block(path: str, block: Object) -> Iterator[Problem]:
    text = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
    cidr = block.get("cidr", "")
    if not cidr:
        yield required(f"{path}.cidr")
        return
    whole = _network(cidr)
    if whole is None:
        yield invalid_value(f"{path}.cidr", cidr, text)
        return
    for number, part in enumerate(block.get("except") or []):
        inner = _network(part)
        place = f"{path}.except[{number}]"
        if inner is None:
            yield invalid_value(place, part, text)
        elif inner.version != whole.version or not inner.subnet_of(whole) or inner == whole:
            yield invalid_value(place, part, "must be a strict subset of `cidr`")


def _network(cidr: str) -> Any:
    try:
        return ipaddress.ip_network(cidr, strict=False) if "/" in cidr else None
    except ValueError:
        return None


def label_selector(path: str, selector: Object) -> Iterator[Problem]:
    """Problems of a LabelSelector."""
    yield from labels(selector.get("matchLabels") or {}, f"{path}.matchLabels")
    for number, term in enumerate(selector.get("matchExpressions") or []):
        place = f"{path}.matchExpressions[{number}]"
        operator, values = term.get("operator", ""), term.get("values") or []
        key = term.get("key", "")
        yield from _each(f"{place}.key", key, qualified_name(key))
        if operator in ("In", "NotIn"):
            if not values:
                text = "must be specified when `operator` is 'In' or 'NotIn'"
                yield required(f"{place}.values", text)
            for index, value in enumerate(values):
                yield from _each(f"{place}.values[{index}]", value, label_value(value))
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                text = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                yield forbidden_field(f"{place}.values", text)
        else:
            yield invalid_value(f"{place}.operator", operator, "not a valid selector operator")


def _each(path: str, value: object, complaints: list[str]) -> Iterator[Problem]:
    for text in complaints:
        yield invalid_value(path, value, text)
