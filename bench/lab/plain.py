# SPDX-License-Identifier: Apache-2.0
"""Baseline of benchmarks: two nodes and their pods without any agent and any BPF, routed by the
kernel, straight or through its own VXLAN devices.

The tunnel is as simple overlays make it: one device with an identifier on each node, a route to
the other node's pods by that node's device, permanent neighbours and forwarding entries.
"""

from __future__ import annotations

from contextlib import ExitStack
from ipaddress import ip_network

from bench.lab.netns import Namespace
from bench.lab.scope import Scope
from bench.lab.station import NODE_SYSCTLS, PEER_SYSCTLS, Pod, wire_routed

_CIDRS = ("10.245.{}.0/24", "fd00:10:245:{}::/112")
_NODES = ("192.0.2.{}", "2001:db8:1::{}")
_MACS = "02:00:00:00:aa:0{}"
DEVICE = "overlay0"


class PlainNodes:
    """A context manager: two nodes on one segment. overlay: through VXLAN devices; metadata: in
    collect-metadata mode, so that the route of each packet says which tunnel it takes."""

    def __init__(self, overlay: bool, metadata: bool = False) -> None:
        self._overlay = overlay
        self._metadata = metadata
        self._stack = ExitStack()
        self._count = 0
        self._nodes: dict[int, Namespace] = {}

    def __enter__(self) -> PlainNodes:
        with ExitStack() as stack:
            self.scope = stack.enter_context(Scope())
            fabric = self.scope.namespace("fabric")
            fabric.ip("link add br0 type bridge", "link set br0 up")
            for number in (1, 2):
                node = self.scope.namespace(f"node-{number}")
                node.sysctl({**PEER_SYSCTLS, **NODE_SYSCTLS})
                fabric.ip(
                    f"link add p{number} type veth peer name up0 netns {node.name}",
                    f"link set p{number} up master br0",
                )
                node.ip(
                    "link set up0 up",
                    f"address add {_NODES[0].format(number)}/24 dev up0",
                    f"address add {_NODES[1].format(number)}/64 dev up0 nodad",
                )
                self._nodes[number] = node
            for number in (1, 2):
                self._route(self._nodes[number], number, 3 - number)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _route(self, node: Namespace, own: int, other: int) -> None:
        ends = [one.format(other) for one in _NODES]
        cidrs = [one.format(other) for one in _CIDRS]
        if not self._overlay:
            node.ip(*(f"route add {cidr} via {end}" for cidr, end in zip(cidrs, ends, strict=True)))
            return
        kind = f"id 42 local {_NODES[0].format(own)} dev up0 noudpcsum"
        node.ip(
            f"link add {DEVICE} address {_MACS.format(own)} mtu 1450 type vxlan dstport 8472"
            f" nolearning {'external' if self._metadata else kind}",
            f"link set {DEVICE} up",
        )
        if not self._metadata:
            mac = _MACS.format(other)
            node.command(["bridge", "fdb", "add", mac, "dev", DEVICE, "dst", ends[0]])
        tunnel = f"encap ip id 42 dst {ends[0]}" if self._metadata else ""
        for cidr in cidrs:
            gateway = str(ip_network(cidr)[0])
            node.ip(
                f"neighbour add {gateway} lladdr {_MACS.format(other)} dev {DEVICE} nud permanent",
                f"route add {cidr} {tunnel} via {gateway} dev {DEVICE} onlink",
            )

    def add_pod(self, node: int) -> Pod:
        """A pod on node 1 or 2, wired by hand."""
        self._count += 1
        number = self._count + 9
        netns = self.scope.namespace(f"pod-{number}")
        hosts = [str(ip_network(cidr.format(node))[number]) for cidr in _CIDRS]
        device = f"veth{number}"
        wire_routed(self._nodes[node], netns, device, hosts[0], hosts[1])
        if self._overlay:
            netns.ip("link set eth0 mtu 1450")
            self._nodes[node].ip(f"link set {device} mtu 1450")
        name = f"pod-{number}"
        return Pod(name, netns, hosts[0], hosts[1], "bench", name, host_device=device)
