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
    "CtTold",
    "CtVerdictBit",
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
    "Handshake",
    "HandshakeKey",
    "ListenerKey",
    "LocalAddress",
    "LocalKind",
    "MasqueradeKey",
    "MasqueradeSource",
    "MetricsSize",
    "NatEntry",
    "NatOrigin",
    "NatReverseKey",
    "NumberKey",
    "NumberKind",
    "Observation",
    "Origin",
    "OriginBit",
    "Peer",
    "PeerKey",
    "Place",
    "PlaceSize",
    "PolicyAction",
    "PolicyKey",
    "PolicyLevel",
    "PolicyVerdict",
    "ProbeAnswer",
    "ProbeBit",
    "RedirectConfig",
    "RedirectMode",
    "RedirectState",
    "ReservedClass",
    "ReservedIdentity",
    "ReservedRule",
    "ScratchSize",
    "ServiceKey",
    "ServiceLimit",
    "ServicePeers",
    "SocketCounter",
    "SocketEndpoint",
    "SocketFlag",
    "SocketKey",
    "SocketOutcome",
    "SocketSide",
    "SocketState",
    "SocketTraffic",
    "SocketTrafficKey",
    "SocketUse",
    "StackReason",
    "Traffic",
    "Tunnel",
    "TunnelFlag",
    "TunnelLimit",
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


class PlaceSize(IntEnum):
    """enum place_size: Slots of places for devices, and as many for ids."""

    PLACE_SLOTS = 16384


@dataclass(frozen=True, slots=True)
class Place:
    """struct place: places: slot -> the pod there: what devices and addresses say, for who
    finds it by its position, without a hash and in one cache line.
    """

    SIZE: ClassVar[int] = 64
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=II6s6sI16s24x")
    DTYPE = _Dtype(
        64,
        endpoint=("u4", 0),
        ifindex=("u4", 4),
        mac=(("u1", 6), 8),
        host_mac=(("u1", 6), 14),
        address4=("u4", 20),
        address6=(("u1", 16), 24),
    )

    endpoint: int
    ifindex: int  # host side of the pod's pair
    mac: bytes  # of the pod's end
    host_mac: bytes
    address4: int  # network order; 0: the pod has none
    address6: bytes  # all zero: the pod has none

    def __post_init__(self) -> None:
        _need("mac", self.mac, 6)
        _need("host_mac", self.host_mac, 6)
        _need("address6", self.address6, 16)

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(
            self.endpoint, self.ifindex, self.mac, self.host_mac, self.address4, self.address6
        )

    @classmethod
    def unpack(cls, data: Data) -> "Place":
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


class ServiceLimit(IntEnum):
    """enum service_limit."""

    SERVICE_PEERS = 4


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """struct service_key: service_peers: a port of a service's address -> who is behind it."""

    SIZE: ClassVar[int] = 20
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=16sHB1x")
    DTYPE = _Dtype(20, address=(("u1", 16), 0), port=("u2", 16), protocol=("u1", 18))

    address: bytes
    port: int  # network order
    protocol: int

    def __post_init__(self) -> None:
        _need("address", self.address, 16)

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.address, self.port, self.protocol)

    @classmethod
    def unpack(cls, data: Data) -> "ServiceKey":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


