# SPDX-License-Identifier: Apache-2.0
"""The table of maps: name, shape, size, version and the one writer of each.

A map is pinned as ``<name>_v<version>``. Whoever changes the layout of a key or value, or the type
or the flags, raises the version: an agent of another version then makes a map of its own and
moves over what must not be lost. Numbers are those of include/uapi/linux/bpf.h.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, IntEnum, IntFlag
from typing import Any, Final, Generic, Protocol, TypeVar

from bpf import layouts

_Value = TypeVar("_Value")
K = TypeVar("K")
V = TypeVar("V")


class MapType(IntEnum):
    """enum bpf_map_type, the ones in use."""

    HASH = 1
    ARRAY = 2
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    SOCKHASH = 18
    SK_STORAGE = 24
    RINGBUF = 27

    @property
    def per_cpu(self) -> bool:
        """A value is held for each possible CPU."""
        return self in (MapType.PERCPU_HASH, MapType.PERCPU_ARRAY)

    @property
    def array(self) -> bool:
        """All indexes exist always; nothing can be deleted."""
        return self in (MapType.ARRAY, MapType.PERCPU_ARRAY)


class MapFlag(IntFlag):
    """Flags of BPF_MAP_CREATE, the ones in use."""

    NO_PREALLOC = 1


_NO_FLAGS: Final = MapFlag(0)


class Writer(Enum):
    """Who changes a map's entries; everybody may read."""

    AGENT = "agent"
    PROGRAMS = "programs"


class Codec(Protocol[_Value]):
    """How a key or value becomes bytes. Every class of ``bpf.layouts`` is one by itself."""

    @property
    def SIZE(self) -> int: ...

    def pack(self, value: _Value, /) -> bytes: ...

    def unpack(self, data: bytes, /) -> _Value: ...


@dataclass(frozen=True, slots=True)
class Number:
    """An unsigned integer in the host's byte order, ``SIZE`` 4 or 8 bytes."""

    SIZE: int

    def pack(self, value: int, /) -> bytes:
        """Raises struct.error out of range."""
        return _NUMBERS[self.SIZE].pack(value)

    def unpack(self, data: bytes, /) -> int:
        """Raises struct.error for data of a wrong length."""
        return int(_NUMBERS[self.SIZE].unpack(data)[0])


@dataclass(frozen=True, slots=True)
class Octets:
    """``SIZE`` bytes as they are."""

    SIZE: int

    def pack(self, value: bytes, /) -> bytes:
        """Raises ValueError for a wrong length."""
        if len(value) != self.SIZE:
            raise ValueError(f"{len(value)} bytes, not {self.SIZE}")
        return value

    def unpack(self, data: bytes, /) -> bytes:
        """Raises ValueError for a wrong length."""
        return self.pack(bytes(data))


_NUMBERS: Final = {4: struct.Struct("=I"), 8: struct.Struct("=Q")}

U32: Final = Number(4)
U64: Final = Number(8)
ADDRESS: Final = Octets(16)
"""struct address: network order, IPv4 mapped into IPv6."""
FINGERPRINT: Final = Octets(32)
"""What a number of the map ``numbers`` stands for: a stable digest that the agent computes."""
NOTHING: Final = Octets(0)
"""Ring buffers have neither keys nor values."""


# Not slotted: Python 3.11 cannot make MapSpec[K, V](...) of a frozen, slotted generic class.
@dataclass(frozen=True)
class MapSpec(Generic[K, V]):
    """Shape of a map with keys K and values V.

    ``max_entries`` is in bytes for a ring buffer, in entries otherwise.
    """

    name: str
    type: MapType
    key: Codec[K]
    value: Codec[V]
    max_entries: int
    writer: Writer
    flags: MapFlag = _NO_FLAGS
    version: int = 1

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.version < 1 or self.max_entries < 0:
            raise ValueError(f"map {self.name!r}: name, version and size must be usable")
        if (self.max_entries == 0) is not (self.type is MapType.SK_STORAGE):
            raise ValueError(f"map {self.name!r}: a size belongs to all but storage in sockets")
        power = self.max_entries & (self.max_entries - 1) == 0
        if self.type is MapType.RINGBUF and (not power or self.max_entries % 4096):
            raise ValueError(
                f"map {self.name}: a ring buffer's size ({self.max_entries} bytes) must be a"
                " power of two and whole pages"
            )

    @property
    def pin_name(self) -> str:
        """File name below ``<bpffs_dir>/maps``."""
        return f"{self.name}_v{self.version}"

    def resized(self, max_entries: int) -> "MapSpec[K, V]":
        """The same map with another size. Raises ValueError for one that cannot be."""
        return replace(self, max_entries=max_entries)


