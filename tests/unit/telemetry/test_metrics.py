# SPDX-License-Identifier: Apache-2.0
"""Metrics as a scraper sees them."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.core.views import (
    AgentStatus,
    EndpointInfo,
    IdentityInfo,
    MapUsage,
    MetricLabel,
    ObjectState,
    PoolUsage,
)
from agent.telemetry.exposition import metrics_server
from agent.telemetry.metrics import (
    Family,
    agent_families,
    kernel_families,
    loss_family,
    samples,
    work_families,
)
from agent.telemetry.web import WebServer
from bpf.layouts import Counter, DropReason, MetricsSize


class FakeKernel:
    """Counters that grow with every look."""

    def __init__(self) -> None:
        self.looks = 0

    def traffic(self) -> Sequence[tuple[int, int]]:
        self.looks += 1
        table = [(0, 0)] * MetricsSize.METRICS_ENTRIES
        table[256 + DropReason.DROP_POLICY_DENIED] = (10 * self.looks, 740 * self.looks)
        table[512] = (7, 700)
        table[256 + 250] = (1, 60)
        return table

    def counters(self) -> Sequence[int]:
        values = [0] * Counter.COUNTERS
        values[Counter.COUNTER_CT_OVERFLOW] = 42
        return values


STATUS = AgentStatus(
    True, "0.1", "node", 1, 1.0, 12, 1, "tcx",
    maps=(MapUsage("ct", 25, 100, "conntrack"), MapUsage("empty", 0, 0)),
    pools=(PoolUsage("ipv4", "10.0.0.0/24", 4, 254), PoolUsage("ipv4", "10.0.1.0/24", 1, 254)),
    policies=3,
)  # fmt: skip


def endpoint(number: int, ingress: bool, egress: bool) -> EndpointInfo:
    """An endpoint that is enforced so."""
    return EndpointInfo(
        number, "default", f"p{number}", "ready", ObjectState.DONE, 256,
        ingress_enforced=ingress, egress_enforced=egress,
    )  # fmt: skip


def collect(kernel: FakeKernel) -> Iterable[Family]:
    """All families."""
    return [
        *kernel_families(kernel),
        loss_family(5, 6, 4),
        *agent_families(
            STATUS,
            [endpoint(1, True, True), endpoint(2, True, False), endpoint(3, True, False)],
            [IdentityInfo(1, "reserved", ()), IdentityInfo(256, "cluster", ())],
        ),
        *work_families(70, 8, 2, {"manifests": 0.25}),
    ]


def get(server: WebServer, path: str) -> str:
    """The body of an answer."""
    url = f"http://127.0.0.1:{server.port}{path}"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=30) as body:
        return str(body.read().decode())


def test_scrape() -> None:
    kernel, health = FakeKernel(), [(True, "ok")]
    server = metrics_server("127.0.0.1", 0, lambda: collect(kernel), lambda: health[0])
    assert kernel.looks == 0
    server.start()
    try:
        get(server, "/metrics")
        text = get(server, "/metrics")
        seen = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        for name, *_ in seen:
            assert name.startswith("bristle_") and name.count("bristle") == 1, name
        assert seen[("bristle_datapath_conntrack_gc_entries",)] == 70
        assert seen[("bristle_map_repairs_total",)] == 2
        assert seen["bristle_policy_implementation_delay", "manifests"] == 0.25
        assert seen["bristle_drop_count_total", "INGRESS", "Policy denied"] == 20
        assert seen["bristle_drop_bytes_total", "INGRESS", "Policy denied"] == 1480
        assert seen["bristle_drop_count_total", "INGRESS", "Unknown reason 250"] == 1
        assert seen["bristle_forward_count_total", "EGRESS"] == 7
        assert seen["bristle_forward_bytes_total", "EGRESS"] == 700
        assert seen[("bristle_bpf_ct_overflow_total",)] == 42
        assert seen["bristle_lost_events_total", "PERF_EVENT_RING_BUFFER"] == 5
        assert seen["bristle_lost_events_total", "OBSERVER_EVENTS_QUEUE"] == 6
        assert seen["bristle_lost_events_total", "UNKNOWN_LOST_EVENT_SOURCE"] == 4
        assert seen[("bristle_endpoint",)] == 3
        assert seen["bristle_policy_endpoint_enforcement_status", "ingress"] == 2
        assert seen["bristle_policy_endpoint_enforcement_status", "none"] == 0
        assert seen["bristle_identity", "cluster"] == 1
        assert seen["bristle_bpf_map_pressure", "ct"] == 0.25
        assert seen["bristle_bpf_map_capacity", "conntrack"] == 100
        assert seen["bristle_ipam_available", "ipv4"] == 503
        assert seen[("bristle_policy_max_revision",)] == 12
        assert seen[("bristle_agent_ready",)] == 1

        assert get(server, "/healthz") == "ok\n"
        health[0] = (False, "starting")
        with pytest.raises(urllib.error.HTTPError, match="503") as refused:
            get(server, "/healthz")
        refused.value.close()
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            get(server, "/other")
        refused.value.close()
    finally:
        server.stop()


def test_a_failing_kernel_is_an_error_and_not_zeros() -> None:
    def fail() -> Iterable[Family]:
        raise OSError("no map")

    server = metrics_server("127.0.0.1", 0, fail, lambda: (True, "ok"))
    server.start()
    try:
        with pytest.raises(urllib.error.HTTPError, match="500") as refused:
            get(server, "/metrics")
        refused.value.close()
    finally:
        server.stop()


def test_samples_of_the_socket_are_the_same_numbers() -> None:
    found = {(s.name, s.labels): s.value for s in samples(collect(FakeKernel()))}
    labels = (MetricLabel("reason", "Policy denied"), MetricLabel("direction", "INGRESS"))
    assert found["bristle_drop_count_total", labels] == 10
    assert found["bristle_agent_ready", ()] == 1.0
