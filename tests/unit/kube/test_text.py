# SPDX-License-Identifier: Apache-2.0
"""YAML and JSON as text: what is read, what is refused, and that nothing else ever happens."""

import json
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.kube.documents import split
from agent.kube.jsontext import parse_json
from agent.kube.text import DocumentError
from agent.kube.yamltext import parse_yaml

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), 1 << 64),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
)
_OBJECTS = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(_OBJECTS, st.booleans())
def test_what_yaml_writes_is_read_back(value: Any, flow: bool) -> None:
    text = yaml.dump(value, Dumper=_Quoting, allow_unicode=True, default_flow_style=flow)
    assert parse_yaml(text.encode()) == value


@given(_OBJECTS)
def test_json_is_read_by_both(value: Any) -> None:
    text = json.dumps(value).encode()
    try:
        text.decode().encode("utf-8")
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        with pytest.raises(DocumentError):
            parse_json(text)
    else:
        assert parse_json(text) == value


class _Quoting(yaml.SafeDumper):
    """Leaves no text plain, so that nothing depends on the dumper's idea of what is a number."""


_Quoting.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", True),
        ("Yes", True),
        ("y", True),
        ("off", False),
        ("~", None),
        ("", None),
        ("080", 80.0),
        ("010", 8),
        ("0o10", 8),
        ("0x10", 16),
        ("1_000", 1000),
        ("1e3", 1000.0),
        ("1.10", 1.1),
        ("12:30:45", "12:30:45"),
        ("2026-01-01", "2026-01-01"),
        ("10.0.0.1", "10.0.0.1"),
        ("fd00::1", "fd00::1"),
        ("+", "+"),
        ("nope", "nope"),
        ('"80"', "80"),
        ("!!str 80", "80"),
        ("!!int 80", 80),
        ("!!float 80", 80.0),
    ],
)
def test_plain_scalars_mean_what_they_mean_to_kubectl(text: str, value: object) -> None:
    read = parse_yaml(f"key: {text}".encode())
    assert isinstance(read, dict)
    assert read["key"] == value
    assert type(read["key"]) is type(value)


def test_anchors_and_merges() -> None:
    text = b"a: &a {x: 1, m: {z: 2}}\nb: *a\nc: {<<: *a, x: 3}\nd: {<<: [{x: 5}, *a]}\n'<<': text\n"
    base = {"x": 1, "m": {"z": 2}}
    assert parse_yaml(text) == {
        "a": base,
        "b": base,
        "c": {"x": 3, "m": {"z": 2}},
        "d": {"x": 5, "m": {"z": 2}},
        "<<": "text",
    }


_BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join('*' + chr(97 + i) for _ in range(8))}]\n"
    for i in range(12)
)


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("a: 1\nb: 2\na: 3", 'key "a" is given twice', 3),
        ("m: {x: 1, x: 1}", 'key "x" is given twice', 1),
        (_BOMB, "aliases expand to more than", 6),
        ("a: &a [*a]", "alias *a refers to nothing", 1),
        ("a: *b", "alias *b refers to nothing", 1),
        ("[" * 100, "nested more than", 1),
        ("a:\n - " + "- " * 100 + "x", "nested more than", 2),
        ("? [a]\n: b", "cannot be a key", 1),
        ("a: !!binary aGk=", "tag tag:yaml.org,2002:binary is not supported", 1),
        ("a: !!python/object/apply:os.system [x]", "is not supported", 1),
        ("a: !!int x", "is not supported", 1),
        ("<<: 5", "<< must refer to a mapping", 1),
        ("a: b\n...\nc: d", "did not find expected", 3),
        ("a: [1, 2", "did not find expected", 2),
        ("a: b: c", "mapping values are not allowed", 1),
        ("a:\n\t- b", "found character that cannot start any token", 2),
        ("a: \x01", "control characters are not allowed", 1),
    ],
)
def test_yaml_that_is_refused(text: str, message: str, line: int) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_yaml(text.encode())
    assert message in caught.value.message
    assert caught.value.line == line


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        "[NaN]",
        '"\\ud800"',
        "[" * 100_000,
        "{",
        "1" * 5000,
        "",
        '["]',
        "[" * 70 + "]" * 70,
    ],
)
def test_json_that_is_refused(text: str) -> None:
    with pytest.raises(DocumentError):
        parse_json(text.encode())


@settings(max_examples=300)
@given(
    st.binary(max_size=200)
    | st.text(alphabet="ab:- \n\t&*[]{}!|>%#'\"<?,.0~", max_size=60).map(str.encode)
)
@example(b"%YAML 1.1\n---\na: b")
@example(b"--- !<x")
@example(b"\xff\xfea")
@example(b'"\\U0011ffff"')
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for is_json in (False, True):
        try:
            documents = split(data, is_json=is_json)
        except DocumentError:
            continue
        for document in documents:
            try:
                document.parse()
            except DocumentError as error:
                assert 0 <= error.line <= data.count(b"\n") + data.count(b"\r") + 2


@given(
    st.lists(
        st.sampled_from(["a: 1\n", "# only\n", "b: |\n  ---\n  text\n", "", "- x\n"]), min_size=1
    )
)
def test_splitting_finds_the_documents_that_yaml_finds(parts: list[str]) -> None:
    text = "---\n" + "---\n".join(parts)
    found = [document.parse() for document in split(text.encode(), is_json=False)]
    assert found == list(yaml.load_all(text, Loader=yaml.CSafeLoader))


def test_documents_know_their_line_and_number() -> None:
    text = b"\xef\xbb\xbf# head\n%YAML 1.1\n--- # one\na: 1\n---\nb: [\n"
    first, second = split(text, is_json=False)
    assert (first.number, first.line, first.parse()) == (1, 3, {"a": 1})
    assert (second.number, second.line) == (2, 5)
    with pytest.raises(DocumentError) as caught:
        second.parse()
    assert caught.value.line >= 6


def test_json_list_is_split_into_items_of_its_kind() -> None:
    text = b'{"kind": "PodList", "apiVersion": "v1", "items": [{"a": 1}, {"b": 2}]}'
    documents = split(text, is_json=True)
    assert [document.parse() for document in documents] == [{"a": 1}, {"b": 2}]
    assert [(d.item, d.list_kind, d.list_api_version) for d in documents] == [
        (0, "PodList", "v1"),
        (1, "PodList", "v1"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        '{"kind": "List", "items": [{}], "items": []}',
        '{"items": [], "kind": "List", "items": [{}]}',
        '{"kind": "List", "items": [1], "items": [2]}',
        '{"kind": "Pod", "kind": "List", "items": []}',
        '{"kind": "List", "items": [1], "items": [1]}',
    ],
)
def test_json_list_with_a_repeated_key_is_refused(text: str) -> None:
    with pytest.raises(DocumentError, match="twice"):
        split(text.encode(), is_json=True)
