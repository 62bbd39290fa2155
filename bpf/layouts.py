# SPDX-License-Identifier: Apache-2.0
"""Structures and numbers that the programs share with user space.

Generated from bpf/lib/layout.h by tools/generate_layouts.py: do not edit.

Integers are in the host's byte order; where the header says "network order" it is the program that
stores them so. ``pack`` raises struct.error for a value out of range, the constructor ValueError
for bytes of a wrong length, ``unpack`` struct.error for data of a wrong length. ``DTYPE`` is the
numpy type for many records at once; it imports numpy when first used. Padding is not part of it:
start from ``numpy.zeros``, so that the kernel sees zeros there.
"""

import builtins
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy

__all__ = [
    "Config",
    "Counter",
    "CtEntry",
    "CtFlag",
    "CtKey",
    "Device",
    "Direction",
    "DropReason",
    "EndpointFlag",
    "EndpointPolicy",
    "Event",
    "EventFlag",
    "EventType",
    "Fragment",
    "FragmentKey",
    "LocalAddress",
    "LocalKind",
    "MetricsSize",
    "NumberKey",
    "NumberKind",
    "Observation",
    "Origin",
    "Peer",
    "PeerKey",
    "PolicyAction",
    "PolicyKey",
    "PolicyLevel",
    "PolicyVerdict",
    "ProbeAnswer",
    "ProbeBit",
    "ReservedClass",
    "ReservedIdentity",
    "ReservedRule",
    "ScratchSize",
    "Traffic",
]

Data = bytes | bytearray | memoryview


class _Dtype:
    """Makes the numpy type on first use, so that importing this module stays cheap."""

    __slots__ = ("_dtype", "_fields", "_size")

    def __init__(self, size: int, **fields: tuple[Any, int]) -> None:
        self._size = size
        self._fields = fields
        self._dtype: numpy.dtype[numpy.void] | None = None

    def __get__(self, instance: object, owner: type) -> "numpy.dtype[numpy.void]":
        if self._dtype is None:
            import numpy

            self._dtype = numpy.dtype(
                {
                    "names": list(self._fields),
                    "formats": [form for form, _ in self._fields.values()],
                    "offsets": [offset for _, offset in self._fields.values()],
                    "itemsize": self._size,
                }
            )
        return self._dtype


def _need(name: str, value: bytes, length: int) -> None:
    # The struct module would cut a longer value and fill up a shorter one without a word.
    if len(value) != length:
        raise ValueError(f"{name} has {len(value)} bytes, not {length}")


class LocalKind(IntEnum):
    """enum local_kind."""

    LOCAL_POD = 1
    LOCAL_NODE = 2


@dataclass(frozen=True, slots=True)
class Device:
    """struct device: devices: host-side ifindex -> what may come out of this pod."""

    SIZE: ClassVar[int] = 48
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=16s16s6s6sI")
    DTYPE = _Dtype(
        48,
        address4=(("u1", 16), 0),
        address6=(("u1", 16), 16),
        mac=(("u1", 6), 32),
        host_mac=(("u1", 6), 38),
        endpoint=("u4", 44),
    )

    address4: bytes  # all zero: the pod has none
    address6: bytes
    mac: bytes  # of the pod's end
    host_mac: bytes  # of the host's end; the gateway the pod sees
    endpoint: int

    def __post_init__(self) -> None:
        _need("address4", self.address4, 16)
        _need("address6", self.address6, 16)
        _need("mac", self.mac, 6)
        _need("host_mac", self.host_mac, 6)

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(
            self.address4, self.address6, self.mac, self.host_mac, self.endpoint
        )

    @classmethod
    def unpack(cls, data: Data) -> "Device":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """struct local_address: addresses: address -> where it is on this node."""

    SIZE: ClassVar[int] = 24
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=II6s6sI")
    DTYPE = _Dtype(
        24,
        endpoint=("u4", 0),
        ifindex=("u4", 4),
        mac=(("u1", 6), 8),
        host_mac=(("u1", 6), 14),
        kind=("u4", 20),
    )

    endpoint: int  # 0 for an address of the node
    ifindex: int  # host side of the pod's pair
    mac: bytes
    host_mac: bytes
    kind: int  # enum local_kind

    def __post_init__(self) -> None:
        _need("mac", self.mac, 6)
        _need("host_mac", self.host_mac, 6)

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.endpoint, self.ifindex, self.mac, self.host_mac, self.kind)

    @classmethod
    def unpack(cls, data: Data) -> "LocalAddress":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


