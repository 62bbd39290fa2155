# SPDX-License-Identifier: Apache-2.0
"""The optional HTTP server: /metrics in Prometheus' formats, and /healthz.

Imported only where an address is configured: prometheus_client and the HTTP server cost
memory that an agent without them need not spend.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from typing import ClassVar, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from agent.telemetry.metrics import Family

_REQUEST_TIMEOUT: Final = 10.0
"""Seconds after which a silent client is cut off."""
log = logging.getLogger(__name__)


class FamilyCollector(Collector):
    """Asks for all families at each scrape."""

    def __init__(self, collect: Callable[[], Iterable[Family]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        """Called by the registry per scrape."""
        for family in self._collect():
            kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
            metric = kind(family.name, family.help, labels=family.labels)
            for labels, value in family.values.items():
                metric.add_metric(labels, value)
            yield metric

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry would otherwise read the kernel when registering."""
        return iter(())


class MetricsServer:
    """Serves `collect` at /metrics and `healthy` at /healthz on a TCP address.

    `healthy` returns (is it, one line of text). Raises OSError when the address is taken.
    """

    def __init__(
        self,
        host: str,
        port: int,
        collect: Callable[[], Iterable[Family]],
        healthy: Callable[[], tuple[bool, str]],
    ) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(FamilyCollector(collect))

        class Handler(_Handler):
            metrics = registry
            health = staticmethod(healthy)

        class Server(ThreadingHTTPServer):
            address_family = AF_INET6 if ":" in host else AF_INET
            daemon_threads = True

        self._server = Server((host, port), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )

    @property
    def port(self) -> int:
        """The port it listens on: the kernel's choice where 0 was asked for."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stops listening; running scrapes end by themselves."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    metrics: ClassVar[CollectorRegistry]
    health: ClassVar[Callable[[], tuple[bool, str]]]
    timeout = _REQUEST_TIMEOUT
    server_version = "bristle"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        try:
            if path == "/metrics":
                encode, content_type = choose_encoder(self.headers.get("Accept", ""))
                self._answer(HTTPStatus.OK, encode(self.metrics), content_type)
            elif path == "/healthz":
                good, text = type(self).health()
                status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(status, f"{text}\n".encode())
            else:
                self._answer(HTTPStatus.NOT_FOUND, b"/metrics or /healthz\n")
        except Exception:
            log.exception("GET %s failed", path)
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"see the agent's log\n")

    def _answer(
        self, status: HTTPStatus, body: bytes, content_type: str = "text/plain; charset=utf-8"
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)