@dataclass(frozen=True, slots=True)
class ServicePeers:
    """struct service_peers."""

    SIZE: ClassVar[int] = 64
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=16sHB1xIIIIIIIIIHHHH")
    DTYPE = _Dtype(
        64,
        address=(("u1", 16), 0),
        service_port=("u2", 16),
        protocol=("u1", 18),
        count=("u4", 20),
        peer_class=(("u4", 4), 24),
        identity=(("u4", 4), 40),
        port=(("u2", 4), 56),
    )

    address: bytes  # The key repeated, so that a reader sees a reused element
    service_port: int
    protocol: int
    count: int
    peer_class: tuple[int, int, int, int]  # the first `count` of SERVICE_PEERS
    identity: tuple[int, int, int, int]
    port: tuple[int, int, int, int]  # of the peer, host order

    def __post_init__(self) -> None:
        _need("address", self.address, 16)

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(
            self.address,
            self.service_port,
            self.protocol,
            self.count,
            *self.peer_class,
            *self.identity,
            *self.port,
        )

    @classmethod
    def unpack(cls, data: Data) -> "ServicePeers":
        """Reverse of ``pack``."""
        values = cls.FORMAT.unpack(data)
        return cls(
            values[0],
            values[1],
            values[2],
            values[3],
            (values[4], values[5], values[6], values[7]),
            (values[8], values[9], values[10], values[11]),
            (values[12], values[13], values[14], values[15]),
        )


@dataclass(frozen=True, slots=True)
class Tunnel:
    """struct tunnel: tunnels: longest-prefix table with peer_key, addresses of other nodes and
    of their pods -> the node.
    """

    SIZE: ClassVar[int] = 40
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=16s16sII")
    DTYPE = _Dtype(
        40, remote=(("u1", 16), 0), local=(("u1", 16), 16), ifindex=("u4", 32), flags=("u4", 36)
    )

    remote: bytes  # Outer address of that node; all zero: no tunnel, along the route
    local: bytes  # of this node, towards it
    ifindex: int  # of the tunnel's device; 0: there is none now
    flags: int  # enum tunnel_flag

    def __post_init__(self) -> None:
        _need("remote", self.remote, 16)
        _need("local", self.local, 16)

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.remote, self.local, self.ifindex, self.flags)

    @classmethod
    def unpack(cls, data: Data) -> "Tunnel":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


class TunnelFlag(IntEnum):
    """enum tunnel_flag."""

    # An address that the node may send from, but perhaps not be reached at: a cloud may translate
    # it
    TUNNEL_SOURCE_ONLY = 1


class TunnelLimit(IntEnum):
    """enum tunnel_limit: The identity travels as the network identifier (VNI), which has 24
    bits; what does not fit in these is local to its node and never sent.
    """

    TUNNEL_VNI_MAX = 65535


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
    # Straight between two pods of this node: each end's entry counts what its own pod sent, and no
    # packet twice
    CT_LOCAL = 64
    CT_TUNNEL = 128  # from or to another node, through the tunnel


class Origin(IntEnum):
    """enum origin: Who sent the packets that opened an ingress connection."""

    ORIGIN_ADDRESS = 0  # from outside: the address is all there is
    ORIGIN_UNKNOWN = 2147483646  # from outside, source translated here
    ORIGIN_NODE = 2147483647  # the node's own stack


class OriginBit(IntEnum):
    """enum origin_bit: With this bit the origin is another node's tunnel, and the low 16 bits
    are the identity that it gave the sender.
    """

    ORIGIN_TUNNEL_BIT = 31


class CtVerdictBit(IntEnum):
    """enum ct_verdict_bit: The verdict in one word, so that no reader sees half of a change:
    the policy epoch that it was read under and these bits.
    """

    CT_VOUCHED_BIT = 62  # the policy at the far end allows it too
    CT_DENIED_BIT = 63


class CtTold(IntEnum):
    """enum ct_told: How old the far end's entry of a connection within the node may look, in
    bits of seconds: the first packet in each slot of that length tells it.
    """

    CT_TOLD_BITS = 4


