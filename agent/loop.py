# SPDX-License-Identifier: Apache-2.0
"""The sole owner of the agent's state and of every write to the kernel's maps.

One thread takes events and calls from a queue, a batch at a time: applies the facts, computes what
differs, writes it, and only then answers the calls of the batch. So whoever gets an answer
knows that what was asked for is in force. Before every source has delivered its first full
state, nothing is computed and nothing is written: what a former agent left stays in force.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from agent.core.conntrack import Lifetimes
from agent.core.delta import Delta, MapDelta, PolicyDelta, differences, record_differences
from agent.core.desired import RETIRE_SECONDS, Desired
from agent.core.events import Event, PolicyRemoved, PolicyUpserted, ResourceKey
from agent.core.store import Changes, Store
from agent.kernel.datapath import AGENT_MAPS, Datapath
from agent.kernel.maps import MapError
from agent.kernel.syscall import BpfError
from identity.allocator import AllocatorError
from policy.model import NetworkPolicy

log = logging.getLogger(__name__)
T = TypeVar("T")

BATCH_LIMIT: Final = 50_000
RESYNC_SECONDS: Final = 15.0
CT_SECONDS: Final = 10.0
_QUIET_SHARE: Final = 100  # a resync that took t is not repeated before 100 t


class LoopStopped(RuntimeError):
    """The agent is ending; ask the next one."""


@dataclass(slots=True)
class _Call(Generic[T]):
    work: Callable[[], T]
    future: Future[T]
    value: T | None = None


@dataclass(slots=True)
class LoopCounters:
    """What the loop has done since it started. Read by other threads, never together."""

    transactions: int = 0
    failures: int = 0
    repaired: int = 0
    connections: int = 0
    connections_removed: int = 0
    gc_seconds: float = 0.0
    last_implementation: float = 0.0  # seconds from an event's arrival to its being in force


class Loop:
    """Create it, `adopt`, then `run` in the one thread; `post` and `call` from any other."""

    def __init__(
        self,
        store: Store,
        desired: Desired,
        datapath: Datapath,
        *,
        identity_gc: float,
        save_identities: Callable[[], None],
        on_first_sync: Callable[[], None],
        lifetimes: Lifetimes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.desired = desired
        self.datapath = datapath
        self.counters = LoopCounters()
        self.revision = 0
        self.problems: dict[str, str] = {}
        self.refused: dict[ResourceKey, str] = {}
        """Policies that are valid but cannot be put in force, with the reason."""
        self.synced = threading.Event()
        self._good: dict[ResourceKey, NetworkPolicy] = {}
        self._identity_gc = identity_gc
        self._save_identities = save_identities
        self._saved_revision = -1
        self._on_first_sync = on_first_sync
        self._lifetimes = lifetimes or Lifetimes()
        self._clock = clock
        self._queue: queue.SimpleQueue[Event | _Call[Any] | None] = queue.SimpleQueue()
        self._stopping = False
        self._full_sync_due = 0.0
        self._delete_at: float | None = None
        self._gc_due = 0.0
        self._identity_due = 0.0

    # ---- from any thread -------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Take an event of a source; returns at once."""
        self._queue.put(event)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` in the loop's thread; the future is done once what it changed is in force."""
        future: Future[T] = Future()
        if self._stopping:
            future.set_exception(LoopStopped("the agent is stopping"))
            return future
        self._queue.put(_Call(work, future))
        return future

    def call(self, work: Callable[[], T], timeout: float = 30.0) -> T:
        """`submit`, and wait. Raises what `work` or the write raised, and TimeoutError."""
        return self.submit(work).result(timeout)

    def stop(self) -> None:
        """Make `run` return after the batch it is at."""
        self._stopping = True
        self._queue.put(None)

    # ---- the loop --------------------------------------------------------------------------------

    def run(self) -> None:
        """Until `stop`. What is in the kernel then stays in force."""
        while not self._stopping:
            self._turn(self._next_batch())
        self._refuse_rest()

    def _next_batch(self) -> list[Event | _Call[Any]]:
        batch: list[Event | _Call[Any]] = []
        try:
            item = self._queue.get(timeout=max(self._next_due() - self._clock(), 0.0))
            while True:
                if item is not None:
                    batch.append(item)
                if len(batch) >= BATCH_LIMIT:
                    break
                item = self._queue.get_nowait()
        except queue.Empty:
            pass
        return batch

    def _next_due(self) -> float:
        due = [self._gc_due, self._identity_due, self._full_sync_due]
        if self._delete_at is not None:
            due.append(self._delete_at)
        return min(due) if self.store.synced else self._clock() + 1.0

    def _turn(self, batch: list[Event | _Call[Any]]) -> None:
        started = self._clock()
        calls: list[_Call[Any]] = []
        for item in batch:
            if isinstance(item, _Call):
                if item.future.set_running_or_notify_cancel():
                    try:
                        item.value = item.work()
                        calls.append(item)
                    except BaseException as error:  # the caller's to judge
                        item.future.set_exception(error)
            else:
                self.store.apply(item)
        failure = self._reconcile() if self.store.synced else None
        for call in calls:
            if failure is None:
                call.future.set_result(call.value)
            else:
                call.future.set_exception(failure)
        if batch:
            self.counters.last_implementation = self._clock() - started
        if self.store.synced:
            self._housekeeping()

    def _reconcile(self) -> Exception | None:
        """Bring the kernel in step with the facts; gives what went wrong, if anything did."""
        changes = self.store.take_changes()
        first = not self.synced.is_set()
        if not changes and not first:
            return None
        try:
            delta = self._compute(changes)
            if first:
                self.sync_whole(delete=False)
                self._on_first_sync()
                self._full_sync_due = self._clock() + RETIRE_SECONDS
            elif delta:
                self.datapath.apply(delta)
        except (MapError, BpfError, AllocatorError) as error:
            self.counters.failures += 1
            self.problems["datapath"] = str(error)
            log.error("the kernel was not brought up to date: %s", error)
            # What of it was written is found by comparison; what was in force still is.
            self._full_sync_due = self._clock() + 1.0
            return error
        self.problems.pop("datapath", None)
        self.revision += 1
        self.counters.transactions += 1
        if self.desired.retiring and self._delete_at is None:
            self._delete_at = self._clock() + RETIRE_SECONDS
        if first:
            log.info(
                "in force: %d endpoints, %d policies",
                len(self.store.endpoints),
                len(self.store.policies),
            )
            self.synced.set()
        return None

    def _compute(self, changes: Changes) -> Delta:
        delta = self.desired.update(self.store, changes, self._clock())
        if self.desired.entries > self.datapath.capacity("policy"):
            delta = self._refuse_policies(changes)
        for key in changes.policies:
            policy = self.store.policies.get(key)
            if policy is None:
                self._good.pop(key, None)
                self.refused.pop(key, None)
            elif key not in self.refused or self._good.get(key) is not policy:
                self._good[key] = policy
        return delta

    def _refuse_policies(self, changes: Changes) -> Delta:
        """The policy table would overflow: take the changed policies back, one after the other,
        until it does not. Their former state stays in force."""
        capacity = self.datapath.capacity("policy")
        merged: Delta | None = None
        for key in sorted(changes.policies, reverse=True):
            policy = self.store.policies.get(key)
            if policy is None or policy is self._good.get(key):
                continue
            wanted = self.desired.entries
            former = self._good.get(key)
            self.refused[key] = (
                f"the policy table holds {capacity} entries, and with this policy {wanted} are"
                " needed: raise bpf.policy_max, or let the policy's selectors match fewer pods"
            )
            log.error("%s is not put in force: %s", key, self.refused[key])
            self.store.apply(PolicyUpserted("", former) if former else PolicyRemoved("", key))
            self.desired.update(self.store, self.store.take_changes(), self._clock())
            self.desired.retire(float("inf"))
            if self.desired.entries <= capacity:
                break
        # Some of what the updates gave was taken back: write what is wanted now, by comparison.
        merged = self.whole_difference(delete=False)
        return merged

    # ---- comparing everything --------------------------------------------------------------------

    def whole_difference(self, delete: bool) -> Delta:
        """What makes the kernel's maps equal to what is wanted; without deletes if so asked."""
        desired, datapath = self.desired, self.datapath
        delta = Delta()
        wanted_policy = desired.policy_records()
        delta.numbers.upserts.update(desired.numbers.take_fresh())
        delta.policy = record_differences(
            bytes(wanted_policy.keys),
            bytes(wanted_policy.values),
            *datapath.policy_records(),
            12,
            8,
        )
        wanted = {
            "peers": desired.peer_writes(),
            "endpoints": desired.endpoint_writes(),
            "addresses": desired.address_writes(),
            "devices": desired.device_writes(),
        }
        for name, writes in wanted.items():
            setattr(delta, name, differences(writes, datapath.raw(name)))
        if not delete:
            delta.policy.deletes = bytearray()
            delta.peers.deletes.clear()
        return delta

    def sync_whole(self, delete: bool) -> int:
        """Compare everything with the kernel and write what differs; gives how many entries."""
        delta = self.whole_difference(delete)
        count = len(delta.policy.keys) // 12 + len(delta.policy.deletes) // 12
        for name in AGENT_MAPS:
            part: MapDelta = getattr(delta, name)
            if name != "numbers":
                count += len(part.upserts) + len(part.deletes)
        if delta:
            self.datapath.apply(delta)
            if count and not delta.verdicts:
                self.datapath.bump_epoch()
        return count

    # ---- what comes round ------------------------------------------------------------------------

    def _housekeeping(self) -> None:
        now = self._clock()
        try:
            if self._delete_at is not None and now >= self._delete_at:
                self._delete_at = None
                delta = self.desired.retire(now)
                if delta:
                    self.datapath.apply(delta)
                if self.desired.retiring:
                    self._delete_at = now + RETIRE_SECONDS
            if now >= self._full_sync_due:
                self._resync(now)
            if now >= self._gc_due:
                self._collect_connections(now)
            if now >= self._identity_due:
                self._identity_due = now + self._identity_gc
                self.desired.identities.collect(now)
            if self.desired.identities.revision != self._saved_revision:
                self._saved_revision = self.desired.identities.revision
                self._save_identities()
        except (MapError, BpfError, AllocatorError, OSError) as error:
            log.exception("housekeeping: %s", error)
            self._full_sync_due = now + RESYNC_SECONDS
            self._gc_due = max(self._gc_due, now + 1.0)

    def _resync(self, now: float) -> None:
        repaired = self.sync_whole(delete=True)
        took = self._clock() - now
        self._full_sync_due = self._clock() + max(RESYNC_SECONDS, took * _QUIET_SHARE)
        if repaired:
            self.counters.repaired += repaired
            log.warning(
                "%d entries of the kernel's maps were not as they should be; repaired", repaired
            )

    def _collect_connections(self, now: float) -> None:
        seen, removed = self.datapath.collect_connections(
            set(self.store.endpoints), self._lifetimes
        )
        took = self._clock() - now
        self.counters.connections = seen - removed
        self.counters.connections_removed += removed
        self.counters.gc_seconds += took
        self._gc_due = self._clock() + max(CT_SECONDS, took * _QUIET_SHARE)

    def _refuse_rest(self) -> None:
        while True:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return
            if isinstance(item, _Call):
                item.future.set_exception(LoopStopped("the agent is stopping"))


__all__ = ["Iterable", "Loop", "LoopCounters", "LoopStopped", "PolicyDelta"]
