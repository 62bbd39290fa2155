# SPDX-License-Identifier: Apache-2.0
"""Selectors against a literal reading of the API's documentation, and their indexes."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from identity.index import LabelIndex, SelectorIndex
from identity.selectors import Selector, SelectorError, label_key_problem, parse_selector

keys = st.sampled_from(["a", "b", "x.io/c"])
values = st.sampled_from(["", "1", "2", "3"])
labels = st.dictionaries(keys, values)
expressions = st.one_of(
    st.fixed_dictionaries(
        {
            "key": keys,
            "operator": st.sampled_from(["In", "NotIn"]),
            "values": st.lists(values, min_size=1, max_size=3),
        }
    ),
    st.fixed_dictionaries({"key": keys, "operator": st.sampled_from(["Exists", "DoesNotExist"])}),
)
selectors = st.fixed_dictionaries(
    {}, optional={"matchLabels": labels, "matchExpressions": st.lists(expressions, max_size=3)}
)


def holds(selector: dict[str, Any], having: dict[str, str]) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if key not in having or having[key] != value:
            return False
    for one in selector.get("matchExpressions", []):
        key, operator = one["key"], one["operator"]
        if operator == "In" and not (key in having and having[key] in one["values"]):
            return False
        if operator == "NotIn" and key in having and having[key] in one["values"]:
            return False
        if operator == "Exists" and key not in having:
            return False
        if operator == "DoesNotExist" and key in having:
            return False
    return True


@settings(max_examples=500, deadline=None)
@given(selectors, labels)
def test_matching(selector: dict[str, Any], having: dict[str, str]) -> None:
    parsed = parse_selector(selector, "s")
    assert parsed.matches(having) is holds(selector, having)
    prefixed = {f"k8s:{key}": value for key, value in having.items()}
    assert parsed.prefixed("k8s:").matches(prefixed | {"a": "1", "b": "1"}) is holds(
        selector, having
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(selectors, max_size=8), st.lists(labels, max_size=8), st.randoms())
def test_indexes_find_what_matches(
    some: list[dict[str, Any]], sets: list[dict[str, str]], random: Random
) -> None:
    by_selector: SelectorIndex[int] = SelectorIndex()
    by_labels: LabelIndex[int] = LabelIndex()
    parsed = [parse_selector(one, "s") for one in some]
    for number in [*range(len(parsed)), *range(len(parsed))]:
        by_selector.add(number, parsed[number])
    for number in [*range(len(sets)), *range(len(sets))]:
        by_labels.add(number, sets[number])
    gone = {number for number in range(8) if random.random() < 0.3}
    for number in [*gone, *gone]:
        by_selector.discard(number)
        by_labels.discard(number)
    for having in sets:
        found = sorted(by_selector.matching(having))
        expected = [n for n, s in enumerate(parsed) if n not in gone and s.matches(having)]
        assert found == expected
    for selector in parsed:
        expected = [n for n, h in enumerate(sets) if n not in gone and selector.matches(h)]
        assert sorted(by_labels.matching(selector)) == expected


def test_equal_meaning_is_equal() -> None:
    one = parse_selector({"matchLabels": {"a": "1", "b": "2"}}, "s")
    other = parse_selector(
        {
            "matchExpressions": [
                {"key": "b", "operator": "In", "values": ["2", "2"]},
                {"key": "a", "operator": "In", "values": ["1"]},
            ]
        },
        "s",
    )
    assert one == other and hash(one) == hash(other) and one.canonical() == other.canonical()
    assert parse_selector(None, "s") == parse_selector({}, "s") == Selector()


@pytest.mark.parametrize(
    ("selector", "field"),
    [
        ([], "s"),
        ({"matchlabels": {}}, "s.matchlabels"),
        ({"matchLabels": []}, "s.matchLabels"),
        ({"matchLabels": {"a": None}}, "s.matchLabels[a]"),
        ({"matchLabels": {"a": "x" * 64}}, "s.matchLabels[a]"),
        ({"matchLabels": {"a": "x\n"}}, "s.matchLabels[a]"),
        ({"matchLabels": {1: "a"}}, "s.matchLabels"),
        ({"matchExpressions": {}}, "s.matchExpressions"),
        ({"matchExpressions": [None]}, "s.matchExpressions[0]"),
        ({"matchExpressions": [{"key": "a"}]}, "s.matchExpressions[0].operator"),
        (
            {"matchExpressions": [{"key": "a", "operator": "In", "values": []}]},
            "s.matchExpressions[0].values",
        ),
        (
            {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]},
            "s.matchExpressions[0].values",
        ),
        (
            {"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b", "-"]}]},
            "s.matchExpressions[0].values[1]",
        ),
        ({"matchExpressions": [{"operator": "Exists"}]}, "s.matchExpressions[0].key"),
    ],
)
def test_refused(selector: object, field: str) -> None:
    with pytest.raises(SelectorError) as caught:
        parse_selector(selector, "s")
    assert caught.value.field == field


def test_label_keys() -> None:
    good = ("a", "A_b.c-9", "x" * 63, "example.com/a", f"{'a.' * 126}a/b")
    bad = ("", "-a", "a-", "x" * 64, "/a", "a/", "a/b/c", "Example.com/a", f"{'a.' * 127}a/b", "ä")
    assert not [key for key in good if label_key_problem(key)]
    assert not [key for key in bad if not label_key_problem(key)]
