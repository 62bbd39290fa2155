# SPDX-License-Identifier: Apache-2.0
"""A node of three pods around the loaded programs: packets in, packets and verdicts out.

Everything is in a network namespace of its own, entered by the calling thread for the length of a
test. The programs run by BPF_PROG_TEST_RUN: a redirect gives its code and is not carried out, so
where a packet goes is read from its Ethernet addresses.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final

import numpy as np

from agent.core.flow import FlowEvent
from agent.core.local import slots
from agent.kernel.loader import Loader, ProgramSpec
from agent.kernel.maps import PinnedMap
from agent.kernel.netns import CLONE_NEWNET
from agent.kernel.syscall import Command, call, pointer
from agent.kernel.testrun import SkbContext, prog_test_run
from agent.telemetry.decode import decode
from agent.telemetry.ringbuf import RingMemory
from bpf import maps
from bpf.layouts import (
    Config,
    Counter,
    CtEntry,
    CtKey,
    Device,
    EndpointFlag,
    EndpointPolicy,
    LocalAddress,
    LocalKind,
    MasqueradeKey,
    MasqueradeSource,
    Peer,
    PeerKey,
    Place,
    PolicyKey,
    PolicyVerdict,
)
from bpf.maps import U32

OK, SHOT, REDIRECT = 0, 2, 7
NEXT = 0xFFFFFFFF  # TC_ACT_UNSPEC: on to the next program, and then to the stack
TCP, UDP, SCTP, ICMP, ICMP6 = 6, 17, 132, 1, 58
FROM_POD, TO_POD, FROM_UPLINK = "from_pod", "to_pod", "from_uplink"
FROM_TUNNEL, TO_TUNNEL, TO_UPLINK = "from_tunnel", "to_tunnel", "to_uplink"
PROGRAMS: Final = (FROM_POD, TO_POD, FROM_UPLINK, FROM_TUNNEL, TO_TUNNEL, TO_UPLINK)
FEATURES: Final = {"MASQUERADE": 1}
"""Everything that macros can switch, on."""
INGRESS, EGRESS = 1, 2
MARK, PRIORITY = 0x1234ABCD, 0x5678EF01
FIRST_EPOCH = 7
TUNNEL_PORT = 8472
WORLD4, WORLD6 = 260, 261
"""Peer classes of ::ffff:0:0/96 and ::/0."""

#: Sizes at which tests can fill a table, and read all of it quickly.
SIZES: Final = {"ct": 512, "ct_overflow": 512, "policy": 65536, "peers": 4096, "events": 1 << 20,
                "nat": 512, "nat_reverse": 512}  # fmt: skip

_CONTEXT, _GSO_SEGMENTS_AT, _GSO_SIZE_AT = 192, 164, 176
_ATTRIBUTES: Final = struct.Struct("=IIIIQQIIIIQQIII")
_libc = ctypes.CDLL(None, use_errno=True)


def packed(address: str) -> bytes:
    """An address as the maps hold it: 16 bytes, IPv4 mapped."""
    raw = ip_address(address).packed
    return raw if len(raw) == 16 else bytes(10) + b"\xff\xff" + raw


def swapped(port: int) -> int:
    """A port in network order as the number that a native field shows."""
    (value,) = struct.unpack("=H", port.to_bytes(2, "big"))
    return int(value)


def mac(text: str) -> bytes:
    """An Ethernet address of six bytes."""
    return bytes.fromhex(text.replace(":", ""))


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod of this node, and the number of everything that is its own."""

    name: str
    endpoint: int
    ip4: str
    ip6: str
    mac: str
    gateway: str  # Ethernet address of the host's end
    identity: int
    class4: int
    class6: int
    ingress_table: int
    egress_table: int
    ifindex: int = 0

    def ip(self, version: int) -> str:
        """Its address of a family."""
        return self.ip4 if version == 4 else self.ip6


