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
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Final, TypeVar

from agent.admission import Admission, Refusal
from agent.calls import Call, LoopCounters, perform
from agent.comparison import ROUNDS, Comparison
from agent.core.conntrack import Lifetimes
from agent.core.delta import Delta
from agent.core.desired import RETIRE_SECONDS, Desired
from agent.core.endpoint import address_bytes
from agent.core.events import Event, ResourceKey, ResourceRejected
from agent.core.nat import CROWDED
from agent.core.store import PodKey, Store
from agent.kernel.datapath import Datapath
from agent.kernel.links import LinkError
from agent.kernel.loader import LoadError
from agent.kernel.maps import MapError
from agent.kernel.syscall import BpfError
from agent.surroundings import Surroundings
from identity.allocator import AllocatorError

log = logging.getLogger(__name__)
T = TypeVar("T")

BATCH_LIMIT: Final = 50_000
RESYNC_SECONDS: Final = 15.0
RETRY_SECONDS: Final = 1.0
QUIET_SECONDS: Final = 0.5
PUT_OFF_SECONDS: Final = 15.0
RETRY_LIMIT: Final = 30.0
CT_SECONDS: Final = 10.0
MAPPINGS_SECONDS: Final = 30.0
SAVE_SECONDS: Final = 1.0
_QUIET_SHARE: Final = 300  # what took t is not repeated before 300 t
_NEVER: Final = float("inf")
_CAN_WAIT: Final = frozenset(("resync", "surroundings", "connections", "identities"))
_EXPECTED: Final = (MapError, BpfError, AllocatorError, LinkError, LoadError, OSError)
"""What may go wrong with a write. Anything else is a bug, and ends the agent: the datapath stays
in force, and a restarted agent begins from facts."""


class LoopStopped(RuntimeError):
    """The agent is ending; ask the next one."""


class CapacityExceeded(MapError):
    """A pod cannot be added: its policy finds no room in the kernel."""


_Item = tuple[float, Event | Call[Any] | None]


