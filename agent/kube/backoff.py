# SPDX-License-Identifier: Apache-2.0
"""How long to wait before the next attempt. Pure: chance is passed in."""

from collections.abc import Callable

_MAX_ASKED = 300.0  # seconds; a server that asks for more is not believed


class Backoff:
    """Doubles from `first` to `cap` seconds, each with jitter: from half of it to the whole, so
    that a thousand nodes do not come back in the same moment. random: 0 to 1."""

    def __init__(self, first: float, cap: float, random: Callable[[], float]) -> None:
        self._first = first
        self._cap = cap
        self._random = random
        self._next = first

    def next(self, asked: float | None = None) -> float:
        """Seconds to wait now; at least what the server asked for."""
        delay = self._next * (0.5 + self._random() / 2)
        self._next = min(self._cap, self._next * 2)
        return max(delay, min(asked or 0.0, _MAX_ASKED))

    def reset(self) -> None:
        """It went well: the next wait is a short one."""
        self._next = self._first