class EndpointFlag(IntEnum):
    """enum endpoint_flag."""

    ENDPOINT_INGRESS_ENFORCED = 1  # a table decides; else all is allowed
    ENDPOINT_EGRESS_ENFORCED = 2


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """struct endpoint_policy: endpoints: endpoint id -> the policy in force."""

    SIZE: ClassVar[int] = 40
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=IIIIIIIII4x")
    DTYPE = _Dtype(
        40,
        endpoint=("u4", 0),
        identity=("u4", 4),
        ingress_table=("u4", 8),
        egress_table=("u4", 12),
        ingress_levels=("u4", 16),
        egress_levels=("u4", 20),
        flags=("u4", 24),
        class4=("u4", 28),
        class6=("u4", 32),
    )

    endpoint: int  # repeated, so that a reader sees a reused element
    identity: int
    ingress_table: int
    egress_table: int
    ingress_levels: int  # bit n: the table has entries of level n
    egress_levels: int
    flags: int  # enum endpoint_flag
    class4: int  # peer class of the pod's own addresses
    class6: int

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(
            self.endpoint,
            self.identity,
            self.ingress_table,
            self.egress_table,
            self.ingress_levels,
            self.egress_levels,
            self.flags,
            self.class4,
            self.class6,
        )

    @classmethod
    def unpack(cls, data: Data) -> "EndpointPolicy":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


@dataclass(frozen=True, slots=True)
class PeerKey:
    """struct peer_key: peers: longest-prefix table, address -> peer class."""

    SIZE: ClassVar[int] = 20
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=I16s")
    DTYPE = _Dtype(20, prefix_length=("u4", 0), address=(("u1", 16), 4))

    prefix_length: int  # in bits of the 16 byte address
    address: bytes

    def __post_init__(self) -> None:
        _need("address", self.address, 16)

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.prefix_length, self.address)

    @classmethod
    def unpack(cls, data: Data) -> "PeerKey":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


@dataclass(frozen=True, slots=True)
class Peer:
    """struct peer."""

    SIZE: ClassVar[int] = 8
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=II")
    DTYPE = _Dtype(8, peer_class=("u4", 0), identity=("u4", 4))

    peer_class: int
    identity: int

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.peer_class, self.identity)

    @classmethod
    def unpack(cls, data: Data) -> "Peer":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


class ReservedIdentity(IntEnum):
    """enum reserved_identity."""

    IDENTITY_UNKNOWN = 0
    IDENTITY_HOST = 1
    IDENTITY_WORLD = 2
    IDENTITY_UNMANAGED = 3
    IDENTITY_HEALTH = 4
    IDENTITY_INIT = 5
    IDENTITY_REMOTE_NODE = 6
    IDENTITY_KUBE_APISERVER = 7
    IDENTITY_INGRESS = 8
    IDENTITY_WORLD_IPV4 = 9
    IDENTITY_WORLD_IPV6 = 10


class ReservedClass(IntEnum):
    """enum reserved_class: Peer class numbers below 256 are fixed; the agent hands out the
    others.
    """

    CLASS_NONE = 0
    CLASS_HOST = 1  # the node's own stack, by provenance


class PolicyLevel(IntEnum):
    """enum policy_level: An entry matches ports that agree with it in the first prefix_length
    bits.
    """

    LEVEL_PORT = 16
    LEVEL_ANY_PORT = 0
    LEVEL_ANY_PROTOCOL = 17


@dataclass(frozen=True, slots=True)
class PolicyKey:
    """struct policy_key."""

    SIZE: ClassVar[int] = 12
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=IIHBB")
    DTYPE = _Dtype(
        12,
        table=("u4", 0),
        peer_class=("u4", 4),
        port=("u2", 8),
        protocol=("u1", 10),
        level=("u1", 11),
    )

    table: int
    peer_class: int
    port: int  # host order, low bits beyond the prefix zero
    protocol: int  # 0 at LEVEL_ANY_PROTOCOL
    level: int

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.table, self.peer_class, self.port, self.protocol, self.level)

    @classmethod
    def unpack(cls, data: Data) -> "PolicyKey":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


class PolicyAction(IntEnum):
    """enum policy_action."""

    ACTION_DENY = 0
    ACTION_ALLOW = 1


