# SPDX-License-Identifier: Apache-2.0
"""Frames as a pod, the node's stack or the outside would send them, built by scapy."""

from __future__ import annotations

from typing import Any, Final

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit, SCTPChunkInitAck
from scapy.packet import Raw

from tests.datapath.world import ROUTER_MAC, UPLINK_MAC, Pod

Frame = Any
"""A scapy packet; its type is not known to type checkers."""

PROTOCOLS: Final = ("tcp", "udp", "sctp", "icmp", "other")
NUMBERS: Final = {"tcp": 6, "udp": 17, "sctp": 132, "other": 50}
CLIENT, SERVER = 40000, 80
"""Ports of the side that opens a connection, and of the other one."""
PING = 77
"""Identifier of echo requests."""


def number(kind: str, version: int) -> int:
    """Protocol number of a kind."""
    return NUMBERS.get(kind, 1 if version == 4 else 58)


def ports(kind: str) -> tuple[int, int]:
    """Ports that connection tracking keeps for it: of the opening side, of the other."""
    if kind == "icmp":
        return PING, 0
    return (0, 0) if kind == "other" else (CLIENT, SERVER)


def network(source: str, destination: str, **fields: Any) -> Frame:
    """The IP header between two addresses."""
    if ":" in source:
        return IPv6(src=source, dst=destination, **fields)
    return IP(src=source, dst=destination, **fields)


def transport(kind: str, version: int, sport: int = CLIENT, dport: int = SERVER,
              flags: str = "S", reply: bool = False) -> Frame:  # fmt: skip
    """A transport header with some bytes behind; for ICMP a question, or its answer."""
    if kind == "tcp":
        return TCP(sport=sport, dport=dport, flags=flags)
    if kind == "udp":
        return UDP(sport=sport, dport=dport) / Raw(b"x" * 16)
    if kind == "sctp":
        chunk = SCTPChunkInitAck if reply else SCTPChunkInit
        return SCTP(sport=sport, dport=dport) / chunk(init_tag=1)
    if kind == "icmp" and version == 4:
        return ICMP(type=0 if reply else 8, id=PING, seq=1) / Raw(b"x" * 16)
    if kind == "icmp":
        echo = ICMPv6EchoReply if reply else ICMPv6EchoRequest
        return echo(id=PING, seq=1, data=b"x" * 16)
    return Raw(b"\1" * 32)


def datagram(kind: str, source: str, destination: str, **more: Any) -> Frame:
    """An IP packet; ports and flags as for ``transport``."""
    version = 6 if ":" in source else 4
    header = network(source, destination)
    if kind == "other":
        setattr(header, "proto" if version == 4 else "nh", NUMBERS["other"])
    return header / transport(kind, version, **more)


def out_of(pod: Pod, payload: Frame) -> Frame:
    """As a pod sends it, to its gateway."""
    return Ether(src=pod.mac, dst=pod.gateway) / payload


def into(pod: Pod, payload: Frame) -> Frame:
    """As the node's stack sends it to a pod."""
    return Ether(src=pod.gateway, dst=pod.mac) / payload


def arriving(payload: Frame) -> Frame:
    """As the router on the uplink sends it."""
    return Ether(src=ROUTER_MAC, dst=UPLINK_MAC) / payload


def request(kind: str, source: str, destination: str, **more: Any) -> Frame:
    """The packet that opens a connection."""
    return datagram(kind, source, destination, **more)


def reply(kind: str, source: str, destination: str, **more: Any) -> Frame:
    """What the other side sends back: ``source`` is the side that was asked."""
    if kind == "tcp":
        more.setdefault("flags", "SA")
    return datagram(kind, source, destination, reply=True, **{"sport": SERVER,
                    "dport": CLIENT, **more})  # fmt: skip
