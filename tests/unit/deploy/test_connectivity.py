# SPDX-License-Identifier: Apache-2.0
"""The user's check of a cluster: plan and evaluation against simulated clusters, and its errors
against an API server that has no kubelet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from agent.cli.root import cli
from agent.connectivity import judge, plan, world
from agent.connectivity.judge import Attempt, Finding, Outcome
from agent.connectivity.runner import ClusterError, Runner
from bench.lab.apiserver.server import ApiServer
from tests.unit.deploy.models import faults

NAMESPACES = ("bristle-test-x", "bristle-test-x-other")
SERVICE = ["10.96.0.10"]
TIMED_OUT = Attempt(1, "wget: download timed out")
Wrong = Callable[["Simulated", str, str], Attempt | None]


class Simulated:
    """A cluster that enforces policy as it must, but for what `wrong` answers instead."""

    def __init__(self, nodes: int = 2, wrong: Wrong | None = None, families: int = 2) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.ran = 0
        self._nodes = nodes
        self._families = families
        self._wrong = wrong or (lambda *_: None)

    def nodes(self) -> list[str]:
        return [f"node-{i}" for i in range(self._nodes)]

    def create(self, item: dict[str, Any]) -> None:
        key = (item["kind"], item["metadata"]["name"])
        assert key not in self.objects
        self.objects[key] = item

    def delete(self, item: dict[str, Any]) -> None:
        self.objects.pop((item["kind"], item["metadata"]["name"]), None)

    def wait_pods(self, namespaces: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
        made = {name for kind, name in self.objects if kind == "Pod"}
        assert made == set(names) and tuple(namespaces) == NAMESPACES
        return {name: self.addresses(name) for name in names}

    def service_addresses(self, namespace: str, name: str) -> list[str]:
        assert ("Service", name) in self.objects and namespace == NAMESPACES[0]
        return SERVICE

    def run(self, namespace: str, pod: str, command: Sequence[str]) -> Attempt:
        self.ran += 1
        assert self.objects["Pod", pod]["metadata"]["namespace"] == namespace
        if command[0] == "nslookup":
            return self._wrong(self, pod, command[1]) or Attempt(0, "Address: 10.96.0.1")
        host = command[-1].removeprefix("http://").strip("/").rpartition(":")[0].strip("[]")
        target = next((p.name for p in world.PODS if host in self.addresses(p.name)), host)
        if (said := self._wrong(self, pod, target)) is not None:
            return said
        servers = [target] if target.startswith("server-") else ["server-near"]
        return Attempt(0, target) if self.allowed(pod, servers[0]) else TIMED_OUT

    def addresses(self, name: str) -> list[str]:
        number = [p.name for p in world.PODS].index(name) + 2
        return [f"10.244.1.{number}", f"fd00::{number}"][: self._families]

    @property
    def policies(self) -> list[dict[str, Any]]:
        return [item for (kind, _), item in self.objects.items() if kind == "NetworkPolicy"]

    def allowed(self, source: str, target: str) -> bool:
        """By the project's own evaluator's rules, written down once more for these policies."""
        for item in self.policies:
            spec = item["spec"]
            if "Egress" in spec["policyTypes"] and source == "client":
                return any(rule.get("to") for rule in spec["egress"])
            if "Ingress" in spec["policyTypes"]:
                peers = [peer for rule in spec["ingress"] for peer in rule["from"]]
                return any(self._is(peer, source) for peer in peers)
        return True

    def _is(self, peer: dict[str, Any], source: str) -> bool:
        pod = self.objects["Pod", source]["metadata"]
        if "ipBlock" in peer:
            return peer["ipBlock"]["cidr"].partition("/")[0] in self.addresses(source)
        if "namespaceSelector" in peer:
            wanted = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
            return bool(pod["namespace"] == wanted)
        labels = peer["podSelector"]["matchLabels"]
        return bool(pod["namespace"] == NAMESPACES[0] and labels.items() <= pod["labels"].items())


def check(cluster: Simulated) -> tuple[list[judge.Result], list[Finding]]:
    """Results and findings; afterwards nothing is left in the cluster."""
    times: Iterator[float] = iter(range(100_000))
    runner = Runner(
        cluster, "x", "image", clock=lambda: 30.0 * next(times), sleep=lambda _seconds: None
    )
    report = runner.run()
    assert not cluster.policies
    runner.close()
    assert not [key for key in cluster.objects if key[0] == "Namespace"]
    return list(report.results), judge.findings(report.results)


def test_a_cluster_that_works_has_no_findings() -> None:
    results, found = check(Simulated())
    assert found == []
    phases = {one.phase for one in results}
    assert len(phases) == 8
    # Both answers are asked for, on both nodes and in both families, with and without policy.
    asked = {(r.probe.reaches, r.probe.far, r.probe.family) for r in results}
    assert asked == {(a, b, c) for a in (True, False) for b in (True, False) for c in (4, 6)}
    assert {r.probe.way for r in results} == set(plan.Way)


def test_one_node_is_enough_and_is_said() -> None:
    cluster = Simulated(nodes=1)
    report = Runner(cluster, "x", "image", sleep=lambda _seconds: None).run()
    assert all(one.passed and not one.probe.far for one in report.results)
    (skipped,) = report.skipped
    assert "second node" in skipped


def test_no_node_is_an_error() -> None:
    with pytest.raises(ClusterError, match="no kubelet does"):
        Runner(Simulated(nodes=0), "x", "image").run()


def far_is_lost(cluster: Simulated, _source: str, target: str) -> Attempt | None:
    return TIMED_OUT if target == "server-far" else None


def everything_is_lost(_cluster: Simulated, _source: str, _target: str) -> Attempt | None:
    return TIMED_OUT


def nothing_is_enforced(_cluster: Simulated, _source: str, target: str) -> Attempt | None:
    return Attempt(0, target)


def services_are_lost(_cluster: Simulated, _source: str, target: str) -> Attempt | None:
    return TIMED_OUT if target == SERVICE[0] or target.startswith("server.") else None


def names_are_unknown(_cluster: Simulated, _source: str, target: str) -> Attempt | None:
    bad = target.endswith(".cluster.local")
    return Attempt(1, f"wget: bad address '{target}'") if bad else None


def blocks_do_not_match(cluster: Simulated, source: str, target: str) -> Attempt | None:
    return TIMED_OUT if "ipBlock" in json.dumps(cluster.policies) and source == "client" else None


def servers_are_dead(_cluster: Simulated, _source: str, target: str) -> Attempt | None:
    return Attempt(1, "wget: can't connect: Connection refused") if "near" in target else None


def exec_fails(_cluster: Simulated, source: str, _target: str) -> Attempt | None:
    return Attempt(None, "exec: container not found") if source == "stranger" else None


@pytest.mark.parametrize(
    ("wrong", "where", "reason"),
    [
        (far_is_lost, "server-far", "UDP port 8472"),
        (everything_is_lost, "server-near", "not even within a node"),
        (nothing_is_enforced, "server-near", "no policy is enforced at all"),
        (services_are_lost, "server", "kube-proxy does not translate"),
        (names_are_unknown, "server", "DNS does not know the service"),
        (names_are_unknown, "kubernetes.default.svc.cluster.local", "services work: the cluster's"),
        (blocks_do_not_match, "server-near", "the policy allows it"),
        (servers_are_dead, "server-near", "its server does not listen"),
        (exec_fails, "server-near", "container not found"),
    ],
)
def test_what_is_wrong_is_said(wrong: Wrong, where: str, reason: str) -> None:
    _, found = check(Simulated(wrong=wrong))
    reasons = [one.reason for one in found if one.result.probe.target == where]
    assert any(reason in one for one in reasons), reasons


def test_one_family_alone_is_said() -> None:
    def sixth(cluster: Simulated, source: str, target: str) -> Attempt | None:
        return None

    cluster = Simulated(wrong=sixth)
    run = cluster.run
    cluster.run = lambda namespace, pod, command: (  # type: ignore[method-assign]
        TIMED_OUT if "[" in command[-1] else run(namespace, pod, command)
    )
    _, found = check(cluster)
    assert found and all("IPv6 alone" in one.reason for one in found)


@pytest.mark.parametrize(
    ("code", "output", "expected"),
    [
        (0, "server-near", Outcome.REACHED),
        (1, "wget: download timed out", Outcome.TIMEOUT),
        (1, "wget: can't connect to remote host (10.0.0.1): Connection refused", Outcome.REFUSED),
        (1, "wget: bad address 'server'", Outcome.UNRESOLVED),
        (1, "** server can't find x: NXDOMAIN", Outcome.UNRESOLVED),
        (1, ";; connection timed out; no servers could be reached", Outcome.UNRESOLVED),
        (4, "curl: (28) Connection timed out", Outcome.TIMEOUT),
        (1, "wget: can't connect: No route to host", Outcome.TIMEOUT),
        (127, "sh: wget: not found", Outcome.ERROR),
        (None, "exec failed", Outcome.ERROR),
    ],
)
def test_words_of_the_tools(code: int | None, output: str, expected: Outcome) -> None:
    assert judge.outcome(Attempt(code, output)) is expected


def test_its_objects_are_what_the_api_knows() -> None:
    setting = world.Setting(NAMESPACES, ("node-1", "node-2"), "busybox")
    addresses = {one.name: ["10.0.0.1", "fd00::1"] for one in setting.pods}
    items = [*world.namespaces(setting), world.service(setting),
             *(world.pod(setting, one) for one in setting.pods),
             *(item for phase in plan.phases(setting, addresses, SERVICE)
               for item in phase.policies)]  # fmt: skip
    for item in items:
        assert faults(f"V1{item['kind']}", item) == [], item
    with ApiServer() as server:
        for item in items[:4]:
            server.create(item)


# ---- an API server without a kubelet ---------------------------------------------------------


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        yield running


@pytest.fixture
def kubeconfig(server: ApiServer, tmp_path: Path) -> Path:
    path = tmp_path / "kubeconfig"
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "lab",
                "clusters": [{"name": "lab", "cluster": {"server": server.url}}],
                "users": [{"name": "lab", "user": {}}],
                "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
            }
        )
    )
    return path


def run(kubeconfig: Path, *arguments: str) -> tuple[int, str]:
    command = ["connectivity", "test", "--kubeconfig", str(kubeconfig), *arguments]
    done = CliRunner().invoke(cli, command)
    return done.exit_code, done.output


def add_node(server: ApiServer, name: str) -> None:
    server.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}
    server.patch("Node", name, {"status": {"conditions": [ready]}}, status=True)


def test_a_cluster_without_nodes(server: ApiServer, kubeconfig: Path) -> None:
    status, output = run(kubeconfig)
    assert status == 1 and "no node of this cluster is Ready" in output
    assert not [n for n in server.objects("Namespace") if "bristle" in n["metadata"]["name"]]


def test_pods_that_nobody_starts(server: ApiServer, kubeconfig: Path) -> None:
    add_node(server, "node-1")
    status, output = run(kubeconfig, "--timeout", "1")
    assert status == 1
    assert "these pods are not ready" in output and "server-near: phase Pending" in output
    assert "is a scheduler running?" in output
    left = [n for n in server.objects("Namespace") if "bristle" in n["metadata"]["name"]]
    assert all(one["metadata"].get("deletionTimestamp") for one in left)


def test_rights_that_are_missing(server: ApiServer, kubeconfig: Path) -> None:
    add_node(server, "node-1")
    server.fail_next(None, code=403, verb="create", resource="namespaces")
    status, output = run(kubeconfig)
    assert status == 1 and "cannot make Namespace bristle-test-" in output


def test_no_api_server(server: ApiServer, kubeconfig: Path) -> None:
    server.stop()
    status, output = run(kubeconfig)
    assert status == 1 and "the API server does not answer" in output


def test_no_kubeconfig(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text("{}")
    status, output = run(path)
    assert status == 1 and "no way to a cluster" in output
