# SPDX-License-Identifier: Apache-2.0
"""What is drawn and printed is what was measured, whatever it says."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from bench.latency import chart, page, table
from bench.latency.command import compact, status
from bench.latency.matrix import Cores, How, headline
from bench.latency.results import Outcome, State, as_json, verdict_of
from tests.unit.bench.latency_world import exactly, outcome, run, stream

FLOOR = "UNIX socket the floor"
SVG = "{http://www.w3.org/2000/svg}"
SAME = outcome(
    {"unix": (9.0, 11.0, 20.0), "bristle": (16.0, 21.5, 45.0), "envoy-1": (90.0, 140.0, 451.0)},
    {"redirected": "no such agent"},
)
TWO = replace(SAME, group=replace(SAME.group, load=headline(How.EPOLL, Cores.TWO)))


def drawn(*outcomes: Outcome) -> ElementTree.Element:
    """The chart, parsed."""
    return ElementTree.fromstring(chart.draw(chart.panels(outcomes)).render())


def bars(root: ElementTree.Element) -> list[tuple[str, str, int, float, float]]:
    """(panel, row, percentile, µs, height) of each bar."""
    return [
        (
            one.attrib["data-panel"],
            one.attrib["data-row"],
            int(one.attrib["data-percentile"]),
            float(one.attrib["data-us"]),
            float(one.attrib["height"]),
        )
        for one in root.iter(f"{SVG}rect")
        if "data-us" in one.attrib
    ]


def test_every_figure_is_a_bar_and_every_bar_a_figure() -> None:
    found = [(panel[:8], row, share, us) for panel, row, share, us, _ in bars(drawn(SAME))]
    expected = [
        ("Publishe", name, share, value)
        for name, values in chart.PUBLISHED.items()
        for share, value in zip((50, 90, 99), values, strict=True)
    ]
    for panel, ways in (("Measured", SAME.rows), ("Without ", ("unix", "bristle"))):
        for way in ways:
            label = " ".join(chart.MEASURED[way])
            figures = SAME.rows[way].percentiles.items()
            expected += [(panel, label, share, figure.value) for share, figure in figures]
    assert sorted(found) == sorted(expected)


def test_published_figures_are_those_of_2017() -> None:
    assert chart.PUBLISHED == {
        "no proxy": (36, 43, 63),
        "in kernel": (24, 31, 47),
        "Envoy": (93, 121, 201),
        "NGINX": (83, 111, 218),
        "HAProxy": (83, 98, 171),
    }


def test_heights_are_in_proportion_and_cut_at_the_end_of_the_scale() -> None:
    shown = chart.panels([SAME, TWO])
    most = chart.scale_end(shown)
    assert most == chart.MOST
    found = bars(drawn(SAME, TWO))
    (enlarged,) = (panel for panel in shown if panel.most is not None)
    common = [(us, height) for panel, _, _, us, height in found if panel != enlarged.title]
    scales = {height / us for us, height in common if us <= most}
    assert max(scales) == pytest.approx(min(scales), rel=0.01)
    (cut, *_) = [height for us, height in common if us == 451.0]
    assert cut == pytest.approx(most * max(scales), rel=0.01)
    assert enlarged.most == 40
    larger = [(us, height) for panel, _, _, us, height in found if panel == enlarged.title]
    own = {height / us for us, height in larger if us <= enlarged.most}
    assert max(own) == pytest.approx(min(own), rel=0.01)
    assert min(own) > 3 * max(scales)
    assert {us for us, _ in larger if us > enlarged.most} == {45.0}


def test_labels_say_the_values() -> None:
    texts = [one.text for one in drawn(SAME).iter(f"{SVG}text")]
    for expected in ("218", "21.5", "451", "not measured", "median 9 µs"):
        assert expected in texts


def test_the_floor_is_the_unix_socket_and_only_where_it_was_measured() -> None:
    root = drawn(SAME, TWO)
    lines = [one for one in root.iter(f"{SVG}line") if one.get("data-line") == "floor"]
    assert len(lines) == 4, "each placement, twice; not the published panel, which had none"
    rects = [one for one in root.iter(f"{SVG}rect") if one.get("data-row") == FLOOR]
    tops = sorted(float(one.attrib["y"]) for one in rects if one.get("data-percentile") == "50")
    assert sorted(float(one.attrib["y1"]) for one in lines) == pytest.approx(tops, abs=0.02)
    without = replace(SAME, rows={k: v for k, v in SAME.rows.items() if k != "unix"})
    assert not [one for one in drawn(without).iter(f"{SVG}line") if one.get("data-line")]


def test_no_two_numbers_overlap() -> None:
    """Above bars: 0.62 of the size for a digit is more than the font's."""
    root = drawn(SAME, TWO)
    texts = [(float(t.attrib["x"]), float(t.attrib["y"]), len(t.text or "") * 0.62 * float(size))
             for t in root.iter(f"{SVG}text") if (size := t.attrib["font-size"]) in ("11", "9.5")
             and (t.text or "").replace(".", "").replace(",", "").isdigit()]  # fmt: skip
    assert len(texts) > 50
    for place, (x, y, width) in enumerate(texts):
        for other_x, other_y, other_width in texts[place + 1 :]:
            apart = abs(x - other_x) >= (width + other_width) / 2 or abs(y - other_y) >= 9
            assert apart or (x < 60 and other_x < 60)


