# SPDX-License-Identifier: Apache-2.0
"""The server as a whole: the parts put together, and what a test can make it do."""

from __future__ import annotations

import heapq
import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.lab.apiserver import catalogue, tls
from bench.lab.apiserver.auth import Auth
from bench.lab.apiserver.cluster import Cluster
from bench.lab.apiserver.definitions import Definitions
from bench.lab.apiserver.deletion import Remover
from bench.lab.apiserver.faults import Faults, Streams, StreamSettings
from bench.lab.apiserver.handler import Handler
from bench.lab.apiserver.journal import Journal
from bench.lab.apiserver.listener import Listener
from bench.lab.apiserver.operations import Operations
from bench.lab.apiserver.service import Service, Settings
from bench.lab.apiserver.store import Store

NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")


class ApiServer(Operations):
    """A context manager: an API server that listens while it is open.

    host, port: where; port 0 for any. tls: serve HTTPS with an authority of its own, whose
    certificate is `ca`. names: further addresses and DNS names of its certificate. folder: for
    certificates; a temporary one by default. tokens: {bearer token: user}; none: everybody may do
    everything. history: changes of each resource that are kept. bookmark_seconds: between
    bookmarks. establish_seconds: from a CustomResourceDefinition to its resource. kubelet: pods
    that are deleted end at once, as if their kubelet had answered. watch_list: sendInitialEvents
    is known. seed: of UIDs and generated names. clock: seconds since 1970.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tls: bool = False,
        names: Sequence[str] = (),
        folder: Path | None = None,
        tokens: Mapping[str, str] | None = None,
        history: int = 20_000,
        bookmark_seconds: float = 60.0,
        establish_seconds: float = 0.0,
        kubelet: bool = True,
        watch_list: bool = True,
        seed: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._closed = threading.Event()
        self._timers = Timers()
        self._tls, self._names, self._folder = tls, names, folder
        self.ca: Path | None = None
        cluster = Cluster(Store(history), catalogue.registry(), clock, seed)
        remover = Remover(cluster, kubelet=kubelet)
        auth, faults, journal = Auth(tokens or {}), Faults(), Journal()
        streams = Streams(StreamSettings(bookmark_seconds))
        settings = Settings(watch_list)
        service = Service(
            cluster,
            Handler(cluster, remover),
            auth,
            faults,
            streams,
            journal,
            settings,
            self._lock,
            self._closed.is_set,
        )
        Definitions(cluster, remover, self._later, establish_seconds, service.withdraw)
        self._service = service
        self._listener = Listener(host, port, None, service.serve, service.wake_all)
        self._stack = ExitStack()
        super().__init__(cluster, remover, auth, faults, streams, journal, settings, self._lock)
        self.load(
            [
                {
                    "apiVersion": "v1",
                    "kind": "Namespace",
                    "metadata": {"name": name},
                    "spec": {"finalizers": ["kubernetes"]},
                    "status": {"phase": "Active"},
                }
                for name in NAMESPACES
            ]
        )

    def __enter__(self) -> ApiServer:
        with ExitStack() as stack:
            if self._tls:
                folder = self._folder or Path(stack.enter_context(_temporary()))
                names = ["127.0.0.1", "::1", "localhost", self._listener.host, *self._names]
                made = tls.make(folder, names)
                self.ca = made.ca
                self._listener = Listener(
                    self._listener.host,
                    self._listener.port,
                    made.context(),
                    self._service.serve,
                    self._service.wake_all,
                )
            self.start()
            stack.callback(self._timers.stop)
            stack.callback(self.stop)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def host(self) -> str:
        """The address it listens on."""
        return self._listener.host

    @property
    def port(self) -> int:
        """The port it listens on, also while it is stopped."""
        return self._listener.port

    @property
    def url(self) -> str:
        """Where clients find it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    # ---- coming and going --------------------------------------------------------------------

    def stop(self, reset: bool = False) -> None:
        self._closed.set()
        self._service.wake_all()
        self._listener.close(reset=reset)

    def start(self) -> None:
        self._closed.clear()
        self._listener.open()

    def drop_connections(self, reset: bool = False) -> None:
        self._listener.drop_connections(reset=reset)

    def _later(self, seconds: float, work: Callable[[], None]) -> None:
        def locked() -> None:
            with self._lock:
                work()

        self._timers.add(seconds, locked)


def _temporary() -> tempfile.TemporaryDirectory[str]:
    # The process id in the name tells tools/cleanup.py whether somebody still needs it.
    return tempfile.TemporaryDirectory(prefix=f"bristle-t-{os.getpid()}-")


class Timers:
    """Work to be done later, in one thread that begins with the first."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def add(self, seconds: float, work: Callable[[], None]) -> None:
        """Calls `work` after so many seconds."""
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), work))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
            self._changed.notify()

    def stop(self) -> None:
        """Forgets what is still to be done."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopped and (not self._due or self._due[0][0] > time.monotonic()):
                    wait = self._due[0][0] - time.monotonic() if self._due else None
                    self._changed.wait(wait)
                if self._stopped:
                    return
                work = heapq.heappop(self._due)[2]
            work()
