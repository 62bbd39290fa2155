# SPDX-License-Identifier: Apache-2.0
"""Another node behind the uplink of `World`, and a real tunnel to it.

BPF_PROG_TEST_RUN cannot give a packet a tunnel key. So here the programs are attached to a real
VXLAN device: outer packets go in and out at the far end of the uplink's pair, made and read by
scapy, and what a program did is read from counters, events and tables.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any, Final

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from agent.kernel import clsact, vxlan
from agent.kernel.rtnl import RtnlSocket
from bench.lab.netns import execute
from bpf.layouts import DropReason, PeerKey, Tunnel, TunnelFlag
from tests.datapath.world import (
    FROM_POD,
    FROM_TUNNEL,
    NODE4,
    NODE6,
    ROUTER_MAC,
    TO_POD,
    TO_TUNNEL,
    UPLINK_MAC,
    Pod,
    World,
    packed,
)

PORT: Final = 8472
SECONDS: Final = 2.0
REMOTE: Final = {4: "192.0.2.20", 6: "2001:db8::20"}
"""The other node's addresses, of both families."""
THIRD: Final = {4: "192.0.2.30", 6: "2001:db8::30"}
"""One more node."""
STRANGER: Final = {4: "192.0.2.66", 6: "2001:db8::66"}
PEER: Final = {4: "10.0.9.7", 6: "fd00:0:0:9::7"}
"""A pod of the other node, and of the third one."""
THIRDS_POD: Final = {4: "10.0.8.7", 6: "fd00:0:0:8::7"}
ALIAS: Final = {4: "203.0.113.20", 6: "2001:db8:ffff::20"}
"""An address of the other node that it is not to be reached at."""
IDENTITY: Final = 4711
CLASS: Final = {4: 5004, 6: 5006}
NODE_CLASS: Final = 5000
_MACS: Final = "02:00:00:00:0e:"


@dataclass(frozen=True, slots=True)
class Seen:
    """One packet through the tunnel."""

    vni: int
    source: str
    destination: str
    inner: Any
    checksum: int
    outer: Any