@dataclass(frozen=True, slots=True)
class CtEntry:
    """struct ct_entry."""

    SIZE: ClassVar[int] = 48
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=QIIQQIIII")
    DTYPE = _Dtype(
        48,
        verdict=("u8", 0),
        seen=("u4", 8),
        flags=("u4", 12),
        bytes=(("u8", 2), 16),
        packets=(("u4", 2), 32),
        rule=("u4", 40),
        far_end=("u4", 44),
    )

    verdict: int  # epoch and enum ct_verdict_bit
    seen: int  # CLOCK_MONOTONIC_COARSE, s, of the last packet
    flags: int  # enum ct_flag
    bytes: tuple[int, int]  # original direction, reply direction
    packets: tuple[int, int]  # the same; they wrap around
    rule: int  # that allowed it
    # ingress: who opened it, enum origin or an endpoint id; egress: the endpoint that the verdict
    # vouches for
    far_end: int

    def pack(self) -> builtins.bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(
            self.verdict, self.seen, self.flags, *self.bytes, *self.packets, self.rule, self.far_end
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


@dataclass(frozen=True, slots=True)
class MasqueradeKey:
    """struct masquerade_key: masquerade: what pods look like to the outside on the way out by
    an uplink.
    """

    SIZE: ClassVar[int] = 8
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=II")
    DTYPE = _Dtype(8, ifindex=("u4", 0), family=("u4", 4))

    ifindex: int
    family: int  # 4, 6

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.ifindex, self.family)

    @classmethod
    def unpack(cls, data: Data) -> "MasqueradeKey":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


@dataclass(frozen=True, slots=True)
class MasqueradeSource:
    """struct masquerade_source."""

    SIZE: ClassVar[int] = 24
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=16sIHH")
    DTYPE = _Dtype(
        24, address=(("u1", 16), 0), seed=("u4", 16), first_port=("u2", 20), last_port=("u2", 22)
    )

    address: bytes  # of the node
    seed: int  # of the choice of ports, so that nobody can guess them
    first_port: int  # host order
    last_port: int

    def __post_init__(self) -> None:
        _need("address", self.address, 16)

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.address, self.seed, self.first_port, self.last_port)

    @classmethod
    def unpack(cls, data: Data) -> "MasqueradeSource":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


@dataclass(frozen=True, slots=True)
class NatEntry:
    """struct nat_entry: nat: a pod's connection, seen from the endpoint as in ct, -> what it is
    to the outside.
    """

    SIZE: ClassVar[int] = 24
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=16sIHH")
    DTYPE = _Dtype(24, address=(("u1", 16), 0), seen=("u4", 16), port=("u2", 20), flags=("u2", 22))

    address: bytes  # of the node
    seen: int  # CLOCK_MONOTONIC_COARSE, s, of the last packet out
    port: int  # network order; of ICMP queries the identifier
    flags: int  # enum ct_flag, of packets out

    def __post_init__(self) -> None:
        _need("address", self.address, 16)

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.address, self.seen, self.port, self.flags)

    @classmethod
    def unpack(cls, data: Data) -> "NatEntry":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


@dataclass(frozen=True, slots=True)
class NatReverseKey:
    """struct nat_reverse_key: nat_reverse: the same as the outside sees it -> whose it is."""

    SIZE: ClassVar[int] = 40
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=16s16sHHB3x")
    DTYPE = _Dtype(
        40,
        remote=(("u1", 16), 0),
        address=(("u1", 16), 16),
        remote_port=("u2", 32),
        port=("u2", 34),
        protocol=("u1", 36),
    )

    remote: bytes
    address: bytes  # of the node
    remote_port: int  # network order
    port: int
    protocol: int

    def __post_init__(self) -> None:
        _need("remote", self.remote, 16)
        _need("address", self.address, 16)

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(
            self.remote, self.address, self.remote_port, self.port, self.protocol
        )

    @classmethod
    def unpack(cls, data: Data) -> "NatReverseKey":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


@dataclass(frozen=True, slots=True)
class NatOrigin:
    """struct nat_origin."""

    SIZE: ClassVar[int] = 28
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=16sIIHH")
    DTYPE = _Dtype(
        28,
        address=(("u1", 16), 0),
        endpoint=("u4", 16),
        seen=("u4", 20),
        port=("u2", 24),
        flags=("u2", 26),
    )

    address: bytes  # of the pod
    endpoint: int
    seen: int
    port: int
    flags: int  # enum ct_flag, of packets back

    def __post_init__(self) -> None:
        _need("address", self.address, 16)

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.address, self.endpoint, self.seen, self.port, self.flags)

    @classmethod
    def unpack(cls, data: Data) -> "NatOrigin":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


