# SPDX-License-Identifier: Apache-2.0
"""All metrics, computed at the moment somebody asks; nothing is kept or polled.

Counters of the kernel are exact and monotonic as long as the pinned maps live, also
over restarts of the agent. prometheus_client is only imported when it is served
(exposition.py): the `Metrics` call of the agent's socket needs none of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Literal, Protocol, TypeAlias

from agent.core.flow import (
    LOST_OBSERVER_QUEUE,
    LOST_RING_BUFFER,
    LOST_UNREADABLE,
    Direction,
    drop_reason_name,
)
from agent.core.views import (
    AgentStatus,
    EndpointInfo,
    IdentityInfo,
    MetricLabel,
    MetricSample,
)
from bpf.layouts import Counter as KernelCounter
from bpf.layouts import (
    SocketCounter,
    SocketOutcome,
    SocketTraffic,
    SocketTrafficKey,
    StackReason,
)

PREFIX: Final = "bristle_"
Labels: TypeAlias = tuple[str, ...]
"""Values of a sample's labels, in the order of its family's label names."""
_REASONS: Final = 256
"""The metrics array has one row of this many reasons per direction (layout.h)."""


class KernelCounters(Protocol):
    """The per-CPU arrays, summed over CPUs. Reading them may fail with OSError."""

    def traffic(self) -> Sequence[tuple[int, int]]:
        """(packets, bytes) by index direction * 256 + reason."""
        ...

    def counters(self) -> Sequence[int]:
        """By enum counter."""
        ...


@dataclass(frozen=True, slots=True)
class Family:
    """One metric with all its samples; `name` without `_total`, which counters get."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    labels: tuple[str, ...] = ()
    values: Mapping[Labels, float] = field(default_factory=dict)

    def samples(self) -> Iterator[MetricSample]:
        """As the `Metrics` call returns them."""
        name = f"{self.name}_total" if self.kind == "counter" else self.name
        for values, number in self.values.items():
            labels = map(MetricLabel, self.labels, values)
            yield MetricSample(name, float(number), tuple(labels))


def _counter(
    name: str, text: str, labels: tuple[str, ...], values: Mapping[Labels, float]
) -> Family:
    return Family(PREFIX + name, "counter", text, labels, values)


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Mapping[Labels, float]) -> Family:
    return Family(PREFIX + name, "gauge", text, labels, values)


def kernel_families(kernel: KernelCounters) -> list[Family]:
    """Traffic, drops and the datapath's own counters."""
    drops: dict[Labels, tuple[int, int]] = {}
    forwards: dict[Labels, tuple[int, int]] = {}
    for index, (packets, size) in enumerate(kernel.traffic()):
        number, reason = divmod(index, _REASONS)
        direction = Direction(number).name if number in (0, 1, 2) else str(number)
        if reason:
            if packets:
                drops[drop_reason_name(reason), direction] = (packets, size)
        elif packets or number:
            forwards[(direction,)] = (packets, size)
    return [*_traffic_families(drops, forwards), *_counter_families(kernel.counters())]


def _traffic_families(
    drops: Mapping[Labels, tuple[int, int]],
    forwards: Mapping[Labels, tuple[int, int]],
) -> Iterator[Family]:
    why, way = ("reason", "direction"), ("direction",)
    for unit, place in (("count", 0), ("bytes", 1)):
        what = "packets" if unit == "count" else "bytes"
        yield _counter(
            f"drop_{unit}",
            f"Dropped {what}, by reason and direction",
            why,
            {labels: pair[place] for labels, pair in drops.items()},
        )
        yield _counter(
            f"forward_{unit}",
            f"Forwarded {what}, by direction",
            way,
            {labels: pair[place] for labels, pair in forwards.items()},
        )


