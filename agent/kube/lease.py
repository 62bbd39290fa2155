# SPDX-License-Identifier: Apache-2.0
"""Leader election by a Lease (coordination.k8s.io/v1), by the rules of client-go: at most one of
several candidates believes that it leads.

Clocks of nodes may differ. So nobody compares a time in the lease with a clock of its own: a lease
has expired when the candidate itself has seen no change of it for the lease's duration, by its own
monotonic clock. And a leader ceases to believe in itself some time before the others can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from agent.kube.errors import AlreadyExists, Conflict, NotFound
from agent.kube.objects import Lease, LeaseSpec, Metadata
from agent.kube.resources import Collection
from agent.kube.times import micro_timestamp

# Of the duration, how much a leader uses; the rest is for clocks that run at another speed and
# for what it has just begun.
_TRUSTED: Final = 2 / 3


@dataclass(frozen=True, slots=True)
class Election:
    """Which lease, and who stands for it.

    identity: of the candidate, different for each. duration: whole seconds without renewal after
    which others may take over. Renew every fifth of it or so.
    """

    name: str
    namespace: str
    identity: str
    duration: int = 15


class Candidate:
    """One candidate. Synchronous; not safe for several threads at once.

    clock: seconds since 1970, only ever written. monotonic: seconds.
    """

    def __init__(
        self,
        leases: Collection[Lease],
        election: Election,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._leases = leases
        self._election = election
        self._clock = clock
        self._monotonic = monotonic
        self._seen: LeaseSpec | None = None
        self._seen_at = 0.0
        self._renewed_at: float | None = None

    @property
    def leading(self) -> bool:
        """Whether this candidate leads for sure at this moment, also if it cannot ask anybody."""
        if self._renewed_at is None:
            return False
        return self._monotonic() - self._renewed_at < self._election.duration * _TRUSTED

    @property
    def leader(self) -> str:
        """Identity of who was seen to hold the lease last; empty: nobody."""
        return (self._seen.holderIdentity or "") if self._seen is not None else ""

    def step(self) -> bool:
        """Acquire or renew the lease, if that may be; whether this candidate leads now.

        Raises ApiError if the server cannot be asked; `leading` then ends by itself.
        """
        # Before the request: others count from when they see what it writes, which is later.
        begun = self._monotonic()
        try:
            lease = self._leases.get(self._election.name, self._election.namespace)
        except NotFound:
            return self._create(begun)
        self._observe(lease.spec)
        holder = lease.spec.holderIdentity or ""
        if holder != self._election.identity:
            self._renewed_at = None
            if holder and not self._expired(lease.spec):
                return False
        try:
            taken = self._leases.update(
                msgspec.structs.replace(lease, spec=self._claim(lease.spec))
            )
        except (Conflict, NotFound):
            return self.leading  # somebody else was faster; the next step sees who
        self._won(taken.spec, begun)
        return True

    def release(self) -> None:
        """Give the lease up, so that another need not wait; nothing if it is not held.

        Raises ApiError; the lease then runs out by itself.
        """
        if self._renewed_at is None:
            return
        self._renewed_at = None
        try:
            lease = self._leases.get(self._election.name, self._election.namespace)
            if lease.spec.holderIdentity != self._election.identity:
                return
            now = micro_timestamp(self._clock())
            spec = msgspec.structs.replace(
                lease.spec,
                holderIdentity="",
                leaseDurationSeconds=1,
                acquireTime=now,
                renewTime=now,
            )
            self._leases.update(msgspec.structs.replace(lease, spec=spec))
        except (Conflict, NotFound):
            pass  # it has another holder already, or is gone

    def _create(self, begun: float) -> bool:
        meta = Metadata(name=self._election.name, namespace=self._election.namespace)
        try:
            made = self._leases.create(Lease(metadata=meta, spec=self._claim(None)))
        except (AlreadyExists, Conflict):
            self._renewed_at = None
            return False
        self._won(made.spec, begun)
        return True

    def _claim(self, old: LeaseSpec | None) -> LeaseSpec:
        """What the lease says once it is this candidate's."""
        now = micro_timestamp(self._clock())
        mine = old is not None and old.holderIdentity == self._election.identity
        transitions = (old.leaseTransitions or 0) if old is not None else 0
        return LeaseSpec(
            holderIdentity=self._election.identity,
            leaseDurationSeconds=self._election.duration,
            acquireTime=old.acquireTime if mine and old is not None and old.acquireTime else now,
            renewTime=now,
            leaseTransitions=transitions + (0 if mine or old is None else 1),
        )

    def _won(self, spec: LeaseSpec, begun: float) -> None:
        self._observe(spec)
        self._renewed_at = begun

    def _observe(self, spec: LeaseSpec) -> None:
        if spec != self._seen:
            self._seen, self._seen_at = spec, self._monotonic()

    def _expired(self, spec: LeaseSpec) -> bool:
        duration = spec.leaseDurationSeconds or self._election.duration
        return self._monotonic() - self._seen_at >= duration