class RedirectMode(IntEnum):
    """enum redirect_mode."""

    REDIRECT_OFF = 0
    REDIRECT_ON = 1  # sockets that never block in a call
    REDIRECT_ALL = 2  # blocking ones too


@dataclass(frozen=True, slots=True)
class SocketEndpoint:
    """struct socket_endpoint: socket_endpoints: endpoint id -> its sockets."""

    SIZE: ClassVar[int] = 16
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=QI4x")
    DTYPE = _Dtype(16, netns=("u8", 0), mode=("u4", 8))

    netns: int  # cookie of its network namespace
    mode: int  # enum redirect_mode

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.netns, self.mode)

    @classmethod
    def unpack(cls, data: Data) -> "SocketEndpoint":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


@dataclass(frozen=True, slots=True)
class RedirectConfig:
    """struct redirect_config: redirect: one entry."""

    SIZE: ClassVar[int] = 8
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=II")
    DTYPE = _Dtype(8, enabled=("u4", 0), unread_max=("u4", 4))

    enabled: int  # 0: every message goes through the stack
    unread_max: int  # bytes that may wait in a receiver

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.enabled, self.unread_max)

    @classmethod
    def unpack(cls, data: Data) -> "RedirectConfig":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


@dataclass(frozen=True, slots=True)
class HandshakeKey:
    """struct handshake_key: What the two ends of one TCP connection have in common, and nobody
    else: the first sequence numbers, as chosen by both ends' kernel (RFC 9293, 3.4.1).
    """

    SIZE: ClassVar[int] = 8
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=II")
    DTYPE = _Dtype(8, client=("u4", 0), server=("u4", 4))

    client: int  # first sequence number of data, of who opened it
    server: int

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.client, self.server)

    @classmethod
    def unpack(cls, data: Data) -> "HandshakeKey":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


@dataclass(frozen=True, slots=True)
class SocketKey:
    """struct socket_key: sockets: SOCKHASH."""

    SIZE: ClassVar[int] = 32
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=QQIII4x")
    DTYPE = _Dtype(
        32,
        netns=("u8", 0),
        far_netns=("u8", 8),
        client=("u4", 16),
        server=("u4", 20),
        side=("u4", 24),
    )

    netns: int  # cookie of the socket's own namespace
    far_netns: int  # of the other end's
    client: int  # as struct handshake_key
    server: int
    side: int  # enum socket_side

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.netns, self.far_netns, self.client, self.server, self.side)

    @classmethod
    def unpack(cls, data: Data) -> "SocketKey":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


class SocketSide(IntEnum):
    """enum socket_side."""

    SIDE_OPENED = 1  # connect
    SIDE_ANSWERED = 2  # accept


@dataclass(frozen=True, slots=True)
class Handshake:
    """struct handshake: handshakes: handshake_key -> what the opening end says of itself; the
    other end, if it agrees, puts its own beside it.
    """

    SIZE: ClassVar[int] = 96
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=QQQQQQ16s16sHHIII")
    DTYPE = _Dtype(
        96,
        netns=("u8", 0),
        far_netns=("u8", 8),
        socket=("u8", 16),
        state=("u8", 24),
        far_socket=("u8", 32),
        far_state=("u8", 40),
        source=(("u1", 16), 48),
        destination=(("u1", 16), 64),
        source_port=("u2", 80),
        destination_port=("u2", 82),
        endpoint=("u4", 84),
        far_endpoint=("u4", 88),
        far_port=("u4", 92),
    )

    netns: int
    far_netns: int  # where it expects the other end
    socket: int  # address of its struct sock
    state: int  # of its struct socket_state
    far_socket: int  # written last by the other end; 0: it did not agree
    far_state: int
    source: bytes  # as the opening end sees the connection
    destination: bytes
    source_port: int  # network order
    destination_port: int
    endpoint: int
    far_endpoint: int
    far_port: int  # host order, of the other end

    def __post_init__(self) -> None:
        _need("source", self.source, 16)
        _need("destination", self.destination, 16)

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(
            self.netns,
            self.far_netns,
            self.socket,
            self.state,
            self.far_socket,
            self.far_state,
            self.source,
            self.destination,
            self.source_port,
            self.destination_port,
            self.endpoint,
            self.far_endpoint,
            self.far_port,
        )

    @classmethod
    def unpack(cls, data: Data) -> "Handshake":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