_COUNTERS: Final = (
    (
        KernelCounter.COUNTER_CT_OVERFLOW,
        "bpf_ct_overflow",
        "New connections that found the connection table full and are in the overflow table",
    ),
    (KernelCounter.COUNTER_CT_CREATED, "bpf_ct_created", "Connection tracking entries made"),
    (
        KernelCounter.COUNTER_CT_REVALIDATED,
        "bpf_ct_revalidated",
        "Connections whose verdict was looked up again because policy had changed",
    ),
    (KernelCounter.COUNTER_NAT_CREATED, "bpf_nat_created", "Masqueraded connections begun"),
    (
        KernelCounter.COUNTER_NAT_EXHAUSTED,
        "bpf_nat_exhausted",
        "New connections for which no free port of the node was found",
    ),
    (
        KernelCounter.COUNTER_NAT_FULL,
        "bpf_nat_full",
        "New connections for which the table of masqueraded connections had no room",
    ),
)


def _counter_families(counters: Sequence[int]) -> Iterator[Family]:
    for index, name, text in _COUNTERS:
        yield _counter(name, text, (), {(): counters[index]})


def socket_families(
    counters: Sequence[int],
    closed: Mapping[SocketTrafficKey, SocketTraffic],
    living: Mapping[SocketTrafficKey, SocketTraffic],
    stalls: int,
) -> list[Family]:
    """What socket redirect did; nothing where it is off (`counters` is empty then).

    closed: what ends that have closed had sent; living: those that have not.
    """
    if not counters:
        return []
    stack: dict[Labels, float] = {}
    ends: dict[Labels, float] = {}
    for reason in StackReason:
        if reason not in (StackReason.STACK_NONE, StackReason.STACK_REASONS):
            stack[(_word(reason, "STACK_"),)] = counters[
                SocketCounter.SOCKETS_BY_STACK_REASON + reason
            ]
    for outcome in SocketOutcome:
        if outcome != SocketOutcome.SOCKET_OUTCOMES:
            ends[(_word(outcome, "SOCKET_"),)] = counters[
                SocketCounter.SOCKETS_BY_OUTCOME + outcome
            ]
    sums: dict[Labels, list[int]] = {}
    for key, traffic in (*closed.items(), *living.items()):
        pair = (str(key.source_identity), str(key.destination_identity))
        total = sums.setdefault(pair, [0, 0])
        total[0] += traffic.bytes
        total[1] += traffic.messages
    names = ("source_identity", "destination_identity")
    first: dict[Labels, float] = {
        ("redirected",): counters[SocketCounter.SOCKETS_FIRST_DIRECT],
        ("stack",): counters[SocketCounter.SOCKETS_FIRST_STACK],
    }
    return [
        _counter("socket_redirect_bytes", "Bytes given from socket to socket", names,
                 {pair: total[0] for pair, total in sums.items()}),
        _counter("socket_redirect_messages", "Messages given from socket to socket", names,
                 {pair: total[1] for pair, total in sums.items()}),
        _counter("socket_stack_messages",
                 "Messages of sockets that take part which went by the stack, by reason",
                 ("reason",), stack),
        _counter("socket_ends", "Ends of connections of pods with redirect on, by what became of"
                 " them", ("outcome",), ends),
        _counter("socket_first_messages", "Directions of connections, by the way of their first"
                 " byte", ("way",), first),
        _counter("socket_stalls", "Connections whose receiver did not get what was redirected",
                 (), {(): stalls}),
    ]  # fmt: skip


def _word(member: IntEnum, prefix: str) -> str:
    return member.name.removeprefix(prefix).lower()


def loss_family(kernel_lost: int, queue_lost: int, unreadable: int) -> Family:
    """Events that nobody saw, by where they were lost."""
    return _counter(
        "lost_events",
        "Events lost between the kernel and their reader",
        ("source",),
        {
            (LOST_RING_BUFFER,): kernel_lost,
            (LOST_OBSERVER_QUEUE,): queue_lost,
            (LOST_UNREADABLE,): unreadable,
        },
    )


