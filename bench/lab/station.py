# SPDX-License-Identifier: Apache-2.0
"""Who sends and receives in a lab, and how its namespace is wired where CNI does not do it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.lab.netns import Namespace

NODE4, NODE6 = "192.0.2.1", "2001:db8:1::1"
OUTSIDE4, OUTSIDE6 = "192.0.2.2", "2001:db8:1::2"
FAR4, FAR6 = "198.51.100.7", "2001:db8:2::7"
"""Documentation addresses (RFC 5737, RFC 3849). `far` is one more address of the outside host."""

UPLINK = "up0"
GATEWAY4, GATEWAY6 = "169.254.1.1", "fe80::1"

# A pod's errors are to be seen, all of them, and anybody in it may ping: container runtimes set
# the latter, the former only hides what this lab measures.
PEER_SYSCTLS: dict[str, str | int] = {
    "ipv4.ping_group_range": "0 2147483647",
    "ipv4.icmp_ratelimit": 0,
    "ipv4.icmp_ratemask": 0,
    "ipv6.icmp.ratelimit": 0,
    "ipv6.icmp.ratemask": "",
}
# What every Kubernetes node has set before any network plugin runs (kubeadm's preflight checks).
NODE_SYSCTLS: dict[str, str | int] = {"ipv4.ip_forward": 1, "ipv6.conf.all.forwarding": 1}


@dataclass(frozen=True, slots=True, eq=False)
class Station:
    """A place with one address of each family ("" for none) in a network namespace."""

    name: str
    namespace: Namespace
    ipv4: str
    ipv6: str

    def address(self, family: int) -> str:
        """Its address of family 4 or 6."""
        return self.ipv4 if family == 4 else self.ipv6


@dataclass(frozen=True, slots=True, eq=False)
class Pod(Station):
    """A pod: a station wired by a CNI call, or by hand in a routed lab.

    result: what ADD printed. host_device: the name of its device on the node, if known.
    """

    pod_namespace: str = ""
    pod_name: str = ""
    container_id: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    host_device: str = ""


def wire_uplink(node: Namespace, outside: Namespace, cidrs: list[str], mtu: int) -> None:
    """Joins the node's uplink device with the outside host, which routes pod CIDRs to the node."""
    node.sysctl({**PEER_SYSCTLS, **NODE_SYSCTLS})
    outside.sysctl(PEER_SYSCTLS)
    node.ip(
        f"link add {UPLINK} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {outside.name}",
    )
    # No duplicate detection on this device, else the first second has no IPv6.
    node.sysctl({f"ipv6.conf.{UPLINK}.accept_dad": 0})
    outside.sysctl({"ipv6.conf.eth0.accept_dad": 0})
    node.ip(
        f"link set {UPLINK} up",
        f"address add {NODE4}/24 dev {UPLINK}",
        f"address add {NODE6}/64 dev {UPLINK} nodad",
        f"route add default via {OUTSIDE4}",
        f"route add ::/0 via {OUTSIDE6}",
    )
    outside.ip(
        "link set eth0 up",
        f"address add {OUTSIDE4}/24 dev eth0",
        f"address add {OUTSIDE6}/64 dev eth0 nodad",
        f"address add {FAR4}/32 dev lo",
        f"address add {FAR6}/128 dev lo nodad",
        *(f"route add {c} via {NODE6 if ':' in c else NODE4}" for c in cidrs),
    )


def wire_routed(node: Namespace, pod: Namespace, device: str, ipv4: str, ipv6: str) -> None:
    """What CNI does, without it and without BPF: a pair, host routes, permanent neighbours."""
    host_mac, pod_mac = _mac(f"{ipv4}h"), _mac(f"{ipv4}p")
    pod.sysctl(PEER_SYSCTLS)
    node.ip(
        f"link add {device} address {host_mac} type veth"
        f" peer name eth0 address {pod_mac} netns {pod.name}",
        f"link set {device} up",
        f"route add {ipv4}/32 dev {device} scope link",
        f"route add {ipv6}/128 dev {device}",
        f"neighbour add {ipv4} lladdr {pod_mac} dev {device} nud permanent",
        f"neighbour add {ipv6} lladdr {pod_mac} dev {device} nud permanent",
    )
    pod.ip(
        "link set eth0 up",
        f"address add {ipv4}/32 dev eth0",
        f"address add {ipv6}/128 dev eth0 nodad",
        f"neighbour add {GATEWAY4} lladdr {host_mac} dev eth0 nud permanent",
        f"neighbour add {GATEWAY6} lladdr {host_mac} dev eth0 nud permanent",
        f"route add default via {GATEWAY4} dev eth0 onlink",
        f"route add ::/0 via {GATEWAY6} dev eth0 onlink",
    )


def wire_direct(first: Namespace, second: Namespace, device: str = "direct0") -> tuple[str, str]:
    """One pair straight between two namespaces, which no CNI can wire; addresses of both ends."""
    ends = "10.255.0.1", "10.255.0.2"
    first.ip(f"link add {device} type veth peer name {device} netns {second.name}")
    for namespace, address in zip((first, second), ends, strict=True):
        namespace.ip(f"address add {address}/30 dev {device}", f"link set {device} up")
    return ends


def _mac(seed: str) -> str:
    """A locally administered address, the same for the same seed."""
    digits = sum(ord(c) << (i * 5 % 40) for i, c in enumerate(seed)) & (1 << 40) - 1
    return "02:" + digits.to_bytes(5, "big").hex(":")
