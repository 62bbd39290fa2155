# SPDX-License-Identifier: Apache-2.0
"""What `from_pod` costs per packet: test runs on distinct packets, over an empty program.

One pod opens connections to pods of its own node, so every packet passes the sender's egress and
the receiver's ingress policy, and a new connection makes two entries. Each packet is a test run
of its own; the kernel's statistics give the time in the program, and those of an empty program,
measured in the same round, what that reading itself costs.
"""

from __future__ import annotations

import os
import random
import struct
from dataclasses import dataclass
from pathlib import Path

from agent.core.local import slots
from agent.kernel import bpf
from agent.kernel.datapath import FROM_POD, Datapath
from agent.kernel.syscall import ProgramType
from bench import report
from bench.areas.measure import Helper, last_cpu, median, percentile, returning, summary
from bench.lab.netns import LabError, Namespace
from bench.lab.scope import Scope
from bench.report import Claim
from bpf.layouts import (
    Device,
    EndpointPolicy,
    LocalAddress,
    LocalKind,
    Peer,
    PeerKey,
    Place,
    PolicyKey,
    PolicyVerdict,
)
from bpf.maps import U32

EMPTY = "the empty program, subtracted"
LOOPBACK = 1
SENDER = 1
ROUNDS = 15
FLOWS = 50_000
NEW_PER_ROUND = 5_000
_PORTS = (80, 443, 8080, 9090)
# One for both ends: so a packet is still the pod's own after a run that addressed it anew, and a
# run can repeat itself.
_POD = _GATEWAY = b"\x02\0\0\0\0\x0a"
_REPEAT = 100_000
RECEIVERS = 110  # pods of an ordinary node
_PORT_LEVEL, _ANY_LEVEL = 1 << 16, 1 << 17
_FIRST_CLASS = 1000
_REDIRECT = 7  # TC_ACT_REDIRECT, as the programs answer
_SYN, _ACK = 2, 16
_SIZE = 54
Flow = tuple[int, int, int]  # receiver's number, source port, destination port


@dataclass(frozen=True, slots=True)
class World:
    """Maps with `peers` pods; `ports` egress entries and one ingress entry for each."""

    datapath: Datapath
    peers: int
    ports: int

    @property
    def entries(self) -> int:
        """In the policy table."""
        return self.peers * (self.ports + 1)

    def fill(self) -> None:
        """Writes all maps, in bulk."""
        maps = {name: self.datapath.map(name) for name in (
            "devices", "places", "addresses", "endpoints", "peers", "policy", "epoch")}  # fmt: skip
        none = bytes(16)
        sender = _mapped(_address(0))
        maps["devices"].update(LOOPBACK, Device(sender, none, _POD, _GATEWAY, SENDER))
        maps["epoch"].update(0, 1)
        numbers = range(self.peers + 1)
        maps["places"].update_many(
            (slot, Place(SENDER + n, LOOPBACK, _POD, _GATEWAY, U32.unpack(_address(n)), none))
            for n in reversed(numbers)
            for slot in slots(SENDER + n, LOOPBACK)
        )
        maps["addresses"].update_many(
            (_mapped(_address(n)),
             LocalAddress(SENDER + n, LOOPBACK, _POD, _GATEWAY, LocalKind.LOCAL_POD))
            for n in numbers
        )  # fmt: skip
        maps["endpoints"].update_many(
            (SENDER + n,
             EndpointPolicy(SENDER + n, 300 + n, 2 * n + 1, 2 * n + 2, _ANY_LEVEL, _PORT_LEVEL, 3,
                            _FIRST_CLASS + n, 0))
            for n in numbers
        )  # fmt: skip
        maps["peers"].update_many(
            (PeerKey(128, _mapped(_address(n))), Peer(_FIRST_CLASS + n, 300 + n)) for n in numbers
        )
        allow = PolicyVerdict(300, 1)
        maps["policy"].update_many(
            (PolicyKey(2, _FIRST_CLASS + n, port, 6, 16), allow)
            for n in numbers[1:]
            for port in _PORTS[: self.ports]
        )
        maps["policy"].update_many(
            # Every receiver has a table of its own, which lets the sender in by a prefix entry.
            (PolicyKey(2 * n + 1, _FIRST_CLASS, 0, 0, 17), allow)
            for n in numbers[1:]
        )

    def forget(self) -> None:
        """Empties connection tracking."""
        for name in ("ct", "ct_overflow"):
            one = self.datapath.map(name)
            for keys in [keys for keys, _ in one.chunks()]:
                one.delete_packed(keys)

    def connections(self) -> int:
        """How many entries connection tracking holds."""
        return len(self.datapath.raw("ct"))


