# SPDX-License-Identifier: Apache-2.0
"""The datapath as one thing: maps, programs, where they are attached, and how it is changed.

Everything is pinned below one folder, so it works on without the agent, and a new agent finds it:

    maps/<name>_v<version>     programs/<name>-<digest>     links/uplink-<device>-<hook>

Called by the loop's thread alone, but for `traffic` and `counters`, which only read.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from agent.core.conntrack import Lifetimes
from agent.core.delta import Delta, MapDelta, PolicyDelta, peer_deletes, peer_upserts
from agent.kernel import bpf, bpffs, clsact, connections, vxlan
from agent.kernel.former import Former
from agent.kernel.links import Hook
from agent.kernel.loader import Loader, ProgramSpec
from agent.kernel.maps import PinnedMap
from agent.kernel.nat import collect
from agent.kernel.places import Places
from agent.kernel.rtnl import RtnlSocket
from agent.kernel.socket_redirect import give_up
from agent.kernel.testrun import SkbContext, TestRun, prog_test_run
from agent.kernel.tunnel_hooks import TunnelHooks
from agent.kernel.uplinks import Uplinks
from bpf import maps
from bpf.layouts import Config, NumberKey, NumberKind, PolicyKey, Traffic

FROM_POD: Final = "from_pod"
TO_POD: Final = "to_pod"
FROM_UPLINK: Final = "from_uplink"
FROM_TUNNEL: Final = "from_tunnel"
TO_TUNNEL: Final = "to_tunnel"
TO_UPLINK: Final = "to_uplink"
PROGRAMS: Final = (FROM_POD, TO_POD, FROM_UPLINK, FROM_TUNNEL, TO_TUNNEL, TO_UPLINK)
UPLINK_PROGRAMS: Final = {Hook.INGRESS: FROM_UPLINK, Hook.EGRESS: TO_UPLINK}

AGENT_MAPS: Final = (
    "numbers",
    "peers",
    "tunnels",
    "service_peers",
    "masquerade_exclude",
    "masquerade",
    "endpoints",
    "addresses",
    "devices",
    "places",
    "socket_endpoints",
    "namespaces",
)
"""Small maps whose contents the agent alone decides, in the order in which they are written."""

_U64 = struct.Struct("=Q")


class Datapath:
    """Open it with `open`, then `load`; `close` leaves everything in force."""

    def __init__(
        self,
        bpffs_dir: Path,
        work_dir: Path,
        sizes: Mapping[str, int],
        *,
        masquerade: bool = False,
    ) -> None:
        self._root = bpffs_dir
        #: Whether pods' packets are translated on their way out.
        self.masquerades = masquerade
        self._loader = Loader(work_dir)
        self._specs = maps.specs(sizes)
        self._maps: dict[str, PinnedMap[Any, Any]] = {}
        self._programs: dict[str, int] = {}
        self._places: Places
        self.uplinks = Uplinks(bpffs_dir / "links")
        self._tunnel = TunnelHooks(bpffs_dir / "links")
        self._passing: dict[str, int] = {}
        self._idle_since = 0
        self._former = Former({})
        self._probe = (0, 0)

    # ---- life ------------------------------------------------------------------------------------

    def open(self) -> Path | None:
        """Open or make all maps; gives the BPF file system that had to be mounted for them.
        Raises BpffsError, BpfError.

        A map of another layout or size that is pinned in place of ours is set aside: the programs
        that use it go on with it until `take_over`.
        """
        mounted = bpffs.ensure(self._root).mounted
        folder = self._root / "maps"
        self._former = Former.set_aside(folder, self._specs)
        for name, spec in self._specs.items():
            self._maps[name] = PinnedMap.open_or_create(spec, folder)
        self._former.carry_over(self._maps)
        self._places = Places(self._maps["places"])
        return mounted

    def load(self, trace: bool, tunnel_port: int = 0) -> None:
        """Compile where needed, and load all programs; attaches nothing. Raises LoadError.

        tunnel_port: UDP port of the tunnel, 0 for none.
        """
        present = self._maps["config"].lookup(0)
        mark = present.probe_mark if present and present.probe_mark else secrets.randbits(32) | 1
        priority = present.probe_priority if present else 0
        port = int.from_bytes(tunnel_port.to_bytes(2, "big"), sys.byteorder)
        wanted = Config(mark, priority or secrets.randbits(32) | 1, int(trace), port)
        if present != wanted:
            self._maps["config"].update(0, wanted)
        self._probe = (wanted.probe_mark, wanted.probe_priority)
        defines: dict[str, int] = {}
        tables: dict[str, int] = {}
        known = self._former.connections(self._maps)
        if known is not None:
            defines |= {
                "CT_PREVIOUS_BYTES": known.size,
                "CT_COMMON_BYTES": min(known.size, self._maps["ct"].spec.value.SIZE),
            }
            tables |= {"ct_previous": known.table, "ct_previous_overflow": known.overflow}
        mappings = self._former.mappings(self._maps) if self.masquerades else None
        if mappings is not None:
            out, back = mappings.out_size, mappings.back_size
            defines |= {
                "NAT_PREVIOUS_BYTES": out,
                "NAT_COMMON_BYTES": min(out, self._maps["nat"].spec.value.SIZE),
                "NAT_PREVIOUS_REVERSE_BYTES": back,
                "NAT_COMMON_REVERSE_BYTES": min(back, self._maps["nat_reverse"].spec.value.SIZE),
            }
            tables |= {"nat_previous": mappings.out, "nat_previous_reverse": mappings.back}
        if tables:
            self._passing = self._load(defines, tables)
        self._programs = self._load({}, {})

    def masquerade_seed(self) -> int:
        """What a former agent chose, so that connections find their ports again; else a new one."""
        for _, source in self._maps["masquerade"].items():
            return int(source.seed)
        return secrets.randbits(32)

    def take_over(self, attach: Callable[[], None]) -> None:
        """Put this agent's programs in place of a former one's, without a gap: `attach` attaches
        them everywhere, and may be called more than once. The maps are in force already.

        While devices change over one by one, the two agents' programs must know the same
        connections; where the former ones' table is another, see bpf/lib/ct_previous.h. May be cut
        short at any point: the next agent's take-over finds what it needs (former.py).
        """
        if self._passing:
            self._former.copy_connections(self._maps)
            plain, self._programs = self._programs, self._passing
            try:
                attach()
            finally:
                self._programs = plain
            # Once more: what devices that had not changed over yet let pass meanwhile.
            self._former.copy_connections(self._maps)
            # An entry is touched in the table where it was found; in another it looks idle.
            self._idle_since = time.monotonic_ns()
            # Never again, should what follows fail and be repeated: devices that have changed over
            # would not know what the former tables are told.
            for fd in self._passing.values():
                os.close(fd)
            self._passing = {}
        # From here on our tables alone are complete.
        self._former.unpin()
        attach()
        # A former program may have renewed a verdict from the maps that it had.
        self.bump_epoch()
        self._former.close()

    def _load(self, defines: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
        shared = self.descriptors()
        pins = None if more else self._root / "programs"
        features = {"MASQUERADE": int(self.masquerades), **defines}
        return self._loader.load(
            [ProgramSpec(name) for name in PROGRAMS], features, {**shared, **more}, pins
        )

    def close(self) -> None:
        """Give descriptors back. Programs and maps stay, held by their pins."""
        for fd in (*self._programs.values(), *self._passing.values()):
            os.close(fd)
        self._programs, self._passing = {}, {}
        for one in self._maps.values():
            one.close()
        self._maps = {}
        self._former.close()

    @property
    def created(self) -> bool:
        """Whether this datapath is new: no agent has worked here since the pins were made."""
        return self._maps["endpoints"].created

    def descriptors(self) -> dict[str, int]:
        """Of the maps that programs use, by name."""
        return {name: one.fd for name, one in self._maps.items() if name != "numbers"}

    def map(self, name: str) -> PinnedMap[Any, Any]:
        """One of the maps by its name in bpf.maps."""
        return self._maps[name]

    def capacity(self, name: str) -> int:
        """How many entries a map holds."""
        return self._maps[name].capacity

    def program(self, name: str) -> int:
        """Descriptor of a loaded program."""
        return self._programs[name]

    # ---- attaching -------------------------------------------------------------------------------

    @property
    def attach_mode(self) -> str:
        """How programs are attached to uplinks: `tcx` or `clsact`."""
        return self.uplinks.mode

    def attach_endpoint(self, endpoint: int, ifindex: int) -> None:
        """Both programs at a pod's host-side device, each replacing an older one in one step.

        By clsact and not by TCX links: the device is ours alone, so nobody else attaches to it or
        clears it; the filters go with it; and a link costs a grace period of 12 ms, twice, which
        ADD would wait for (see clsact.py). Raises RtnlError.
        """
        with RtnlSocket() as netlink:
            clsact.attach(netlink, ifindex, self._programs[FROM_POD], self._programs[TO_POD])

    def attach_endpoint_anew(self, ifindex: int) -> None:
        """As `attach_endpoint`, where others took our programs away. Raises RtnlError."""
        with RtnlSocket() as netlink:
            clsact.attach_anew(netlink, ifindex, self._programs[FROM_POD], self._programs[TO_POD])

    def attached(self, ifindex: int) -> bool:
        """Whether this agent's programs are the ones at a pod's device."""
        with RtnlSocket() as netlink:
            return clsact.attached(netlink, ifindex) == self._ids(FROM_POD, TO_POD)

    def endpoint_programs(self, devices: Sequence[int]) -> dict[int, tuple[int, int] | None]:
        """Ids of the programs at pods' devices (ingress, egress), 0 for none; None where there is
        no such device. Raises RtnlError."""
        with RtnlSocket() as netlink:
            return clsact.attached_many(netlink, devices)

    def attach_tunnel(self, ifindex: int) -> None:
        """Both programs at the tunnel's device. Raises OSError."""
        self._tunnel.attach(ifindex, self._programs[FROM_TUNNEL], self._programs[TO_TUNNEL])

    def tunnel_attached(self, ifindex: int) -> bool:
        """Whether this agent's programs are the ones at the tunnel's device. Raises RtnlError."""
        return self._tunnel.attached(ifindex) == self._ids(FROM_TUNNEL, TO_TUNNEL)

    def program_ids(self) -> tuple[int, int]:
        """Of this agent's programs at pods: from_pod, to_pod."""
        from_pod, to_pod = self._ids(FROM_POD, TO_POD)
        return from_pod, to_pod

    def uplink_programs(self) -> dict[Hook, tuple[str, int]]:
        """Names and ids of this agent's programs at uplinks."""
        return {hook: (name, self._ids(name)[0]) for hook, name in UPLINK_PROGRAMS.items()}

    def _ids(self, *names: str) -> tuple[int, ...]:
        return tuple(bpf.program_info(self._programs[name]).id for name in names)

    def attach_uplink(self, device: str, ifindex: int) -> None:
        """The uplink programs at a device of the node: what comes in first, so that no answer is
        missed. Raises LinkError."""
        for hook, name in UPLINK_PROGRAMS.items():
            self.uplinks.attach(self._programs[name], device, ifindex, hook)

    def attach_uplink_anew(self, device: str, ifindex: int) -> None:
        """As `attach_uplink`, where others took one away. Raises LinkError, OSError."""
        for hook, name in UPLINK_PROGRAMS.items():
            self.uplinks.attach_anew(self._programs[name], device, ifindex, hook)

    def detach_former_uplinks(
        self, devices: Collection[str], recorded: Mapping[str, int]
    ) -> list[str]:
        """Detach from what is no longer configured; names of the attachments. Raises LinkError."""
        return self.uplinks.detach_others({*devices, vxlan.DEVICE}, recorded, UPLINK_PROGRAMS)

    def pins(self) -> list[tuple[Path, int]]:
        """Every pin of a map or program that this agent holds, and its descriptor."""
        found = [(one.path, one.fd) for one in self._maps.values() if one.path is not None]
        programs = self._loader.pins.items()
        return found + [(pin, self._programs[name]) for name, pin in programs]

    # ---- changing --------------------------------------------------------------------------------

    def apply(self, delta: Delta) -> int:
        """Write a transaction in its order; gives the epoch in force after it.

        Raises MapFull, BpfError. What was written before a failure is harmless: columns are
        referred to by the later steps only, and the next comparison finds the rest.
        """
        try:
            self._put("numbers", delta.numbers)
            self._write_policy(delta.policy)
            self._put("peers", MapDelta(peer_upserts(delta.peers.upserts)))
            self._delete("peers", peer_deletes(delta.peers.deletes))
            # After the peers that are reached by them: whose packets come is known by then.
            self._put("tunnels", MapDelta(peer_upserts(delta.tunnels.upserts)))
            self._delete("tunnels", peer_deletes(delta.tunnels.deletes))
            self._put("service_peers", delta.service_peers)
            self._delete("service_peers", delta.service_peers.deletes)
            # What is excluded is known before anything is translated.
            self._put("masquerade_exclude", delta.masquerade_exclude)
            self._put("masquerade", delta.masquerade)
            self._delete("masquerade", delta.masquerade.deletes)
            self._delete("masquerade_exclude", delta.masquerade_exclude.deletes)
            # A pod that goes is cut off before its policy goes; one that comes is let in last.
            self._places.clear(delta.places.deletes)
            self._delete("addresses", delta.addresses.deletes)
            self._delete("devices", delta.devices.deletes)
            self._put("endpoints", delta.endpoints)
            self._delete("endpoints", delta.endpoints.deletes)
            self._put("addresses", delta.addresses)
            self._put("devices", delta.devices)
            self._places.put(delta.places.upserts)
            # Sockets of a namespace count once it is known whose they are.
            self._delete("namespaces", delta.namespaces.deletes)
            self._put("socket_endpoints", delta.socket_endpoints)
            self._delete("socket_endpoints", delta.socket_endpoints.deletes)
            self._put("namespaces", delta.namespaces)
            # A number is forgotten after the last record that has it.
            self._delete("numbers", delta.numbers.deletes)
        except BaseException:
            # Part of it may be in force: no verdict from before may be taken for one of now.
            with contextlib.suppress(OSError):
                self.bump_epoch()
            raise
        if delta.verdicts:
            return self.bump_epoch()
        return self.epoch()

    def epoch(self) -> int:
        """The policy epoch in force."""
        return self._maps["epoch"].lookup(0) or 0

    def bump_epoch(self) -> int:
        """Make every cached verdict be looked up again; gives the new epoch."""
        epoch = self.epoch() + 1
        self._maps["epoch"].update(0, epoch)
        return epoch

    def raw(self, name: str) -> dict[bytes, bytes]:
        """A map's contents, packed; of ``places`` the slots that somebody is in."""
        return self._places.content() if name == "places" else self._maps[name].raw_items()

    def numbers(self) -> list[tuple[NumberKey, bytes]]:
        """What the numbers in the kernel mean."""
        return list(self._maps["numbers"].items())

    def policy_numbers(self) -> dict[NumberKind, set[int]]:
        """Numbers of tables and classes that policy records in the kernel have."""
        import numpy as np

        keys = np.frombuffer(self.policy_records()[0], dtype=PolicyKey.DTYPE)
        return {
            NumberKind.NUMBER_TABLE: set(np.unique(keys["table"]).tolist()),
            NumberKind.NUMBER_CLASS: set(np.unique(keys["peer_class"]).tolist()),
        }

    def policy_records(self) -> tuple[bytes, bytes]:
        """All keys and values of the policy map, packed, in the same order, each key once."""
        keys, values = bytearray(), bytearray()
        for some_keys, some_values in self._maps["policy"].chunks():
            keys += some_keys
            values += some_values
        return bytes(keys), bytes(values)

    def _put(self, name: str, delta: MapDelta) -> None:
        if delta.upserts:
            self._maps[name].update_packed(
                b"".join(delta.upserts), b"".join(delta.upserts.values())
            )

    def _delete(self, name: str, keys: Collection[bytes]) -> None:
        if keys:
            self._maps[name].delete_packed(b"".join(keys))

    def _write_policy(self, delta: PolicyDelta) -> None:
        # Deletes first: they are of records that nothing refers to, or that nobody should have
        # made, and they make room.
        if delta.deletes:
            self._maps["policy"].delete_packed(bytes(delta.deletes))
        if delta.keys:
            self._maps["policy"].update_packed(bytes(delta.keys), bytes(delta.values))

    # ---- connection tracking ---------------------------------------------------------------------

    def collect_connections(
        self, endpoints: Collection[int], lifetimes: Lifetimes
    ) -> tuple[int, int]:
        """Remove entries that have ended; gives how many were there and how many were removed."""
        tables = (self._maps["ct"], self._maps["ct_overflow"])
        return connections.collect(tables, endpoints, lifetimes, self._idle_since)

    def collect_mappings(
        self, endpoints: Collection[int], addresses: Iterable[bytes], lifetimes: Lifetimes
    ) -> tuple[int, int]:
        """As `collect_connections`, for mappings of masqueraded connections; ``addresses`` are
        those that the node has."""
        if not self.masquerades:
            return 0, 0
        return collect(
            self._maps["nat"], self._maps["nat_reverse"], endpoints, addresses, lifetimes,
            self._idle_since,
        )  # fmt: skip

    # ---- reading, from any thread ----------------------------------------------------------------

    def traffic(self) -> Sequence[tuple[int, int]]:
        """(packets, bytes), summed over CPUs, by direction * 256 + drop reason."""
        found = [(0, 0)] * self._maps["metrics"].capacity
        for index, per_cpu in self._maps["metrics"].items_cpus():
            found[index] = _total(per_cpu)
        return found

    def counters(self) -> Sequence[int]:
        """Summed over CPUs, by enum counter."""
        found = [0] * self._maps["counters"].capacity
        for index, per_cpu in self._maps["counters"].items_cpus():
            found[index] = sum(per_cpu)
        return found

    def probe(self, program: str, packet: bytes, ifindex: int, ingress_ifindex: int = 0) -> TestRun:
        """Ask a loaded program for its verdict on a packet, without leaving a trace.

        The answer is in the context's cb (enum probe_answer). Raises BpfError.
        """
        mark, priority = self._probe
        context = SkbContext(
            mark=mark, priority=priority, ifindex=ifindex, ingress_ifindex=ingress_ifindex
        )
        return prog_test_run(self._programs[program], packet, context)

    # ---- removing --------------------------------------------------------------------------------

    @staticmethod
    def remove(bpffs_dir: Path, uplinks: Mapping[str, int]) -> list[str]:
        """Detach everything and remove every pin below the folder; gives what was removed.

        uplinks: devices (name -> ifindex) that programs were attached to, for where no pin tells.
        """
        links = bpffs_dir / "links"
        # Here and now: without its last pin a link ends some time later.
        removed = [str(links / name) for name in Uplinks(links).remove(uplinks)]
        removed += give_up(bpffs_dir)
        for folder in (links, bpffs_dir / "programs", bpffs_dir / "maps"):
            if not folder.is_dir():
                continue
            for pin in sorted(folder.iterdir()):
                # The last reference to a link detaches it.
                pin.unlink(missing_ok=True)
                removed.append(str(pin))
            folder.rmdir()
        with contextlib.suppress(OSError):
            bpffs_dir.rmdir()
        return removed


def _total(per_cpu: Sequence[Traffic]) -> tuple[int, int]:
    return sum(one.packets for one in per_cpu), sum(one.bytes for one in per_cpu)


__all__ = ["AGENT_MAPS", "Datapath", "PolicyKey"]
