# SPDX-License-Identifier: Apache-2.0
"""Policies as they are meant, after validation and defaulting.

Protocols are IP protocol numbers throughout: TCP 6, UDP 17, SCTP 132.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from identity.peers import IPBlock
from identity.selectors import EVERYTHING, Selector

TCP: Final = 6
UDP: Final = 17
SCTP: Final = 132

PROTOCOLS: Final = MappingProxyType({"TCP": TCP, "UDP": UDP, "SCTP": SCTP})
"""Protocols that a rule can name, by their spelling in the API."""

PROTOCOL_NAMES: Final = MappingProxyType({number: name for name, number in PROTOCOLS.items()})

LAST_PORT: Final = 65535


class Direction(IntEnum):
    """Numbers of `enum direction` in bpf/lib/layout.h."""

    INGRESS = 1
    EGRESS = 2

    @property
    def field(self) -> str:
        """Field of the spec that holds the rules: `ingress` or `egress`."""
        return self.name.lower()

    @property
    def peers_field(self) -> str:
        """Field of a rule that holds the peers: `from` or `to`."""
        return "from" if self is Direction.INGRESS else "to"


class ReservedRule(IntEnum):
    """Decisions that no policy object makes: `enum reserved_rule` in bpf/lib/layout.h."""

    DEFAULT_DENY = 0
    NO_POLICY = 1
    NODE = 2
    SELF = 3
    REPLY = 4
    RELATED = 5
    INIT = 6
    CONTROL = 7


class PolicyKey(NamedTuple):
    """What names a policy object. Sorting by it gives the canonical order."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, order=True)
class RuleRef:
    """What names a rule: `index` counts from 0 in its policy's list of that direction.

    Sorting gives the canonical order, in which the first rule that allows is the one named.
    """

    kind: str
    namespace: str
    name: str
    direction: Direction
    index: int

    @property
    def policy(self) -> PolicyKey:
        """The policy it is part of."""
        return PolicyKey(self.kind, self.namespace, self.name)

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name} {self.direction.field}[{self.index}]"


RuleName = RuleRef | ReservedRule
"""What can decide a packet."""


@dataclass(frozen=True, slots=True)
class PodPeer:
    """Pods by selectors on their own labels and on their namespace's labels.

    Without `namespace_selector` the policy's own namespace is meant; without `pod_selector` all
    pods of the namespaces. At least one is there.
    """

    namespace_selector: Selector | None = None
    pod_selector: Selector | None = None

    def __post_init__(self) -> None:
        if self.namespace_selector is None and self.pod_selector is None:
            raise ValueError("a pod peer needs a namespace selector or a pod selector")


@dataclass(frozen=True, slots=True)
class BlockPeer:
    """Addresses, whoever has them: pods too."""

    block: IPBlock


Peer = PodPeer | BlockPeer


@dataclass(frozen=True, slots=True)
class Port:
    """Ports of one protocol: all (`port` None), one by number or name, or `port` to `end`."""

    protocol: int
    port: int | str | None = None
    end: int | None = None

    def __str__(self) -> str:
        protocol = PROTOCOL_NAMES.get(self.protocol, str(self.protocol))
        if self.port is None:
            return f"{protocol}, every port"
        return f"{self.port}{'' if self.end is None else f'-{self.end}'}/{protocol}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule that allows. `peers` None is anybody; `ports` None is every protocol, ICMP too.

    An empty tuple would match nothing; the parser gives None for lists that are empty or absent.
    """

    peers: tuple[Peer, ...] | None = None
    ports: tuple[Port, ...] | None = None


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """A valid NetworkPolicy with its defaults filled in. Rules of a direction that is not among
    `policy_types` are kept as written but have no effect."""

    namespace: str
    name: str
    pod_selector: Selector = EVERYTHING
    policy_types: frozenset[Direction] = frozenset({Direction.INGRESS})
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    uid: str = ""
    kind: str = "NetworkPolicy"

    @property
    def key(self) -> PolicyKey:
        """Its name among all policies."""
        return PolicyKey(self.kind, self.namespace, self.name)

    def rules(self, direction: Direction) -> tuple[Rule, ...]:
        """Rules in force for a direction: none where the policy types leave it out."""
        if direction not in self.policy_types:
            return ()
        return self.ingress if direction is Direction.INGRESS else self.egress

    def ref(self, direction: Direction, index: int) -> RuleRef:
        """The name of one of its rules."""
        return RuleRef(self.kind, self.namespace, self.name, direction, index)
