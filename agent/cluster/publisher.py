# SPDX-License-Identifier: Apache-2.0
"""Tells the cluster of this node's pods: numbers for their labels, then number and addresses.

The loop says which pods may have changed; for each the present facts say what is to be written
(`agent.core.publication`), so a write that was lost, or came twice, does no harm. What was written
comes back by the watch, and only then counts as known.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

from agent.core.events import PublishedEndpoint
from agent.core.publication import PodPublication
from agent.core.store import PodKey
from agent.kube.errors import ApiError
from identity.labels import LabelSet

log = logging.getLogger(__name__)

WRITERS: Final = 4
ECHO_SECONDS: Final = 5.0
"""How long a write may take to come back by the watch before it is looked at again."""
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 30.0


class Registry(Protocol):
    """What the cluster keeps. Each call may be repeated; all raise ApiError."""

    def allocate(self, labels: LabelSet) -> int:
        """Make sure that a number with these labels is published; gives it."""
        ...

    def keep(self, number: int, labels: LabelSet) -> None:
        """Publish a number anew, or take its mark away. Raises Conflict if it means something else
        by now."""
        ...

    def put(self, wanted: PublishedEndpoint) -> None:
        """Create or replace what is published of a pod."""
        ...

    def put_status(self, wanted: PublishedEndpoint, ingress: bool, egress: bool) -> None:
        """Say in which directions policy decides for a pod that is published."""
        ...

    def remove(self, observed: PublishedEndpoint) -> None:
        """Delete what this node published of a pod; what another did is left alone."""
        ...


@dataclass(slots=True)
class _Retry:
    due: float
    pause: float


class Publisher:
    """`changed` from the loop's thread; everything else in threads of its own.

    plan: what the present facts want written for some pods; called outside of the loop's thread.
    """

    def __init__(
        self,
        plan: Callable[[Collection[PodKey]], list[PodPublication]],
        registry: Registry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._plan = plan
        self._registry = registry
        self._clock = clock
        self._lock = threading.Lock()
        self._dirty: set[PodKey] = set()
        self._woken = threading.Event()
        self._stopped = threading.Event()
        self._retries: dict[PodKey, _Retry] = {}
        self._enforced: dict[PodKey, tuple[str, tuple[bool, bool]]] = {}
        self._sent: dict[PodKey, tuple[PublishedEndpoint | None, float]] = {}
        self._thread = threading.Thread(target=self._run, name="publisher")
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="publish")
        self.problems: dict[PodKey, str] = {}
        """Pods of which the cluster could not be told, with the reason. Others may read it."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends after the writes that are under way."""
        self._stopped.set()
        self._woken.set()
        self._thread.join()
        self._writers.shutdown()

    def changed(self, pods: Iterable[PodKey]) -> None:
        """Look at these pods again; returns at once."""
        with self._lock:
            self._dirty.update(pods)
        self._woken.set()

    # ---- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.work()
            except Exception as error:  # the loop may be busy or ending
                log.warning("what the cluster is to be told is not known now: %s", error)
                self._stopped.wait(FIRST_PAUSE)
            self._woken.wait(self._patience())
            self._woken.clear()

    def _patience(self) -> float | None:
        due = [one.due for one in self._retries.values()]
        due += [since + ECHO_SECONDS for _, since in self._sent.values()]
        return max(min(due) - self._clock(), 0.0) if due else None

    def work(self) -> None:
        """One round: what has changed, what is to be tried again, what has not come back."""
        now = self._clock()
        with self._lock:
            keys, self._dirty = self._dirty, set()
        keys |= {key for key, one in self._retries.items() if one.due <= now}
        keys |= {key for key, (_, since) in self._sent.items() if since + ECHO_SECONDS <= now}
        keys -= {key for key, one in self._retries.items() if one.due > now}
        if not keys:
            return
        try:
            plans = {one.key: one for one in self._plan(keys)}
        except BaseException:
            self.changed(keys)
            raise
        for key in keys - plans.keys():
            self._done(key)
        self._allocate(plans)
        list(self._writers.map(self._write, plans.values()))

    def _allocate(self, plans: dict[PodKey, PodPublication]) -> None:
        """Numbers for labels, each set once, however many pods have it."""
        waiting: dict[LabelSet, list[PodKey]] = {}
        for key, one in plans.items():
            if one.allocate is not None:
                waiting.setdefault(one.allocate, []).append(key)

        def allocate(labels: LabelSet) -> None:
            try:
                number = self._registry.allocate(labels)
                log.info("identity %d: %s", number, labels.canonical())
            except ApiError as error:
                for key in waiting[labels]:
                    self._failed(key, error)
            else:
                for key in waiting[labels]:
                    self._done(key)
                    # The watch brings the number, and with it the pod again; if not, look again.
                    self._sent[key] = (None, self._clock())

        list(self._writers.map(allocate, waiting))

    def _write(self, one: PodPublication) -> None:
        if one.allocate is not None:
            return
        if one.settled:
            self._done(one.key)
            self._write_status(one)
            return
        sent = self._sent.get(one.key)
        if (
            one.revive is None
            and sent is not None
            and sent[0] == one.wanted
            and sent[1] + ECHO_SECONDS > self._clock()
        ):
            return  # on its way back
        try:
            if one.revive is not None:
                self._registry.keep(*one.revive)
            if one.wanted is None:
                assert one.observed is not None
                self._registry.remove(one.observed)
            elif one.wanted != one.observed:
                self._registry.put(one.wanted)
        except ApiError as error:
            self._failed(one.key, error)
        else:
            self._done(one.key)
            self._sent[one.key] = (one.wanted, self._clock())

    def _write_status(self, one: PodPublication) -> None:
        """After what it belongs to has come back; a status does not come back."""
        if one.wanted is None:
            self._enforced.pop(one.key, None)
            return
        told = (one.wanted.pod_uid, one.enforced)
        if self._enforced.get(one.key) == told:
            return
        try:
            self._registry.put_status(one.wanted, *one.enforced)
        except ApiError as error:
            self._failed(one.key, error)
        else:
            self._enforced[one.key] = told

    def _done(self, key: PodKey) -> None:
        self._sent.pop(key, None)
        self._retries.pop(key, None)
        self.problems.pop(key, None)

    def _failed(self, key: PodKey, error: ApiError) -> None:
        former = self._retries.get(key)
        pause = min(2 * former.pause, LONGEST_PAUSE) if former else FIRST_PAUSE
        self._retries[key] = _Retry(self._clock() + max(pause, error.retry_after or 0.0), pause)
        if self.problems.get(key) != str(error):
            log.warning("pod %s/%s is not published: %s", *key, error)
        self.problems[key] = str(error)
