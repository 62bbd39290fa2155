# SPDX-License-Identifier: Apache-2.0
"""The last lines of the log, for bugtool: where the log itself goes is the host's business."""

from __future__ import annotations

import logging
from collections import deque
from typing import Final

LINES: Final = 2000


class LogRing(logging.Handler):
    """A logging handler that keeps the newest lines, formatted."""

    def __init__(self, lines: int = LINES) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=lines)

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging, in any thread."""
        try:
            self._lines.append(self.format(record))
        except Exception:
            self.handleError(record)

    def lines(self) -> tuple[str, ...]:
        """What is there now, oldest first; a record with a traceback is one item."""
        self.acquire()
        try:
            return tuple(self._lines)
        finally:
            self.release()