def _pod(name: str, number: int) -> Pod:
    return Pod(
        name, number, f"10.0.0.{number}", f"fd00::{number:x}", f"02:00:00:00:01:{number:02x}",
        f"02:00:00:00:02:{number:02x}", 1000 + number, 2000 + number, 2500 + number,
        3000 + number, 3500 + number,
    )  # fmt: skip


NODE4, NODE6 = "192.0.2.10", "2001:db8::10"
OUTSIDE4, OUTSIDE6 = "198.51.100.7", "2001:db8:9::7"
ROUTER4, ROUTER6 = "192.0.2.1", "2001:db8::1"
FIRST_PORT, LAST_PORT = 61000, 65535
"""That connections of pods may have under the node's address."""
ROUTER_MAC, UPLINK_MAC = "02:00:00:00:0f:01", "02:00:00:00:0f:02"


def outside(version: int) -> str:
    """An address of nobody here."""
    return OUTSIDE4 if version == 4 else OUTSIDE6


def node(version: int) -> str:
    """The node's own address."""
    return NODE4 if version == 4 else NODE6


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a program did with a packet."""

    action: int
    frame: bytes
    cb: tuple[int, ...]
    events: tuple[FlowEvent, ...]
    counted: dict[tuple[int, int], tuple[int, int]]
    """(direction, reason) -> (packets, bytes), without zeros."""

    @property
    def dropped(self) -> int:
        """The one reason of a drop, checked to be counted once and told once."""
        assert self.action == SHOT, f"action {self.action}, not a drop"
        drops = {key: value for key, value in self.counted.items() if key[1]}
        assert len(drops) == 1, f"drops counted: {drops}"
        ((direction, reason), (packets, _)) = next(iter(drops.items()))
        assert packets == 1
        told = [event for event in self.events if event.type == 1]
        assert [(int(e.direction), e.reason) for e in told] == [(direction, reason)], told
        return reason


class World:
    """The programs and their maps. ``reset`` before each case; use ``inside`` to enter."""

    def __init__(self, work_dir: Path) -> None:
        self._namespace = _new_namespace()
        self.a, self.b, self.c = (_pod(name, n) for n, name in enumerate("abc", 1))
        self.uplink = 0
        with self.inside():
            self._make_devices()
        specs = maps.specs(SIZES)
        self.maps: dict[str, PinnedMap[Any, Any]] = {
            name: PinnedMap.create(spec) for name, spec in specs.items()
        }
        self.programs = Loader(work_dir).load(
            [ProgramSpec(name) for name in PROGRAMS],
            FEATURES,
            {name: one.fd for name, one in self.maps.items() if name != "numbers"},
        )
        self._ring = RingMemory(self.maps["events"].fd, SIZES["events"])
        self._policies: dict[int, EndpointPolicy] = {}
        self.epoch = FIRST_EPOCH

    def close(self) -> None:
        """Everything of the kernel's is gone after this."""
        self._ring.close()
        for fd in self.programs.values():
            os.close(fd)
        for one in self.maps.values():
            one.close()
        os.close(self._namespace)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread is in the world's network namespace."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(self._namespace)
            yield
        finally:
            _enter(home)
            os.close(home)

    @property
    def pods(self) -> tuple[Pod, Pod, Pod]:
        """All pods."""
        return self.a, self.b, self.c

    def _make_devices(self) -> None:
        lines = ["link set lo up"]
        for name in ("bri1", "bri2", "bri3", "up0"):
            lines += [
                f"link add {name} type veth peer name x{name}",
                f"link set x{name} up",
                f"link set {name} up",
            ]
        lines += [
            f"link set up0 address {UPLINK_MAC}",
            f"addr add {NODE4}/24 dev up0",
            f"addr add {NODE6}/64 dev up0 nodad",
            f"route add default via {ROUTER4} dev up0",
            f"-6 route add default via {ROUTER6} dev up0",
            f"neigh add {ROUTER4} lladdr {ROUTER_MAC} dev up0",
            f"neigh add {ROUTER6} lladdr {ROUTER_MAC} dev up0",
        ]
        for line in lines:
            subprocess.run(["ip", *line.split()], check=True)
        # This namespace's alone.
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        index = {name: _libc.if_nametoindex(name.encode()) for name in ("bri1", "bri2", "bri3")}
        self.a, self.b, self.c = (
            replace(pod, ifindex=index[f"bri{pod.endpoint}"]) for pod in (self.a, self.b, self.c)
        )
        self.uplink = _libc.if_nametoindex(b"up0")

    # ---- state -----------------------------------------------------------------------------------

    def reset(self, trace: bool = False) -> None:
        """The initial state: no connections, no counts, no policy on any pod."""
        places = self.maps["places"]
        keys = np.arange(places.capacity, dtype=np.uint32)
        places.update_packed(keys.tobytes(), bytes(places.capacity * places.value_stride))
        for name in ("devices", "addresses", "endpoints", "peers", "policy", "service_peers",
                     "masquerade", "masquerade_exclude"):  # fmt: skip
            self.clear(name)
        self.forget()
        self.maps["config"].update(0, Config(MARK, PRIORITY, int(trace), swapped(TUNNEL_PORT)))
        self.epoch = FIRST_EPOCH
        self.maps["epoch"].update(0, self.epoch)
        self._policies.clear()
        for pod in self.pods:
            self.add(pod)
        for address in (NODE4, NODE6):
            self.maps["addresses"].update(
                packed(address), LocalAddress(0, 0, bytes(6), bytes(6), LocalKind.LOCAL_NODE)
            )
            self.peer(address, 1, 1)
        self.peer("0.0.0.0/0", WORLD4, 9)
        self.peer("::/0", WORLD6, 10)
        for network in ("10.0.0.0/24", "fd00::/64", NODE4, NODE6, "169.254.0.0/16", "fe80::/10"):
            self.exclude(network)
        self.masquerade()

    def forget(self) -> None:
        """No connections, fragments, counts and events; policy stays."""
        for name in ("ct", "ct_overflow", "fragments", "nat", "nat_reverse"):
            self.clear(name)
        for name in ("metrics", "counters"):
            one = self.maps[name]
            keys = np.arange(one.capacity, dtype=np.uint32)
            one.update_packed(keys.tobytes(), bytes(one.capacity * one.value_stride))
        self.drain()

    def clear(self, name: str) -> None:
        """Delete all entries of a map."""
        self.maps[name].delete_packed(b"".join(self.maps[name].raw_items()))

    def add(self, pod: Pod) -> None:
        """Device, addresses and peers of a pod that no policy selects."""
        hardware, gateway = mac(pod.mac), mac(pod.gateway)
        self.maps["devices"].update(
            pod.ifindex,
            Device(packed(pod.ip4), packed(pod.ip6), hardware, gateway, pod.endpoint),
        )
        here = Place(pod.endpoint, pod.ifindex, hardware, gateway, U32.unpack(packed(pod.ip4)[12:]),
                     packed(pod.ip6))  # fmt: skip
        for slot in slots(pod.endpoint, pod.ifindex):
            self.maps["places"].update(slot, here)
        for address, peer_class in ((pod.ip4, pod.class4), (pod.ip6, pod.class6)):
            self.maps["addresses"].update(
                packed(address),
                LocalAddress(pod.endpoint, pod.ifindex, hardware, gateway, LocalKind.LOCAL_POD),
            )
            self.peer(address, peer_class, pod.identity)
        self.enforce(pod)

    def enforce(self, pod: Pod, ingress: bool = False, egress: bool = False,
                levels: int = (1 << 18) - 1, identity: int = 0) -> None:  # fmt: skip
        """Which directions of a pod its tables decide. The epoch stays."""
        flags = EndpointFlag.ENDPOINT_INGRESS_ENFORCED * ingress
        flags |= EndpointFlag.ENDPOINT_EGRESS_ENFORCED * egress
        self.maps["endpoints"].update(
            pod.endpoint,
            EndpointPolicy(
                pod.endpoint, identity or pod.identity, pod.ingress_table, pod.egress_table,
                levels, levels, flags, pod.class4, pod.class6,
            ),
        )  # fmt: skip

    def peer(self, network: str, peer_class: int, identity: int) -> None:
        """What an address range is to policies."""
        block = ip_network(network)
        length = block.prefixlen + (96 if block.version == 4 else 0)
        self.maps["peers"].update(
            PeerKey(length, packed(str(block.network_address))), Peer(peer_class, identity)
        )

    def masquerade(self, first: int = FIRST_PORT, last: int = LAST_PORT, ifindex: int = 0,
                   addresses: tuple[str, str] = (NODE4, NODE6)) -> None:  # fmt: skip
        """What pods look like on an uplink, and from which ports."""
        for family, address in zip((4, 6), addresses, strict=True):
            self.maps["masquerade"].update(
                MasqueradeKey(ifindex or self.uplink, family),
                MasqueradeSource(packed(address), 0x5EED, first, last),
            )

    def exclude(self, network: str) -> None:
        """A destination that sees pods as they are."""
        block = ip_network(network)
        length = block.prefixlen + (96 if block.version == 4 else 0)
        key = PeerKey(length, packed(str(block.network_address)))
        self.maps["masquerade_exclude"].update(key, 1)

    def rule(self, table: int, peer_class: int, protocol: int = 0, port: int = 0,
             level: int | None = None, allow: bool = True,
             rule: int = 300) -> PolicyKey:  # fmt: skip
        """One entry; without a level that of one port, of any port, or of any protocol."""
        if level is None:
            level = 17 if not protocol else 16 if port else 0
        key = PolicyKey(table, peer_class, port, protocol, level)
        self.maps["policy"].update(key, PolicyVerdict(rule, int(allow)))
        return key

    def bump(self) -> None:
        """The next policy epoch."""
        self.epoch += 1
        self.maps["epoch"].update(0, self.epoch)

    # ---- running ---------------------------------------------------------------------------------

    def leave(self, pod: Pod, packet: object, **more: int) -> Outcome:
        """A packet out of a pod."""
        return self.run(FROM_POD, packet, pod.ifindex, **more)

    def enter(self, pod: Pod, packet: object, sender: int = 0, **more: int) -> Outcome:
        """A packet to a pod through the node's stack; ``sender`` is where it came in, 0: here."""
        return self.run(TO_POD, packet, pod.ifindex, ingress_ifindex=sender, **more)

    def arrive(self, packet: object, **more: int) -> Outcome:
        """A packet from outside."""
        return self.run(FROM_UPLINK, packet, self.uplink, **more)

    def depart(self, packet: object, ifindex: int = 0, **more: int) -> Outcome:
        """A packet that the node's stack sends by an uplink."""
        return self.run(TO_UPLINK, packet, ifindex or self.uplink, **more)

    def run(self, program: str, packet: object, ifindex: int, ingress_ifindex: int = 0,
            mark: int = 0, priority: int = 0, gso_size: int = 0,
            gso_segments: int = 0) -> Outcome:  # fmt: skip
        """One run, with what was counted and told meanwhile."""
        before = self.counted()
        self.drain()
        raw = bytes(packet)  # type: ignore[call-overload]
        context = SkbContext(mark, priority, ingress_ifindex, ifindex)
        if gso_size or gso_segments:
            action, frame, cb = self._run_segmented(program, raw, context, gso_size, gso_segments)
        else:
            result = prog_test_run(self.programs[program], raw, context)
            action, frame, cb = result.retval, result.packet, result.context.cb
        if action == NEXT:
            action = OK
        counted = {
            key: (packets - before.get(key, (0, 0))[0], size - before.get(key, (0, 0))[1])
            for key, (packets, size) in self.counted().items()
        }
        return Outcome(
            action, frame, cb, tuple(self.drain()), {k: v for k, v in counted.items() if v[0]}
        )

    def action(self, program: str, raw: bytes, ifindex: int, ingress_ifindex: int = 0) -> int:
        """Only the return value: for thousands of packets."""
        context = SkbContext(ingress_ifindex=ingress_ifindex, ifindex=ifindex)
        action = prog_test_run(self.programs[program], raw, context).retval
        return OK if action == NEXT else action

    def _run_segmented(self, program: str, raw: bytes, context: SkbContext, size: int,
                       segments: int) -> tuple[int, bytes, tuple[int, ...]]:  # fmt: skip
        given = bytearray(context.pack())
        struct.pack_into("=I", given, _GSO_SEGMENTS_AT, segments)
        struct.pack_into("=I", given, _GSO_SIZE_AT, size)
        before, after = (ctypes.create_string_buffer(bytes(given), _CONTEXT) for _ in range(2))
        out = ctypes.create_string_buffer(len(raw) + 512)
        attributes = ctypes.create_string_buffer(
            _ATTRIBUTES.pack(
                self.programs[program], 0, len(raw), len(out), pointer(raw), pointer(out), 1, 0,
                _CONTEXT, _CONTEXT, pointer(before), pointer(after), 0, 0, 0,
            ),
            _ATTRIBUTES.size,
        )  # fmt: skip
        call(Command.PROG_TEST_RUN, attributes, program)
        _, action, _, length, *_ = _ATTRIBUTES.unpack(attributes.raw)
        return action, out.raw[:length], SkbContext.unpack(after.raw).cb

    # ---- looking ---------------------------------------------------------------------------------

    def counted(self) -> dict[tuple[int, int], tuple[int, int]]:
        """(direction, reason) -> (packets, bytes) since the reset, over all CPUs."""
        raw = b"".join(self.maps["metrics"].raw_items().values())
        sums = np.frombuffer(raw, np.uint64).reshape(768, -1, 2).sum(axis=1)
        return {
            (int(i) // 256, int(i) % 256): (int(sums[i, 0]), int(sums[i, 1]))
            for i in np.flatnonzero(sums[:, 0])
        }

    def counter(self, which: Counter) -> int:
        """One of the counters, over all CPUs."""
        return sum(self.maps["counters"].lookup_cpus(which))

    def drain(self) -> list[FlowEvent]:
        """The events that wait."""
        found = []
        while records := self._ring.read(256):
            found += [decode(record) for record in records]
        return found

    def connections(self) -> dict[CtKey, CtEntry]:
        """All entries of the table of connections."""
        return dict(self.maps["ct"].items())

    def connection(self, pod: Pod, remote: str, protocol: int, local_port: int = 0,
                   remote_port: int = 0, table: str = "ct") -> CtEntry | None:  # fmt: skip
        """A pod's entry, None where there is none."""
        found: CtEntry | None = self.maps[table].lookup(
            self.key(pod, remote, protocol, local_port, remote_port)
        )
        return found

    @staticmethod
    def key(pod: Pod, remote: str, protocol: int, local_port: int, remote_port: int) -> CtKey:
        """A connection as a pod sees it; ports in host order."""
        return CtKey(
            packed(remote), pod.endpoint, swapped(local_port),
            swapped(remote_port), protocol,
        )  # fmt: skip

    def traces(self, names: Iterable[str] = ()) -> dict[str, dict[bytes, bytes]]:
        """The contents of every map that can be read, but for working memory."""
        wanted = set(names) or set(self.maps) - {"scratch", "events"}
        return {name: self.maps[name].raw_items() for name in wanted}


def _new_namespace() -> int:
    result: list[int] = []

    def work() -> None:
        if _libc.unshare(CLONE_NEWNET) == 0:
            result.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert result, "no new network namespace"
    return result[0]


def _enter(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")
