# SPDX-License-Identifier: Apache-2.0
"""Writes a memory down. Nobody waits for the disk: those who follow the server only note what has
changed, and a thread writes it later."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from agent.kube.last_good import LastGood
from agent.kube.memory import Memory
from agent.state_file import StateFileError

_log: Final = logging.getLogger(__name__)


class Keeper:
    """A memory as a former agent left it, and the thread that writes it down: `run`.

    pause: seconds after a change until it is written, and from one time to the next. retry: after
        a failure. settle: returns once what was delivered is in force; raises nothing.
    """

    def __init__(
        self, file: LastGood, pause: float, retry: float, settle: Callable[[], None]
    ) -> None:
        self._file = file
        self._pause = pause
        self._retry = retry
        self._settle = settle
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self.memory: Final = Memory(file.load(), self._changed.set)

    def run(self) -> None:
        """Until `stop`; what has changed is written before the end."""
        while True:
            self._changed.wait()
            if not self._stopping.wait(self._pause):
                self._settle()
            if not self._write() and not self._stopping.is_set():
                self._changed.set()
                self._stopping.wait(self._retry)
            if self._stopping.is_set():
                return

    def stop(self) -> None:
        """Make `run` return."""
        self._stopping.set()
        self._changed.set()

    def _write(self) -> bool:
        self._changed.clear()  # first: what comes from now on is for the next time
        try:
            self._file.save(self.memory.files())
        except StateFileError as error:
            _log.error("what is in force could not be written down: %s", error)
            return False
        except Exception:  # a fault of ours must not silently end it
            _log.exception("what is in force could not be written down")
            return False
        return True
