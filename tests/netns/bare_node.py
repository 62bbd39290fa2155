# SPDX-License-Identifier: Apache-2.0
"""A node and pods that are bare network namespaces, for the tests of wiring."""

import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import Protocol, TypeVar

from agent.kernel.endpoint_store import EndpointRecord
from agent.kernel.podnet import PodNetwork, Wiring, WiringRequest, new_endpoint_id

T = TypeVar("T")
MTU = 1400
NODE4, NODE6 = "10.0.0.1", "fd01::1"


class Netns(Protocol):
    @property
    def fd(self) -> int: ...
    @property
    def path(self) -> str: ...
    def run(self, work: Callable[[], T]) -> T: ...
    def ip(self, *arguments: str) -> str: ...
    def command(self, *arguments: str) -> str: ...


MakeNetns = Callable[[], Netns]


def no_programs(ifindex: int, name: str) -> None:
    pass


def wanted(number: int, ifname: str = "eth0") -> WiringRequest:
    return WiringRequest(
        endpoint=new_endpoint_id(()),
        owner=f"container-{number}/{ifname}",
        ifname=ifname,
        mtu=MTU,
        ipv4=IPv4Address("10.244.0.0") + number,
        ipv6=IPv6Address("fd00::") + number,
    )


def record(request: WiringRequest, wiring: Wiring) -> EndpointRecord:
    return EndpointRecord(
        endpoint=request.endpoint,
        container_id="c",
        ifname=request.ifname,
        netns="",
        netns_cookie=wiring.netns_cookie,
        host_name=wiring.host_name,
        host_ifindex=wiring.host_ifindex,
        host_mac=wiring.host_mac,
        pod_mac=wiring.pod_mac,
        mtu=request.mtu,
        ipv4=request.ipv4,
        ipv6=request.ipv6,
    )


def make_node(make_netns: MakeNetns) -> Netns:
    """A namespace with addresses of its own that it answers at."""
    node = make_netns()
    node.ip("addr", "add", f"{NODE4}/32", "dev", "lo")
    node.ip("addr", "add", f"{NODE6}/128", "dev", "lo", "nodad")
    # The kernel installs the local route a moment later.
    while NODE6 not in node.ip("-6", "route", "show", "table", "local"):
        time.sleep(0.01)
    return node


def add(node: Netns, network: PodNetwork, pod: Netns, request: WiringRequest) -> Wiring:
    return node.run(lambda: network.add(pod.fd, request))


def state(node: Netns) -> str:
    """Everything an ADD may leave in a namespace."""
    return "".join(
        node.ip(*what.split())
        for what in (
            "-o link show",
            "-o addr show",
            "route show table all",
            "-6 route show table all",
            "neigh show nud permanent",
            "-6 neigh show nud permanent",
        )
    )
