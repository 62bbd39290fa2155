# SPDX-License-Identifier: Apache-2.0
"""The agent's state as its servers see it: an AgentView over the loop.

Questions are answered in the loop's thread, between two transactions, so every answer is of one
moment. Only names for flows are read live: single look-ups in dictionaries that the loop writes.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import asdict, replace
from importlib import metadata
from typing import Any, TypeVar

from agent.checker import Checker
from agent.config import Config
from agent.core.endpoint import Endpoint
from agent.core.flow import Direction, FlowFilter, FlowSubscription, PolicyName
from agent.core.ipam import AddressPool
from agent.core.views import (
    AgentStatus,
    CheckReport,
    DumpFile,
    EndpointInfo,
    ExplainQuery,
    Explanation,
    IdentityInfo,
    MetricSample,
    NotFound,
    NotReady,
    NumberNames,
    ObjectState,
    PolicyList,
    PoolUsage,
    Problem,
    SelectorInfo,
    SocketRedirectStatus,
    SourceStatus,
)
from agent.inspection import Inspector
from agent.listing import Listing, texts
from agent.loop import Loop, LoopStopped
from agent.redirect import Redirect
from agent.telemetry.flows import FlowHub, Names
from agent.telemetry.metrics import (
    Family,
    agent_families,
    kernel_families,
    loss_family,
    samples,
    work_families,
)
from bpf.layouts import Counter
from identity.labels import DEFAULT, LabelFilter
from identity.reserved import Reserved

T = TypeVar("T")
_TIMEOUT = 10.0  # less than the clients' own, so that they hear why
_KeyT = TypeVar("_KeyT")


class View:
    """See agent.core.views.AgentView for what the methods mean."""

    def __init__(
        self,
        config: Config,
        loop: Loop,
        pool: AddressPool,
        hub: FlowHub,
        log_lines: Callable[[], Iterable[str]] = lambda: (),
    ) -> None:
        self._config = config
        self._loop = loop
        self._pool = pool
        self._hub = hub
        self._started = time.monotonic()
        self.serving = threading.Event()
        """Set once CNI requests are answered; until then the agent is not ready."""
        self.further_problems: Callable[[], Mapping[str, str]] = dict
        """Of what others look after, by what it concerns."""
        self.redirect: Redirect | None = None
        self.more_problems: Callable[[], Mapping[str, str]] = dict
        """The same, of what the cluster cannot be told."""
        self.failed_records: Callable[[], int] = lambda: 0
        """Events that the reader could not hand on."""
        label_filter = LabelFilter.of(config.labels) if config.labels else DEFAULT
        self._inspector = Inspector(loop, label_filter)
        self._checker = Checker(loop, self._inspector.rule_name)
        self._listing = Listing(loop, label_filter)
        self._log = log_lines

    def names(self) -> Names:
        """Live names for flows."""
        store, desired = self._loop.store, self._loop.desired
        return Names(
            endpoints=_Live(lambda number: _pod_of(store.endpoints.get(number))),
            addresses=_Live(lambda address: desired.addresses.owners.get(address)),
            identities=_Live(lambda number: self._labels(number)),
            rules=_Live(lambda number: self._policy_name(number)),
        )

    # ---- AgentView -------------------------------------------------------------------------------

    def status(self) -> AgentStatus:
        return self._ask(self._status)

    def endpoints(self) -> Sequence[EndpointInfo]:
        return self._ask(
            lambda: [
                self._listing.endpoint(one) for _, one in sorted(self._loop.store.endpoints.items())
            ]
        )

    def endpoint(self, key: str) -> EndpointInfo:
        def find() -> EndpointInfo:
            for one in self._loop.store.endpoints.values():
                names = (str(one.id), f"{one.namespace}/{one.pod}", one.ipv4, one.ipv6, one.device)
                if key in names or key == one.container_id:
                    return self._listing.endpoint(one)
            raise NotFound(f"no endpoint has the id, pod, address or device {key!r}")

        return self._ask(find)

    def identities(self) -> Sequence[IdentityInfo]:
        return self._ask(self._listing.identities)

    def policies(self) -> PolicyList:
        return self._ask(self._listing.policies)

    def selectors(self) -> Sequence[SelectorInfo]:
        return self._ask(self._listing.selectors)()

    def explain(self, query: ExplainQuery) -> Explanation:
        self._need_sync()
        return self._ask(lambda: self._inspector.explain(query))

    def check(self, repair: bool) -> CheckReport:
        self._need_sync()
        return self._ask(lambda: self._checker.check(repair))

    def numbers(self) -> NumberNames:
        return self._ask(self._listing.numbers)

    def metrics(self) -> Sequence[MetricSample]:
        return samples(self.families())

    def families(self) -> list[Family]:
        """All metrics, read now."""
        datapath, loop = self._loop.datapath, self._loop
        counters = datapath.counters()
        families = kernel_families(datapath)
        families.append(
            loss_family(
                counters[Counter.COUNTER_EVENTS_LOST],
                self._hub.counters.queue_lost,
                self._hub.counters.undecodable + self.failed_records(),
            )
        )
        if self.redirect is not None:
            families += self.redirect.families()
        families += agent_families(self.status(), self.endpoints(), self.identities())
        done = loop.counters
        families += work_families(
            done.connections,
            done.connections_removed,
            done.repaired,
            {"manifests": done.last_implementation},
            loop.surroundings.mended if loop.surroundings is not None else {},
            (done.mappings, done.mappings_removed),
        )
        return families

    def dump(self) -> Iterable[DumpFile]:
        def write(name: str, value: object) -> DumpFile:
            return DumpFile(name, json.dumps(value, indent=1, default=str).encode())

        yield write("status.json", asdict(self.status()))
        yield write("endpoints.json", [asdict(one) for one in self.endpoints()])
        yield write("identities.json", [asdict(one) for one in self.identities()])
        yield write("policies.json", asdict(self.policies()))
        yield write("selectors.json", [asdict(one) for one in self.selectors()])
        yield write("numbers.json", asdict(self.numbers()))
        yield write("metrics.json", [asdict(one) for one in self.metrics()])

        yield DumpFile("agent.log", "".join(f"{line}\n" for line in self._log()).encode())

    def alive(self) -> tuple[bool, str]:
        """For a liveness probe: whether the loop answers; before the cluster's state is known,
        too."""
        try:
            self._ask(lambda: None)
        except NotReady as error:
            return False, str(error)
        return True, "ok"

    def healthy(self) -> tuple[bool, str]:
        """For /healthz: whether policy is in force and the loop answers, and a line of text."""
        try:
            status = self.status()
        except NotReady as error:
            return False, str(error)
        if status.ready:
            return True, "ok"
        return False, "; ".join(f"{one.what}: {one.message}" for one in status.problems) or (
            "the cluster's state is not known yet"
        )

    def monitor(self, wanted: FlowFilter, last: int, follow: bool) -> FlowSubscription:
        return self._hub.subscribe(wanted, last, follow)

    # ---- in the loop -----------------------------------------------------------------------------

    def _status(self) -> AgentStatus:
        loop, store = self._loop, self._loop.store
        endpoints = [self._listing.endpoint(one) for one in store.endpoints.values()]
        problems = [Problem(name, text) for name, text in loop.problems.items()]
        if loop.surroundings is not None:
            problems += [Problem(*one) for one in loop.surroundings.problems.items()]
        problems += [Problem(*one) for one in self.further_problems().items()]
        problems += [Problem(*one) for one in loop.desired.nodes.problems.items()]
        problems += [Problem(str(key), one.reason) for key, one in loop.refused.items()]
        problems += [
            Problem(f"pod {'/'.join(key)}", text)
            for key, text in loop.desired.addresses.problems.items()
        ]
        problems += [Problem(*one) for one in self.more_problems().items()]
        if self.redirect is not None:
            problems += [Problem(*one) for one in self.redirect.problems().items()]
        problems += [
            Problem(f"endpoint {number}", text)
            for number, text in loop.desired.sockets.problems.items()
        ]
        problems += [
            Problem(f"source {name}", state.detail)
            for name, state in store.sources.items()
            if not state.healthy
        ]
        return AgentStatus(
            ready=self.serving.is_set()
            and loop.synced.is_set()
            and "datapath" not in loop.problems,
            version=_version(),
            node_name=self._config.node_name,
            pid=os.getpid(),
            uptime_seconds=time.monotonic() - self._started,
            policy_revision=loop.revision,
            policy_epoch=loop.datapath.epoch(),
            attach_mode=loop.datapath.attach_mode,
            sources=tuple(
                SourceStatus(name, state.synced, state.detail)
                for name, state in store.sources.items()
            ),
            problems=tuple(problems),
            maps=self._listing.maps(),
            pools=tuple(
                PoolUsage(f"ipv{one.version}", ",".join(one.cidrs), one.used, one.capacity)
                for one in self._pool.usage()
            ),
            devices=self._config.devices,
            endpoints=len(endpoints),
            endpoints_pending=sum(one.status is ObjectState.PENDING for one in endpoints),
            endpoints_failed=sum(one.status is ObjectState.FAILED for one in endpoints),
            identities=len(self._listing.identities()),
            policies=len(store.policies.keys() | loop.refused.keys()),
            policies_failed=len(loop.refused),
            rejected=len(store.rejections),
            events_lost=loop.datapath.counters()[Counter.COUNTER_EVENTS_LOST],
            socket_redirect=self._socket_redirect(),
        )

    def _socket_redirect(self) -> SocketRedirectStatus:
        if self.redirect is None:
            return SocketRedirectStatus()
        return replace(self.redirect.status, endpoints=self._loop.desired.sockets.users)

    # ---- inside ----------------------------------------------------------------------------------

    def _labels(self, number: int) -> tuple[str, ...] | None:
        if 0 < number < 256:
            try:
                return texts(Reserved(number).labels)
            except ValueError:
                return None
        labels = self._loop.desired.identities.labels(number)
        return None if labels is None else texts(labels)

    def _policy_name(self, number: int) -> PolicyName | None:
        ref = self._loop.desired.packer.rule_ref(number)
        if ref is None:
            return None
        return PolicyName(
            ref.kind, ref.namespace, ref.name, Direction(int(ref.direction)), ref.index
        )

    def _need_sync(self) -> None:
        if not self._loop.synced.is_set():
            raise NotReady("the agent does not know the cluster's state yet: ask again in a moment")

    def _ask(self, question: Callable[[], T]) -> T:
        try:
            return self._loop.call(question, _TIMEOUT, in_force=False)
        except LoopStopped as error:
            raise NotReady(str(error)) from error
        except FutureTimeout as error:
            raise NotReady("the agent is busy: ask again in a moment") from error


class _Live(Mapping[_KeyT, Any]):
    """A mapping that looks each key up when asked. Never iterated."""

    def __init__(self, find: Callable[[_KeyT], Any]) -> None:
        self._find = find

    def __getitem__(self, key: _KeyT) -> Any:
        found = self._find(key)
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[_KeyT]:
        raise TypeError("names are looked up, not listed")

    def __len__(self) -> int:
        raise TypeError("names are looked up, not counted")


def _pod_of(endpoint: Endpoint | None) -> tuple[str, str] | None:
    return endpoint.pod_key if endpoint is not None and endpoint.pod else None


def _version() -> str:
    try:
        return metadata.version("bristle")
    except metadata.PackageNotFoundError:
        return "unknown"
