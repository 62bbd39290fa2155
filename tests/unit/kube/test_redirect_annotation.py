# SPDX-License-Identifier: Apache-2.0
"""The annotation for socket redirect means the same by the fast and by the thorough path, of pods
and of namespaces, and no value of it makes an object be refused that is otherwise right."""

import json
from typing import Any

import pytest

from agent.core.events import REDIRECT_ANNOTATION, Namespace, Pod
from agent.kube.fields import TranslateError
from agent.kube.kinds import NAMESPACE, POD, Kind
from agent.kube.translate import CLUSTER_KINDS, translate
from agent.kube.translate_wire import translate_raw

ANNOTATIONS: list[tuple[Any, str]] = [
    ({}, ""),
    (None, ""),
    ({"example.org/other": "on"}, ""),
    ({REDIRECT_ANNOTATION: "on"}, "on"),
    ({REDIRECT_ANNOTATION: " ALL "}, " ALL "),
    ({REDIRECT_ANNOTATION: ""}, ""),
    ({REDIRECT_ANNOTATION: "yes, \"please\" \u00e9"}, "yes, \"please\" \u00e9"),
    ({REDIRECT_ANNOTATION: "on", "example.org/other": "x" * 5000}, "on"),
    ({REDIRECT_ANNOTATION: None}, ""),
]  # fmt: skip
ODD: list[Any] = [
    {REDIRECT_ANNOTATION: True},
    {REDIRECT_ANNOTATION: 1},
    {REDIRECT_ANNOTATION: ["on"]},
    {REDIRECT_ANNOTATION: {"on": True}},
    [],
    "text",
    7,
]


def made(kind: Kind, annotations: Any) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "one", "annotations": annotations}
    if kind is POD:
        metadata["namespace"] = "shop"
    return {"kind": kind.name, "apiVersion": kind.api_version, "metadata": metadata}


@pytest.mark.parametrize("kind", [POD, NAMESPACE], ids=lambda kind: str(kind.name))
@pytest.mark.parametrize(("annotations", "value"), ANNOTATIONS)
def test_both_paths(kind: Kind, annotations: Any, value: str) -> None:
    obj = made(kind, annotations)
    for fact in (translate(obj, CLUSTER_KINDS), translate_raw(kind, json.dumps(obj).encode())):
        assert isinstance(fact, Pod | Namespace)
        assert fact.redirect == value


@pytest.mark.parametrize("kind", [POD, NAMESPACE], ids=lambda kind: str(kind.name))
@pytest.mark.parametrize("annotations", ODD)
def test_what_is_no_text(kind: Kind, annotations: Any) -> None:
    """As YAML makes of `on`: both say the same of it."""
    obj = made(kind, annotations)

    def outcome(work: Any) -> Any:
        try:
            return work().redirect
        except TranslateError as error:
            return error.field, error.message

    thorough = outcome(lambda: translate(obj, CLUSTER_KINDS))
    assert outcome(lambda: translate_raw(kind, json.dumps(obj).encode())) == thorough
    if isinstance(annotations, dict) and annotations[REDIRECT_ANNOTATION] is True:
        assert str(thorough).lower() == "true"