def run() -> list[Claim]:
    """All claims about cost. Takes about 40 s."""
    with Scope() as scope:
        namespace = scope.namespace("node")
        empty = bpf.program_load(
            ProgramType.SCHED_CLS, returning(_REDIRECT), "empty", licence="GPL"
        )
        worlds = []
        for name, peers, ports in (("large", 10_000, 4), ("small", 5, 1)):
            folder = scope.bpffs / name
            sizes = {"endpoints": 16384, "devices": 16384, "addresses": 32768}
            datapath = Datapath(folder, scope.run_dir, sizes)
            datapath.open()
            datapath.load(trace=False)
            worlds.append(World(datapath, peers, ports))
            worlds[-1].fill()
        try:
            return _claims(scope, namespace, worlds, empty)
        finally:
            for world in worlds:
                world.datapath.close()
            os.close(empty)


class _Bench:
    """Test runs of both worlds' programs and the empty one on the packets of one file."""

    def __init__(
        self, packets: Path, namespace: Namespace, worlds: list[World], empty: int
    ) -> None:
        fds = [empty, *(world.datapath.program(FROM_POD) for world in worlds)]
        self.means: list[tuple[int, float]] = []
        self.helper = Helper(
            "testrun",
            [last_cpu(), LOOPBACK, packets, _SIZE, *fds],
            namespace,
            pass_fds=fds,
        )

    def run(self, program: int, first: int, count: int) -> float:
        """ns of a run (median of batch means). Raises LabError if a packet was not let through."""
        ns, mean, runs, redirected, other = self.helper.ask(program, first, count)
        self.means.append((program, mean))
        if other or redirected != count or runs < count:
            raise LabError(f"{other:.0f} of {count} test runs did not deliver their packet")
        return ns

    def repeat(self, program: int, packet: int) -> float:
        """ns of a run that follows upon the same one, without a system call in between."""
        ns, _, count, redirected, _ = self.helper.ask(program, packet, 1, _REPEAT)
        if redirected != count:
            raise LabError("a test run did not deliver its packet")
        return ns


