# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes Event on each NetworkPolicy that is not in force as written, with the reason.

Whoever wrote the policy looks there (`kubectl describe networkpolicy`), and not into this node's
log. Told once for each reason; the API server forgets events after an hour, and so they are told
again as long as the reason holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from agent.core.events import ResourceKey
from agent.kube.errors import ApiError

AGAIN_SECONDS: Final = 1800.0
KIND: Final = "NetworkPolicy"


class PolicyReporter:
    """snapshot: policies that are not in force, with the reason. report: makes the Event; raises
    ApiError."""

    def __init__(
        self,
        snapshot: Callable[[], Mapping[ResourceKey, str]],
        report: Callable[[ResourceKey, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshot = snapshot
        self._report = report
        self._clock = clock
        self._told: dict[ResourceKey, tuple[str, float]] = {}

    def work(self) -> None:
        """Tell what is new, or was told long ago. Raises the last ApiError after all was tried."""
        found, now = self._snapshot(), self._clock()
        failure: ApiError | None = None
        for key in self._told.keys() - found.keys():
            del self._told[key]
        for key, reason in sorted(found.items()):
            told = self._told.get(key)
            if told is not None and told[0] == reason and told[1] + AGAIN_SECONDS > now:
                continue
            try:
                self._report(key, reason)
            except ApiError as error:
                failure = error
                continue  # tried again at the next look
            self._told[key] = (reason, now)
        if failure is not None:
            raise failure
