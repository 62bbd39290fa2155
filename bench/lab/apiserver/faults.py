# SPDX-License-Identifier: Apache-2.0
"""What goes wrong on purpose: with requests, and with streams."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from bench.lab.apiserver.http import Connection


@dataclass(slots=True)
class Fault:
    """Something that happens to the next requests that it fits.

    what: "answer" (code, retry_seconds), "delay" (seconds), "drop" (close without an answer),
    "lose" (do it, then close without an answer). left: for how many requests; None for all.
    verb, resource, agent, path: "" for any; agent and path need only be a part.
    """

    what: str
    left: int | None = 1
    code: int = 503
    retry_seconds: int | None = None
    seconds: float = 0.0
    verb: str = ""
    resource: str = ""
    agent: str = ""
    path: str = ""
    hits: int = 0

    def fits(self, verb: str, resource: str, agent: str, path: str) -> bool:
        """Whether it is about such a request."""
        return (
            self.left != 0
            and self.verb in ("", verb)
            and self.resource in ("", resource)
            and self.agent in agent
            and self.path in path
        )


class Faults:
    """Faults of requests; safe to use from several threads."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """From now on."""
        with self._lock:
            self._faults.append(fault)

    def clear(self) -> None:
        """No faults any more."""
        with self._lock:
            self._faults.clear()

    def take(self, verb: str, resource: str, agent: str, path: str) -> list[Fault]:
        """What happens to a request: any delays, and the first of the others."""
        with self._lock:
            found: list[Fault] = []
            for fault in self._faults:
                if not fault.fits(verb, resource, agent, path):
                    continue
                if fault.what != "delay" and any(other.what != "delay" for other in found):
                    continue
                fault.hits += 1
                if fault.left is not None:
                    fault.left -= 1
                found.append(fault)
            self._faults = [fault for fault in self._faults if fault.left != 0]
            return found


@dataclass(frozen=True, slots=True)
class Action:
    """Something that happens to one stream at once.

    what: "break" (half a line, then closed), "cut" (half a line and a proper end), "reset" (half a
    line, then a TCP reset), "end" (a proper end), "expire" (an ERROR event 410, then the end),
    "raw" (these bytes), "bookmark" (copies), "stall" (nothing for some seconds).
    """

    what: str
    data: bytes = b""
    seconds: float = 0.0
    copies: int = 1


@dataclass(slots=True)
class Stream:
    """A watch that is being served. wake: makes its thread look at `actions`."""

    resource: str
    namespace: str
    agent: str
    connection: Connection
    wake: Callable[[], None]
    actions: deque[Action] = field(default_factory=deque)
    number: int = 0


@dataclass(slots=True)
class StreamSettings:
    """How streams behave from now on.

    bookmark_seconds: between bookmarks. copies: of each bookmark. rate: bytes a second, 0 for no
    limit. longest: seconds after which a watch ends whatever it asked for, 0 for no limit.
    """

    bookmark_seconds: float = 60.0
    copies: int = 1
    rate: int = 0
    longest: float = 0.0


ENDINGS = ("break", "cut", "reset", "end", "expire")


class Streams:
    """All watches that are being served; safe to use from several threads."""

    def __init__(self, settings: StreamSettings) -> None:
        self.settings = settings
        self._streams: dict[int, Stream] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def add(self, stream: Stream) -> None:
        """A watch begins."""
        with self._lock:
            stream.number = next(self._numbers)
            self._streams[stream.number] = stream

    def remove(self, stream: Stream) -> None:
        """A watch has ended."""
        with self._lock:
            self._streams.pop(stream.number, None)

    def find(self, resource: str = "", agent: str = "") -> list[Stream]:
        """Those of a resource ("" for all) whose user agent contains `agent`."""
        with self._lock:
            return [
                stream
                for stream in self._streams.values()
                if resource in ("", stream.resource) and agent in stream.agent
            ]

    def act(self, action: Action, resource: str = "", agent: str = "") -> int:
        """Does something to streams; how many there are."""
        found = self.find(resource, agent)
        for stream in found:
            if action.what in ENDINGS:
                self.remove(stream)  # its client may notice before its thread has finished
            stream.actions.append(action)
            stream.wake()
        return len(found)
