# SPDX-License-Identifier: Apache-2.0
"""The control socket: JSON lines over a UNIX socket, each the name of an operation and arguments.

{"method": "delete", "arguments": {"kind": "Pod", "name": "a"}}  →  {"result": null}
                                                                 or {"error": {Status}}
"""

from __future__ import annotations

import inspect
import socket
import threading
from pathlib import Path
from typing import Any

import msgspec

from bench.lab.apiserver.errors import ApiError, bad_request
from bench.lab.apiserver.operations import Operations

METHODS = frozenset(
    name
    for name, value in inspect.getmembers(Operations, inspect.isfunction)
    if not name.startswith("_")
)
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class ControlSocket:
    """Listens at `path` and does what it is told; a context manager.

    facts: what "facts" answers: where the server is, and such.
    """

    def __init__(self, operations: Operations, path: Path, facts: dict[str, Any]) -> None:
        self._operations = operations
        self._path = path
        self._facts = facts
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> ControlSocket:
        self._path.unlink(missing_ok=True)
        self._socket.bind(str(self._path))
        self._socket.listen(16)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rwb") as stream:
            for line in stream:
                try:
                    stream.write(self._answer(line) + b"\n")
                    stream.flush()
                except OSError:
                    return

    def _answer(self, line: bytes) -> bytes:
        try:
            call = _decode(line)
            method, arguments = call["method"], call["arguments"]
            if method == "facts":
                return _encode({"result": self._facts})
            if method not in METHODS:
                raise bad_request(f"no such operation: {method}")
            return _encode({"result": getattr(self._operations, method)(**arguments)})
        except ApiError as error:
            return _encode({"error": error.status()})
        except Exception as error:
            # A wrong call must not end the server that a test depends on.
            return _encode({"error": bad_request(f"{type(error).__name__}: {error}").status()})
