# SPDX-License-Identifier: Apache-2.0
"""Packets on their way out and back, taken apart, with every checksum verified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    IPerror6,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP

from tests.datapath.packets import SERVER, Frame, network, reply
from tests.datapath.world import OK, ROUTER_MAC, SIZES, UPLINK_MAC, World

SLOTS: Final = SIZES["nat"]
_QUOTED: Final = IPerror | IPerror6
_SUMS: Final = {"chksum", "cksum"}


def departing(payload: Frame) -> Frame:
    """As the node's stack sends it to the router."""
    return Ether(src=UPLINK_MAC, dst=ROUTER_MAC) / payload


@dataclass(frozen=True)
class Translated:
    """A frame whose checksums are right. Identifiers of ICMP queries count as ports."""

    frame: bytes
    before: bytes = b""

    @property
    def ip(self) -> Frame:
        """From the IP header on."""
        return Ether(self.frame).payload

    @property
    def version(self) -> int:
        return int(self.ip.version)

    @property
    def source(self) -> str:
        return str(self.ip.src)

    @property
    def destination(self) -> str:
        return str(self.ip.dst)

    @property
    def port(self) -> int:
        """Of the side that asked, when it sent this."""
        return _ports(self.ip)[0]

    @property
    def remote_port(self) -> int:
        return _ports(self.ip)[1]

    @property
    def destination_port(self) -> int:
        """Of the side that asked, when it gets this."""
        first, second = _ports(self.ip)
        return second or first

    @property
    def changed(self) -> bool:
        """Whether anything of it is different than before."""
        return self.frame != self.before

    def answer(self, kind: str, **more: Any) -> Frame:
        """What the other side sends back."""
        if kind == "icmp":
            answer = (ICMP(type=0, id=self.port, seq=1) if self.version == 4 else
                      ICMPv6EchoReply(id=self.port, seq=1, data=b"x" * 16))  # fmt: skip
            return network(self.destination, self.source) / answer
        return reply(kind, self.destination, self.source, sport=self.remote_port or SERVER,
                     dport=self.port, **more)  # fmt: skip

    def like(self, packet: Frame) -> bool:
        """Whether all but source address, source port and checksums is as it was."""
        mine, other = self.ip.copy(), type(packet)(bytes(packet))
        for one in (mine, other):
            one.src = "0.0.0.0" if self.version == 4 else "::"
            for layer in one.iterpayloads():
                for name in _SUMS & layer.fields.keys():
                    layer.fields[name] = 0
                if isinstance(layer, TCP | UDP):
                    layer.sport = 0
                if isinstance(layer, ICMP | ICMPv6EchoRequest):
                    layer.id = 0
        return bytes(mine) == bytes(other)


def checked(frame: bytes, before: bytes = b"") -> Translated:
    """The frame, if scapy computes the same checksums for it."""
    assert computed(frame) == frame
    return Translated(frame, before)


def computed(frame: bytes) -> bytes:
    """The same with all checksums anew, but for those in a quote or of a part of a datagram."""
    anew = Ether(frame)
    for layer in anew.iterpayloads():
        if isinstance(layer, _QUOTED | IPv6ExtHdrFragment):
            break
        if isinstance(layer, IP) and (layer.frag or layer.flags.MF):
            layer.delfieldval("chksum")
            break
        for name in _SUMS & layer.fields.keys():
            if isinstance(layer, IP | TCP | UDP | ICMP | SCTP) or name == "cksum":
                layer.delfieldval(name)
    return bytes(anew)


def send(world: World, packet: Frame, ifindex: int = 0) -> Translated:
    """A packet leaves by an uplink, and is let through."""
    frame = bytes(departing(packet))
    outcome = world.depart(frame, ifindex)
    assert outcome.action == OK and not outcome.counted, outcome
    return checked(outcome.frame, frame)


def ports_taken(world: World) -> set[tuple[bytes, int, int]]:
    """(remote address, remote port, port of the node) of all mappings."""
    return {(k.remote, k.remote_port, k.port) for k, _ in world.maps["nat_reverse"].items()}


def _ports(ip: Frame) -> tuple[int, int]:
    for layer in ip.iterpayloads():
        if isinstance(layer, TCP | UDP | SCTP):
            return int(layer.sport), int(layer.dport)
        if isinstance(layer, ICMP | ICMPv6EchoRequest | ICMPv6EchoReply):
            return int(layer.id), 0
    return 0, 0