@dataclass(frozen=True, slots=True)
class PolicyVerdict:
    """struct policy_verdict."""

    SIZE: ClassVar[int] = 8
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=II")
    DTYPE = _Dtype(8, rule=("u4", 0), action=("u4", 4))

    rule: int
    action: int

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.rule, self.action)

    @classmethod
    def unpack(cls, data: Data) -> "PolicyVerdict":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


class ReservedRule(IntEnum):
    """enum reserved_rule: Rules below 256 name decisions that no policy object makes."""

    RULE_DEFAULT_DENY = 0  # isolated, and nothing allows it
    RULE_NO_POLICY = 1  # no policy isolates the endpoint
    RULE_NODE = 2  # from or to the endpoint's own node
    RULE_SELF = 3  # the pod to itself
    RULE_REPLY = 4  # a reply
    RULE_RELATED = 5  # an ICMP error about a known connection
    RULE_INIT = 6  # the pod's labels are not known yet
    RULE_CONTROL = 7  # neighbour discovery, ARP, MLD


@dataclass(frozen=True, slots=True)
class CtKey:
    """struct ct_key: ct: one entry per endpoint and connection, seen from the endpoint, so that
    both directions of a packet find it by one look-up; the local address is the endpoint's
    own.
    """

    SIZE: ClassVar[int] = 28
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=16sIHHB3x")
    DTYPE = _Dtype(
        28,
        remote=(("u1", 16), 0),
        endpoint=("u4", 16),
        local_port=("u2", 20),
        remote_port=("u2", 22),
        protocol=("u1", 24),
    )

    remote: bytes
    endpoint: int
    local_port: int  # network order
    remote_port: int
    protocol: int

    def __post_init__(self) -> None:
        _need("remote", self.remote, 16)

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(
            self.remote, self.endpoint, self.local_port, self.remote_port, self.protocol
        )

    @classmethod
    def unpack(cls, data: Data) -> "CtKey":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


class CtFlag(IntEnum):
    """enum ct_flag."""

    CT_INGRESS = 1  # the remote side opened it; else the endpoint did
    CT_VIA_STACK = 2  # opened through the node's stack; replies too
    CT_SEEN_REPLY = 4
    CT_FIN_ORIGINAL = 8
    CT_FIN_REPLY = 16
    CT_RST = 32
    CT_DENIED = 64  # what the verdict was, looked up again under this epoch


class Origin(IntEnum):
    """enum origin: Who sent the packets that opened an ingress connection."""

    ORIGIN_ADDRESS = 0  # from outside: the address is all there is
    ORIGIN_UNKNOWN = 2147483646  # from outside, source translated here
    ORIGIN_NODE = 2147483647  # the node's own stack


@dataclass(frozen=True, slots=True)
class CtEntry:
    """struct ct_entry."""

    SIZE: ClassVar[int] = 48
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=QIIQQIIII")
    DTYPE = _Dtype(
        48,
        epoch=("u8", 0),
        seen=("u4", 8),
        flags=("u4", 12),
        bytes=(("u8", 2), 16),
        packets=(("u4", 2), 32),
        rule=("u4", 40),
        origin=("u4", 44),
    )

    epoch: int  # policy epoch that the verdict was read under
    seen: int  # CLOCK_MONOTONIC_COARSE, s, of the last packet
    flags: int  # enum ct_flag
    bytes: tuple[int, int]  # original direction, reply direction
    packets: tuple[int, int]  # the same; they wrap around
    rule: int  # that allowed it
    origin: int  # ingress: enum origin or an endpoint id

    def pack(self) -> builtins.bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(
            self.epoch, self.seen, self.flags, *self.bytes, *self.packets, self.rule, self.origin
        )

    @classmethod
    def unpack(cls, data: Data) -> "CtEntry":
        """Reverse of ``pack``."""
        values = cls.FORMAT.unpack(data)
        return cls(
            values[0],
            values[1],
            values[2],
            (values[3], values[4]),
            (values[5], values[6]),
            values[7],
            values[8],
        )


