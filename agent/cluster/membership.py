# SPDX-License-Identifier: Apache-2.0
"""This node as a member of a cluster: all that reads from and writes to the API server, put
together. The daemon makes one in cluster mode, and knows nothing else of it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final, TypeVar

from agent.cleanup import LAST_GOOD, POD_CIDRS
from agent.cluster.collector import LEASE, Collector, Snapshot
from agent.cluster.hooks import Hooks, NoPodCidrs
from agent.cluster.node_keeper import NodeKeeper
from agent.cluster.periodic import Periodic
from agent.cluster.policy_events import KIND, PolicyReporter
from agent.cluster.publisher import Publisher
from agent.cluster.registry import ApiRegistry
from agent.config import Config
from agent.core.events import Event, Node, NodeUpserted, NodeWithdrawn, ResourceKey
from agent.core.publication import PodPublication, publications
from agent.core.store import PodKey
from agent.kube.access import Access
from agent.kube.cluster import ClusterSource
from agent.kube.credentials import (
    SERVICE_ACCOUNT,
    CredentialsError,
    from_kubeconfig,
    in_cluster,
)
from agent.kube.errors import ApiError
from agent.kube.lease import Candidate, Election
from agent.loop import Loop, LoopStopped
from agent.state_file import write_durably

log = logging.getLogger(__name__)

T = TypeVar("T")

SOURCE: Final = "kubernetes"
NAMESPACE: Final = "kube-system"
LEASE_SECONDS: Final = 15
_EVENTS_PAUSE: Final = 2.0
_KEEPER_PAUSE: Final = 60.0
_RETRY: Final = 5.0
_ASK_PAUSE: Final = 2.0
_EXPECTED: Final = (ApiError, CredentialsError, TimeoutError, LoopStopped)


class Membership:
    """Made before the rest of the agent, because the cluster says which addresses pods have.

    source: the name of its events' source.
    """

    source: Final = SOURCE

    def __init__(self, config: Config) -> None:
        assert config.source.kubernetes is not None
        self._config = config
        file = config.source.kubernetes.kubeconfig
        credentials = in_cluster() if file is None else from_kubeconfig(file)
        self._access = Access(credentials, f"bristle/{_version()} ({config.node_name})")
        self._registry = ApiRegistry(self._access, config.node_name)
        self._source: ClusterSource | None = None
        self._publisher: Publisher | None = None
        self._keeper: NodeKeeper | None = None
        self._workers: dict[str, Periodic] = {}
        self._release: Callable[[], None] = lambda: None
        self._cidrs: tuple[str, ...] = ()
        self.addresses: tuple[str, ...] = ()
        """Those of this node's object, as `pod_cidrs` found it; none: not known."""

    # ---- before the agent runs ---------------------------------------------------------------

    def pod_cidrs(
        self, stopping: threading.Event, waits: Callable[[str], None] = lambda reason: None
    ) -> tuple[str, ...]:
        """The networks that this node's pods get their addresses from: the configured ones, else
        those of its Node object, else (with the API server away) those it had last.

        Waits until there are some, and tells `waits` for what; empty: it is over. Raises NoPodCidrs
        when told to stop.
        """
        configured = tuple(str(one) for one in self._config.pod_cidrs)
        if configured:
            with contextlib.suppress(ApiError, CredentialsError):
                self.addresses = self._registry.node().addresses
            return configured
        known = _recall(self._config.state_dir)
        said = ""
        while not stopping.is_set():
            try:
                node = self._registry.node()
                self._cidrs, self.addresses = node.pod_cidrs, node.addresses
                reason = f"node {node.name} has no spec.podCIDRs yet: is its allocation turned on?"
            except (ApiError, CredentialsError) as error:
                reason = str(error)
                self._cidrs = known
            if self._cidrs:
                self._remember(self._cidrs)
                waits("")
                return self._cidrs
            if reason != said:
                said = reason
                log.warning("waiting for this node's pod CIDRs: %s", reason)
                waits(f"waiting for this node's pod CIDRs: {reason}")
            stopping.wait(_ASK_PAUSE)
        raise NoPodCidrs

    def _remember(self, cidrs: Sequence[str]) -> None:
        if _recall(self._config.state_dir) != tuple(cidrs):
            write_durably(self._config.state_dir / POD_CIDRS, json.dumps(list(cidrs)).encode())

    # ---- life --------------------------------------------------------------------------------

    def changed(self, pods: set[PodKey]) -> None:
        """For the loop: the cluster may have to be told something else of these pods."""
        if self._publisher is not None:
            self._publisher.changed(pods)

    def start(self, loop: Loop, hooks: Hooks) -> None:
        """Everything runs; events go to the loop."""
        name = self._config.node_name

        def ask(question: Callable[[], T]) -> T:
            return loop.call(question, in_force=False)

        def plan(keys: Collection[PodKey]) -> list[PodPublication]:
            return ask(lambda: publications(keys, loop.store, loop.desired, name))

        self._publisher = Publisher(plan, self._registry)
        self._publisher.start()
        election = Election(LEASE, _namespace(), f"{name}-{secrets.token_hex(4)}", LEASE_SECONDS)
        candidate = Candidate(self._registry.resources.leases, election, time.time, time.monotonic)
        collector = Collector(
            self._registry,
            lambda: ask(lambda: _snapshot(loop)),
            lambda: candidate.leading,
            self._config.identity.grace,
        )
        routing = self._config.routing
        self._keeper = NodeKeeper(
            self._registry,
            hooks.ready,
            lambda: ask(lambda: _used(loop)),
            # With `none` nothing is announced: there are no other nodes to tell it to.
            routing_mode="" if routing.mode == "none" else routing.mode,
            tunnel_port=routing.tunnel_port if routing.mode == "tunnel" else 0,
            version=_version(),
        )
        # An invalid policy is so on every node, and one of them says it.
        reporter = PolicyReporter(
            lambda: ask(lambda: _refusals(loop, candidate.leading)), self._registry.report_policy
        )

        def elect() -> None:
            candidate.step()

        self._add("election", elect, LEASE_SECONDS / 5)
        self._add("identities", collector.work, self._config.identity.gc_interval)
        self._add("node", self._keeper.work, _KEEPER_PAUSE)
        self._add("policy events", reporter.work, _EVENTS_PAUSE)
        self._release = candidate.release

        def settle() -> None:
            with contextlib.suppress(LoopStopped, TimeoutError):
                ask(lambda: None)

        self._source = ClusterSource(
            self._access,
            name,
            lambda event: self._pass_on(event, loop, hooks),
            name=SOURCE,
            last_good=self._config.state_dir / LAST_GOOD,
            settle=settle,
        )
        self._source.start()
        for one in self._workers.values():
            one.start()

    def _add(self, name: str, work: Callable[[], float | None], pause: float) -> None:
        self._workers[name] = Periodic(name, work, pause, _RETRY, _EXPECTED)

    def stop(self) -> None:
        """In reverse. What was published stays: the pods do, too."""
        for one in reversed(self._workers.values()):
            one.stop()
        try:
            self._release()
        except _EXPECTED as error:
            log.info("the lease was not given up, and runs out: %s", error)
        if self._source is not None:
            self._source.stop()
        if self._publisher is not None:
            self._publisher.stop()
        self._access.close()

    def problems(self) -> Mapping[str, str]:
        """What the API server cannot be told, by what it concerns. For status."""
        found = {name: one.problem for name, one in self._workers.items() if one.problem}
        if self._publisher is not None:
            found |= {f"pod {'/'.join(key)}": text
                      for key, text in dict(self._publisher.problems).items()}  # fmt: skip
        return found

    # ---- inside ------------------------------------------------------------------------------

    def _pass_on(self, event: Event, loop: Loop, hooks: Hooks) -> None:
        if isinstance(event, NodeUpserted) and event.node.name == self._config.node_name:
            self._follow_own_node(event.node, loop, hooks)
        if isinstance(event, NodeWithdrawn) and event.key.name == self._config.node_name:
            self._restore_own_word()
        loop.post(event)

    def _restore_own_word(self) -> None:
        """Somebody deleted this node's BristleNode. Where it went with the Node itself, it is not
        written before there is one again."""
        assert self._keeper is not None
        self._keeper.lost()
        self._workers["node"].wake()

    def _follow_own_node(self, node: Node, loop: Loop, hooks: Hooks) -> None:
        """Other CIDRs hold for pods that come; those that are there keep their addresses."""
        self._workers["node"].wake()
        if self._config.pod_cidrs or not node.pod_cidrs or node.pod_cidrs == self._cidrs:
            return
        log.warning("pod CIDRs are %s now, and were %s",
                    ", ".join(node.pod_cidrs), ", ".join(self._cidrs))  # fmt: skip
        self._cidrs = node.pod_cidrs
        self._remember(node.pod_cidrs)
        loop.submit(lambda: hooks.set_blocks(node.pod_cidrs), in_force=False)