@dataclass(frozen=True, slots=True)
class ListenerKey:
    """struct listener_key: listeners: how the sockets of a port have been used so far."""

    SIZE: ClassVar[int] = 16
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=QHH4x")
    DTYPE = _Dtype(16, netns=("u8", 0), port=("u2", 8), side=("u2", 10))

    netns: int
    port: int  # host order, of the answering side
    side: int  # enum socket_side

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.netns, self.port, self.side)

    @classmethod
    def unpack(cls, data: Data) -> "ListenerKey":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


class SocketUse(IntEnum):
    """enum socket_use."""

    USE_UNKNOWN = 0
    USE_NEVER_BLOCKS = 1
    USE_BLOCKS = 2
    USE_SPLICES = 3
    USE_ZEROCOPY = 4


class RedirectState(IntEnum):
    """enum redirect_state."""

    REDIRECT_WAITING = 0  # nothing was sent yet
    REDIRECT_DIRECT = 1
    REDIRECT_STACK = 2
    REDIRECT_LEARNING = 3  # not in the table; only looked at


class StackReason(IntEnum):
    """enum stack_reason: Why a message went through the stack."""

    STACK_NONE = 0
    STACK_DISABLED = 1
    STACK_UNANSWERED = 2  # the other end did not agree, or not yet
    STACK_BLOCKING = 3  # the receiver may block in a call
    STACK_SPLICES = 4  # the receiver uses splice
    STACK_POLICY = 5  # not allowed under the present epoch, as far as known
    STACK_UNREAD = 6  # as much waits in the receiver as may
    STACK_DRAINING = 7  # what went before is not consumed yet
    STACK_GONE = 8  # the other end has left the table
    STACK_UNKNOWN_USE = 9  # first connection to a port: it is looked at
    STACK_REASONS = 16


class SocketOutcome(IntEnum):
    """enum socket_outcome: Why a connection of an endpoint with redirect on is none of ours;
    index of the counters after those of enum stack_reason.
    """

    SOCKET_ENTERED = 0
    SOCKET_FAR_AWAY = 1  # the other end is not on this node, or has it off
    SOCKET_BLOCKING = 2
    SOCKET_SPLICES = 3
    SOCKET_DENIED = 4  # no tracked connection allows it
    SOCKET_TABLE_FULL = 5
    SOCKET_UNKNOWN_USE = 6  # first connection to a listener
    SOCKET_REFUSED = 7  # the kernel does not take it
    SOCKET_FORGED = 8  # an address that is not of its namespace
    SOCKET_STUCK = 9  # splice met data that was redirected
    SOCKET_INTERCEPTED = 10  # answered elsewhere than was thought
    SOCKET_ZEROCOPY = 11  # completions are never told of what is redirected
    SOCKET_OUTCOMES = 16


class SocketCounter(IntEnum):
    """enum socket_counter: socket_counters: per CPU, u64."""

    SOCKETS_BY_STACK_REASON = 0  # messages, index: enum stack_reason
    SOCKETS_BY_OUTCOME = 16  # connections' ends, index: enum socket_outcome
    SOCKETS_FIRST_DIRECT = 32  # directions redirected from their first byte
    SOCKETS_FIRST_STACK = 33  # directions that began on the stack
    SOCKET_COUNTERS = 48


