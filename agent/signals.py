# SPDX-License-Identifier: Apache-2.0
"""Ending on a signal, at whatever moment it comes."""

from __future__ import annotations

import contextlib
import os
import signal
import threading


def set_on_signals(stopping: threading.Event) -> None:
    """SIGTERM and SIGINT set the event, from a thread of their own.

    A handler runs between two steps of the main thread, which may just have begun to wait for the
    event and hold its lock: to set it there would wait for itself for ever.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(writer, False)

    def tell(*_: object) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(writer, b"\0")

    def wait() -> None:
        os.read(reader, 1)
        stopping.set()

    threading.Thread(target=wait, name="signals", daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, tell)
