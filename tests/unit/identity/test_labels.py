# SPDX-License-Identifier: Apache-2.0
"""Label sets, the filter, and the labels of pods."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from identity.labels import (
    DEFAULT,
    NAMESPACE_KEY,
    SERVICE_ACCOUNT_KEY,
    LabelError,
    LabelFilter,
    LabelSet,
    pod_label_key,
    pod_labels,
)
from identity.reserved import Reserved, reserved_for

texts = st.text(alphabet="abc=;:/.", max_size=6)


@settings(deadline=None)
@given(st.dictionaries(texts, texts), st.dictionaries(texts, texts))
def test_canonical_forms_are_equal_exactly_for_equal_sets(
    one: dict[str, str], other: dict[str, str]
) -> None:
    try:
        sets = LabelSet.of(one), LabelSet.of(other)
    except LabelError:
        return
    assert (sets[0].canonical() == sets[1].canonical()) is (one == other) is (sets[0] == sets[1])
    assert dict(sets[0]) == one and sets[0] == LabelSet.of(dict(reversed(one.items())))
    assert one != other or hash(sets[0]) == hash(sets[1])


def test_a_pods_labels_have_the_keys_that_users_know() -> None:
    made = pod_labels({"app": "web", "pod-template-hash": "x"}, "a", {"team": "y"}, "robot")
    assert made.canonical() == (
        "k8s:app=web;"
        "k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=a;"
        "k8s:io.cilium.k8s.namespace.labels.team=y;"
        "k8s:io.cilium.k8s.policy.serviceaccount=robot;"
        "k8s:io.kubernetes.pod.namespace=a"
    )


def test_no_pod_can_claim_another_namespace_or_account() -> None:
    forged = {
        "io.kubernetes.pod.namespace": "kube-system",
        "io.cilium.k8s.namespace.labels.team": "root",
        "io.cilium.k8s.policy.serviceaccount": "admin",
    }
    made = pod_labels(forged, "a", {"kubernetes.io/metadata.name": "kube-system"}, "")
    honest = pod_labels({}, "a", None, "")
    assert made.items() - honest.items() == {(pod_label_key(k), v) for k, v in forged.items()}
    assert made[NAMESPACE_KEY] == "a" and SERVICE_ACCOUNT_KEY not in made


@pytest.mark.parametrize(
    ("prefixes", "kept", "left_out"),
    [
        ((), ("k8s:a",), ()),
        (("!a",), ("k8s:b", "reserved:a"), ("k8s:a", "k8s:ab")),
        (("k8s:app",), ("k8s:app", "k8s:app.kubernetes.io/name"), ("k8s:b",)),
        (("!io.kubernetes", "io.kubernetes.keep"), ("k8s:io.kubernetes.keep/x",), ("k8s:b",)),
        (("app", "!app.x"), ("k8s:app",), ("k8s:app.x/y", "k8s:b")),
        (("app", "!app"), ("k8s:app",), ("k8s:b",)),
    ],
)
def test_the_longest_prefix_decides(
    prefixes: tuple[str, ...], kept: tuple[str, ...], left_out: tuple[str, ...]
) -> None:
    label_filter = LabelFilter.of(prefixes)
    assert all(label_filter.keeps(key) for key in kept)
    assert not any(label_filter.keeps(key) for key in left_out)


def test_a_filter_never_takes_the_namespace_and_tells_what_it_hides() -> None:
    nothing = LabelFilter.of(["none"])
    made = pod_labels({"app": "web"}, "a", {"team": "y"}, "robot", nothing)
    assert set(made.values()) == {"a"} and made[NAMESPACE_KEY] == "a"
    assert nothing.hides(["k8s:app", NAMESPACE_KEY]) == ("k8s:app",)
    assert DEFAULT.hides(["k8s:app", "k8s:pod-template-hash"]) == ("k8s:pod-template-hash",)
    for wrong in ("", "!"):
        with pytest.raises(LabelError, match="names no prefix"):
            LabelFilter.of([wrong])


def test_reserved_identities_are_those_of_the_datapath() -> None:
    header = Path(__file__).parents[3] / "bpf" / "lib" / "layout.h"
    found = dict(re.findall(r"\tIDENTITY_(\w+) = (\d+)", header.read_text()))
    del found["UNKNOWN"]
    assert {name: int(number) for name, number in found.items()} == dict(
        (one.name, one.value) for one in Reserved
    )
    assert Reserved.REMOTE_NODE.labels.canonical() == "reserved:remote-node="
    assert all(reserved_for(one.labels) is one for one in Reserved)
