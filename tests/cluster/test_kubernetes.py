# SPDX-License-Identifier: Apache-2.0
"""Against Kubernetes' own API libraries (`make kube-check`): that the manifests are accepted, that
no write is warned about, and that what the lab's own server imitates is so."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.chart.chart import Chart, find
from agent.core.events import PodUpserted
from agent.kube.access import Access, Answer, Query
from agent.kube.credentials import from_kubeconfig
from agent.kube.kinds import WATCHED
from agent.kube.lease import Candidate, Election
from agent.kube.node import remove_taint, set_network_available
from agent.kube.notices import Notices
from agent.kube.objects import BristleNodeStatus, EndpointStatus, ObjectReference
from agent.kube.resources import Resources
from bench.lab.apiserver import write_kubeconfig
from bench.lab.kubeapi import KubeApi, binaries
from tests.cluster.following import Follower, access_to, endpoint, install_definitions, node, pod
from tests.cluster.test_trouble import assert_changed, change_pods
from tests.cluster.test_writer import CONDITION, ENDPOINT, tainted

pytestmark = pytest.mark.skipif(
    binaries() is None, reason="needs Kubernetes' API libraries: make kube-check"
)

ENDPOINTS = "bristleendpoints.bristle.io"


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[KubeApi]:
    """Without the project's kinds."""
    with KubeApi(tmp_path / "api") as made:
        yield made


@pytest.fixture
def kube(bare: KubeApi) -> KubeApi:
    install_definitions(bare)
    return bare


@pytest.fixture
def three(kube: KubeApi, tmp_path: Path) -> Iterator[Follower]:
    """A source that knows the pods a, b and c."""
    with Follower(access_to(kube, tmp_path)) as made:
        made.synced()
        kube.load([pod("a"), pod("b"), pod("c")])
        made.settled(kube)
        yield made


