# SPDX-License-Identifier: Apache-2.0
"""Serving one watch: lines as they come, bookmarks, the end in time, and faults."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterable

from bench.lab.apiserver.errors import ApiError, expired
from bench.lab.apiserver.faults import Action, Stream, StreamSettings
from bench.lab.apiserver.http import Closed, Connection, Response
from bench.lab.apiserver.listing import ListQuery
from bench.lab.apiserver.watching import Watch, error_line

USUAL_SECONDS = 1800.0  # what a watch is given that names no time, up to twice as much
LOOK_SECONDS = 1.0  # how often to look whether the client is still there
FINAL_BOOKMARK_SECONDS = 2.0
PIECE = 1 << 16


class Pump:
    """Serves a watch on a connection, in the thread that calls `run`.

    changed: a condition on the lock that guards the cluster; notified of changes and actions.
    gone: whether the resource is served no more.
    """

    def __init__(
        self,
        connection: Connection,
        watch: Watch,
        query: ListQuery,
        stream: Stream,
        settings: StreamSettings,
        changed: threading.Condition,
        gone: Callable[[], bool],
    ) -> None:
        self._connection = connection
        self._watch = watch
        self._query = query
        self._stream = stream
        self._settings = settings
        self._changed = changed
        self._gone = gone
        begun = time.monotonic()
        usual = random.uniform(USUAL_SECONDS, 2 * USUAL_SECONDS)
        self._deadline = begun + (query.seconds or usual)
        if settings.longest:
            self._deadline = min(self._deadline, begun + settings.longest)
        self._final = max(begun, self._deadline - FINAL_BOOKMARK_SECONDS)
        self._bookmark_at = min(self._final, self._next_bookmark(begun))
        if not query.bookmarks:
            self._bookmark_at = float("inf")
        self._look_at = begun + LOOK_SECONDS

    def _next_bookmark(self, now: float) -> float:
        if not self._query.bookmarks:
            return float("inf")
        regular = now + self._settings.bookmark_seconds
        # One shortly before the end, so that the next watch begins near it.
        return min(regular, self._final) if now < self._final else regular

    def run(self, first: Iterable[bytes]) -> None:
        """Sends `first` and what follows until the end. Raises Closed, OSError."""
        self._connection.begin_stream(Response(200))
        self._send(first)
        while True:
            lines = self._wait()
            actions = self._stream.actions
            while actions and actions[0].what == "stall":
                self._stall(actions.popleft().seconds)
            if lines:
                self._send(lines)
            while actions:
                self._act(actions.popleft())
            if self._connection.aborted:
                raise Closed
            now = time.monotonic()
            if now >= self._bookmark_at:
                self._send([self._bookmark()] * self._settings.copies)
                self._bookmark_at = self._next_bookmark(now)
            if now >= self._deadline or self._gone():
                self._connection.end_stream()
                return
            if now >= self._look_at:
                self._look_at = now + LOOK_SECONDS
                self._look()

    def _wait(self) -> list[bytes]:
        """Lines, once there are some or something else is due."""
        with self._changed:
            until = min(self._deadline, self._bookmark_at, self._look_at)
            while not self._watch.pending() and not self._interrupted():
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            try:
                return self._watch.poll()
            except ApiError as error:
                self._stream.actions.append(Action("raw", error_line(error)))
                self._stream.actions.append(Action("end"))
                return []

    def _interrupted(self) -> bool:
        return bool(self._stream.actions) or self._connection.aborted or self._gone()

    def _bookmark(self) -> bytes:
        with self._changed:
            return self._watch.bookmark()

    # ---- sending -----------------------------------------------------------------------------

    def _send(self, lines: Iterable[bytes]) -> None:
        pending = bytearray()
        for text in lines:
            pending += text
            if len(pending) >= PIECE:
                self._chunk(bytes(pending))
                pending.clear()
        if pending:
            self._chunk(bytes(pending))

    def _chunk(self, data: bytes) -> None:
        rate = self._settings.rate
        if not rate:
            self._connection.chunk(data)
            return
        step = max(1, rate // 20)
        for start in range(0, len(data), step):
            self._connection.chunk(data[start : start + step])
            time.sleep(step / rate)

    def _look(self) -> None:
        """Raises Closed if the client has gone: nothing else would be noticed before a write."""
        try:
            # The class's own method: TLS sockets refuse to peek.
            found = socket.socket.recv(
                self._connection.sock, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT
            )
        except (BlockingIOError, InterruptedError):
            return
        if not found:
            raise Closed

    # ---- faults ------------------------------------------------------------------------------

    def _act(self, action: Action) -> None:
        match action.what:
            case "stall":
                self._stall(action.seconds)
            case "bookmark":
                self._send([self._bookmark()] * action.copies)
            case "raw":
                self._send([action.data])
            case "expire":
                self._send([error_line(expired("The resourceVersion is too old: injected."))])
                self._finish()
            case "end":
                self._finish()
            case "cut":
                self._send([self._half()[0]])
                self._finish()
            case "break" | "reset":
                half, size = self._half()
                self._connection.write(b"%x\r\n%s" % (size, half))
                self._connection.close(reset=action.what == "reset")
                raise Closed

    def _finish(self) -> None:
        self._connection.end_stream()
        raise Closed

    def _stall(self, seconds: float) -> None:
        """Nothing is sent, not even for changes; ends early with the server."""
        end = time.monotonic() + seconds
        with self._changed:
            while (left := end - time.monotonic()) > 0:
                if self._gone() or self._connection.aborted:
                    return
                self._changed.wait(left)

    def _half(self) -> tuple[bytes, int]:
        """Half of a line, and the length of the whole."""
        text = self._bookmark()
        return text[: len(text) // 2], len(text)
