# SPDX-License-Identifier: Apache-2.0
"""Routes of the node's own stack to other nodes' pods: as wanted, as they are, and the difference.

Ours bear the agent's routing protocol number and lead to a gateway or through the tunnel's device
(pods' own do neither). A route of somebody else's is never touched: where one is in the way, that
is said.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from agent.core.nodes import Network, NodeRoute
from agent.kernel import netlink as nl
from agent.kernel.rtnl import NLM_F_CREATE, NLM_F_REPLACE, Request, RtnlError, RtnlSocket

_METRIC = {4: 0, 6: 1024}  # the kernel's own default of each family
_OFF_LINK = "{} is on no link of this node, so it needs the network's own routes"


@dataclass(frozen=True, slots=True)
class Plan:
    """What makes the routes of the node what they should be."""

    put: tuple[NodeRoute, ...]
    remove: tuple[Network, ...]
    problems: Mapping[str, str]
    """By node, of routes that cannot be."""

    def __bool__(self) -> bool:
        return bool(self.put or self.remove)


def present(device: int, recorded: Collection[Network]) -> dict[Network, nl.Route]:
    """Our routes to other nodes' pods. recorded: networks that this agent had routes by a gateway
    to; another agent's are not ours. Raises RtnlError, DumpInterrupted."""
    found = {}
    with RtnlSocket() as netlink:
        for route in _all(netlink):
            if route.protocol != nl.ROUTE_PROTOCOL or route.kind != nl.RTN_UNICAST:
                continue
            if route.destination is None:
                continue
            through = bool(device) and route.device == device
            if through or (route.gateway is not None and route.destination in recorded):
                found[route.destination] = route
    return found


def plan(
    wanted: Mapping[Network, NodeRoute], found: Mapping[Network, nl.Route], device: int
) -> Plan:
    """The difference. Raises RtnlError, DumpInterrupted."""
    problems: dict[str, str] = {}
    put = []
    with RtnlSocket() as netlink:
        others = _others(netlink, found)
        links = {one.gateway for one in wanted.values() if one.gateway}
        off_link = {gateway for gateway in links if not _on_link(netlink, gateway)}
        for route in wanted.values():
            if route.gateway in off_link:
                problems[route.node] = _OFF_LINK.format(f"its address {route.gateway}")
            elif route.destination in others:
                problems[route.node] = (
                    f"there is another's route to its pod network {route.destination}: remove it,"
                    " or set routing.direct_node_routes to false"
                )
            elif not _same(route, found.get(route.destination), device):
                put.append(route)
    usable = {one.destination for one in wanted.values() if one.node not in problems}
    return Plan(tuple(put), tuple(one for one in found if one not in usable), problems)


def carry_out(change: Plan, device: int) -> dict[str, str]:
    """New routes and other ones first, then those that go; what failed, by node or network."""
    requests: list[tuple[str, Request]] = [
        (route.node, _put(route, device)) for route in change.put
    ]
    requests += [(str(one), _remove(one)) for one in change.remove]
    failed = {}
    with RtnlSocket() as netlink:
        for at in range(0, len(requests), _AT_ONCE):
            some = requests[at : at + _AT_ONCE]
            outcomes = netlink.attempt([request for _, request in some])
            for (name, _), error in zip(some, outcomes, strict=True):
                if error is not None:
                    failed[name] = str(error)
    return failed


_AT_ONCE = 64


def remove_recorded(networks: Collection[Network]) -> list[Network]:
    """Take away what this agent has routes to; those that were there. Raises RtnlError."""
    found = present(0, networks)
    if found:
        with RtnlSocket() as netlink:
            netlink.run([_remove(one) for one in found])
    return sorted(found, key=str)


def describe(route: NodeRoute | nl.Route | None, device: int) -> str:
    """A route in words."""
    if route is None:
        return "none"
    through = not route.gateway if isinstance(route, NodeRoute) else route.device == device
    way = "through the tunnel" if through and not route.gateway else f"via {route.gateway}"
    return f"{way} from {route.source}" if route.source else way


def _all(netlink: RtnlSocket) -> list[nl.Route]:
    return nl.list_routes(netlink, nl.AF_INET) + nl.list_routes(netlink, nl.AF_INET6)


def _others(netlink: RtnlSocket, ours: Mapping[Network, nl.Route]) -> set[Network]:
    """Networks that others have a route to, where ours would be."""
    return {
        route.destination
        for route in _all(netlink)
        if route.destination is not None
        and route.metric == _METRIC[route.destination.version]
        and ours.get(route.destination) != route
    }


def _on_link(netlink: RtnlSocket, gateway: str) -> bool:
    try:
        route = nl.route_to(netlink, ip_address(gateway))
    except RtnlError:
        return False
    return route.kind == nl.RTN_UNICAST and route.gateway is None


def _same(wanted: NodeRoute, found: nl.Route | None, device: int) -> bool:
    if found is None:
        return False
    gateway = str(found.gateway) if found.gateway is not None else ""
    source = str(found.source) if found.source is not None else ""
    through = wanted.gateway or found.device == device
    return bool(through) and (gateway, source) == (wanted.gateway, wanted.source)


def _put(route: NodeRoute, device: int) -> Request:
    gateway = ip_address(route.gateway) if route.gateway else None
    source = ip_address(route.source) if route.source else None
    payload = nl.network_route(
        route.destination, gateway, 0 if gateway else device, source,
        _METRIC[route.destination.version],
    )  # fmt: skip
    flags = NLM_F_CREATE | NLM_F_REPLACE
    return Request(nl.RTM_NEWROUTE, flags, payload, f"add route to {route.destination}")


def _remove(network: Network) -> Request:
    payload = nl.no_route(network, _METRIC[network.version])
    gone = frozenset({errno.ESRCH, errno.ENOENT})
    return Request(nl.RTM_DELROUTE, 0, payload, f"remove route to {network}", gone)


__all__: Sequence[str] = (
    "Plan", "carry_out", "describe", "plan", "present", "remove_recorded",
)  # fmt: skip
