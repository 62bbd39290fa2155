# SPDX-License-Identifier: Apache-2.0
"""What is tried, in which order, and what must come of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from typing import Any, Final

from agent.connectivity import world
from agent.connectivity.world import Object, Setting

_TIMEOUT: Final = 3  # seconds, of one attempt


class Way(StrEnum):
    """How the target is named: what has to work for it."""

    ADDRESS = "pod address"
    SERVICE = "service address"
    NAME = "service name"
    LOOKUP = "name lookup"


@dataclass(frozen=True, slots=True)
class Probe:
    """One attempt from a pod. target: a pod's name, the service, or a DNS name.

    command: run in the source. reaches: what must come of it. far: source and target are on
    different nodes.
    """

    source: str
    target: str
    way: Way
    command: tuple[str, ...]
    reaches: bool
    far: bool = False
    family: int = 4


@dataclass(frozen=True, slots=True)
class Phase:
    """Probes under a set of policies; these are the only ones while they run."""

    name: str
    policies: tuple[Object, ...] = ()
    probes: tuple[Probe, ...] = field(default=())


def phases(
    setting: Setting,
    addresses: Mapping[str, Sequence[str]],
    service: Sequence[str],
    domain: str = "cluster.local",
) -> list[Phase]:
    """The whole plan. addresses: of each pod, of both families. service: its cluster addresses."""
    maker = _Maker(setting, addresses, service, domain)
    friends = {"podSelector": {"matchLabels": {"friend": "yes"}}}
    other = setting.namespaces[1]
    outside = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": other}}}
    blocks = [{"ipBlock": {"cidr": _single(one)}} for one in addresses["client"]]
    servers = {"podSelector": {"matchLabels": {"role": "server"}}}

    def restricted(name: str, spec: Object, allowed: str) -> Phase:
        """Of three clients one gets in, by its address and by the service's."""
        probes = [
            probe
            for source in ("client", "stranger", "outsider")
            for probe in maker.servers(source, source == allowed)
        ]
        probes.append(maker.service(allowed or "client", bool(allowed)))
        return Phase(name, (world.policy(setting, "server", spec),), tuple(probes))

    return [
        Phase(
            "without policy",
            (),
            (
                *maker.servers("client", True),
                *maker.servers("outsider", True),
                *maker.everything("client"),
            ),
        ),
        restricted("default deny", world.ingress(), ""),
        restricted("allow by label", world.ingress(friends), "client"),
        restricted("allow by namespace", world.ingress(outside), "outsider"),
        restricted("allow by address block", world.ingress(*blocks), "client"),
        Phase(
            "egress denied",
            (world.policy(setting, "client", world.egress()),),
            (
                *maker.servers("client", False),
                *maker.servers("stranger", True),
                maker.lookup("client", f"{world.SERVICE}.{setting.namespaces[0]}"),
            ),
        ),
        Phase(
            "egress allowed by label and port",
            (world.policy(setting, "client", world.egress(servers, ports=[{"port": world.PORT}])),),
            (*maker.servers("client", True), maker.by_name("client", True)),
        ),
        # The last: what policy forbade must work again once it is gone.
        Phase("policy removed", (), tuple(maker.servers("stranger", True))),
    ]


class _Maker:
    """Probes of one setting."""

    def __init__(
        self,
        setting: Setting,
        addresses: Mapping[str, Sequence[str]],
        service: Sequence[str],
        domain: str,
    ) -> None:
        self._setting = setting
        self._addresses = addresses
        self._service = service
        self._domain = domain

    def servers(self, source: str, reaches: bool) -> list[Probe]:
        """To each server by each of its addresses of a family that the source has, too."""
        families = {ip_address(one).version for one in self._addresses[source]}
        return [
            Probe(
                source,
                server.name,
                Way.ADDRESS,
                fetch(_host(address), world.PORT),
                reaches,
                far=server.remote,
                family=ip_address(address).version,
            )
            for server in self._setting.pods
            if server.server
            for address in self._addresses[server.name]
            if ip_address(address).version in families
        ]

    def service(self, source: str, reaches: bool) -> Probe:
        """To the service's first address."""
        return Probe(
            source, world.SERVICE, Way.SERVICE, fetch(_host(self._service[0]), 80), reaches
        )

    def by_name(self, source: str, reaches: bool) -> Probe:
        """To the service by its name."""
        name = f"{world.SERVICE}.{self._setting.namespaces[0]}.svc.{self._domain}"
        return Probe(source, world.SERVICE, Way.NAME, fetch(name, 80), reaches)

    def lookup(self, source: str, name: str) -> Probe:
        """A name of the cluster; always allowed."""
        full = f"{name}.svc.{self._domain}"
        return Probe(source, full, Way.LOOKUP, ("nslookup", full), True)

    def everything(self, source: str) -> list[Probe]:
        """Service, its name, and the name of the API server's service."""
        return [
            self.service(source, True),
            self.lookup(source, "kubernetes.default"),
            self.by_name(source, True),
        ]


def fetch(host: str, port: int) -> tuple[str, ...]:
    """A command that succeeds if an HTTP server answers, and says who it is."""
    return ("wget", "-q", "-O", "-", "-T", str(_TIMEOUT), f"http://{host}:{port}/")


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _single(address: str) -> str:
    return f"{address}/{ip_address(address).max_prefixlen}"


def policies_of(phase: Phase) -> dict[str, Any]:
    """Policies by name."""
    return {one["metadata"]["name"]: one for one in phase.policies}