class SocketFlag(IntEnum):
    """enum socket_flag."""

    SOCKET_MAY_BLOCK = 1  # mode REDIRECT_ALL: its use is not looked at
    SOCKET_SPLICED = 2  # the application called splice on it
    SOCKET_SAME_NETNS = 4  # both ends in one namespace: no policy between
    SOCKET_LOOKS_ON = 8  # at how the other end, which is not in, is used
    SOCKET_LEARNT = 16  # and has seen it
    SOCKET_FAR_MAY_BLOCK = 32  # as found at the other end
    SOCKET_FAR_SPLICES = 64
    SOCKET_PARTED = 128  # its last message was redirected in part only, so far
    SOCKET_IN_VAIN = 256  # splice found nothing though redirected bytes waited
    SOCKET_USE_TOLD = 512  # how it is used itself was looked at


@dataclass(frozen=True, slots=True)
class SocketState:
    """struct socket_state: socket_states: SK_STORAGE."""

    SIZE: ClassVar[int] = 224
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=QQIIIIQQQQQQQQHHIIIIIQQQQQQQ16s16sHHIQ")
    DTYPE = _Dtype(
        224,
        netns=("u8", 0),
        far_netns=("u8", 8),
        client=("u4", 16),
        server=("u4", 20),
        side=("u4", 24),
        flags=("u4", 28),
        far_socket=("u8", 32),
        epoch=("u8", 40),
        spliced=("u8", 48),
        bytes=("u8", 56),
        messages=("u8", 64),
        read_messages=("u8", 72),
        tick=("u8", 80),
        refreshed=("u8", 88),
        state=("u2", 96),
        reason=("u2", 98),
        endpoint=("u4", 100),
        far_endpoint=("u4", 104),
        identity=("u4", 108),
        far_identity=("u4", 112),
        far_port=("u4", 116),
        far_state=("u8", 120),
        far_file_flags=("u8", 128),
        mark_messages=("u8", 136),
        mark_bytes=("u8", 144),
        stack_messages=("u8", 152),
        told_bytes=("u8", 160),
        told_messages=("u8", 168),
        source=(("u1", 16), 176),
        destination=(("u1", 16), 192),
        source_port=("u2", 208),
        destination_port=("u2", 210),
        port=("u4", 212),
        cookie=("u8", 216),
    )

    netns: int  # Its own key in `sockets`, field by field
    far_netns: int
    client: int
    server: int
    side: int
    flags: int  # enum socket_flag
    far_socket: int  # 0: not known (yet)
    epoch: int  # under which the connection was found allowed
    spliced: int  # the count of `spliced` when its receiver was looked at
    bytes: int  # sent and redirected
    messages: int
    read_messages: int  # of them: known to be read by the other end
    tick: int  # of the kernel, at the last redirected message
    refreshed: int  # CLOCK_MONOTONIC_COARSE, ns: when its entries in ct were touched
    state: int  # enum redirect_state
    reason: int  # enum stack_reason
    endpoint: int
    far_endpoint: int
    identity: int  # when the connection was opened
    far_identity: int
    far_port: int  # host order: where the other end listened
    far_state: int
    far_file_flags: int  # address of f_flags; 0: not accepted yet
    mark_messages: int  # A place in what it sent, of which it is not known yet to be read
    mark_bytes: int
    stack_messages: int
    told_bytes: int  # of bytes, already added to `socket_traffic`
    told_messages: int
    source: builtins.bytes  # as the opening end sees the connection
    destination: builtins.bytes
    source_port: int  # network order
    destination_port: int
    port: int  # host order, in `listeners`: listened at, or dialled
    cookie: int  # SO_COOKIE

    def __post_init__(self) -> None:
        _need("source", self.source, 16)
        _need("destination", self.destination, 16)

    def pack(self) -> builtins.bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(
            self.netns,
            self.far_netns,
            self.client,
            self.server,
            self.side,
            self.flags,
            self.far_socket,
            self.epoch,
            self.spliced,
            self.bytes,
            self.messages,
            self.read_messages,
            self.tick,
            self.refreshed,
            self.state,
            self.reason,
            self.endpoint,
            self.far_endpoint,
            self.identity,
            self.far_identity,
            self.far_port,
            self.far_state,
            self.far_file_flags,
            self.mark_messages,
            self.mark_bytes,
            self.stack_messages,
            self.told_bytes,
            self.told_messages,
            self.source,
            self.destination,
            self.source_port,
            self.destination_port,
            self.port,
            self.cookie,
        )

    @classmethod
    def unpack(cls, data: Data) -> "SocketState":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