def luminance(colour: str) -> float:
    """Relative, 0 to 1 (WCAG)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_shades_differ_in_greyscale() -> None:
    for panel in chart.panels([SAME]):
        grey = [luminance(shade) for shade in panel.shades]
        assert grey[0] > 1.7 * grey[1] and grey[1] > 1.7 * grey[2]


class Reader(HTMLParser):
    """Tags, and the text outside of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.said: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def test_page_escapes_what_it_is_given() -> None:
    evil = "<script>alert(1)</script>&\"'"
    shown = run(
        replace(SAME, missing={"redirected": evil}),
        verdicts=(verdict_of(evil, 1.0, None, reason=evil),),
        fingerprint={"cpu": evil, "proxies": {evil: evil}},
        circumstances={
            "time": evil,
            "unrest": evil,
            "socket_redirect": {"forced": True, "failed_checks": [evil], "stalls": 0},
        },
        disagreements=(evil,),
        compared_with=evil,
    )
    text = page.render(shown, "<svg></svg>")
    found = Reader(text)
    assert "script" not in found.tags and "svg" in found.tags
    assert "".join(found.said).count(evil) >= 12
    assert not re.search(r"(src|href)=", text), "the page needs no other file"


def test_page_and_terminal_show_losing_and_missing_rows() -> None:
    slow = outcome({"unix": (9.0, 9.0, 9.0), "redirected": (12.0, 12.0, 12.0)}, {"nginx-1": "gone"})
    verdicts = (
        verdict_of("it is quick", 1.0, exactly(1.3)),
        verdict_of("it is there", 1.0, None, reason="it is not"),
    )
    shown = run(slow, stream({"unix": (), "redirected": ()}), verdicts=verdicts)
    for text in (table.whole(shown), "".join(Reader(page.render(shown, "")).said)):
        assert "bristle, redirected: 1.33 × the time of UNIX socket" in text
        assert "FAILS" in text and "1.3 [1.29–1.31]" in text
        assert "not measured: it is not" in text and "not measured: gone" in text


def test_what_has_to_be_known_beside_the_figures_is_said() -> None:
    redirect = {"forced": True, "failed_checks": ["half close: EAGAIN"], "stalls": 2}
    shown = run(SAME, circumstances={"unrest": "busy", "socket_redirect": redirect})
    for text in (table.whole(shown), "".join(Reader(page.render(shown, "")).said)):
        assert "busy" in text and "2 connections stall" in text
        assert "self-test found wrong on this kernel: half close: EAGAIN" in text
    calm = run(SAME, circumstances={"socket_redirect": {"forced": True, "failed_checks": []}})
    assert table.remarks(calm) == table.remarks(run(SAME)) == []


def test_losing_is_beyond_both_intervals_and_in_streams_the_other_way_round() -> None:
    close = outcome({"unix": (9.0, 9.0, 9.0), "redirected": (9.1, 9.1, 9.1)})
    assert table.losing([close]) == []
    slow = stream({"unix": (), "redirected": ()})
    rows = dict(slow.rows)
    rows["redirected"] = replace(rows["redirected"], gbit=exactly(2))
    (said,) = table.losing([replace(slow, rows=rows)])
    assert "0.50 × the throughput of" in said and "2 against 4 Gbit/s" in said


def test_json_holds_every_figure() -> None:
    shown = run(SAME, verdicts=(verdict_of("a", 1.0, exactly(0.5)), verdict_of("b", 1.0, None)))
    text = compact(json.dumps(as_json(shown), allow_nan=False, indent=1))
    assert "[ 20.0, 19.8, 20.2 ]" in text
    document = json.loads(text)
    assert document == json.loads(json.dumps(as_json(shown)))
    (group,) = document["groups"]
    assert group["rows"]["unix"]["p99_us"] == [20, 19.8, 20.2]
    assert group["not_measured"] == {"redirected": "no such agent"}
    assert [one["holds"] for one in document["claims"]] == [True, None]
    assert document["claims"][1]["state"] == "not measured"


@pytest.mark.parametrize(
    ("figures", "expected"),
    [((0.9,), 0), ((0.9, None), 2), ((0.9, 1.1), 1), ((1.1, None), 1), ((), 0)],
)
def test_exit_status(figures: tuple[float | None, ...], expected: int) -> None:
    verdicts = [verdict_of("x", 1.0, exactly(v) if v else None) for v in figures]
    verdicts.append(verdict_of("stated", None, exactly(9)))
    assert verdicts[-1].state is State.STATED
    assert status(run(verdicts=tuple(verdicts))) == expected