@dataclass(frozen=True, slots=True)
class FragmentKey:
    """struct fragment_key: fragments: what the first fragment said, for those that follow."""

    SIZE: ClassVar[int] = 44
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=16s16sIIBB2x")
    DTYPE = _Dtype(
        44,
        source=(("u1", 16), 0),
        destination=(("u1", 16), 16),
        id=("u4", 32),
        ifindex=("u4", 36),
        protocol=("u1", 40),
        direction=("u1", 41),
    )

    source: bytes
    destination: bytes
    id: int
    ifindex: int  # where it was seen
    protocol: int
    direction: int  # 0: ingress hook of that device, 1: egress hook

    def __post_init__(self) -> None:
        _need("source", self.source, 16)
        _need("destination", self.destination, 16)

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(
            self.source, self.destination, self.id, self.ifindex, self.protocol, self.direction
        )

    @classmethod
    def unpack(cls, data: Data) -> "FragmentKey":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


@dataclass(frozen=True, slots=True)
class Fragment:
    """struct fragment."""

    SIZE: ClassVar[int] = 16
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=QHHHBB")
    DTYPE = _Dtype(
        16,
        seen=("u8", 0),
        source_port=("u2", 8),
        destination_port=("u2", 10),
        end=("u2", 12),
        icmp_type=("u1", 14),
        protocol=("u1", 15),
    )

    seen: int  # CLOCK_MONOTONIC_COARSE, ns
    source_port: int  # network order; as parsed, for ICMP too
    destination_port: int
    end: int  # bytes of payload that the first fragment covers
    icmp_type: int
    protocol: int

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(
            self.seen,
            self.source_port,
            self.destination_port,
            self.end,
            self.icmp_type,
            self.protocol,
        )

    @classmethod
    def unpack(cls, data: Data) -> "Fragment":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


class Direction(IntEnum):
    """enum direction."""

    DIRECTION_UNKNOWN = 0
    DIRECTION_INGRESS = 1
    DIRECTION_EGRESS = 2


class DropReason(IntEnum):
    """enum drop_reason: Numbers and meaning as in the flow API; only ever appended to."""

    REASON_FORWARDED = 0
    DROP_INVALID_SOURCE_MAC = 130
    DROP_INVALID_SOURCE_IP = 132
    DROP_POLICY_DENIED = 133
    DROP_INVALID_PACKET = 134
    DROP_CT_INVALID_HEADER = 135
    DROP_UNSUPPORTED_L3 = 139
    DROP_CT_INSERTION_FAILED = 155
    DROP_INVALID_EXTENSION_HEADER = 156
    DROP_NO_ENDPOINT_POLICY = 165
    DROP_FIB_LOOKUP_FAILED = 169
    DROP_FRAGMENT_NOT_FOUND = 175
    DROP_FORBIDDEN_ICMP6 = 176
    DROP_POLICY_DENY_RULE = 181
    DROP_VLAN_FILTERED = 182
    DROP_ENDPOINT_NOT_READY = 203


class MetricsSize(IntEnum):
    """enum metrics_size: metrics: per CPU, index = direction * 256 + enum drop_reason."""

    METRICS_ENTRIES = 768


@dataclass(frozen=True, slots=True)
class Traffic:
    """struct traffic."""

    SIZE: ClassVar[int] = 16
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=QQ")
    DTYPE = _Dtype(16, packets=("u8", 0), bytes=("u8", 8))

    packets: int
    bytes: int

    def pack(self) -> builtins.bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.packets, self.bytes)

    @classmethod
    def unpack(cls, data: Data) -> "Traffic":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


class Counter(IntEnum):
    """enum counter: counters: per CPU, one u64 each."""

    COUNTER_EVENTS_LOST = 0
    COUNTER_CT_OVERFLOW = 1  # new connections kept in the overflow table
    COUNTER_CT_CREATED = 2
    COUNTER_CT_REVALIDATED = 3
    COUNTERS = 8


class EventType(IntEnum):
    """enum event_type."""

    EVENT_DROP = 1
    EVENT_TRACE = 4  # a new connection
    EVENT_POLICY_VERDICT = 5


class Observation(IntEnum):
    """enum observation: Where a packet was seen or sent on; numbers of the flow API's sub-types."""

    OBSERVE_TO_ENDPOINT = 0
    OBSERVE_TO_HOST = 2
    OBSERVE_TO_STACK = 3
    OBSERVE_FROM_ENDPOINT = 5
    OBSERVE_FROM_NETWORK = 10
    OBSERVE_TO_NETWORK = 11


class EventFlag(IntEnum):
    """enum event_flag."""

    EVENT_ALLOWED = 1
    EVENT_REPLY = 2
    EVENT_FRAGMENT = 4


