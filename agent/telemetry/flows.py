# SPDX-License-Identifier: Apache-2.0
"""From raw records to named flows, the last of them kept, and readers served.

The hub runs in the reader's thread. Names come from a snapshot that the owner thread
replaces as a whole, so no lock is shared with it. Readers have bounded queues: a slow
one loses flows, is told how many, and slows nobody else.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final

from agent.core.flow import (
    IDENTITY_HOST,
    LOST_OBSERVER_QUEUE,
    LOST_RING_BUFFER,
    RESERVED_RULE_NAMES,
    Direction,
    Flow,
    FlowEvent,
    FlowFilter,
    FlowsLost,
    FlowType,
    IPAddress,
    Party,
    PolicyName,
)
from agent.core.views import Busy
from agent.telemetry.decode import DecodeError, decode

RING_FLOWS: Final = 4096
QUEUE_FLOWS: Final = 4096
MAX_SUBSCRIBERS: Final = 16
_LOSS_CHECK_NS: Final = 1_000_000_000
POLICY_DENIED: Final = 133
POLICY_DENY_RULE: Final = 181
_RULE_REASONS: Final = frozenset({POLICY_DENIED, POLICY_DENY_RULE})
_V4_MAPPED: Final = bytes(10) + b"\xff\xff"


@dataclass(frozen=True, slots=True)
class Names:
    """What numbers and addresses mean now. The mappings must never change once given.

    `endpoints` and `addresses` (16 bytes, IPv4 mapped) give (namespace, pod); `identities`
    the labels as `key=value`; `rules` the policy rule of a rule number.
    """

    endpoints: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    addresses: Mapping[bytes, tuple[str, str]] = field(default_factory=dict)
    identities: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    rules: Mapping[int, PolicyName] = field(default_factory=dict)

    def decided_by(self, rule: int) -> tuple[str, PolicyName | None]:
        """Who a rule number stands for, in words, and the rule if a policy has it."""
        if rule in RESERVED_RULE_NAMES:
            return RESERVED_RULE_NAMES[rule], None
        policy = self.rules.get(rule)
        return (f"rule {rule}", None) if policy is None else (str(policy), policy)

    def resolve(self, event: FlowEvent, unix_offset_ns: int) -> Flow:
        """`event` with names. `unix_offset_ns` is wall-clock time minus CLOCK_MONOTONIC."""
        decided, policy = "", None
        if event.type is not FlowType.DROP or event.reason in _RULE_REASONS:
            decided, policy = self.decided_by(event.rule)
        # The endpoint's own end is known by its device, whatever the address claims.
        own_source = event.direction is Direction.EGRESS
        own_destination = event.direction is Direction.INGRESS
        return Flow(
            event=event,
            time_unix_ns=event.time_ns + unix_offset_ns,
            source=self._party(event, event.source, event.source_identity, own_source),
            destination=self._party(
                event, event.destination, event.destination_identity, own_destination
            ),
            decided_by=decided,
            policy=policy,
        )

    def _party(
        self, event: FlowEvent, address: IPAddress | None, identity: int, own: bool
    ) -> Party:
        pod = self.endpoints.get(event.endpoint) if own else None
        if pod is None and address is not None and identity != IDENTITY_HOST:
            pod = self.addresses.get(_key(address))
        namespace, name = pod or ("", "")
        return Party(namespace, name, self.identities.get(identity, ()))


class Subscription:
    """One reader's queue; made by FlowHub.subscribe. See agent.core.flow.FlowSubscription."""

    def __init__(
        self,
        wanted: FlowFilter,
        follow: bool,
        capacity: int,
        leave: Callable[[Subscription], None],
    ) -> None:
        self._wanted = wanted
        self._capacity = capacity
        self._leave = leave
        self._queue: deque[Flow | FlowsLost] = deque()
        self._lost = 0
        self._ended = not follow
        self._changed = threading.Condition()

    def offer(self, flows: list[Flow]) -> int:
        """Queues those that match; the number that found no room."""
        wanted = [flow for flow in flows if self._wanted.matches(flow)]
        if not wanted:
            return 0
        with self._changed:
            room = max(self._capacity - len(self._queue), 0)
            taken = wanted[:room]
            if taken:
                self._report_loss()
                self._queue.extend(taken)
            lost = len(wanted) - len(taken)
            self._lost += lost
            self._changed.notify()
        return lost

    def offer_lost(self, lost: FlowsLost) -> None:
        """Tells of a loss before the queue; never refused, as it is rare."""
        with self._changed:
            self._queue.append(lost)
            self._changed.notify()

    def next(self, timeout: float) -> list[Flow | FlowsLost] | None:
        """See FlowSubscription."""
        with self._changed:
            if not self._queue and not self._lost and not self._ended:
                self._changed.wait(timeout)
            self._report_loss()
            if not self._queue and self._ended:
                return None
            items = list(self._queue)
            self._queue.clear()
        return items

    def close(self) -> None:
        """See FlowSubscription."""
        self._leave(self)
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _report_loss(self) -> None:
        # In its place: after what was queued before the loss, before what comes next.
        if self._lost:
            self._queue.append(FlowsLost(LOST_OBSERVER_QUEUE, self._lost))
            self._lost = 0


