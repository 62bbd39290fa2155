# SPDX-License-Identifier: Apache-2.0
"""An agent with the chart's rights: they are enough for a node's life, and none is idle."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from agent.chart.chart import Chart, find
from bench.lab import manifests
from bench.lab.node import Lab

pytestmark = pytest.mark.kernel

USER = "agent"
# Not seen within this node's life: what changed meanwhile, identities collected after their grace,
# a lease renewed after seconds, an Event on a policy that is told again.
UNSEEN = {
    ("bristleendpoints", "update"),
    ("bristleidentities", "delete"),
    ("bristleidentities", "get"),
    ("bristleidentities", "patch"),
    ("bristlenodes", "get"),
    ("bristlenodes", "update"),
    ("events", "patch"),
    ("leases", "update"),
}


def rules() -> list[dict[str, Any]]:
    """Of ClusterRole and Role; the latter's count in their namespace alone."""
    found: list[dict[str, Any]] = []
    for manifest in Chart(find()).render({}, "kube-system"):
        if manifest.kind in ("ClusterRole", "Role"):
            document = yaml.safe_load(manifest.text)
            where = {"namespaces": ["kube-system"]} if manifest.kind == "Role" else {}
            found += [{**rule, **where} for rule in document["rules"]]
    return found


def until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.05)


def tainted(lab: Lab) -> bool:
    taints = lab.api.get("Node", "node-1")["spec"].get("taints", [])
    return "node.bristle.io/agent-not-ready" in {one["key"] for one in taints}


def test_the_charts_rights_are_enough_and_used() -> None:
    with Lab(api=True, start=False) as lab:
        lab.api.set_rules(USER, rules())
        lab.agent.start()
        lab.manifests.put("namespaces", [manifests.namespace("shop", {"team": "a"})])
        pod = lab.add_pod("shop", "web", {"app": "web"}, [("http", "TCP", 80)])
        until(lambda: lab.api.objects("BristleEndpoint"), "the endpoint to be published")
        lab.set_policies([manifests.policy("shop", "deny", {"podSelector": {}})])
        until(
            lambda: (lab.api.objects("BristleEndpoint")[0].get("status") or {}).get("state"),
            "the endpoint's status",
        )
        until(lambda: lab.api.objects("BristleNode")[0].get("status"), "the node's own object")
        until(lambda: not tainted(lab), "the taint to be taken away")
        until(lambda: lab.api.objects("Lease"), "the lease")
        bad: dict[str, Any] = {"podSelector": {}, "ingress": [{"from": [{}]}]}
        lab.manifests.put("bad", [manifests.policy("shop", "bad", bad)])
        until(lambda: lab.api.objects("events.k8s.io/v1/Event", "shop"), "the Event on a policy")
        lab.manifests.remove("bad")
        until(lambda: not lab.agent.status().rejected, "the policy to be gone")
        lab.delete_pod(pod)
        until(lambda: not lab.api.objects("BristleEndpoint"), "the endpoint to be withdrawn")
        refused = [one for one in lab.api.requests() if one["code"] == 403]
        assert refused == []
        assert not lab.agent.status().problems
        used = {
            (entry["resource"], entry["verb"])
            for entry in lab.api.requests()
            if "python" not in entry["agent"]
        }
    granted = {
        (resource, verb) for rule in rules() for resource in rule["resources"] for verb in
        rule["verbs"]
    }  # fmt: skip
    assert granted - used <= UNSEEN
    assert used - granted == set()