def agent_families(
    status: AgentStatus, endpoints: Sequence[EndpointInfo], identities: Sequence[IdentityInfo]
) -> list[Family]:
    """The agent's own state: endpoints, identities, policies, maps, addresses."""
    states = Counter[Labels]((endpoint.state,) for endpoint in endpoints)
    enforcement = Counter[Labels]((_enforcement(endpoint),) for endpoint in endpoints)
    for name in ("none", "ingress", "egress", "both"):
        enforcement.setdefault((name,), 0)
    used, capacity = Counter[Labels](), Counter[Labels]()
    sizes: dict[Labels, float] = {}
    for pool in status.pools:
        used[(pool.family,)] += pool.used
        sizes[(pool.family,)] = sizes.get((pool.family,), 0) + pool.capacity
    for usage in status.maps:
        group = usage.group or usage.name
        capacity[(group,)] = max(capacity[(group,)], usage.capacity)
    return [
        _gauge("agent_ready", "1 when the node's policy is in force", (), {(): status.ready}),
        _gauge("endpoint", "Endpoints of this node", (), {(): len(endpoints)}),
        _gauge("endpoint_state", "Endpoints by state", ("endpoint_state",), states),
        _gauge(
            "policy_endpoint_enforcement_status",
            "Endpoints by the directions in which policy is enforced",
            ("enforcement",),
            enforcement,
        ),
        _gauge("policy", "Policies loaded", (), {(): status.policies}),
        _gauge("policy_max_revision", "Policy revision", (), {(): status.policy_revision}),
        _gauge("policy_failed", "Policies not in force", (), {(): status.policies_failed}),
        _gauge("policy_rejected", "Documents refused", (), {(): status.rejected}),
        _gauge(
            "identity",
            "Identities by type",
            ("type",),
            Counter[Labels]((identity.type,) for identity in identities),
        ),
        _gauge(
            "bpf_map_pressure",
            "Fill of a map, 0 to 1",
            ("map_name",),
            {(u.name,): u.entries / u.capacity for u in status.maps if u.capacity},
        ),
        _gauge("bpf_map_capacity", "Entries a map can hold", ("map_group",), capacity),
        _gauge("ipam_capacity", "Addresses in the pod CIDRs", ("family",), sizes),
        _gauge("ipam_allocated", "Addresses in use", ("family",), used),
        _gauge(
            "ipam_available",
            "Addresses free",
            ("family",),
            {family: size - used[family] for family, size in sizes.items()},
        ),
    ]


def work_families(
    connections: int,
    connections_removed: int,
    repairs: int,
    delays: Mapping[str, float],
    put_back: Mapping[str, int] | None = None,
    mappings: tuple[int, int] = (0, 0),
) -> list[Family]:
    """What the agent's loop has done; `delays` in seconds, by source; `put_back` by what it was;
    `mappings` of masqueraded connections, how many there are and how many have ended."""
    return [
        _gauge("datapath_conntrack_gc_entries", "Tracked connections", (), {(): connections}),
        _counter(
            "datapath_conntrack_gc_removed",
            "Connections that ended",
            (),
            {(): connections_removed},
        ),
        _gauge("datapath_nat_gc_entries", "Masqueraded connections", (), {(): mappings[0]}),
        _counter(
            "datapath_nat_gc_removed", "Masqueraded connections that ended", (), {(): mappings[1]}
        ),
        _counter("map_repairs", "Entries found altered and repaired", (), {(): repairs}),
        _counter(
            "host_repairs",
            "Programs, pins, routes and neighbours found taken away and put back",
            ("kind",),
            {(kind,): count for kind, count in (put_back or {}).items()},
        ),
        _gauge(
            "policy_implementation_delay",
            "Seconds the last change took to be in force",
            ("source",),
            {(source,): seconds for source, seconds in delays.items()},
        ),
    ]


def _enforcement(endpoint: EndpointInfo) -> str:
    if endpoint.ingress_enforced:
        return "both" if endpoint.egress_enforced else "ingress"
    return "egress" if endpoint.egress_enforced else "none"


def samples(families: Iterable[Family]) -> tuple[MetricSample, ...]:
    """All samples of all families, as `AgentView.metrics` returns them."""
    return tuple(sample for family in families for sample in family.samples())