@dataclass(frozen=True, slots=True)
class Event:
    """struct event."""

    SIZE: ClassVar[int] = 96
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=Q16s16sIIIIIIHHBBBBBBBBBB6s6s6x")
    DTYPE = _Dtype(
        96,
        time=("u8", 0),
        source=(("u1", 16), 8),
        destination=(("u1", 16), 24),
        length=("u4", 40),
        rule=("u4", 44),
        endpoint=("u4", 48),
        source_identity=("u4", 52),
        destination_identity=("u4", 56),
        ifindex=("u4", 60),
        source_port=("u2", 64),
        destination_port=("u2", 66),
        type=("u1", 68),
        reason=("u1", 69),
        direction=("u1", 70),
        observation=("u1", 71),
        flags=("u1", 72),
        ip_version=("u1", 73),
        protocol=("u1", 74),
        tcp_flags=("u1", 75),
        icmp_type=("u1", 76),
        icmp_code=("u1", 77),
        source_mac=(("u1", 6), 78),
        destination_mac=(("u1", 6), 84),
    )

    time: int  # CLOCK_MONOTONIC, ns
    source: bytes
    destination: bytes
    length: int  # bytes on the wire, with the Ethernet header
    rule: int  # of a verdict or a policy drop
    endpoint: int  # whose policy or whose packet it is
    source_identity: int
    destination_identity: int
    ifindex: int
    source_port: int  # network order
    destination_port: int
    type: int  # enum event_type
    reason: int  # enum drop_reason
    direction: int  # enum direction
    observation: int  # enum observation
    flags: int  # enum event_flag
    ip_version: int  # 4, 6, or 0: not IP
    protocol: int
    tcp_flags: int
    icmp_type: int
    icmp_code: int
    source_mac: bytes
    destination_mac: bytes

    def __post_init__(self) -> None:
        _need("source", self.source, 16)
        _need("destination", self.destination, 16)
        _need("source_mac", self.source_mac, 6)
        _need("destination_mac", self.destination_mac, 6)

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(
            self.time,
            self.source,
            self.destination,
            self.length,
            self.rule,
            self.endpoint,
            self.source_identity,
            self.destination_identity,
            self.ifindex,
            self.source_port,
            self.destination_port,
            self.type,
            self.reason,
            self.direction,
            self.observation,
            self.flags,
            self.ip_version,
            self.protocol,
            self.tcp_flags,
            self.icmp_type,
            self.icmp_code,
            self.source_mac,
            self.destination_mac,
        )

    @classmethod
    def unpack(cls, data: Data) -> "Event":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


class ScratchSize(IntEnum):
    """enum scratch_size: scratch: per CPU, working memory of a program run; its contents are
    the programs' own (bpf/lib/scratch.h).
    """

    SCRATCH_BYTES = 512


@dataclass(frozen=True, slots=True)
class Config:
    """struct config: config: one entry."""

    SIZE: ClassVar[int] = 16
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=III4x")
    DTYPE = _Dtype(16, probe_mark=("u4", 0), probe_priority=("u4", 4), trace=("u4", 8))

    probe_mark: int  # never 0
    probe_priority: int
    trace: int  # 1: events for new connections and allowed verdicts too

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.probe_mark, self.probe_priority, self.trace)

    @classmethod
    def unpack(cls, data: Data) -> "Config":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


class ProbeAnswer(IntEnum):
    """enum probe_answer: Indexes of __sk_buff.cb in the answer to a probe."""

    PROBE_EGRESS_RULE = 0
    PROBE_INGRESS_RULE = 1
    PROBE_DECIDED = 2  # bits: enum probe_bit
    PROBE_REASON = 3  # enum drop_reason


class ProbeBit(IntEnum):
    """enum probe_bit."""

    PROBE_EGRESS_DECIDED = 1
    PROBE_EGRESS_ALLOWED = 2
    PROBE_INGRESS_DECIDED = 4
    PROBE_INGRESS_ALLOWED = 8


class NumberKind(IntEnum):
    """enum number_kind: numbers: agent only; what a number means, so that a new agent adopts it."""

    NUMBER_CLASS = 1
    NUMBER_TABLE = 2
    NUMBER_RULE = 3


@dataclass(frozen=True, slots=True)
class NumberKey:
    """struct number_key."""

    SIZE: ClassVar[int] = 8
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=II")
    DTYPE = _Dtype(8, kind=("u4", 0), number=("u4", 4))

    kind: int
    number: int

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.kind, self.number)

    @classmethod
    def unpack(cls, data: Data) -> "NumberKey":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))
