# SPDX-License-Identifier: Apache-2.0
"""Collection of identities that no pod of the cluster has: by one agent at a time, which a Lease
elects. A deletion asks for the version in which the mark was seen, so a node that takes the number
up again in the last moment keeps it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Set
from typing import Final, Protocol

from agent.core.events import PublishedIdentity
from agent.core.identity_gc import IdentityCollector
from agent.kube.errors import ApiError, Conflict, NotFound

log = logging.getLogger(__name__)

LEASE: Final = "bristle-identity-collector"

Snapshot = tuple[Mapping[int, PublishedIdentity], Set[int]]
"""Identities that are published, and the numbers that endpoints have."""


class Identities(Protocol):
    """The part of the registry that is used here."""

    def mark(self, number: int) -> None: ...

    def unmark(self, number: int) -> None: ...

    def delete_identity(self, number: int) -> None: ...


class Collector:
    """leading: whether this agent is the elected one. grace: see IdentityCollector."""

    def __init__(
        self,
        registry: Identities,
        snapshot: Callable[[], Snapshot],
        leading: Callable[[], bool],
        grace: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._snapshot = snapshot
        self._leading = leading
        self._grace = grace
        self._clock = clock
        self._ages: IdentityCollector | None = None

    def work(self) -> None:
        """One round. Raises ApiError after having tried all that is to be done, or for as long as
        this agent led."""
        if not self._leading():
            self._ages = None  # whoever leads again judges ages anew
            return
        if self._ages is None:
            self._ages = IdentityCollector(self._grace)
        identities, used = self._snapshot()
        found = self._ages.collect(identities, used, self._clock())
        deleted: list[int] = []
        failure: ApiError | None = None

        def delete(number: int) -> None:
            self._registry.delete_identity(number)
            deleted.append(number)

        for action, number in (
            *((self._registry.unmark, number) for number in found.unmark),
            *((self._registry.mark, number) for number in found.mark),
            *((delete, number) for number in found.delete),
        ):
            if not self._leading():
                self._ages = None
                break
            try:
                action(number)
            except (Conflict, NotFound):
                pass  # somebody was faster: the watch will tell
            except ApiError as error:
                failure = error
        if deleted:
            log.info("identities without pods were deleted: %s", ", ".join(map(str, deleted)))
        if failure is not None:
            raise failure