class Listening(Access):
    """Keeps the warnings of the server."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.warnings: list[str] = []
        self.writes = 0

    def open(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        read_timeout: float | None = None,
    ) -> Answer:
        answer = super().open(
            method,
            path,
            query=query,
            body=body,
            content_type=content_type,
            read_timeout=read_timeout,
        )
        self.writes += method != "GET"
        if warning := answer._response.headers.get("Warning"):
            self.warnings.append(f"{method} {path}: {warning}")
        return answer


# ---- what is installed -------------------------------------------------------------------------


def test_the_manifests_are_accepted_as_they_are(bare: KubeApi) -> None:
    for manifest in Chart(find()).render({}, "kube-system"):
        bare.create_strictly(yaml.safe_load(manifest.text))
    for kind in ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "DaemonSet"):
        assert [one["metadata"]["name"] for one in bare.objects(kind)] == ["bristle"]


def test_definitions_are_established_without_a_complaint(bare: KubeApi) -> None:
    install_definitions(bare)
    definitions = bare.objects("CustomResourceDefinition")
    assert len(definitions) == 3
    for one in definitions:
        found = {c["type"]: c["status"] for c in one["status"]["conditions"]}
        # NonStructuralSchema and others would be here, too.
        assert found == {"NamesAccepted": "True", "Established": "True"}
        assert one["status"]["acceptedNames"] == one["spec"]["names"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
def test_kubectl_shows_columns_explanations_and_short_names(kube: KubeApi, tmp_path: Path) -> None:
    write_kubeconfig(tmp_path / "config", kube.url, "lab:admin", kube.ca)
    kube.load([endpoint("web"), pod("web")])

    def kubectl(*words: str) -> str:
        places = ["--kubeconfig", str(tmp_path / "config"), "--cache-dir", str(tmp_path / "cache")]
        return subprocess.run(
            ["kubectl", *places, *words], check=True, capture_output=True, text=True, timeout=60
        ).stdout

    for name in ("bep", "bristleendpoint", "bristleendpoints.bristle.io"):
        head, line = kubectl("get", name, "-n", "shop").splitlines()
        assert {"IDENTITY", "STATE", "IPV4", "IPV6"} <= set(head.replace("SECURITY ", "").split())
        assert line.split()[:2] == ["web", "4711"]
    assert "shop" in kubectl("get", "bristle", "-A")  # the category
    for short, text in (
        ("bid", "security-relevant labels"),
        ("bn", "podCIDRs"),
        ("bep", "namedPorts"),
    ):
        assert text in kubectl("explain", short, "--recursive")


# ---- what the agent writes -------------------------------------------------------------------


def test_no_write_is_warned_about(kube: KubeApi, tmp_path: Path) -> None:
    """Each has fieldValidation=Strict, or goes out as the agent sends it."""
    kube.load([tainted({"key": "node.bristle.io/agent-not-ready", "effect": "NoSchedule"})])
    kube.load([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}])
    access_to(kube, tmp_path)
    listening = Listening(from_kubeconfig(tmp_path / "kubeconfig"), "bristle/0.1")
    resources = Resources(listening)
    made = resources.endpoints.create(ENDPOINT)
    resources.endpoints.patch_status(
        "web", EndpointStatus(state="ready", conditions=(CONDITION,)), "shop"
    )
    resources.endpoints.update(resources.endpoints.get("web", "shop"))
    assert remove_taint(listening, "node-1")
    assert set_network_available(listening, "node-1", time.time, reason="Up", message="in force")
    about = ObjectReference(
        apiVersion="networking.k8s.io/v1", kind="NetworkPolicy", name="np", namespace="shop"
    )
    notices = Notices(resources.events, "node-1", time.time, time.monotonic)
    for _ in range(2):
        notices.write(about, "PolicyNotInForce", "no room", action="Enforce")
    election = Election("bristle-collector", "kube-system", "node-1", 15)
    leader = Candidate(resources.leases, election, time.time, time.monotonic)
    assert leader.step()
    assert leader.step()
    leader.release()
    resources.endpoints.delete("web", "shop", uid=made.metadata.uid)
    assert listening.writes >= 10
    assert listening.warnings == []
    strict = [one for one in kube.requests() if one["verb"] in ("create", "update", "patch")]
    assert {one["query"].get("fieldValidation") for one in strict} == {"Strict"}
    assert not BristleNodeStatus().conditions


# ---- watches ---------------------------------------------------------------------------------


def lists(kube: KubeApi) -> int:
    return len(kube.requests(verb="list", resource="pods"))


def test_a_server_that_comes_back_has_forgotten_and_nothing_is_lost(
    kube: KubeApi, three: Follower
) -> None:
    before = lists(kube)
    kube.stop()
    change_pods(kube)  # by another server
    kube.compact()
    kube.start()
    assert_changed(three.settled(kube))
    assert lists(kube) > before


def test_etcd_is_away_for_a_while(kube: KubeApi, three: Follower) -> None:
    kube.stop_etcd()
    time.sleep(2)
    kube.start_etcd()
    kube.wait_ready()
    change_pods(kube)
    assert_changed(three.settled(kube))


def test_a_changed_definition_ends_watches_and_they_begin_again(
    kube: KubeApi, three: Follower
) -> None:
    """The server answers 429, `storage is (re)initializing`, for a moment."""
    column = {"name": "Node", "type": "string", "jsonPath": ".spec.node.name"}
    add = [{"op": "add", "path": "/spec/versions/0/additionalPrinterColumns/-", "value": column}]
    kube.patch_json("CustomResourceDefinition", ENDPOINTS, add)
    kube.load([endpoint("web")])
    three.settled(kube)
    assert ("BristleEndpoint", "shop", "web") in {
        (key.kind, key.namespace, key.name) for key in three.facts
    }


def test_bookmarks_come_within_a_minute_or_so(
    kube: KubeApi, three: Follower, tmp_path: Path
) -> None:
    access = access_to(kube, tmp_path)
    path = "/api/v1/pods"
    version = json.loads(access.request("GET", path))["metadata"]["resourceVersion"]
    kube.load([node("node-9")])
    query: Query = {
        "watch": True,
        "allowWatchBookmarks": True,
        "resourceVersion": version,
        "fieldSelector": "spec.nodeName=node-1",
        "timeoutSeconds": 90,
    }
    with access.open("GET", path, query=query, read_timeout=90) as answer:
        event = json.loads(next(answer.lines()))
    assert event["type"] == "BOOKMARK"
    assert int(event["object"]["metadata"]["resourceVersion"]) > int(version)
    assert kube.watches() >= len(WATCHED)


def test_the_end_of_a_pod_is_seen_as_it_begins(kube: KubeApi, three: Follower) -> None:
    kube.delete("Pod", "a", "shop")  # of this node: its kubelet would end it
    three.wait(
        lambda: any(
            isinstance(one, PodUpserted) and one.pod.name == "a" and one.pod.deleted
            for one in three.events
        ),
        "its deletion to begin",
    )
    kube.delete("Pod", "a", "shop", grace=0)
    three.settled(kube)
    assert "a" not in {key.name for key in three.facts if key.kind == "Pod"}
