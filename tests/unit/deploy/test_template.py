# SPDX-License-Identifier: Apache-2.0
"""The part of Helm's template language that the chart uses, and the refusal of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from agent.chart.render import Renderer
from agent.chart.syntax import TemplateError, parse
from agent.chart.values import ValuesError, combine, merge, parse_set

CONTEXT = {
    "Values": {"on": True, "off": False, "n": 8472, "big": 1_000_000, "s": "a", "list": ["x", "y"],
               "map": {"b": "1", "a": 2}, "none": None, "empty": {}}
}  # fmt: skip


def render(text: str, context: Any = CONTEXT) -> str:
    template = parse(text, "t.yaml")
    return Renderer(template.defined).render(template.body, context)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a {{ .Values.s }} b", "a a b"),
        ("a  {{- .Values.s -}}  b", "aab"),
        ("a\n{{- /* no\ntext */ -}}\nb", "ab"),
        ("{{/* x */}}y", "y"),
        ("{{ .Values.on }}{{ .Values.n }}", "true8472"),
        ("{{ .Values.s | quote }}{{ .Values.n | int | quote }}", '"a""8472"'),
        ("{{ .Values.big | int }}", "1000000"),
        ('{{ .Values.none | default "d" }}{{ .Values.s | default "d" }}', "da"),
        ("{{ if .Values.off }}a{{ else if .Values.on }}b{{ else }}c{{ end }}", "b"),
        ("{{ if .Values.empty }}a{{ else }}b{{ end }}", "b"),
        ("{{ with .Values.list }}{{ range . }}[{{ . }}]{{ end }}{{ end }}", "[x][y]"),
        ("{{ with .Values.map }}{{ .b }}{{ $.Values.s }}{{ end }}", "1a"),
        ("{{ range .Values.empty }}a{{ else }}none{{ end }}", "none"),
        ("{{ if and .Values.on (not .Values.off) }}y{{ end }}", "y"),
        ("{{ if or .Values.off .Values.none }}y{{ else }}n{{ end }}", "n"),
        ('{{ if eq .Values.s "b" "a" }}y{{ end }}', "y"),
        ("x: {{ toYaml .Values.map | nindent 2 }}", 'x: \n  a: 2\n  b: "1"'),
        ('{{ define "n" }}<{{ .s }}>{{ end }}{{ include "n" .Values }}', "<a>"),
        (
            '{{ "x" | sha256sum }}',
            "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
        ),
    ],
)
def test_renders_as_helm_does(text: str, expected: str) -> None:
    assert render(text) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{{ .Values.big }}", "use toYaml, or int"),  # Helm prints 1e+06
        ("{{ .Values.map }}", "use toYaml"),
        ("{{ upper .Values.s }}", "function 'upper' is not supported"),
        ("{{ $x := 1 }}", "not supported"),
        ('{{ template "x" . }}', "not supported"),
        ("{{ if .Values.on }}", "has no end"),
        ("{{ end }}", "without a beginning"),
        ("{{ .Values.s", "does not end"),
        ("{{ .Values.no.where }}", "is nothing"),
        ("{{ .Values.s.x }}", "no mapping"),
        ('{{ include "absent" . }}', "no template 'absent'"),
        ("{{ (.Values.s }}", "not closed"),
        ("{{ range .Values.map }}{{ end }}", "lists alone"),
        ("{{ .Values.s .Values.n }}", "takes no arguments"),
        ("{{ nindent 2 }}", "wrong arguments"),
    ],
)
def test_what_is_not_known_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(TemplateError, match=r"t\.yaml") as caught:
        render(text)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=c", {"a": {"b": "c"}}),
        ("a=1,b=true,c=null,d=01,e=-3,f=1.5",
         {"a": 1, "b": True, "c": None, "d": "01", "e": -3, "f": "1.5"}),
        ("a={x,2}", {"a": ["x", 2]}),
        ("a={}", {"a": []}),
        (r"a\.b/c=d\,e", {"a.b/c": "d,e"}),
        ("a.b=1,a.c=2", {"a": {"b": 1, "c": 2}}),
        ("a=b=c", {"a": "b=c"}),
    ],
)  # fmt: skip
def test_set(text: str, expected: dict[str, Any]) -> None:
    assert parse_set(text) == expected


@pytest.mark.parametrize("text", ["a", "=1", "a..b=1", "a[0]=1"])
def test_set_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValuesError):
        parse_set(text)


def test_values_are_merged_and_null_takes_away() -> None:
    given = combine([{"a": {"x": 1, "y": 2}, "l": [1]}], ["a.y=null", "l={2}"])
    merged = merge({"a": {"x": 0, "y": 0, "z": 0}, "l": [0, 0], "b": 1}, given)
    assert merged == {"a": {"x": 1, "z": 0}, "l": [2], "b": 1}