# Keys that are no structure: host-side ifindex, address, endpoint id, index.
CONFIG: Final = MapSpec("config", MapType.ARRAY, U32, layouts.Config, 1, Writer.AGENT)
# The node-wide policy epoch: never goes back.
EPOCH: Final = MapSpec("epoch", MapType.ARRAY, U32, U64, 1, Writer.AGENT)
# The three that each new connection looks into take memory as entries come: it is then in huge
# pages, where a look-up at random misses the TLB less than in what is set aside beforehand.
DEVICES: Final = MapSpec(
    "devices",
    MapType.HASH,
    U32,
    layouts.Device,
    4096,
    Writer.AGENT,
    MapFlag.NO_PREALLOC,
    version=2,
)
ADDRESSES: Final = MapSpec(
    "addresses",
    MapType.HASH,
    ADDRESS,
    layouts.LocalAddress,
    16384,
    Writer.AGENT,
    MapFlag.NO_PREALLOC,
    version=2,
)
ENDPOINTS: Final = MapSpec(
    "endpoints",
    MapType.HASH,
    U32,
    layouts.EndpointPolicy,
    4096,
    Writer.AGENT,
    MapFlag.NO_PREALLOC,
    version=2,
)
# A slot for each device and one for each id, found by position: of one size for all nodes, because
# programs compute with it.
PLACES: Final = MapSpec(
    "places",
    MapType.ARRAY,
    U32,
    layouts.Place,
    2 * layouts.PlaceSize.PLACE_SLOTS,
    Writer.AGENT,
)
# An LPM trie takes memory as entries come, and the kernel demands NO_PREALLOC of it.
PEERS: Final = MapSpec(
    "peers",
    MapType.LPM_TRIE,
    layouts.PeerKey,
    layouts.Peer,
    524288,
    Writer.AGENT,
    MapFlag.NO_PREALLOC,
)
# Two pod CIDRs and a few addresses for each of thousands of nodes.
TUNNELS: Final = MapSpec(
    "tunnels",
    MapType.LPM_TRIE,
    layouts.PeerKey,
    layouts.Tunnel,
    65536,
    Writer.AGENT,
    MapFlag.NO_PREALLOC,
)
# One for each port of each address of a service.
SERVICE_PEERS: Final = MapSpec(
    "service_peers",
    MapType.HASH,
    layouts.ServiceKey,
    layouts.ServicePeers,
    65536,
    Writer.AGENT,
    MapFlag.NO_PREALLOC,
)
# Sized for the worst case; memory is taken as entries come.
POLICY: Final = MapSpec(
    "policy",
    MapType.HASH,
    layouts.PolicyKey,
    layouts.PolicyVerdict,
    1048576,
    Writer.AGENT,
    MapFlag.NO_PREALLOC,
)
# A full table must not evict established connections, so no LRU: what finds no place here goes
# into the overflow table, which does evict.
CT: Final = MapSpec("ct", MapType.HASH, layouts.CtKey, layouts.CtEntry, 262144, Writer.PROGRAMS)
CT_OVERFLOW: Final = MapSpec(
    "ct_overflow", MapType.LRU_HASH, layouts.CtKey, layouts.CtEntry, 16384, Writer.PROGRAMS
)
# Not LRU either, and without an overflow table: the two entries of a connection must go together,
# which an eviction knows nothing of. A full table refuses new connections; old ones stay.
# Memory is taken as entries come, for not every node masquerades.
NAT: Final = MapSpec(
    "nat",
    MapType.HASH,
    layouts.CtKey,
    layouts.NatEntry,
    65536,
    Writer.PROGRAMS,
    MapFlag.NO_PREALLOC,
)
NAT_REVERSE: Final = MapSpec(
    "nat_reverse",
    MapType.HASH,
    layouts.NatReverseKey,
    layouts.NatOrigin,
    131072,
    Writer.PROGRAMS,
    MapFlag.NO_PREALLOC,
)
MASQUERADE: Final = MapSpec(
    "masquerade",
    MapType.HASH,
    layouts.MasqueradeKey,
    layouts.MasqueradeSource,
    256,
    Writer.AGENT,
)
# A table of its own and no flag of `peers`: it has an entry for each node and not for each address,
# so the walk is short; and a change of it is none of policy, so it moves no epoch.
MASQUERADE_EXCLUDE: Final = MapSpec(
    "masquerade_exclude",
    MapType.LPM_TRIE,
    layouts.PeerKey,
    U32,
    131072,
    Writer.AGENT,
    MapFlag.NO_PREALLOC,
)
FRAGMENTS: Final = MapSpec(
    "fragments", MapType.LRU_HASH, layouts.FragmentKey, layouts.Fragment, 8192, Writer.PROGRAMS
)
METRICS: Final = MapSpec(
    "metrics",
    MapType.PERCPU_ARRAY,
    U32,
    layouts.Traffic,
    layouts.MetricsSize.METRICS_ENTRIES,
    Writer.PROGRAMS,
)
COUNTERS: Final = MapSpec(
    "counters", MapType.PERCPU_ARRAY, U32, U64, layouts.Counter.COUNTERS, Writer.PROGRAMS
)
# Working memory of one program run, and a clock that lasts from run to run: a layout with something
# else in its place is another version.
SCRATCH: Final = MapSpec(
    "scratch",
    MapType.PERCPU_ARRAY,
    U32,
    Octets(layouts.ScratchSize.SCRATCH_BYTES),
    1,
    Writer.PROGRAMS,
    version=3,
)
EVENTS: Final = MapSpec("events", MapType.RINGBUF, NOTHING, NOTHING, 4 << 20, Writer.PROGRAMS)
# Whose sockets take part in redirecting: nothing is in these while it is off.
NAMESPACES: Final = MapSpec(
    "namespaces", MapType.HASH, U64, U32, 4096, Writer.AGENT, MapFlag.NO_PREALLOC
)
SOCKET_ENDPOINTS: Final = MapSpec(
    "socket_endpoints",
    MapType.HASH,
    U32,
    layouts.SocketEndpoint,
    4096,
    Writer.AGENT,
    MapFlag.NO_PREALLOC,
)
REDIRECT: Final = MapSpec("redirect", MapType.ARRAY, U32, layouts.RedirectConfig, 1, Writer.AGENT)
# Two for each connection. A full table refuses new ones, which then go by the stack.
SOCKETS: Final = MapSpec(
    "sockets", MapType.SOCKHASH, layouts.SocketKey, U64, 131072, Writer.PROGRAMS
)
# Each lives from the answer to a SYN to the first message of who sent it.
HANDSHAKES: Final = MapSpec(
    "handshakes",
    MapType.LRU_HASH,
    layouts.HandshakeKey,
    layouts.Handshake,
    16384,
    Writer.PROGRAMS,
)
LISTENERS: Final = MapSpec(
    "listeners", MapType.LRU_HASH, layouts.ListenerKey, U32, 8192, Writer.PROGRAMS
)
# Goes with the socket. The kernel demands NO_PREALLOC, and no size.
SOCKET_STATES: Final = MapSpec(
    "socket_states",
    MapType.SK_STORAGE,
    U32,
    layouts.SocketState,
    0,
    Writer.PROGRAMS,
    MapFlag.NO_PREALLOC,
)
SPLICED: Final = MapSpec("spliced", MapType.ARRAY, U32, U64, 1, Writer.PROGRAMS)
SOCKET_COUNTERS: Final = MapSpec(
    "socket_counters",
    MapType.PERCPU_ARRAY,
    U32,
    U64,
    layouts.SocketCounter.SOCKET_COUNTERS,
    Writer.PROGRAMS,
)
SOCKET_TRAFFIC: Final = MapSpec(
    "socket_traffic",
    MapType.HASH,
    layouts.SocketTrafficKey,
    layouts.SocketTraffic,
    16384,
    Writer.PROGRAMS,
)
NUMBERS: Final = MapSpec(
    "numbers",
    MapType.HASH,
    layouts.NumberKey,
    FINGERPRINT,
    262144,
    Writer.AGENT,
    MapFlag.NO_PREALLOC,
)

