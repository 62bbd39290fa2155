# SPDX-License-Identifier: Apache-2.0
"""How far the agent is on its way, for probes. Without the server: others need not have that."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

Check = Callable[[], tuple[bool, str]]
"""Whether it is so, and a line of text that says why."""

START_SECONDS: Final = 180.0
"""How long a start may take, compiling included, before it is taken for stuck."""


class Progress:
    """What probes are told before there is a loop to ask, and where they ask from then on.

    An agent that waits for somebody else is not at fault: a restart would not help it. note: is
    given what it waits for, for those who ask by the command line.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        note: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._clock = clock
        self._note = note
        self._since = clock()
        self._reason = ""
        self._checks: tuple[Check, Check] | None = None

    def waits(self, reason: str) -> None:
        """What the start waits for; empty: it goes on."""
        self._reason, self._since = reason, self._clock()
        self._note(reason)

    def started(self, alive: Check, ready: Check) -> None:
        """From now on these say it."""
        self._checks = alive, ready

    def alive(self) -> tuple[bool, str]:
        """For /healthz."""
        if self._checks is not None:
            return self._checks[0]()
        if self._reason or self._clock() - self._since < START_SECONDS:
            return True, self._doing
        return False, f"the start has taken more than {START_SECONDS:.0f} s"

    def ready(self) -> tuple[bool, str]:
        """For /readyz."""
        return self._checks[1]() if self._checks is not None else (False, self._doing)

    @property
    def _doing(self) -> str:
        return self._reason or "the agent is starting"