def _snapshot(loop: Loop) -> Snapshot:
    """In the loop."""
    store = loop.store
    return dict(store.identities), {one.identity for one in store.published.values()}


def _used(loop: Loop) -> dict[str, tuple[int, int]]:
    """How full the tables are: entries and capacity. In the loop."""
    used = {
        "policy": loop.desired.entries,
        "peers": len(loop.desired.ipcache),
        "endpoints": len(loop.store.endpoints),
    }
    return {name: (count, loop.datapath.capacity(name)) for name, count in used.items()}


def _refusals(loop: Loop, invalid: bool) -> dict[ResourceKey, str]:
    """Policies that are not in force as written, with the reason: those that this node has no room
    for, and `invalid` ones. In the loop."""
    found = {key: one.reason for key, one in loop.refused.items()}
    if not invalid:
        return found
    return found | {
        one.resource: f"{one.field}: {one.message}" if one.field else one.message
        for one in loop.store.rejections.values()
        if one.resource is not None and one.resource.kind == KIND
    }


def _namespace() -> str:
    """Where the agents of this cluster have their Lease: where they run."""
    told = os.environ.get("BRISTLE_NAMESPACE", "")
    if told:
        return told
    try:
        return (SERVICE_ACCOUNT / "namespace").read_text().strip() or NAMESPACE
    except OSError:
        return NAMESPACE


def _recall(state_dir: Path) -> tuple[str, ...]:
    try:
        return tuple(str(one) for one in json.loads((state_dir / POD_CIDRS).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return ()


def _version() -> str:
    try:
        return metadata.version("bristle")
    except metadata.PackageNotFoundError:
        return "unknown"
