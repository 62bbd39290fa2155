# SPDX-License-Identifier: Apache-2.0
"""Everything that is wanted against everything that is in the kernel, and what makes them equal.

Finds what a failed write left behind, what others altered, and at the first synchronisation what a
former agent left. Called in the loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from agent.core.delta import (
    Delta,
    MapDelta,
    PolicyDelta,
    Writes,
    differences,
    peer_upserts,
    record_differences,
)
from agent.core.desired import Desired
from agent.kernel.datapath import AGENT_MAPS, Datapath
from bpf.layouts import PolicyKey, PolicyVerdict

EVERYTHING: Final = frozenset({"policy", *AGENT_MAPS})
ROUNDS: Final = (
    frozenset({"policy"}),
    frozenset({"peers"}),
    EVERYTHING - {"policy", "peers"},
)
"""Parts of a whole comparison that may be done one at a time, so that none takes long."""


class Comparison:
    """Compares the parts asked for. A map that cannot hold all gets what fits: policy entries only
    ever allow, so what is missing is denied."""

    def __init__(self, desired: Desired, datapath: Datapath) -> None:
        self._desired = desired
        self._datapath = datapath

    def difference(self, delete: bool, parts: Collection[str] = EVERYTHING) -> Delta:
        """What makes these maps equal to what is wanted; without `delete`, columns, peers,
        tunnels and numbers that are not wanted stay, for whoever may still use them."""
        delta = Delta()
        if "policy" in parts:
            delta.policy = self._policy(delete)
        wanted: dict[str, Callable[[], Writes]] = {
            "numbers": self._numbers,
            "peers": self._desired.peer_writes,
            "tunnels": self._desired.tunnel_writes,
            "service_peers": self._desired.services.writes,
            "endpoints": self._desired.endpoint_writes,
            "addresses": self._desired.address_writes,
            "devices": self._desired.device_writes,
            "places": self._desired.place_writes,
            "socket_endpoints": self._desired.sockets.endpoint_writes,
            "namespaces": self._desired.sockets.namespace_writes,
            "masquerade": self._desired.masquerade.source_writes,
            "masquerade_exclude": self._desired.masquerade.exclude_writes,
        }
        for name in AGENT_MAPS:
            if name in parts:
                actual = self._datapath.raw(name)
                part = differences(wanted[name](), actual)
                if not delete and name in ("numbers", "peers", "tunnels"):
                    part.deletes.clear()
                if name == "peers":
                    self._fit_peers(part, actual)
                setattr(delta, name, part)
        return delta

    def sync(self, delete: bool, parts: Collection[str] = EVERYTHING) -> int:
        """Write the difference; gives how many entries it was, numbers left out."""
        delta = self.difference(delete, parts)
        count = (len(delta.policy.keys) + len(delta.policy.deletes)) // PolicyKey.SIZE
        for name in AGENT_MAPS:
            if name != "numbers":
                part: MapDelta = getattr(delta, name)
                count += len(part.upserts) + len(part.deletes)
        if delta:
            self._datapath.apply(delta)
            if count and not delta.verdicts:
                self._datapath.bump_epoch()
        return count

    def _numbers(self) -> Writes:
        self._desired.numbers.take_fresh()
        return self._desired.numbers.entries()

    def _policy(self, delete: bool) -> PolicyDelta:
        wanted = self._desired.policy_records()
        keys, values = self._datapath.policy_records()
        delta = record_differences(
            wanted.keys, wanted.values, keys, values, PolicyKey.SIZE, PolicyVerdict.SIZE
        )
        capacity, present = self._datapath.capacity("policy"), len(keys) // PolicyKey.SIZE
        room = capacity - present
        if not delete and len(delta.keys) // PolicyKey.SIZE <= room:
            delta.deletes.clear()
        room += len(delta.deletes) // PolicyKey.SIZE
        del delta.keys[room * PolicyKey.SIZE :]
        del delta.values[room * PolicyVerdict.SIZE :]
        return delta

    def _fit_peers(self, delta: MapDelta, actual: Writes) -> None:
        """Networks stay before addresses: without an address's entry its pod is taken for world,
        but without an exception's entry the block around it would hold what it excludes."""
        room = self._datapath.capacity("peers") - len(actual)
        new = [key for key in peer_upserts(delta.upserts) if key not in actual]
        for key in new[: max(len(new) - room, 0)]:
            del delta.upserts[key]
