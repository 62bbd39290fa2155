# SPDX-License-Identifier: Apache-2.0
"""The optional HTTP server: /metrics in Prometheus' formats, and /healthz.

Imported only where an address is configured: prometheus_client and the HTTP server cost
memory that an agent without them need not spend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from agent.telemetry.health import check_page
from agent.telemetry.metrics import Family
from agent.telemetry.progress import Check
from agent.telemetry.web import Answer, WebServer


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


def metrics_server(
    host: str, port: int, collect: Callable[[], Iterable[Family]], healthy: Check
) -> WebServer:
    """Serves `collect` at /metrics and `healthy` at /healthz on a TCP address. Raises OSError when
    the address is taken."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(FamilyCollector(collect))

    def metrics(accepted: str) -> Answer:
        encode, content_type = choose_encoder(accepted)
        return Answer(HTTPStatus.OK, encode(registry), content_type)

    pages = {"/metrics": metrics, "/healthz": check_page(healthy)}
    return WebServer("metrics", host, port, pages)