class Overlay:
    """In `world`, whose namespace the calling thread must be in."""

    def __init__(self, world: World) -> None:
        self.world = world
        vxlan.remove("test")
        self.index = vxlan.make(vxlan.Vxlan("test", PORT, 1450))
        with RtnlSocket() as netlink:
            clsact.attach(
                netlink, self.index, world.programs[FROM_TUNNEL], world.programs[TO_TUNNEL]
            )
            for pod in world.pods:
                clsact.attach(
                    netlink, pod.ifindex, world.programs[FROM_POD], world.programs[TO_POD]
                )
        vxlan.bring_up(self.index, PORT)
        for version in (4, 6):
            for number, place in enumerate((REMOTE, THIRD, STRANGER)):
                mac = f"{_MACS}{number:02x}"
                line = f"neigh replace {place[version]} lladdr {mac} dev up0 nud permanent"
                execute(["ip", *line.split()])
        self._wire = _raw("xup0")
        self._pods = {pod.name: _raw(f"xbri{pod.endpoint}") for pod in world.pods}

    def close(self) -> None:
        """No device and no programs any more."""
        vxlan.remove("test")
        with RtnlSocket() as netlink:
            for pod in self.world.pods:
                clsact.detach(netlink, pod.ifindex)
        for one in (self._wire, *self._pods.values()):
            one.close()

    def reset(self, underlay: int = 4) -> None:
        """Both other nodes and their pods are known, over an underlay of this family."""
        self.world.clear("tunnels")
        for version in (4, 6):
            for place, pod in ((REMOTE, PEER), (THIRD, THIRDS_POD)):
                cidr = f"{pod[version]}/{24 if version == 4 else 112}"
                self.tunnel(str(ip_network(cidr, strict=False)), place, underlay)
                self.tunnel(place[version], place, underlay)
                self.world.peer(place[version], NODE_CLASS, 6)
            self.tunnel(ALIAS[version], REMOTE, underlay, int(TunnelFlag.TUNNEL_SOURCE_ONLY))
            self.world.peer(PEER[version], CLASS[version], IDENTITY)
        while self._received(0):
            pass
        self.world.forget()

    def tunnel(self, network: str, place: dict[int, str], underlay: int, flags: int = 0,
               ifindex: int | None = None) -> None:  # fmt: skip
        """One entry of the map `tunnels`."""
        block = ip_network(network)
        length = block.prefixlen + (96 if block.version == 4 else 0)
        ends = packed(place[underlay]), packed(NODE4 if underlay == 4 else NODE6)
        self.world.maps["tunnels"].update(
            PeerKey(length, packed(str(block.network_address))),
            Tunnel(*ends, self.index if ifindex is None else ifindex, flags),
        )

    def along_the_route(self, network: str) -> None:
        """One entry without a tunnel."""
        block = ip_network(network)
        length = block.prefixlen + (96 if block.version == 4 else 0)
        self.world.maps["tunnels"].update(
            PeerKey(length, packed(str(block.network_address))), Tunnel(bytes(16), bytes(16), 0, 0)
        )

    # ---- in --------------------------------------------------------------------------------------

    def receive(self, inner: Any, vni: int = IDENTITY, sender: str = REMOTE[4]) -> int:
        """An inner packet (from its IP header on, or a whole frame) from an outer address; 0 where
        it was let through, the reason where it was dropped; checked to be counted once."""
        before = self.world.counted()
        self._send(inner, vni, sender)
        return self._outcome(before, 1)

    def _send(self, inner: Any, vni: int, sender: str) -> None:
        frame = (
            inner
            if isinstance(inner, Ether)
            else Ether(src="02:00:00:00:0d:01", dst="02:00:00:00:0d:02") / inner
        )
        v6 = ":" in sender
        network = (IPv6 if v6 else IP)(src=sender, dst=NODE6 if v6 else NODE4)
        self._wire.send(
            bytes(
                Ether(src=ROUTER_MAC, dst=UPLINK_MAC)
                / network
                / UDP(sport=55555, dport=PORT)
                / VXLAN(flags=8, vni=vni)
                / frame
            )
        )

    def pass_on(self, inner: Any) -> None:
        """An inner packet that is left to the stack, uncounted: only the one behind it counts."""
        before = self.world.counted()
        self._send(inner, IDENTITY, REMOTE[4])
        self._send(inner, IDENTITY, STRANGER[4])
        assert self._outcome(before, 1) == DropReason.DROP_UNKNOWN_SENDER

    def _outcome(self, before: dict[tuple[int, int], tuple[int, int]], direction: int) -> int:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            after = self.world.counted()
            changed = {
                key: packets - before.get(key, (0, 0))[0]
                for key, (packets, _) in after.items()
                if key[0] == direction and packets != before.get(key, (0, 0))[0]
            }
            if changed:
                ((_, reason), packets) = next(iter(changed.items()))
                assert (len(changed), packets) == (1, 1), changed
                return reason
            time.sleep(0.001)
        raise AssertionError("the packet was not counted")

    # ---- out -------------------------------------------------------------------------------------

    def leave(self, pod: Pod, packet: Any) -> Seen | None:
        """A packet out of a pod; what came out of the tunnel, None for nothing."""
        while self._received(0):
            pass
        self._pods[pod.name].send(bytes(Ether(src=pod.mac, dst=pod.gateway) / packet))
        return self._next()

    def _next(self) -> Seen | None:
        deadline = time.monotonic() + 0.5
        while (left := deadline - time.monotonic()) > 0:
            raw = self._received(left)
            if raw and (found := _read(raw)) is not None:
                return found
        return None

    def _received(self, seconds: float) -> bytes:
        if not select.select([self._wire], [], [], seconds)[0]:
            return b""
        return self._wire.recv(65536)


def _read(raw: bytes) -> Seen | None:
    frame = Ether(raw)
    if UDP not in frame or frame[UDP].dport != PORT:
        return None
    network = frame[IPv6] if frame.type == 0x86DD else frame[IP]
    tunnel = VXLAN(bytes(frame[UDP].payload))
    return Seen(
        tunnel.vni, network.src, network.dst, Ether(bytes(tunnel.payload)), frame[UDP].chksum, frame
    )


def _raw(device: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    made.setsockopt(263, 23, struct.pack("i", 1))  # PACKET_IGNORE_OUTGOING
    made.bind((device, 3))
    return made
