# SPDX-License-Identifier: Apache-2.0
"""The agent's state as its servers see it: an AgentView over the loop.

Questions are answered in the loop's thread, between two transactions, so every answer is of one
moment. Only names for flows are read live: single look-ups in dictionaries that the loop writes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import asdict
from importlib import metadata
from typing import Any, TypeVar

from agent.config import Config
from agent.core.endpoint import Endpoint
from agent.core.events import ResourceKey
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
    MapUsage,
    MetricSample,
    NotFound,
    NotReady,
    NumberName,
    NumberNames,
    ObjectState,
    PolicyInfo,
    PolicyList,
    PoolUsage,
    Problem,
    RejectedInfo,
    SelectorInfo,
    SourceStatus,
)
from agent.inspection import Inspector, rule_text
from agent.loop import Loop, LoopStopped
from agent.telemetry.flows import FlowHub, Names
from agent.telemetry.metrics import Family, agent_families, kernel_families, loss_family, samples
from bpf.layouts import Counter, EndpointFlag
from identity.labels import DEFAULT, LabelFilter
from identity.reserved import Reserved, is_local
from policy.model import NetworkPolicy, PodPeer
from policy.model import Direction as PolicyDirection
from policy.resolve import peer_selector

T = TypeVar("T")
_TIMEOUT = 20.0
_KeyT = TypeVar("_KeyT")


class View:
    """See agent.core.views.AgentView for what the methods mean."""

    def __init__(self, config: Config, loop: Loop, pool: AddressPool, hub: FlowHub) -> None:
        self._config = config
        self._loop = loop
        self._pool = pool
        self._hub = hub
        self._started = time.monotonic()
        label_filter = LabelFilter.of(config.labels) if config.labels else DEFAULT
        self._inspector = Inspector(loop, label_filter)

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
            lambda: [self._endpoint(one) for _, one in sorted(self._loop.store.endpoints.items())]
        )

    def endpoint(self, key: str) -> EndpointInfo:
        def find() -> EndpointInfo:
            for one in self._loop.store.endpoints.values():
                names = (str(one.id), f"{one.namespace}/{one.pod}", one.ipv4, one.ipv6, one.device)
                if key in names or key == one.container_id:
                    return self._endpoint(one)
            raise NotFound(f"no endpoint has the id, pod, address or device {key!r}")

        return self._ask(find)

    def identities(self) -> Sequence[IdentityInfo]:
        return self._ask(self._identities)

    def policies(self) -> PolicyList:
        return self._ask(self._policies)

    def selectors(self) -> Sequence[SelectorInfo]:
        return self._ask(self._selectors)

    def explain(self, query: ExplainQuery) -> Explanation:
        self._need_sync()
        return self._ask(lambda: self._inspector.explain(query))

    def check(self, repair: bool) -> CheckReport:
        self._need_sync()
        return self._ask(lambda: self._inspector.check(repair))

    def numbers(self) -> NumberNames:
        return self._ask(self._numbers)

    def metrics(self) -> Sequence[MetricSample]:
        return samples(self.families())

    def families(self) -> list[Family]:
        """All metrics, read now."""
        datapath, loop = self._loop.datapath, self._loop
        counters = datapath.counters()
        families = kernel_families(datapath)
        families.append(
            loss_family(counters[Counter.COUNTER_EVENTS_LOST], self._hub.counters.queue_lost)
        )
        families += agent_families(self.status(), self.endpoints(), self.identities())
        done = loop.counters
        families += [
            Family("datapath_conntrack_gc_entries", "gauge", "Tracked connections", (),
                   {(): done.connections}),
            Family("datapath_conntrack_gc_removed", "counter", "Connections that ended", (),
                   {(): done.connections_removed}),
            Family("map_repairs", "counter", "Entries found altered and repaired", (),
                   {(): done.repaired}),
            Family("policy_implementation_delay", "gauge",
                   "Seconds the last change took to be in force", ("source",),
                   {("manifests",): done.last_implementation}),
        ]  # fmt: skip
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

    def monitor(self, wanted: FlowFilter, last: int, follow: bool) -> FlowSubscription:
        return self._hub.subscribe(wanted, last, follow)

    # ---- in the loop -----------------------------------------------------------------------------

    def _status(self) -> AgentStatus:
        loop, store = self._loop, self._loop.store
        endpoints = [self._endpoint(one) for one in store.endpoints.values()]
        problems = [Problem(name, text) for name, text in loop.problems.items()]
        problems += [Problem(str(key), text) for key, text in loop.refused.items()]
        problems += [
            Problem(f"pod {'/'.join(key)}", text)
            for key, text in loop.desired.addresses.problems.items()
        ]
        problems += [
            Problem(f"source {name}", state.detail)
            for name, state in store.sources.items()
            if not state.healthy
        ]
        return AgentStatus(
            ready=loop.synced.is_set() and "datapath" not in loop.problems,
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
            maps=self._maps(),
            pools=tuple(
                PoolUsage(f"ipv{one.version}", ",".join(one.cidrs), one.used, one.capacity)
                for one in self._pool.usage()
            ),
            devices=self._config.devices,
            endpoints=len(endpoints),
            endpoints_pending=sum(one.status is ObjectState.PENDING for one in endpoints),
            endpoints_failed=sum(one.status is ObjectState.FAILED for one in endpoints),
            identities=len(loop.desired.identities.items()),
            policies=len(store.policies),
            policies_failed=len(loop.refused),
            rejected=len(store.rejections),
            events_lost=loop.datapath.counters()[Counter.COUNTER_EVENTS_LOST],
        )

    def _maps(self) -> tuple[MapUsage, ...]:
        desired, datapath = self._loop.desired, self._loop.datapath
        entries = {
            "policy": desired.entries,
            "peers": len(desired.ipcache.entries()),
            "endpoints": len(self._loop.store.endpoints),
            "ct": self._loop.counters.connections,
        }
        return tuple(MapUsage(name, used, datapath.capacity(name)) for name, used in entries.items())

    def _endpoint(self, one: Endpoint) -> EndpointInfo:
        desired = self._loop.desired
        policy, tables = desired.endpoint_policy(one.id), desired.tables.get(one.id)
        known = one.pod_key in self._loop.store.pods
        state, status = "ready", ObjectState.DONE
        reason = ""
        if policy is None:
            state, status = "not-ready", ObjectState.PENDING
            reason = "the cluster's state is not known yet"
        elif not known:
            state = "waiting-for-identity"
            reason = "the pod's labels are not known: all is denied but the node"
        return EndpointInfo(
            id=one.id,
            namespace=one.namespace,
            pod=one.pod,
            state=state,
            status=status,
            identity=desired.addresses.identity_of(one.pod_key),
            reason=reason,
            labels=_texts(desired.addresses.labels_of(one.pod_key)),
            ipv4=one.ipv4,
            ipv6=one.ipv6,
            mac=one.mac,
            device=one.device,
            ifindex=one.ifindex,
            container_id=one.container_id,
            ingress_enforced=bool(policy and policy.flags & EndpointFlag.ENDPOINT_INGRESS_ENFORCED),
            egress_enforced=bool(policy and policy.flags & EndpointFlag.ENDPOINT_EGRESS_ENFORCED),
            ingress_policies=self._isolating(one, PolicyDirection.INGRESS),
            egress_policies=self._isolating(one, PolicyDirection.EGRESS),
            ingress_table=desired.table_number(tables.ingress) if tables else 0,
            egress_table=desired.table_number(tables.egress) if tables else 0,
        )

    def _isolating(self, one: Endpoint, direction: PolicyDirection) -> tuple[str, ...]:
        pod = self._loop.store.pods.get(one.pod_key)
        if pod is None:
            return ()
        keys = self._loop.desired.repository.isolating(direction, pod.namespace, pod.labels)
        return tuple(f"{key.namespace}/{key.name}" for key in keys)

    def _identities(self) -> list[IdentityInfo]:
        found = [
            IdentityInfo(int(one), "reserved", _texts(one.labels)) for one in Reserved
        ]
        identities = self._loop.desired.identities
        found += [
            IdentityInfo(
                number,
                "cidr" if is_local(number) else "cluster",
                _texts(labels),
                identities.references(number),
            )
            for number, labels in identities.items().items()
        ]
        return found

    def _policies(self) -> PolicyList:
        loop = self._loop
        users: dict[Any, int] = {}
        for one in loop.store.endpoints.values():
            pod = loop.store.pods.get(one.pod_key)
            if pod is None:
                continue
            keys = {
                key
                for direction in PolicyDirection
                for key in loop.desired.repository.isolating(direction, pod.namespace, pod.labels)
            }
            for key in keys:
                users[key] = users.get(key, 0) + 1
        return PolicyList(
            revision=loop.revision,
            policies=tuple(
                self._policy(key, policy, users.get(policy.key, 0))
                for key, policy in sorted(loop.store.policies.items())
            ),
            rejected=tuple(
                RejectedInfo(
                    one.origin.file,
                    one.origin.document,
                    str(one.resource or ""),
                    one.field,
                    one.message,
                    one.resource is not None and one.resource in loop.store.policies,
                )
                for _, one in sorted(loop.store.rejections.items(), key=lambda item: str(item[0]))
            ),
        )

    def _policy(self, key: ResourceKey, policy: NetworkPolicy, endpoints: int) -> PolicyInfo:
        refused = self._loop.refused.get(key)
        done = ObjectState.DONE if self._loop.synced.is_set() else ObjectState.PENDING
        return PolicyInfo(
            kind=policy.kind,
            namespace=policy.namespace,
            name=policy.name,
            status=ObjectState.FAILED if refused else done,
            reason=refused or "",
            ingress_rules=len(policy.rules(PolicyDirection.INGRESS)),
            egress_rules=len(policy.rules(PolicyDirection.EGRESS)),
            types=tuple(one.name.capitalize() for one in sorted(policy.policy_types)),
            endpoints=endpoints,
        )

    def _selectors(self) -> list[SelectorInfo]:
        users: dict[Any, set[str]] = {}
        for policy in self._loop.desired.repository.policies():
            for direction in PolicyDirection:
                for rule in policy.rules(direction):
                    for peer in rule.peers or ():
                        if isinstance(peer, PodPeer):
                            selector = peer_selector(peer, policy.namespace)
                            users.setdefault(selector, set()).add(f"{policy.namespace}/{policy.name}")
        identities = self._loop.desired.identities.items()
        return [
            SelectorInfo(
                selector.canonical(),
                tuple(number for number, labels in identities.items() if selector.matches(labels)),
                tuple(sorted(names)),
            )
            for selector, names in sorted(users.items(), key=lambda item: item[0].canonical())
        ]

    def _numbers(self) -> NumberNames:
        desired, store = self._loop.desired, self._loop.store
        return NumberNames(
            rules=tuple(
                NumberName(number, rule_text(ref))
                for number, ref in desired.packer.rule_names().items()
            ),
            tables=tuple(
                NumberName(number, f"{table.direction.name.lower()}: "
                           + (", ".join(sorted({f"{r.ref.namespace}/{r.ref.name}" for r in table.rules}))
                              or "no rules"))
                for number, table in desired.compiler.tables.items()
            ),
            classes=tuple(
                NumberName(number, one.canonical())
                for number, one in desired.compiler.classes.items()
            ),
            endpoints=tuple(
                NumberName(number, f"{one.namespace}/{one.pod}")
                for number, one in store.endpoints.items()
            ),
            identities=tuple(
                NumberName(number, ",".join(_texts(labels)))
                for number, labels in desired.identities.items().items()
            ),
        )  # fmt: skip

    # ---- inside ----------------------------------------------------------------------------------

    def _labels(self, number: int) -> tuple[str, ...] | None:
        if 0 < number < 256:
            try:
                return _texts(Reserved(number).labels)
            except ValueError:
                return None
        labels = self._loop.desired.identities.labels(number)
        return None if labels is None else _texts(labels)

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
            return self._loop.call(question, _TIMEOUT)
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


def _texts(labels: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{key}={value}" if value else key for key, value in labels.items())


def _version() -> str:
    try:
        return metadata.version("bristle")
    except metadata.PackageNotFoundError:
        return "unknown"
