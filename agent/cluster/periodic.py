# SPDX-License-Identifier: Apache-2.0
"""A thread that does one thing again and again, sooner after it failed, and says what is wrong."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Periodic:
    """work: gives the seconds until the next time, None for `pause`; raises one of `expected` when
    it could not be done, and then `retry` counts. Anything else that it raises is logged whole.
    `wake` brings the next time forward.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], float | None],
        pause: float,
        retry: float,
        expected: type[Exception] | tuple[type[Exception], ...],
    ) -> None:
        self.problem: str | None = None
        """What went wrong the last time. Others may read it."""
        self._name = name
        self._work = work
        self._pause = pause
        self._retry = retry
        self._expected = expected
        self._woken = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends after the work that is under way."""
        self._stopped.set()
        self._woken.set()
        self._thread.join()

    def wake(self) -> None:
        """Do it now."""
        self._woken.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            problem: str | None = None
            pause: float | None = None
            try:
                pause = self._work()
            except self._expected as error:
                problem = str(error) or type(error).__name__
            except Exception as error:
                log.exception("%s", self._name)
                problem = f"{type(error).__name__}: {error}"
            if problem is not None and problem != self.problem:
                log.warning("%s: %s", self._name, problem)
            self.problem = problem
            self._woken.wait(self._retry if problem else self._pause if pause is None else pause)
            self._woken.clear()
