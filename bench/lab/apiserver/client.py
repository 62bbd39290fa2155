# SPDX-License-Identifier: Apache-2.0
"""The server as a process of its own, and its operations from here."""

from __future__ import annotations

import contextlib
import inspect
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.lab.apiserver.control import METHODS
from bench.lab.apiserver.errors import ApiError
from bench.lab.apiserver.operations import Operations
from bench.lab.netns import LabError

REPOSITORY = Path(__file__).resolve().parents[3]
READY_SECONDS = 30.0
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class ControlClient(Operations):
    """Every operation of a server, done by the process that listens at `path`.

    Raises ApiError as the operation itself would, LabError if nobody answers. Safe to use from
    several threads, one call at a time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def call(self, method: str, arguments: Mapping[str, Any]) -> Any:
        """Does one operation and returns its result."""
        with self._lock:
            try:
                line = self._exchange(_encode({"method": method, "arguments": arguments}))
            except OSError as error:
                self._drop()
                raise LabError(f"the API server's control socket: {error}") from None
        answer = _decode(line)
        if "error" in answer:
            status = answer["error"]
            details = status.get("details")
            raise ApiError(status["code"], status.get("reason", ""), status["message"], details)
        return answer["result"]

    def _exchange(self, line: bytes) -> bytes:
        if self._socket is None:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                made.connect(str(self._path))
            except OSError:
                made.close()
                raise
            self._socket = made
        self._socket.sendall(line + b"\n")
        parts = bytearray()
        while not parts.endswith(b"\n"):
            part = self._socket.recv(1 << 20)
            if not part:
                raise ConnectionError("closed by the server")
            parts += part
        return bytes(parts)

    def facts(self) -> dict[str, Any]:
        """`url` and `ca` (a path, "" without TLS) of the server."""
        found: dict[str, Any] = self.call("facts", {})
        return found

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Ends the connection to the server."""
        with self._lock:
            self._drop()


def _forwarded(name: str) -> Callable[..., Any]:
    """A method that has the operation done elsewhere."""
    original = getattr(Operations, name)
    signature = inspect.signature(original)

    def forward(self: ControlClient, *positional: Any, **named: Any) -> Any:
        bound = signature.bind(self, *positional, **named)
        arguments = dict(bound.arguments)
        del arguments["self"]
        result = self.call(name, arguments)
        return [tuple(row) for row in result] if name == "counts" else result

    forward.__name__, forward.__doc__ = name, original.__doc__
    forward.__signature__ = signature  # type: ignore[attr-defined]
    return forward


for _name in METHODS:
    setattr(ControlClient, _name, _forwarded(_name))


class ApiServerProcess(ControlClient):
    """A context manager: the server as a process, for example in a network namespace.

    folder: for its control socket, certificates and log. address, port: where it listens. wrap:
    makes the command line, such as `Namespace.argv`. options: further ones of
    `python -m bench.lab.apiserver`. `url` and `ca` say where it is.
    """

    def __init__(
        self,
        folder: Path,
        address: str = "127.0.0.1",
        port: int = 0,
        *,
        wrap: Callable[[Sequence[str]], list[str]] = list,
        tls: bool = False,
        names: Sequence[str] = (),
        tokens: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder / "control.sock")
        self.url = ""
        self.ca: Path | None = None
        self.log = folder / "apiserver.log"
        host = f"[{address}]" if ":" in address else address
        command = [sys.executable, "-m", "bench.lab.apiserver", "--listen", f"{host}:{port}"]
        command += ["--control", str(folder / "control.sock")]
        if tls:
            command += ["--tls", str(folder / "tls")]
            command += [word for name in names for word in ("--name", name)]
        for token, user in (tokens or {}).items():
            command += ["--token", f"{token}={user}"]
        self._command = wrap([*command, *options])
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ApiServerProcess:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=REPOSITORY
            )
        try:
            facts = self._wait_ready()
        except BaseException:
            self.__exit__()
            raise
        self.url = facts["url"]
        self.ca = Path(facts["ca"]) if facts["ca"] else None
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _wait_ready(self) -> dict[str, Any]:
        assert self._process is not None
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(LabError):
                return self.facts()
            time.sleep(0.02)
        text = self.log.read_text(errors="replace")[-2000:]
        raise LabError(f"the API server does not come up\n{text}")
