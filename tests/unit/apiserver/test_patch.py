# SPDX-License-Identifier: Apache-2.0
"""The three forms of patches, as functions."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.lab.apiserver import ApiError, builtin
from bench.lab.apiserver.patch import json_patch, merge_patch, strategic_patch

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=2), VALUES, max_size=3)


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        # RFC 7396, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(target: Any, patch: Any, result: Any) -> None:
    assert merge_patch(target, patch) == result


@pytest.mark.parametrize(
    ("steps", "result"),
    [
        ([{"op": "add", "path": "/b", "value": 1}], {"a": [1, 2], "b": 1}),
        ([{"op": "add", "path": "/a/1", "value": 9}], {"a": [1, 9, 2]}),
        ([{"op": "add", "path": "/a/-", "value": 3}], {"a": [1, 2, 3]}),
        ([{"op": "remove", "path": "/a/0"}], {"a": [2]}),
        ([{"op": "replace", "path": "/a", "value": None}], {"a": None}),
        ([{"op": "move", "from": "/a", "path": "/x~1y~0"}], {"x/y~": [1, 2]}),
        ([{"op": "copy", "from": "/a/1", "path": "/b"}], {"a": [1, 2], "b": 2}),
        ([{"op": "test", "path": "/a", "value": [1, 2]}], {"a": [1, 2]}),
    ],
)
def test_json_patch(steps: Any, result: Any) -> None:
    before = {"a": [1, 2]}
    assert json_patch(before, steps) == result
    assert before == {"a": [1, 2]}


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ([{"op": "test", "path": "/a", "value": 1}], 422),
        ([{"op": "remove", "path": "/b"}], 422),
        ([{"op": "replace", "path": "/b", "value": 1}], 422),
        ([{"op": "add", "path": "/a/3", "value": 1}], 422),
        ([{"op": "add", "path": "/a/01", "value": 1}], 422),
        ([{"op": "add", "path": "/b/c", "value": 1}], 422),
        ([{"op": "add", "path": "a", "value": 1}], 422),
        ([{"op": "add", "path": "/a"}], 422),
        ([{"op": "cut", "path": "/a"}], 422),
        ([{}], 422),
        ({"op": "add"}, 400),
        ([1], 400),
        ([{"op": "test", "path": "/a", "value": [1, 2]}] * 10_001, 413),
    ],
)
def test_json_patch_refuses(steps: Any, code: int) -> None:
    with pytest.raises(ApiError) as error:
        json_patch({"a": [1, 2]}, steps)
    assert error.value.code == code


NODE = builtin.schema("V1Node")
BEFORE: dict[str, Any] = {
    "status": {
        "conditions": [{"type": "A", "status": "True", "reason": "r"}, {"type": "B"}],
        "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
    },
    "metadata": {"finalizers": ["a/a", "b/b"]},
}


@pytest.mark.parametrize(
    ("patch", "conditions"),
    [
        (
            [{"type": "A", "status": "False"}],
            [{"type": "A", "status": "False", "reason": "r"}, {"type": "B"}],
        ),
        (
            [{"type": "C"}],
            [{"type": "A", "status": "True", "reason": "r"}, {"type": "B"}, {"type": "C"}],
        ),
        ([{"type": "A", "$patch": "delete"}], [{"type": "B"}]),
        ([{"$patch": "replace"}, {"type": "C"}], [{"type": "C"}]),
        ([{"type": "A", "reason": None}], [{"type": "A", "status": "True"}, {"type": "B"}]),
        # Also in an item with a key it means the whole list, and that item is not of it.
        ([{"type": "A", "$patch": "replace"}], []),
    ],
)
def test_strategic_patch_of_lists(patch: Any, conditions: Any) -> None:
    done = strategic_patch(NODE, BEFORE, {"status": {"conditions": patch}})
    assert done["status"]["conditions"] == conditions
    assert done["status"]["addresses"] == BEFORE["status"]["addresses"]


def test_strategic_patch_directives() -> None:
    def patched(**change: Any) -> Any:
        return strategic_patch(NODE, BEFORE, change)

    assert patched(metadata={"finalizers": ["c/c"]})["metadata"]["finalizers"] == [
        "a/a",
        "b/b",
        "c/c",
    ]
    removed = patched(metadata={"$deleteFromPrimitiveList/finalizers": ["a/a"]})
    assert removed["metadata"]["finalizers"] == ["b/b"]
    turned = patched(
        status={
            "$setElementOrder/conditions": [{"type": "B"}, {"type": "A"}],
            "conditions": [{"type": "A", "status": "False"}],
        }
    )
    assert [entry["type"] for entry in turned["status"]["conditions"]] == ["B", "A"]
    assert patched(status={"$patch": "replace", "phase": "x"})["status"] == {"phase": "x"}
    assert patched(status={"$retainKeys": ["addresses"]})["status"].keys() == {"addresses"}
    for wrong in ({"conditions": [{"status": "x"}]}, {"$patch": "mix"}, {"conditions": [1]}):
        with pytest.raises(ApiError) as error:
            patched(status=wrong)
        assert error.value.code == 400


@given(OBJECTS, VALUES)
def test_any_patch_gives_a_value_or_an_error(target: Any, patch: Any) -> None:
    merged = merge_patch(target, patch)
    assert merge_patch(merged, patch) == merged  # doing it again changes nothing
    with contextlib.suppress(ApiError):
        json_patch(target, patch)
    with contextlib.suppress(ApiError):
        strategic_patch(NODE, target, patch)
