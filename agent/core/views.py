# SPDX-License-Identifier: Apache-2.0
"""What the agent shows of itself: one Protocol, and the frozen values it returns.

Servers (gRPC, metrics) depend on this and never on the loop. Every value is plain
data, complete when returned and safe to read in any thread. Field names are those of
the messages in api/agent.proto: agent/rpc/convert.py maps one to the other by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from agent.core.flow import Direction, FlowFilter, FlowSubscription


class ViewError(Exception):
    """The agent cannot answer. The message names the thing and the way out."""


class NotFound(ViewError):
    """No such object."""


class InvalidQuery(ViewError):
    """The question itself is wrong: the message names the field."""


class NotReady(ViewError):
    """The agent has not yet what it takes to answer; ask again later."""


class Busy(ViewError):
    """Too many readers, or no answer in time."""


class ObjectState(IntEnum):
    """How far an object has come on its way into the kernel."""

    UNSPECIFIED = 0
    PENDING = 1
    DONE = 2
    FAILED = 3


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """A source of facts (manifest folder, API server)."""

    name: str
    synced: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that needs a human: `what` names the object, `message` the way out."""

    what: str
    message: str


@dataclass(frozen=True, slots=True)
class MapUsage:
    """A map's fill. `entries` is an estimate where the kernel does not count."""

    name: str
    entries: int
    capacity: int
    group: str = ""


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """Addresses of one pod CIDR."""

    family: str  # "ipv4" or "ipv6"
    cidr: str
    used: int
    capacity: float  # an IPv6 range has more addresses than 64 bits count


@dataclass(frozen=True, slots=True)
class SocketRedirectStatus:
    """mode: the most that is done on this node, `off`, `on` or `all`; detail: why not more.
    failed_checks: of the self-test. endpoints: how many take part. stalls: connections whose
    receiver did not get what was redirected to it."""

    enabled: bool = False
    mode: str = "off"
    detail: str = ""
    forced: bool = False
    cgroup: str = ""
    stalls: int = 0
    failed_checks: tuple[str, ...] = ()
    endpoints: int = 0


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """The whole at a glance. `ready` is what readiness probes and `status` report."""

    ready: bool
    version: str
    node_name: str
    pid: int
    uptime_seconds: float
    policy_revision: int
    policy_epoch: int
    attach_mode: str  # of uplinks, "tcx" or "clsact"; pods always use clsact
    sources: tuple[SourceStatus, ...] = ()
    problems: tuple[Problem, ...] = ()
    maps: tuple[MapUsage, ...] = ()
    pools: tuple[PoolUsage, ...] = ()
    devices: tuple[str, ...] = ()
    endpoints: int = 0
    endpoints_pending: int = 0
    endpoints_failed: int = 0
    identities: int = 0
    policies: int = 0
    policies_failed: int = 0
    rejected: int = 0
    events_lost: int = 0
    socket_redirect: SocketRedirectStatus = SocketRedirectStatus()


@dataclass(frozen=True, slots=True)
class EndpointInfo:
    """One pod on this node. `state` in the words of the field: `ready`,
    `waiting-for-identity`, `regenerating`, `not-ready`, `disconnecting`."""

    id: int
    namespace: str
    pod: str
    state: str
    status: ObjectState
    identity: int
    reason: str = ""
    labels: tuple[str, ...] = ()
    ipv4: str = ""
    ipv6: str = ""
    mac: str = ""
    device: str = ""
    ifindex: int = 0
    container_id: str = ""
    ingress_enforced: bool = False
    egress_enforced: bool = False
    ingress_policies: tuple[str, ...] = ()
    egress_policies: tuple[str, ...] = ()
    ingress_table: int = 0
    egress_table: int = 0


@dataclass(frozen=True, slots=True)
class IdentityInfo:
    """A numeric identity. `type` is `reserved`, `cluster` or `cidr`."""

    number: int
    type: str
    labels: tuple[str, ...]
    references: int = 0


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """A policy that was accepted. `reason` says why it is not (yet) in force."""

    kind: str
    namespace: str
    name: str
    status: ObjectState
    reason: str = ""
    ingress_rules: int = 0
    egress_rules: int = 0
    types: tuple[str, ...] = ()
    endpoints: int = 0
    spec_json: str = ""


@dataclass(frozen=True, slots=True)
class RejectedInfo:
    """A document that was refused. `last_good` tells that its former state is in force."""

    origin: str
    document: int
    resource: str
    field: str
    message: str
    last_good: bool = False