def _claims(scope: Scope, namespace: Namespace, worlds: list[World], empty: int) -> list[Claim]:
    large, small = worlds
    dice = random.Random(1)
    count = NEW_PER_ROUND * ROUNDS
    # Peers at random, one of few, and peers at random among as many as a node has.
    fresh = [_flows(large, count, dice), _flows(small, count, dice),
             _flows(large, count, dice, RECEIVERS)]  # fmt: skip
    established = _flows(large, FLOWS, dice, RECEIVERS)
    shuffled = dice.sample(established, FLOWS)
    packets = [
        *(_packet(flow, _SYN) for flows in fresh for flow in flows),
        *(_packet(flow, _SYN) for flow in established),
        *(_packet(flow, _ACK) for flow in shuffled),
        *[_packet(established[0], _ACK)] * 20_000,
    ]
    at_established = 3 * count
    at_shuffled = at_established + FLOWS
    at_hot = at_shuffled + FLOWS
    path = scope.root / "packets"
    path.write_bytes(b"".join(packets))
    bench = _Bench(path, namespace, worlds, empty)
    costs: dict[str, list[float]] = {
        name: [] for name in ("hot", "repeat", "random", "new", "small", "node")
    }
    empties: list[float] = []
    with bench.helper:
        report.say("cost of new connections")
        for turn in range(ROUNDS):
            for number, (world, name) in enumerate(((1, "new"), (2, "small"), (1, "node"))):
                worlds[world - 1].forget()
                at = number * count + turn * NEW_PER_ROUND
                nothing = bench.run(0, at, NEW_PER_ROUND)
                costs[name].append(bench.run(world, at, NEW_PER_ROUND) - nothing)
                empties.append(nothing)
                made = worlds[world - 1].connections()
                if made != 2 * NEW_PER_ROUND:
                    raise LabError(f"{NEW_PER_ROUND} connections made {made} entries")
        report.say("cost of established connections")
        large.forget()
        bench.run(1, at_established, FLOWS)
        step = FLOWS // ROUNDS
        for turn in range(ROUNDS):
            nothing = bench.run(0, at_shuffled, step)
            costs["random"].append(bench.run(1, at_shuffled + turn * step, step) - nothing)
            empties.append(nothing)
            bench.run(1, at_hot, 1000)
            nothing = bench.run(0, at_hot, 20_000)
            costs["hot"].append(bench.run(1, at_hot, 20_000) - nothing)
            nothing = bench.repeat(0, at_hot)
            costs["repeat"].append(bench.repeat(1, at_hot) - nothing)
    raw = {name: {"ns": summary(values), "rounds": values} for name, values in costs.items()}
    raw["empty"] = {"ns": summary(empties), "rounds": empties}
    middle = {name: median(values) for name, values in costs.items()}
    note = f"{large.peers:,} peers, {large.entries:,} entries"
    return [
        Claim("established, hot flow", middle["hot"], 250, "ns", raw=raw["hot"]),
        _quieter("hot flow", costs["hot"]),
        Claim("  the same packet again and again, in one call", middle["repeat"], None, "ns",
              raw=raw["repeat"]),
        Claim(f"established, {FLOWS:,} flows at random", middle["random"], 700, "ns",
              raw=raw["random"]),
        _quieter("flows at random", costs["random"]),
        Claim(f"new connection, {note}", middle["new"], 2500, "ns", raw=raw["new"]),
        _quieter("new connection", costs["new"]),
        Claim("  over its own cost with 10 entries", middle["new"] / middle["small"], 2.5,
              "ratio", raw={"small": raw["small"], "entries": small.entries}),
        Claim(f"  with receivers at random among {RECEIVERS}", middle["node"], None, "ns",
              raw=raw["node"]),
        Claim(EMPTY, median(empties), None, "ns", raw=raw["empty"]),
    ]  # fmt: skip


def _quieter(what: str, rounds: list[float]) -> Claim:
    """Beside a median: where another machine shares the processor's caches, rounds have two speeds,
    and the median says which of both there was more of."""
    least = percentile(rounds, 25)
    return Claim(f"  {what}, the quarter of the rounds that took least", least, None, "ns")


def _flows(world: World, count: int, dice: random.Random, receivers: int = 0) -> list[Flow]:
    """Distinct ones, to receivers at random, or at random among so many of them."""
    among = dice.sample(range(1, world.peers + 1), receivers or world.peers)
    found: dict[Flow, None] = {}
    while len(found) < count:
        receiver = dice.choice(among)
        port = dice.choice(_PORTS[: world.ports])
        found[receiver, dice.randint(1024, 65535), port] = None
    return list(found)


def _packet(flow: Flow, flags: int) -> bytes:
    """A TCP segment without payload. The programs look at no checksum."""
    receiver, source_port, port = flow
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 40, 1, 0x4000, 64, 6, 0, _address(0), _address(receiver)
    )
    segment = struct.pack("!HHIIBBHHH", source_port, port, 1, 1, 0x50, flags, 100, 0, 0)
    return _GATEWAY + _POD + b"\x08\0" + header + segment


def _address(number: int) -> bytes:
    return bytes([10, 200, *divmod(number, 256)])


def _mapped(address: bytes) -> bytes:
    return bytes(10) + b"\xff\xff" + address
