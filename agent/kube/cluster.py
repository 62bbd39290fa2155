# SPDX-License-Identifier: Apache-2.0
"""The source of cluster mode: an API server, watched.

Each kind is followed in a thread of its own, so that none waits for another; one more thread says
how the source is. Of pods only those of this node are asked for: what other nodes run is published
by them (BristleEndpoint). While the server is away nothing is removed.

What keeps pods from others is kept in a file besides, as it was when last valid
(`agent.kube.memory`).
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from agent.core.events import Event, Fact, ResourceKey
from agent.kube.access import Access
from agent.kube.following import Following
from agent.kube.health import Health
from agent.kube.keeper import Keeper
from agent.kube.kinds import POD, WATCHED, Kind
from agent.kube.last_good import REMEMBERED, LastGood
from agent.kube.memory import Memory
from agent.kube.reflector import Hooks, Reflector, Timing

_log: Final = logging.getLogger(__name__)
_JOIN: Final = 5.0


class ClusterSource:
    """Delivers what an API server says, as events, from threads of its own.

    node_name: of which pods are asked for.
    emit: called for every event, by several threads, but in order for each object. It must not
        block for long and must not raise.
    clock: seconds, monotonic. chance: 0 to 1. wait: sleeps for seconds or until `stop`, true at the
        end; None: the real one. Tests pass their own.
    last_good: the file where the next agent finds what was last good; None: nowhere.
    settle: returns once what was emitted is in force; nothing is written into that file before.
    """

    def __init__(
        self,
        access: Access,
        node_name: str,
        emit: Callable[[Event], None],
        *,
        name: str = "kubernetes",
        timing: Timing | None = None,
        kinds: tuple[Kind, ...] = WATCHED,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        wait: Callable[[float], bool] | None = None,
        last_good: Path | None = None,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self._name = name
        self._emit = emit
        self._clock = clock
        timing = timing or Timing()
        self._stopping = threading.Event()
        self._news = threading.Condition()
        self._health = Health(name, (kind.plural for kind in kinds), timing.patience)
        self._keeper: Keeper | None = None
        if last_good is not None:
            file = LastGood(last_good, name)
            self._keeper = Keeper(file, timing.remember, timing.remember_again, settle)
        memory = self._keeper.memory if self._keeper else Memory({}, lambda: None)
        self._following = {
            kind: Following(name, kind, memory if kind.name in REMEMBERED else None)
            for kind in kinds
        }
        self._reflectors = {
            kind: Reflector(
                access,
                kind,
                following,
                self._hooks(kind, chance, wait or self._stopping.wait),
                timing,
                {"fieldSelector": f"spec.nodeName={node_name}"} if kind is POD else None,
            )
            for kind, following in self._following.items()
        }
        self._threads: list[threading.Thread] = []
        self._writer: threading.Thread | None = None

    @property
    def facts(self) -> Mapping[ResourceKey, Fact]:
        """What is in force. To be read when the source is not running."""
        return {key: one for each in self._following.values() for key, one in each.facts.items()}

    @property
    def synced(self) -> bool:
        """Whether every kind has been delivered once."""
        with self._news:
            return self._health.synced

    def start(self) -> None:
        """Starts the threads. Trouble is reported by events, not here."""
        if self._threads:
            raise RuntimeError("the source has been started already")
        work = {f"watch-{kind.plural}": one.run for kind, one in self._reflectors.items()}
        work[f"source-{self._name}"] = self._report
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True) for name, run in work.items()
        ]
        for thread in self._threads:
            thread.start()
        if self._keeper is not None:
            self._writer = threading.Thread(target=self._keeper.run, name="remember", daemon=True)
            self._writer.start()

    def stop(self) -> None:
        """Ends the threads. What was delivered stays in force. A thread that waits for a server
        which does not answer is left to its time limit; it emits nothing any more."""
        self._stopping.set()
        with self._news:
            self._news.notify_all()
        for reflector in self._reflectors.values():
            reflector.stop()
        deadline = time.monotonic() + _JOIN
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                _log.info("%s still waits for the API server", thread.name)
        self._threads = []
        if self._keeper is not None and self._writer is not None:
            self._keeper.stop()
            self._writer.join(_JOIN)

    # ---- how the source is -----------------------------------------------------------------------

    def _hooks(
        self, kind: Kind, chance: Callable[[], float], wait: Callable[[float], bool]
    ) -> Hooks:
        health, name = self._health, kind.plural
        return Hooks(
            emit=self._pass_on,
            delivered=partial(self._note, partial(health.delivered, name)),
            followed=partial(self._note, partial(health.followed, name)),
            failed=lambda reason: self._note(lambda: health.failed(name, reason, self._clock())),
            wait=wait,
            clock=self._clock,
            random=chance,
        )

    def _pass_on(self, event: Event) -> None:
        if not self._stopping.is_set():
            self._emit(event)

    def _note(self, change: Callable[[], None]) -> None:
        with self._news:
            change()
            self._news.notify_all()

    def _report(self) -> None:
        """One thread makes all reports, so that they come in order, and after the facts that they
        are about."""
        while True:
            with self._news:
                if self._stopping.is_set():
                    return
                now = self._clock()
                event = self._health.report(now)
                if event is None:
                    self._news.wait(self._health.due(now))
                    continue
            self._pass_on(event)
