# SPDX-License-Identifier: Apache-2.0
"""A start over documents that are invalid by now: their last good state is in force again."""

import json
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core.events import EndpointSlice, Fact, Namespace, Node, Pod, Service, ServicePort
from agent.kube.last_good import manifest_of
from agent.kube.translate import translate
from identity.ipcache import NamedPort
from policy.parse import parse_network_policy
from tests.unit.kube.test_manifests import Fixture, policy_text
from tests.unit.policy import worlds


@pytest.fixture
def folder(tmp_path: Path) -> Fixture:
    return Fixture(tmp_path)


@pytest.mark.parametrize("broken", [policy_text("np", 0), "a: [\n", "\ufeff\x00"])
@pytest.mark.parametrize("while_down", [False, True])
def test_a_start_over_an_invalid_document_takes_nothing_back(
    folder: Fixture, broken: str, while_down: bool
) -> None:
    folder.write("a.yaml", policy_text("np"), policy_text("other"))
    folder.write(
        "b.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {a: b}}"
    )
    folder.write("gone.yaml", policy_text("gone"))
    folder.scan()
    before = dict(folder.mirror.facts)
    folder.write("a.yaml", broken, policy_text("other"))
    folder.write("b.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: [no]}")
    if not while_down:
        folder.scan()
        assert folder.mirror.facts == before
    (folder.root / "gone.yaml").unlink()
    folder.restart()
    folder.scan()
    del before["NetworkPolicy", "default", "gone"]
    assert folder.mirror.facts == before
    assert folder.mirror.rejections()
    folder.write("a.yaml", policy_text("other"))
    folder.scan()
    folder.restart()
    folder.scan()
    assert ("NetworkPolicy", "default", "np") not in folder.mirror.facts


def test_what_cannot_be_looked_into_at_the_start_keeps_what_it_had(
    folder: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write("sub/a.yaml", policy_text("np"))
    folder.scan()
    before = dict(folder.mirror.facts)

    def scandir(path: str) -> Any:
        if path.endswith("/sub"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    real = os.scandir
    monkeypatch.setattr("agent.kube.reading.os.scandir", scandir)
    folder.restart()
    folder.scan()
    assert folder.mirror.facts == before
    monkeypatch.undo()
    (folder.root / "sub/a.yaml").unlink()
    folder.scan()
    assert not folder.mirror.facts and not folder.mirror.rejected


def test_a_kept_file_that_is_no_good_is_told_and_passed_over(
    folder: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write("a.yaml", policy_text("np"))
    folder.scan()
    kept = folder.kept
    for text in ("", "[]", "{}", '{"folder": 1}', kept.read_text().replace("podSelector", "x")):
        kept.write_text(text)
        folder.restart()
        folder.scan()
        assert folder.mirror.facts.keys() == {("NetworkPolicy", "default", "np")}
    assert "has no last good state" in caplog.text


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False))
def test_a_manifest_made_of_a_fact_means_that_fact(random: Random) -> None:
    namespaced = {"namespace": "shop", "name": "n"}
    ports = (NamedPort("web", 6, 80), NamedPort("web", 17, 80), NamedPort("sctp", 132, 9))
    served = (ServicePort("web", 6, 80), ServicePort("dns", 17, 53))
    facts: list[Fact] = [
        Pod(
            **namespaced,
            uid=random.choice(["", "u-1"]),
            labels=worlds.labels(random, worlds.LABELS),
            service_account=random.choice(["default", "other"]),
            node_name=random.choice(["", "node-1"]),
            host_network=random.random() < 0.5,
            ips=random.choice([(), ("10.0.0.2",), ("fd00::2", "10.0.0.2")]),
            ports=tuple(random.sample(ports, 2)),
            phase=random.choice(["", "Running"]),
            deleted=random.random() < 0.5,
            redirect=random.choice(["", "enabled"]),
            static_uid=random.choice(["", "u-3"]),
        ),
        Namespace("shop", {"a": "b", "kubernetes.io/metadata.name": "shop"}, "enabled"),
        Node("node-1", "u-2", ("192.0.2.1", "2001:db8::1"), ("10.0.0.0/24", "fd00::/112")),
        Service(
            **namespaced,
            cluster_ips=random.choice([(), ("10.96.0.11",), ("fd00::b", "10.96.0.11")]),
            ports=random.choice([(), (ServicePort("", 6, 80),), served]),
        ),
        EndpointSlice(
            **namespaced,
            service=random.choice(["", "web"]),
            addresses=random.choice([(), ("10.0.0.2", "10.0.0.3"), ("fd00::2",)]),
            ports=random.choice([(), served]),
        ),
        parse_network_policy(worlds.document(random, "p")),
    ]
    for fact in facts:
        text = json.dumps(manifest_of(fact))
        assert translate(json.loads(text)) == fact
