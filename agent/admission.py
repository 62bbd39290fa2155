# SPDX-License-Identifier: Apache-2.0
"""Which policies are in force: all that fit. Capacity is checked before anything is written.

A policy that would make a table overflow, or that finds no identity for its blocks, is refused as a
whole: its former state stays in force, the others do not suffer, and it is tried again when there
is room. Called in the loop's thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from agent.core.delta import Delta
from agent.core.desired import Desired
from agent.core.events import ResourceKey
from agent.core.store import Changes, Store
from identity.allocator import IdentityExhausted
from policy.model import NetworkPolicy

log = logging.getLogger(__name__)

_OPTIONS = {"policy": "bpf.policy_max", "peers": "bpf.peers_max"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """A policy that is valid and not in force. ``map`` is the one it would overflow, empty for
    another reason, and ``growth`` how many more entries it needs there than its former state."""

    policy: NetworkPolicy
    reason: str
    map: str = ""
    growth: int = 0


class Admission:
    """Feeds changes to the desired state, and takes back what cannot be.

    ``refused`` may be read by any thread.
    """

    def __init__(self, store: Store, desired: Desired, capacity: Callable[[str], int]) -> None:
        self.refused: dict[ResourceKey, Refusal] = {}
        self._store = store
        self._desired = desired
        self._capacity = capacity
        self._good: dict[ResourceKey, NetworkPolicy] = {}

    def take(self, now: float) -> Delta | None:
        """Put the store's changes into the desired state; what they come to. None: something was
        taken back on the way, so only a comparison tells what is to be written."""
        changes = self._store.take_changes()
        for key in changes.policies:
            self.refused.pop(key, None)  # it has changed or is gone: judged anew
            if key not in self._store.policies:
                self._good.pop(key, None)  # gone for good, whatever else of these fails
        delta, problem = self._try(changes, now)
        if problem is None:
            self._accept(changes.policies)
            return delta
        suspects = {
            key: policy
            for key in sorted(changes.policies)
            if (policy := self._store.policies.get(key)) is not None
            and policy is not self._good.get(key)
        }
        if not suspects:
            return delta  # no policy's fault; what is missing is denied
        for key in suspects:
            self._store.put_policy(key, self._good.get(key))
        self._merge(changes, now)
        for key, policy in suspects.items():
            self._admit(key, policy, now)
        return None

    def overflow(self) -> str | None:
        """Which map cannot hold what is wanted, in words."""
        found = self._overflowing({})
        if found is None:
            return None
        name, needed = found
        return (
            f"the {name} table holds {self._capacity(name)} entries and {needed} are needed: raise"
            f" {_OPTIONS[name]}; what does not fit is denied"
        )

    def retry(self, now: float, everything: bool = False) -> bool:
        """Try refused policies again for which there is room now; whether any is in force."""
        admitted = False
        for key, refusal in sorted(self.refused.items()):
            if self._store.policy_changed(key):
                continue  # by now another one is wanted, or none: `take` will see to it
            if refusal.map:
                room = self._capacity(refusal.map) - self._size(refusal.map)
                if room < max(refusal.growth, 1):
                    continue
            elif not everything:
                continue
            admitted |= self._admit(key, refusal.policy, now)
        return admitted

    # ---- inside ----------------------------------------------------------------------------------

    def _admit(self, key: ResourceKey, policy: NetworkPolicy, now: float) -> bool:
        """One policy, all else being in place."""
        before = self._sizes()
        self._store.put_policy(key, policy)
        _, problem = self._try(self._store.take_changes(), now)
        if problem is None:
            self._accept([key])
            self.refused.pop(key, None)
            return True
        found = self._overflowing(before)
        name = found[0] if found else ""
        growth = self._size(name) - before[name] if name else 0
        self._store.put_policy(key, self._good.get(key))
        self._merge(self._store.take_changes(), now)
        former = self.refused.get(key)
        self.refused[key] = Refusal(policy, problem, name, growth)
        if former is None:
            log.error("%s is not put in force: %s", key, problem)
        return False

    def _try(self, changes: Changes, now: float) -> tuple[Delta | None, str | None]:
        before = self._sizes()
        delta: Delta | None = None
        try:
            delta = self._desired.update(self._store, changes, now)
        except IdentityExhausted as error:
            return None, f"its blocks find no identity: {error}"
        if self._overflowing({}) is not None and self._desired.abandon(now):
            delta = None  # it may hold what was given up
        found = self._overflowing(before)
        if found is None:
            return delta, None
        name, needed = found
        return delta, (
            f"the {name} table holds {self._capacity(name)} entries, and with this policy {needed}"
            f" are needed: raise {_OPTIONS[name]}, or let the policy's selectors match fewer pods"
        )

    def _merge(self, changes: Changes, now: float) -> None:
        """Changes without what was taken back of them."""
        later = self._store.take_changes()
        for name in ("pods", "namespaces", "policies", "nodes", "identities", "endpoints"):
            getattr(changes, name).update(getattr(later, name))
        changes.node_addresses |= later.node_addresses
        changes.tunnel_device |= later.tunnel_device
        self._desired.update(self._store, changes, now)
        self._desired.abandon(now)

    def _accept(self, keys: Iterable[ResourceKey]) -> None:
        for key in keys:
            policy = self._store.policies.get(key)
            if policy is None:
                self._good.pop(key, None)
            else:
                self._good[key] = policy

    def _overflowing(self, before: Mapping[str, int]) -> tuple[str, int] | None:
        """A map that cannot hold what is wanted of it, and wanted less before."""
        for name, size in self._sizes().items():
            if size > max(self._capacity(name), before.get(name, 0)):
                return name, size
        return None

    def _sizes(self) -> dict[str, int]:
        return {name: self._size(name) for name in _OPTIONS}

    def _size(self, name: str) -> int:
        return self._desired.entries if name == "policy" else len(self._desired.ipcache)