class Loop:
    """Create it, then `run` in the one thread; `post`, `submit` and `call` from any other."""

    def __init__(
        self,
        store: Store,
        desired: Desired,
        datapath: Datapath,
        *,
        identity_gc: float,
        save_identities: Callable[[], None],
        on_first_sync: Callable[[], None],
        surroundings: Surroundings | None = None,
        on_publish: Callable[[set[PodKey]], None] | None = None,
        follow: Callable[[], None] = lambda: None,
        lifetimes: Lifetimes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.desired = desired
        self.datapath = datapath
        self.counters = LoopCounters()
        self.revision = 0
        self.surroundings = surroundings
        self._follow = follow
        """Brings in step what lies beside the maps and follows from facts; after every write."""
        self.problems: dict[str, str] = {}
        """What does not work now, by what it concerns."""
        self.synced = threading.Event()
        self._admission = Admission(store, desired, datapath.capacity)
        self._comparison = Comparison(desired, datapath)
        self._behind = False
        """A write failed: only a whole comparison tells what the kernel holds."""
        self._identity_gc = identity_gc
        self._save_identities = save_identities
        self._saved_revision = desired.identities.revision
        self._on_first_sync = on_first_sync
        self._on_publish = on_publish
        self._first_try: tuple[float, float, Exception | None] = (0.0, RETRY_SECONDS, None)
        """When it may be repeated, the pause after that, and why it is to be."""
        self._lifetimes = lifetimes or Lifetimes()
        self._clock = clock
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._stopping = False
        self._rounds_left: list[frozenset[str]] = []
        self._changed_at = -QUIET_SECONDS
        self._put_off: dict[str, float] = {}  # since when work that is due waits for quiet
        self._round_seconds = 0.0
        self._unused_released = False
        self._work: dict[str, Callable[[float], float]] = {
            "retire": self._retire,
            "resync": self._resync,
            "surroundings": self._attend,
            "connections": self._collect_connections,
            "mappings": self._collect_mappings,
            "identities": self._collect_identities,
            "save": self._save,
        }
        # Nothing is due before the first synchronisation.
        self._due: dict[str, float] = dict.fromkeys(self._work, _NEVER)

    # ---- from any thread -------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Take an event of a source; returns at once."""
        self._queue.put((self._clock(), event))

    def submit(self, work: Callable[[], T], *, in_force: bool = True) -> Future[T]:
        """Run `work` in the loop's thread; the future is done once what it changed is in force,
        and fails if that could not be. Not `in_force`: done at the same time, but never fails for
        a write, only for what `work` raises."""
        future: Future[T] = Future()
        with self._gate:
            if self._stopping:
                future.set_exception(LoopStopped("the agent is stopping"))
            else:
                self._queue.put((self._clock(), Call(work, future, in_force)))
        return future

    def call(self, work: Callable[[], T], timeout: float = 30.0, *, in_force: bool = True) -> T:
        """`submit`, and wait. Raises what `work` or the write raised, and TimeoutError: `work` then
        does not run any more, unless it did already."""
        future = self.submit(work, in_force=in_force)
        try:
            return future.result(timeout)
        except FutureTimeout:
            future.cancel()
            raise

    def stop(self) -> None:
        """Make `run` return after the batch it is at."""
        with self._gate:
            self._stopping = True
        self._queue.put((self._clock(), None))

    @property
    def refused(self) -> dict[ResourceKey, Refusal]:
        """Policies that are valid but cannot be put in force."""
        return self._admission.refused

    # ---- the loop --------------------------------------------------------------------------------

    def run(self) -> None:
        """Until `stop`. What is in the kernel then stays in force."""
        try:
            while not self._stopping:
                self._turn(self._next_batch())
            if self._due["save"] < _NEVER:
                self._save_identities()
        finally:
            self._refuse_rest()

    def _next_batch(self) -> list[_Item]:
        batch: list[_Item] = []
        try:
            item = self._queue.get(timeout=self._patience())
            while True:
                if item[1] is not None:
                    batch.append(item)
                if len(batch) >= BATCH_LIMIT:
                    break
                item = self._queue.get_nowait()
        except queue.Empty:
            pass
        return batch

    def _patience(self) -> float:
        """Seconds until there is something to do without being told."""
        if not self.store.synced or not self.synced.is_set():
            return RETRY_SECONDS
        if self.store.changed:
            return 0.0
        return min(max(min(self._due.values()) - self._clock(), 0.0), 3600.0)

    def _turn(self, batch: Sequence[_Item]) -> None:
        calls: list[Call[Any]] = []
        try:
            for _, item in batch:
                if isinstance(item, Call):
                    if perform(item):
                        calls.append(item)
                elif item is not None:
                    self._apply(item)
            failure = self._reconcile() if self.store.synced else None
        except BaseException as error:
            for _, item in batch:
                if isinstance(item, Call) and not item.future.done():
                    item.future.set_exception(error)
            raise
        for call in calls:
            if failure is not None and call.in_force:
                call.future.set_exception(failure)
            else:
                call.future.set_result(call.value)
        if batch:
            self.counters.last_implementation = self._clock() - batch[0][0]
        if self.synced.is_set():
            self._housekeeping()

    def _apply(self, event: Event) -> None:
        if isinstance(event, ResourceRejected) and event != self.store.rejections.get(
            (event.source, event.origin)
        ):
            # In one line: what a YAML parser says may have several.
            log.warning("rejected: %s", " ".join(str(event).split()))
        self.store.apply(event)

    # ---- writing ---------------------------------------------------------------------------------

    def _reconcile(self) -> Exception | None:
        """Bring the kernel in step with the facts; gives what went wrong, if anything did."""
        first = not self.synced.is_set()
        if not (self.store.changed or first):
            return None
        if first and self._clock() < self._first_try[0]:
            return self._first_try[2]
        try:  # pods that are added now can still be refused
            added = self.store.endpoints.keys() - self.desired.tables.keys()
            delta = self._admission.take(self._clock())
            overflow = self._admission.overflow()
            self.note("capacity", overflow)
            if overflow is not None and added and not first:
                raise CapacityExceeded(overflow)
            self._write(delta, first, compare=overflow is not None)
        except _EXPECTED as error:
            return self._failed(error)
        if first:
            self._first_sync_done()
        if self._on_publish is not None and self.desired.to_publish:
            keys, self.desired.to_publish = self.desired.to_publish, set()
            self._on_publish(keys)
        return None

    def _write(self, delta: Delta | None, first: bool, compare: bool) -> None:
        if first:
            self.sync_whole(delete=False)
            self._on_first_sync()
        elif delta is None or compare or self._behind:
            self.sync_whole(delete=self._behind)
        elif delta:
            self.datapath.apply(delta)
            self.desired.written()
        self._follow()
        self.problems.pop("datapath", None)
        self.revision += 1
        self.counters.transactions += 1
        self._changed_at = self._clock()
        if self.desired.retiring and self._due["retire"] == _NEVER:
            self._due["retire"] = self._clock() + RETIRE_SECONDS
        if self.desired.identities.revision != self._saved_revision:
            self._due["save"] = min(self._due["save"], self._clock() + SAVE_SECONDS)

    def _failed(self, error: Exception) -> Exception:
        """What of it was written is found by comparison; what was in force still is."""
        self.counters.failures += 1
        self.note("datapath", str(error))
        log.error("the kernel was not brought up to date: %s", error)
        self._behind = True
        self._rounds_left.clear()
        now, pause = self._clock(), self._first_try[1]
        if self.synced.is_set():
            self._due["resync"] = now + RETRY_SECONDS
        else:
            self._first_try = (now + pause, min(2 * pause, RETRY_LIMIT), error)
        return error

    def _first_sync_done(self) -> None:
        endpoints, policies = len(self.store.endpoints), len(self.store.policies)
        log.info("in force: %d endpoints, %d policies", endpoints, policies)
        now = self._clock()
        self._due.update(
            retire=now + RETIRE_SECONDS,
            resync=now + RETIRE_SECONDS,
            surroundings=now,
            connections=now,
            mappings=now,
            identities=now + self._identity_gc,
        )
        self.synced.set()

    def sync_whole(self, delete: bool) -> int:
        """Compare everything with the kernel and write what differs; gives how many entries."""
        count = self._comparison.sync(delete)
        self._behind = False
        self.desired.written()
        return count

    def note(self, name: str, problem: str | None) -> None:
        """In the loop: what does not work now, by what it concerns; None: it does."""
        self.problems.pop(name, None)
        if problem is not None:
            self.problems[name] = problem

    # ---- what comes round ------------------------------------------------------------------------

    def _housekeeping(self) -> None:
        """Do what is due. Each piece of work gives the time at which it is due again; a failure of
        one keeps none of the others from its turn."""
        for name, work in self._work.items():
            now = self._clock()
            if self._due[name] > now:
                continue
            if name in _CAN_WAIT and self._wait_for_quiet(name, now):
                self._due[name] = now + QUIET_SECONDS
                continue
            try:
                self._due[name] = work(now)
                self.note(name, None)
            except _EXPECTED as error:
                if name in ("retire", "resync"):
                    self._failed(error)
                else:
                    log.error("%s: %s", name, error)
                self.note(name, str(error))
                self._due[name] = now + (RETRY_SECONDS if name == "resync" else RESYNC_SECONDS)

    def _wait_for_quiet(self, name: str, now: float) -> bool:
        """Facts are on the move and want the loop; what looks after things can wait, but not for
        ever, and not when the kernel is known to differ."""
        if not self._behind and now - self._changed_at < QUIET_SECONDS:
            since = self._put_off.setdefault(name, now)
            if now - since < PUT_OFF_SECONDS:
                return True
        self._put_off.pop(name, None)
        return False

    def _retire(self, now: float) -> float:
        if self._behind:
            # The kernel may still point to what nothing wants any more.
            return now + RETRY_SECONDS
        delta = self.desired.retire(now)
        if delta:
            self.datapath.apply(delta)
        if self.refused and self._admission.retry(now):
            self.sync_whole(delete=False)
        return now + RETIRE_SECONDS if self.desired.retiring else _NEVER

    def _resync(self, now: float) -> float:
        if not self._rounds_left:
            self._rounds_left, self._round_seconds = list(ROUNDS), 0.0
        if self._behind:
            self._rounds_left.clear()
            repaired = self.sync_whole(delete=True)
            self.note("datapath", None)
        else:
            # One part at a time, with room for events between them.
            repaired = self._comparison.sync(True, self._rounds_left.pop(0))
        self._round_seconds += self._clock() - now
        if repaired and self._unused_released:
            self.counters.repaired += repaired
            log.warning("%d entries in the kernel were not as they should be; repaired", repaired)
        if self._rounds_left:
            return self._clock()
        if not self._unused_released:
            # What a former agent had written and is not wanted any more is gone by now.
            self._unused_released = True
            self.desired.release_unused(now)
        return self._clock() + max(RESYNC_SECONDS, self._round_seconds * _QUIET_SHARE)

    @property
    def settled(self) -> bool:
        """Whether what a former agent had written, and is not wanted any more, is gone."""
        return self._unused_released

    def _attend(self, now: float) -> float:
        if self.surroundings is not None:
            self.surroundings.attend()
        return self._clock() + max(RESYNC_SECONDS, (self._clock() - now) * _QUIET_SHARE)

    def _collect_connections(self, now: float) -> float:
        alive = set(self.store.endpoints)
        seen, removed = self.datapath.collect_connections(alive, self._lifetimes)
        took = self._clock() - now
        self.counters.connections = seen - removed
        self.counters.connections_removed += removed
        self.counters.gc_seconds += took
        return self._clock() + max(CT_SECONDS, took * _QUIET_SHARE)

    def _collect_mappings(self, now: float) -> float:
        if not self.datapath.masquerades:
            return _NEVER
        seen, removed = self.datapath.collect_mappings(
            set(self.store.endpoints),
            map(address_bytes, self.store.node_addresses),
            self._lifetimes,
        )
        took = self._clock() - now
        self.counters.mappings = seen - removed
        self.counters.mappings_removed += removed
        # Those that find no room want it soon, and so does a pod whose mapping lost a half.
        full = seen > CROWDED * self.datapath.capacity("nat")
        longest = CT_SECONDS if full else MAPPINGS_SECONDS
        return self._clock() + min(max(CT_SECONDS, took * _QUIET_SHARE), longest)

    def _collect_identities(self, now: float) -> float:
        self.desired.identities.collect(now)
        # Numbers may be free again for those that found none; and numbers of classes, tables and
        # rules have rested.
        self.store.look_again(self.desired.addresses.problems)
        self.store.look_again(self.desired.addresses.unknown)
        if self.refused and self._admission.retry(now, everything=True):
            self.sync_whole(delete=False)
        self._due["retire"] = min(self._due["retire"], now)
        if self.desired.identities.revision != self._saved_revision:
            self._due["save"] = min(self._due["save"], now)
        return now + self._identity_gc

    def _save(self, now: float) -> float:
        revision = self.desired.identities.revision
        self._save_identities()
        self._saved_revision = revision
        return _NEVER

    def _refuse_rest(self) -> None:
        with self._gate:
            self._stopping = True
        while not self._queue.empty():
            _, item = self._queue.get_nowait()
            if isinstance(item, Call) and item.future.set_running_or_notify_cancel():
                item.future.set_exception(LoopStopped("the agent is stopping"))