@dataclass(slots=True)
class HubCounters:
    """Written by the reader's thread alone; monotonic."""

    flows: int = 0
    undecodable: int = 0
    queue_lost: int = 0


class FlowHub:
    """Names flows, keeps the last `size`, and hands them to subscribers.

    `handle` belongs to the reader's thread; everything else may be called from any.
    `kernel_lost` reads the kernel's counter of lost events; it is asked at most once a
    second, and only while events come. Clocks are in ns: wall, and CLOCK_MONOTONIC.
    """

    def __init__(
        self,
        *,
        wall_ns: Callable[[], int],
        monotonic_ns: Callable[[], int],
        kernel_lost: Callable[[], int],
        size: int = RING_FLOWS,
        queue: int = QUEUE_FLOWS,
    ) -> None:
        self.counters = HubCounters()
        self.names = Names()
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._kernel_lost = kernel_lost
        self._lost_seen: int | None = None
        self._lost_checked = 0
        self._queue = queue
        self._ring: deque[Flow] = deque(maxlen=size)
        self._subscribers: tuple[Subscription, ...] = ()
        # Guards the ring and the tuple of subscribers against each other, so that a
        # subscriber gets every flow once: from the ring or from its queue.
        self._lock = threading.Lock()

    @property
    def readers(self) -> int:
        """How many follow the flows now."""
        return len(self._subscribers)

    def set_names(self, names: Names) -> None:
        """Replaces the snapshot; flows already named keep their names."""
        self.names = names

    def handle(self, records: list[bytes]) -> None:
        """Decodes, names and delivers one batch. Garbage is counted and skipped."""
        names = self.names
        now = self._monotonic_ns()
        offset = self._wall_ns() - now
        flows = []
        for record in records:
            try:
                flows.append(names.resolve(decode(record), offset))
            except DecodeError:
                self.counters.undecodable += 1
        lost = self._new_kernel_losses(now)
        with self._lock:
            self._ring.extend(flows)
            subscribers = self._subscribers
            for subscriber in subscribers:
                if lost:
                    subscriber.offer_lost(FlowsLost(LOST_RING_BUFFER, lost))
                self.counters.queue_lost += subscriber.offer(flows)
        self.counters.flows += len(flows)

    def subscribe(self, wanted: FlowFilter, last: int, follow: bool) -> Subscription:
        """A queue that begins with up to `last` recorded flows that match. Raises Busy."""
        subscription = Subscription(wanted, follow, max(self._queue, last), self._leave)
        with self._lock:
            if follow and len(self._subscribers) >= MAX_SUBSCRIBERS:
                raise Busy(f"{MAX_SUBSCRIBERS} readers follow the flows already: stop one")
            if last > 0:
                matching = [flow for flow in self._ring if wanted.matches(flow)]
                subscription.offer(matching[-last:])
            if follow:
                self._subscribers = (*self._subscribers, subscription)
        return subscription

    def _leave(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscribers = tuple(s for s in self._subscribers if s is not subscription)

    def _new_kernel_losses(self, now: int) -> int:
        if self._lost_seen is not None and now - self._lost_checked < _LOSS_CHECK_NS:
            return 0
        self._lost_checked = now
        total = self._kernel_lost()
        # Before the first look nobody was listening.
        new = 0 if self._lost_seen is None else max(total - self._lost_seen, 0)
        self._lost_seen = total
        return new


def _key(address: IPAddress) -> bytes:
    if isinstance(address, IPv4Address):
        return _V4_MAPPED + address.packed
    return address.packed