@dataclass(frozen=True, slots=True)
class SocketTrafficKey:
    """struct socket_traffic_key: socket_traffic: what was redirected between two identities."""

    SIZE: ClassVar[int] = 8
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=II")
    DTYPE = _Dtype(8, source_identity=("u4", 0), destination_identity=("u4", 4))

    source_identity: int
    destination_identity: int

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.source_identity, self.destination_identity)

    @classmethod
    def unpack(cls, data: Data) -> "SocketTrafficKey":
        """Reverse of ``pack``."""
        return cls(*cls.FORMAT.unpack(data))


@dataclass(frozen=True, slots=True)
class SocketTraffic:
    """struct socket_traffic."""

    SIZE: ClassVar[int] = 24
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=QQQ")
    DTYPE = _Dtype(24, bytes=("u8", 0), messages=("u8", 8), connections=("u8", 16))

    bytes: int
    messages: int
    connections: int  # ends that have closed

    def pack(self) -> builtins.bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.bytes, self.messages, self.connections)

    @classmethod
    def unpack(cls, data: Data) -> "SocketTraffic":
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
    DROP_WRITE_FAILED = 141
    DROP_TUNNEL_KEY = 147
    DROP_NO_LOCAL_ENDPOINT = 152
    DROP_CT_INSERTION_FAILED = 155
    DROP_INVALID_EXTENSION_HEADER = 156
    DROP_NO_TUNNEL = 160
    DROP_NO_ENDPOINT_POLICY = 165
    DROP_NAT_NO_MAPPING = 167
    DROP_NAT_UNSUPPORTED_PROTOCOL = 168
    DROP_FIB_LOOKUP_FAILED = 169
    DROP_INVALID_IDENTITY = 171
    DROP_UNKNOWN_SENDER = 172
    DROP_FRAGMENT_NOT_FOUND = 175
    DROP_FORBIDDEN_ICMP6 = 176
    DROP_POLICY_DENY_RULE = 181
    DROP_VLAN_FILTERED = 182
    DROP_INVALID_VNI = 183
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
    COUNTER_NAT_CREATED = 4
    COUNTER_NAT_EXHAUSTED = 5  # no free port was found
    COUNTER_NAT_FULL = 6  # no room in the table
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
    OBSERVE_TO_OVERLAY = 4
    OBSERVE_FROM_ENDPOINT = 5
    OBSERVE_FROM_OVERLAY = 9
    OBSERVE_FROM_NETWORK = 10
    OBSERVE_TO_NETWORK = 11
    OBSERVE_TO_SOCKET = 64  # ours: from here on from socket to socket


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

    SCRATCH_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Config:
    """struct config: config: one entry."""

    SIZE: ClassVar[int] = 16
    FORMAT: ClassVar[struct.Struct] = struct.Struct("=IIII")
    DTYPE = _Dtype(
        16, probe_mark=("u4", 0), probe_priority=("u4", 4), trace=("u4", 8), tunnel_port=("u4", 12)
    )

    probe_mark: int  # never 0
    probe_priority: int
    trace: int  # 1: events for new connections and allowed verdicts too
    tunnel_port: int  # UDP, network order; 0: there is no tunnel

    def pack(self) -> bytes:
        """The bytes that the kernel sees."""
        return self.FORMAT.pack(self.probe_mark, self.probe_priority, self.trace, self.tunnel_port)

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
