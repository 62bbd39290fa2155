# SPDX-License-Identifier: Apache-2.0
"""This node's word in the cluster: open for pods or not, and how it is (BristleNode)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec

from agent.core.events import Node
from agent.kube.objects import (
    BristleNodeSpec,
    BristleNodeStatus,
    Capacity,
    Condition,
    Encapsulation,
    NodeAddress,
)
from agent.kube.times import timestamp

CAPACITY_SECONDS: Final = 300.0
"""How old the figures of BristleNode may be when nothing else about it changes."""


READY_PAUSE: Final = 0.25
"""Between two looks while pods cannot be served yet: a node waits for it."""


class NodeRegistry(Protocol):
    """The part of the registry that is used here."""

    def node(self) -> Node: ...

    def open_for_pods(self) -> None: ...

    def put_node(self, node: Node, spec: BristleNodeSpec, status: BristleNodeStatus) -> None: ...


class NodeKeeper:
    """ready: whether pods can be served here, and why not. used: table -> (entries, capacity).

    Taint and condition are only ever changed towards open: when an agent ends, the datapath goes on
    to serve the pods that are there, and what the node is to do about new ones is the kubelet's
    and the operator's business.
    """

    def __init__(
        self,
        registry: NodeRegistry,
        ready: Callable[[], tuple[bool, str]],
        used: Callable[[], Mapping[str, tuple[int, int]]],
        *,
        routing_mode: str = "",
        tunnel_port: int = 0,
        version: str = "",
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._ready = ready
        self._used = used
        self._routing_mode = routing_mode
        self._tunnel_port = tunnel_port
        self._version = version
        self._clock = clock
        self._monotonic = monotonic
        self._told: tuple[Node, BristleNodeSpec, BristleNodeStatus] | None = None
        self._told_at: float | None = None
        """None: it is to be told, whatever was told before."""
        self._lost = threading.Event()

    def lost(self) -> None:
        """What was told is gone: tell it again when `work` is called next. From any thread."""
        self._lost.set()

    def work(self) -> float | None:
        """Look, and write what differs; gives the seconds after which to look again, if soon.

        Raises ApiError.
        """
        if self._lost.is_set():
            self._lost.clear()
            self._told_at = None
        good, why = self._ready()
        if not good and self._told_at is not None and self._said(good, why) is not None:
            return READY_PAUSE
        node = self._registry.node()
        if good:
            self._registry.open_for_pods()
        self._describe(node, good, why)
        return None if good else READY_PAUSE

    def _describe(self, node: Node, good: bool, why: str) -> None:
        spec = BristleNodeSpec(
            addresses=tuple(
                NodeAddress("ExternalIP" if one in node.external else "InternalIP", one)
                for one in node.addresses
            ),
            podCIDRs=node.pod_cidrs,
            routingMode=self._routing_mode,
            encapsulation=Encapsulation(self._tunnel_port) if self._tunnel_port else None,
        )
        status = BristleNodeStatus(
            conditions=(self._condition(good, why),),
            capacity={name: Capacity(*pair) for name, pair in self._used().items()},
            version=self._version,
        )
        if self._told is not None and self._told_at is not None:
            fresh = self._monotonic() - self._told_at < CAPACITY_SECONDS
            former = msgspec.structs.replace(self._told[2], capacity=status.capacity)
            if (node, spec, status) == (*self._told[:2], former) and fresh:
                return
        self._registry.put_node(node, spec, status)
        self._told, self._told_at = (node, spec, status), self._monotonic()

    def _condition(self, good: bool, why: str) -> Condition:
        return self._said(good, why) or Condition(
            type="Ready",
            status=str(good),
            reason="Enforcing" if good else "NotEnforcing",
            message=why,
            lastTransitionTime=timestamp(self._clock()),
        )

    def _said(self, good: bool, why: str) -> Condition | None:
        """The condition as it was told, if it says the same."""
        former = self._told[2].conditions[0] if self._told is not None else None
        same = former is not None and (former.status, former.message) == (str(good), why)
        return former if same else None