SPECS: Final[Mapping[str, MapSpec[Any, Any]]] = {
    spec.name: spec
    for spec in (
        CONFIG,
        EPOCH,
        DEVICES,
        ADDRESSES,
        PLACES,
        ENDPOINTS,
        PEERS,
        TUNNELS,
        SERVICE_PEERS,
        POLICY,
        CT,
        CT_OVERFLOW,
        NAT,
        NAT_REVERSE,
        MASQUERADE,
        MASQUERADE_EXCLUDE,
        FRAGMENTS,
        METRICS,
        COUNTERS,
        SCRATCH,
        EVENTS,
        NAMESPACES,
        SOCKET_ENDPOINTS,
        NUMBERS,
    )
}
"""Every map of the packets' way, by name, with its default size."""

SOCKET_SPECS: Final[Mapping[str, MapSpec[Any, Any]]] = {
    spec.name: spec
    for spec in (
        REDIRECT,
        SOCKETS,
        HANDSHAKES,
        LISTENERS,
        SOCKET_STATES,
        SPLICED,
        SOCKET_COUNTERS,
        SOCKET_TRAFFIC,
    )
}
"""Those of socket redirect, which are there only while it is on. They are made and given up
together: sockets keep the programs, and so the maps, that they were entered with."""


class UnknownMap(KeyError):
    """A size was given for a map that does not exist."""

    def __str__(self) -> str:
        return str(self.args[0])


def specs(sizes: Mapping[str, int]) -> dict[str, MapSpec[Any, Any]]:
    """``SPECS`` with other sizes for some: {name: max_entries}.

    Raises UnknownMap, or ValueError for a size that cannot be; both name the map.
    """
    for name in sizes:
        if name not in SPECS:
            raise UnknownMap(f"no map is called {name!r}; there are {', '.join(sorted(SPECS))}")
    return {
        name: spec.resized(sizes[name]) if name in sizes else spec for name, spec in SPECS.items()
    }
