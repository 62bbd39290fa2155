# SPDX-License-Identifier: Apache-2.0
"""A small HTTP server: each path is a page, made anew whenever somebody asks for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socket import AF_INET, AF_INET6
from socketserver import TCPServer, ThreadingMixIn
from typing import ClassVar, Final

TEXT: Final = "text/plain; charset=utf-8"
_REQUEST_TIMEOUT: Final = 10.0
"""Seconds after which a silent client is cut off."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a page says."""

    status: HTTPStatus
    body: bytes
    content_type: str = TEXT


Page = Callable[[str], Answer]
"""Gets what the client accepts, as in the header of this name. Called by several threads."""


class WebServer:
    """Serves pages by their paths on a TCP address. Raises OSError when the address is taken.

    name: of its thread.
    """

    def __init__(self, name: str, host: str, port: int, pages: Mapping[str, Page]) -> None:
        class Handler(_Handler):
            served: ClassVar[dict[str, Page]] = dict(pages)

        class Server(_Server):
            address_family = AF_INET6 if ":" in host else AF_INET

        self._server = Server((host, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name=name, daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on: the kernel's choice where 0 was asked for."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stops listening; answers under way end by themselves."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, TCPServer):
    """Not http.server's own, which asks DNS for the host's name before it listens."""

    allow_reuse_address = True
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    served: ClassVar[dict[str, Page]]
    timeout = _REQUEST_TIMEOUT
    server_version = "bristle"
    sys_version = ""

    def do_GET(self) -> None:
        page = self.served.get(self.path.partition("?")[0])
        if page is None:
            known = " or ".join(self.served)
            self._send(Answer(HTTPStatus.NOT_FOUND, f"{known}\n".encode()))
            return
        try:
            answer = page(self.headers.get("Accept", ""))
        except Exception:
            log.exception("GET %s failed", self.path)
            answer = Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"see the agent's log\n")
        self._send(answer)

    do_HEAD = do_GET

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)
