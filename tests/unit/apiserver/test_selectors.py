# SPDX-License-Identifier: Apache-2.0
"""Selectors against a plain reading of what they mean, for any labels."""

from hypothesis import given
from hypothesis import strategies as st

from bench.lab.apiserver import ApiError
from bench.lab.apiserver.selectors import Requirement, parse_fields, parse_labels

KEYS = st.sampled_from(["a", "b", "example.io/c", "in", "x.y_z"])
WORDS = st.sampled_from(["", "a", "B", "1", "5", "in", "x.y-z"])
LABELS = st.dictionaries(KEYS, WORDS)
SPACE = st.sampled_from(["", " ", "  "])


@st.composite
def requirements(draw: st.DrawFn) -> tuple[str, Requirement]:
    """The text of a requirement, and what it means."""
    key = draw(KEYS.filter(lambda key: key != "in"))
    gap = draw(SPACE)
    form = draw(st.sampled_from(["=", "==", "!=", "in", "notin", "has", "lacks", ">", "<"]))
    if form == "has":
        return key, Requirement(key, "exists")
    if form == "lacks":
        return f"!{gap}{key}", Requirement(key, "absent")
    if form in (">", "<"):
        bound = str(draw(st.integers(0, 9)))
        name = "gt" if form == ">" else "lt"
        return f"{key}{gap}{form}{gap}{bound}", Requirement(key, name, frozenset({bound}))
    if form in ("in", "notin"):
        values = draw(st.lists(WORDS, min_size=1, max_size=3))
        text = f"{gap},{gap}".join(values)
        return f"{key} {form}{gap}({gap}{text}{gap})", Requirement(key, form, frozenset(values))
    value = draw(WORDS)
    name = "notin" if form == "!=" else "in"
    return f"{key}{gap}{form}{gap}{value}", Requirement(key, name, frozenset({value}))


def meant(requirement: Requirement, labels: dict[str, str]) -> bool:
    """As the documentation puts it."""
    key, values = requirement.key, requirement.values
    if requirement.operator == "exists":
        return key in labels
    if requirement.operator == "absent":
        return key not in labels
    if requirement.operator == "in":
        return key in labels and labels[key] in values
    if requirement.operator == "notin":
        return not (key in labels and labels[key] in values)
    if key not in labels or not labels[key].isdigit():
        return False
    (bound,) = values
    above = int(labels[key]) > int(bound)
    return above if requirement.operator == "gt" else int(labels[key]) < int(bound)


@given(st.lists(requirements(), min_size=1, max_size=4), LABELS)
def test_label_selectors(parts: list[tuple[str, Requirement]], labels: dict[str, str]) -> None:
    parsed = parse_labels(",".join(text for text, _ in parts))
    assert parsed == tuple(requirement for _, requirement in parts)
    assert all(r.matches(labels) for r in parsed) is all(meant(r, labels) for _, r in parts)


@given(st.text(st.sampled_from("ab=!,()<>in /.-_ 1\t\n\\"), max_size=15) | st.text(max_size=10))
def test_any_text_is_a_selector_or_refused(text: str) -> None:
    for parse in (parse_labels, lambda text: parse_fields(text, frozenset({"a", "b"}))):
        try:
            parse(text)
        except ApiError as error:
            assert error.code == 400


@given(st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.text(max_size=6)), max_size=3))
def test_field_selectors(terms: list[tuple[str, bool, str]]) -> None:
    def escaped(value: str) -> str:
        return "".join("\\" + char if char in "\\,=" else char for char in value)

    text = ",".join(f"{path}{'=' if equal else '!='}{escaped(v)}" for path, equal, v in terms)
    parsed = parse_fields(text, frozenset({"a", "b"}))
    assert [(term.field, term.equal, term.value) for term in parsed] == terms
