# SPDX-License-Identifier: Apache-2.0
"""etcd and tools/kubeapi as processes, also within a network namespace."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from bench.lab.apiserver import tls
from bench.lab.apiserver.errors import ApiError
from bench.lab.kubeapi.client import Client
from bench.lab.kubeapi.journal import POLICY
from bench.lab.netns import LabError

T = TypeVar("T")
Object = dict[str, Any]
VARIABLE = "BRISTLE_KUBEAPI"
READY_SECONDS = 60.0
LOADER, ADMIN = "lab:loader", "lab:admin"


def binaries() -> Path | None:
    """The folder with `kubeapi` and `etcd` that the environment names."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else None


def _here(work: Callable[[], T]) -> T:
    return work()


class Processes:
    """A context manager: Kubernetes' own API libraries on etcd, over TLS, with an empty cluster.

    folder: for certificates, data and logs. address, port: where it listens; port 0 for any. wrap:
    makes command lines, and enter: calls what connects, where it listens in a network namespace.
    tokens: {bearer token: user}; none: everybody may do everything.
    """

    def __init__(
        self,
        folder: Path,
        address: str = "127.0.0.1",
        port: int = 0,
        *,
        wrap: Callable[[Sequence[str]], list[str]] = list,
        enter: Callable[[Callable[[], Any]], Any] = _here,
        names: Sequence[str] = (),
        tokens: Mapping[str, str] | None = None,
    ) -> None:
        where = binaries()
        if where is None:
            raise LabError(f"{VARIABLE} names no folder with kubeapi and etcd")
        folder.mkdir(parents=True, exist_ok=True)
        self._binaries, self.folder, self._wrap, self._enter = where, folder, wrap, enter
        self.host, self.port = address, port
        self._names = names
        self._access: Object = {"tokens": dict(tokens or {}), "rules": {}, "denied": []}
        self._clients: dict[tuple[str, int], Client] = {}
        self._spare: subprocess.Popen[bytes] | None = None
        self._spare_port = 0
        self._front: subprocess.Popen[bytes] | None = None
        self._etcd: subprocess.Popen[bytes] | None = None

    # ---- coming and going --------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            made = tls.make(
                self.folder / "tls", ["127.0.0.1", "localhost", self.host, *self._names]
            )
            self.ca = made.ca
            self._context = ssl.create_default_context(cafile=str(made.ca))
            self._save_access()
            (self.folder / "audit.yaml").write_text(POLICY)
            self._client_port, self._peer_port = self._free_port(), self._free_port()
            self.port = self.port or self._free_port()
            self._keeper = Client(self._connect, "127.0.0.1", self._client_port, None, "")
            self.start_etcd()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        _end(self._spare)
        self._spare = None
        self.stop_etcd()

    @property
    def url(self) -> str:
        return f"https://{self.host}:{self.port}"

    def start_etcd(self) -> None:
        """Starts the store, with the data that it had."""
        own = f"http://127.0.0.1:{self._client_port}"
        peer = f"http://127.0.0.1:{self._peer_port}"
        self._etcd = self._spawn(
            "etcd",
            *("--data-dir", str(self.folder / "etcd"), "--unsafe-no-fsync"),
            *("--listen-client-urls", own, "--advertise-client-urls", own),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"default={peer}", "--log-level", "warn"),
        )
        self._wait(lambda: self._keeper.ask("GET", "/health"), self._etcd, "etcd")

    def stop_etcd(self) -> None:
        """Kills the store."""
        _end(self._etcd)
        self._etcd = None

    def start(self) -> None:
        """Listens (again) on the same port."""
        _end(self._spare)
        self._spare = None
        self._front = self._serve(self.port)
        self._wait(self._ready, self._front, "kubeapi")

    def _serve(self, port: int) -> subprocess.Popen[bytes]:
        folder = self.folder
        return self._spawn(
            "kubeapi",
            *("--etcd-servers", f"http://127.0.0.1:{self._client_port}"),
            *("--bind-address", self.host, "--secure-port", str(port)),
            *("--tls-cert-file", str(folder / "tls" / "server.crt")),
            *("--tls-private-key-file", str(folder / "tls" / "server.key")),
            *("--access-file", str(folder / "access.json")),
            *("--audit-policy-file", str(folder / "audit.yaml")),
            *("--audit-log-path", str(folder / "audit.log")),
        )

    def wait_ready(self) -> None:
        """Until the server says so, which it does not without etcd."""
        assert self._front is not None
        self._wait(self._ready, self._front, "kubeapi")

    def _ready(self) -> object:
        return self._client(ADMIN).ask("GET", "/readyz")

    def stop(self, reset: bool = False) -> None:
        """Kills the server."""
        _end(self._front)
        self._front = None

    def drop_connections(self, reset: bool = False) -> None:
        """Kills the server, and starts another."""
        self.stop()
        self.start()

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{program}.log").open("ab") as log:
            return subprocess.Popen(
                self._wrap([str(self._binaries / program), *arguments]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _wait(
        self, ready: Callable[[], object], process: subprocess.Popen[bytes], name: str
    ) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError, ApiError):
                ready()
                return
            time.sleep(0.05)
        text = (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]
        raise LabError(f"{name} does not come up\n{text}")

    def _connect(self, host: str, port: int) -> socket.socket:
        made: socket.socket = self._enter(lambda: socket.create_connection((host, port), 60))
        return made

    def _free_port(self) -> int:
        # Below those that connections get: nobody else is given it until the server listens.
        def find() -> int:
            while True:
                port = random.SystemRandom().randrange(20_000, 32_000)
                with socket.socket() as probe, contextlib.suppress(OSError):
                    probe.bind(("127.0.0.1", port))
                    return port

        found: int = self._enter(find)
        return found

    def _client(self, user: str) -> Client:
        """While the server is stopped, of a second one on the same etcd."""
        port = self.port
        if self._front is None and self._etcd is not None:
            port = self._spare_port = self._spare_port or self._free_port()
            if self._spare is None:
                self._spare = self._serve(port)
                self._wait(self._ready, self._spare, "kubeapi")
        made = Client(self._connect, self.host, port, self._context, user)
        return self._clients.setdefault((user, port), made)

    def _save_access(self) -> None:
        own = {LOADER: LOADER, ADMIN: ADMIN}
        document = {**self._access, "tokens": {**own, **self._access["tokens"]}}
        fresh = self.folder / ".access.json.new"
        fresh.write_text(json.dumps(document))
        fresh.replace(self.folder / "access.json")


def _end(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None:
        process.send_signal(signal.SIGKILL)
        process.wait()
