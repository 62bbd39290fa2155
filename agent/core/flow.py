# SPDX-License-Identifier: Apache-2.0
"""What the datapath saw, as values: an event of the kernel, and a flow with names.

Numbers (event types, verdicts, drop reasons, observation points) are those of the
flow API (the "Hubble" API), so that they can be served unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Protocol

IPAddress = IPv4Address | IPv6Address

PROTOCOL_NAMES: Final = {1: "ICMPv4", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}
PORT_PROTOCOLS: Final = frozenset({6, 17, 132})
"""Protocols whose port numbers mean something to a reader."""

TCP_FLAG_NAMES: Final = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
"""By bit, lowest first (RFC 9293, section 3.1)."""

IDENTITY_HOST: Final = 1
RESERVED_IDENTITY_NAMES: Final = {
    0: "unknown",
    1: "host",
    2: "world",
    3: "unmanaged",
    4: "health",
    5: "init",
    6: "remote-node",
    7: "kube-apiserver",
    8: "ingress",
    9: "world-ipv4",
    10: "world-ipv6",
}

RESERVED_RULE_NAMES: Final = {
    0: "default deny",
    1: "no policy",
    2: "node",
    3: "self",
    4: "reply",
    5: "related",
    6: "init",
    7: "control",
}
"""Decisions that no policy object makes (layout.h, enum reserved_rule)."""

DROP_REASON_NAMES: Final = {
    130: "Invalid source mac",
    131: "Invalid destination mac",
    132: "Invalid source ip",
    133: "Policy denied",
    134: "Invalid packet",
    135: "CT: Truncated or invalid header",
    136: "CT: Missing TCP ACK flag",
    137: "CT: Unknown L4 protocol",
    138: "CT: Can't create entry from packet",
    139: "Unsupported L3 protocol",
    141: "Error while writing to packet",
    142: "Unknown L4 protocol",
    147: "Error retrieving tunnel key",
    150: "Unknown L3 target address",
    151: "Stale or unroutable IP",
    152: "No matching local container found",
    155: "CT: Map insertion failed",
    156: "Invalid IPv6 extension header",
    157: "IP fragmentation not supported",
    158: "Service backend not found",
    160: "No tunnel/encapsulation endpoint",
    164: "Local host is unreachable",
    165: "No configuration available to perform policy decision",
    166: "Unsupported L2 protocol",
    167: "No mapping for NAT masquerade",
    168: "Unsupported protocol for NAT masquerade",
    169: "FIB lookup failed",
    171: "Invalid identity",
    172: "Unknown sender",
    175: "First logical datagram fragment not found",
    176: "Forbidden ICMPv6 message",
    181: "Policy denied by denylist",
    182: "VLAN traffic disallowed by VLAN filter",
    183: "Invalid VNI",
    196: "TTL exceeded",
    202: "Host datapath not ready",
    203: "Endpoint policy program not available",
}
"""Texts of the flow API for the reasons that a program of ours can give."""

OBSERVATION_NAMES: Final = {
    0: "to-endpoint",
    2: "to-host",
    3: "to-stack",
    4: "to-overlay",
    5: "from-endpoint",
    7: "from-host",
    8: "from-stack",
    9: "from-overlay",
    10: "from-network",
    11: "to-network",
    64: "to-socket",
}


class FlowType(IntEnum):
    """What kind of event this is."""

    DROP = 1
    TRACE = 4
    POLICY_VERDICT = 5


class Direction(IntEnum):
    """Direction of a packet seen from the endpoint whose policy it meets."""

    UNKNOWN = 0
    INGRESS = 1
    EGRESS = 2


class Verdict(IntEnum):
    """What happened to the packet."""

    FORWARDED = 1
    DROPPED = 2


def drop_reason_name(reason: int) -> str:
    """Text of a drop reason; an unknown one (a newer program's) keeps its number."""
    return DROP_REASON_NAMES.get(reason, f"Unknown reason {reason}")


def observation_name(observation: int) -> str:
    """Text of an observation point, as the flow API names sub-types of traces."""
    return OBSERVATION_NAMES.get(observation, f"point-{observation}")


def protocol_name(protocol: int) -> str:
    """`TCP`, `UDP`, ... or the number."""
    return PROTOCOL_NAMES.get(protocol, str(protocol))


def tcp_flag_names(flags: int) -> tuple[str, ...]:
    """Names of the bits set in the TCP flags octet, lowest bit first."""
    return tuple(name for bit, name in enumerate(TCP_FLAG_NAMES) if flags & (1 << bit))


@dataclass(frozen=True, slots=True)
class FlowEvent:
    """One event as the kernel wrote it, decoded (layout.h, struct event).

    `time_ns` is CLOCK_MONOTONIC. Addresses are None when the packet is not IP. `rule`
    means something for verdicts and policy drops only. `reason` is 0 for what was
    forwarded. Ports are host order; both are 0 where the protocol has none.
    """

    time_ns: int
    type: FlowType
    verdict: Verdict
    reason: int
    direction: Direction
    observation: int
    source: IPAddress | None
    destination: IPAddress | None
    protocol: int
    source_port: int
    destination_port: int
    tcp_flags: int
    icmp_type: int
    icmp_code: int
    source_identity: int
    destination_identity: int
    rule: int
    endpoint: int
    ifindex: int
    length: int
    reply: bool
    fragment: bool
    source_mac: bytes
    destination_mac: bytes


@dataclass(frozen=True, slots=True)
class PolicyName:
    """A rule of a policy: `index` counts the rules of that direction from 0."""

    kind: str
    namespace: str
    name: str
    direction: Direction
    index: int

    def __str__(self) -> str:
        """`ns/name`, or the bare name of a cluster-wide policy."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True)
class Party:
    """One end of a flow. `namespace` and `pod` are empty when it is not a known pod."""

    namespace: str
    pod: str
    labels: tuple[str, ...]

    @property
    def name(self) -> str:
        """`ns/pod`, or empty."""
        return f"{self.namespace}/{self.pod}" if self.pod else ""


@dataclass(frozen=True, slots=True)
class Flow:
    """An event with everything named that was known when it was read.

    `time_unix_ns` is wall-clock time. `decided_by` is the policy (`ns/name`) or the
    reserved decision (`default deny`, `no policy`, ...), empty where no policy decided;
    `policy` names the rule when it is one of a policy object.
    """

    event: FlowEvent
    time_unix_ns: int
    source: Party
    destination: Party
    decided_by: str
    policy: PolicyName | None


@dataclass(frozen=True, slots=True)
class FlowsLost:
    """`count` events that a reader will never see; `source` says where they were lost."""

    source: str
    count: int


LOST_RING_BUFFER: Final = "PERF_EVENT_RING_BUFFER"
"""The kernel found the ring buffer full."""
LOST_OBSERVER_QUEUE: Final = "OBSERVER_EVENTS_QUEUE"
"""Read from the kernel, but not delivered to this subscriber, which was too slow."""
LOST_UNREADABLE: Final = "UNKNOWN_LOST_EVENT_SOURCE"
"""Read from the kernel, but nothing could be made of it."""


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """Which flows a reader wants: an empty set means any; all given sets must match.

    `pods` holds `ns/name-prefix`, `ns/` (all of a namespace) or a bare prefix, which
    means namespace `default`, as the flow API has it; either end may match.
    """

    types: frozenset[FlowType] = frozenset()
    verdicts: frozenset[Verdict] = frozenset()
    pods: tuple[str, ...] = ()

    def matches(self, flow: Flow) -> bool:
        """True when the reader wants this flow."""
        if self.types and flow.event.type not in self.types:
            return False
        if self.verdicts and flow.event.verdict not in self.verdicts:
            return False
        return not self.pods or any(
            _pod_matches(pattern, party)
            for pattern in self.pods
            for party in (flow.source, flow.destination)
        )


class FlowSubscription(Protocol):
    """A reader's bounded queue. Closing it twice is harmless."""

    def next(self, timeout: float) -> list[Flow | FlowsLost] | None:
        """What came since the last call, waiting up to `timeout` seconds for something.

        An empty list means nothing came; None that the stream has ended.
        """
        ...

    def close(self) -> None:
        """Stop receiving."""
        ...


def _pod_matches(pattern: str, party: Party) -> bool:
    if not party.pod:
        return False
    namespace, slash, prefix = pattern.partition("/")
    if not slash:
        namespace, prefix = "default", pattern
    return (not namespace or namespace == party.namespace) and party.pod.startswith(prefix)