@dataclass(frozen=True, slots=True)
class PolicyList:
    """All policies, and what did not become one."""

    revision: int
    policies: tuple[PolicyInfo, ...]
    rejected: tuple[RejectedInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class SelectorInfo:
    """A selector in use, what it selects now, and the policies that use it."""

    selector: str
    identities: tuple[int, ...]
    policies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExplainQuery:
    """`source` and `destination`: `ns/pod`, an address or a CIDR. Port 0: the protocol has none."""

    source: str
    destination: str
    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class RuleMention:
    """A rule and what it did: for the nearest rule of a deny, what of it failed."""

    policy: str
    index: int
    failed: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True, slots=True)
class KernelVerdict:
    """What the loaded program answered for such a packet; `reason` is a drop reason's text.

    `available` is False when it could not be asked; `note` says why.
    """

    available: bool
    allowed: bool = False
    decided_by: str = ""
    reason: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class DirectionVerdict:
    """One direction. `evaluated` is False when that end is no pod of this node: nothing
    here decides. `agrees` compares the model's verdict and rule with the kernel's."""

    direction: Direction
    evaluated: bool
    allowed: bool
    decided_by: str
    kernel: KernelVerdict
    agrees: bool = True
    rule: RuleMention | None = None
    nearest: RuleMention | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class ExplainParty:
    """One end as the policy sees it."""

    text: str
    address: str
    identity: int
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """Who decides about one kind of packet, in both directions."""

    source: ExplainParty
    destination: ExplainParty
    protocol: int
    port: int
    allowed: bool
    egress: DirectionVerdict
    ingress: DirectionVerdict


@dataclass(frozen=True, slots=True)
class CheckDifference:
    """One interval in which the kernel's verdict is not the model's. `where` names the
    table or map; ports are inclusive; `peer` is the peer class in words."""

    where: str
    direction: Direction
    peer: str
    protocol: int
    first_port: int
    last_port: int
    expected: str
    actual: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Result of the exhaustive comparison. Differences beyond a bound are only counted."""

    tables: int
    classes: int
    intervals: int
    difference_count: int
    differences: tuple[CheckDifference, ...] = ()


@dataclass(frozen=True, slots=True)
class NumberName:
    """What a number in the kernel's maps means."""

    number: int
    text: str


@dataclass(frozen=True, slots=True)
class NumberNames:
    """Names of everything that the maps only have numbers for."""

    rules: tuple[NumberName, ...] = ()
    tables: tuple[NumberName, ...] = ()
    classes: tuple[NumberName, ...] = ()
    endpoints: tuple[NumberName, ...] = ()
    identities: tuple[NumberName, ...] = ()


@dataclass(frozen=True, slots=True)
class MetricLabel:
    """One label of a sample."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class MetricSample:
    """One number of one metric at the time of asking."""

    name: str
    value: float
    labels: tuple[MetricLabel, ...] = ()


@dataclass(frozen=True, slots=True)
class DumpFile:
    """A file for a bug report; `name` is a relative path. Holds no secrets."""

    name: str
    content: bytes


class AgentView(Protocol):
    """The agent as its servers see it. All methods may be called from any thread, return
    promptly (a few seconds for `check`) and raise nothing but ViewError for what a
    caller can do something about."""

    def status(self) -> AgentStatus:
        """The agent at a glance; answers also while the agent is starting."""
        ...

    def endpoints(self) -> Sequence[EndpointInfo]:
        """All endpoints of this node."""
        ...

    def endpoint(self, key: str) -> EndpointInfo:
        """By id, `ns/pod`, or address. Raises NotFound."""
        ...

    def identities(self) -> Sequence[IdentityInfo]:
        """All identities known here, reserved ones too."""
        ...

    def policies(self) -> PolicyList:
        """Accepted and rejected policies."""
        ...

    def selectors(self) -> Sequence[SelectorInfo]:
        """Selectors in use by policies."""
        ...

    def explain(self, query: ExplainQuery) -> Explanation:
        """Who decides, by the naive evaluator and by the kernel. Raises InvalidQuery, NotFound."""
        ...

    def check(self, repair: bool) -> CheckReport:
        """Compare model and kernel; with `repair`, also have the differences repaired."""
        ...

    def numbers(self) -> NumberNames:
        """Names for the numbers in the kernel's maps."""
        ...

    def metrics(self) -> Sequence[MetricSample]:
        """All metrics, read now."""
        ...

    def dump(self) -> Iterable[DumpFile]:
        """State for a bug report, without secrets."""
        ...

    def monitor(self, wanted: FlowFilter, last: int, follow: bool) -> FlowSubscription:
        """Up to `last` recorded flows that match, then, with `follow`, new ones. Raises Busy."""
        ...
