# SPDX-License-Identifier: Apache-2.0
"""The chart of 2017 again, with the line that it did not have.

Above the figures that were published then, on another machine and never with a UNIX socket; below
this run's. One scale for all, so that they can be looked at side by side; what exceeds it is cut
and says its number. The last panel has the small bars again, enlarged. Each percentile has a shade
of its own, in grey print too, and the floor is a dashed line with its name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.latency.matrix import WAYS, Cores, How, headline
from bench.latency.results import PERCENTILES, Outcome
from bench.latency.svg import Drawing
from bench.latency.table import number

PUBLISHED = {
    "no proxy": (36.0, 43.0, 63.0),
    "in kernel": (24.0, 31.0, 47.0),
    "Envoy": (93.0, 121.0, 201.0),
    "NGINX": (83.0, 111.0, 218.0),
    "HAProxy": (83.0, 98.0, 171.0),
}
"""Cilium's figures of 2017 for its socket redirect, in µs: 50th, 90th and 99th percentile."""

MEASURED = {
    "unix": ("UNIX socket", "the floor"),
    "direct": ("no proxy", "one veth pair"),
    "routed": ("no proxy", "kernel, routed"),
    "bristle": ("no proxy", "bristle, policy"),
    "redirected": ("in kernel", "bristle, redirect"),
    "envoy-1": ("Envoy", "one"),
    "nginx-1": ("NGINX", "one"),
    "haproxy-1": ("HAProxy", "one"),
    "envoy-2": ("Envoy", "two sidecars"),
    "envoy-2-redirected": ("Envoy", "two, redirected"),
}
"""Which rows are drawn, and what stands below them."""

MOST = 300.0
"""µs: where the scale ends at the latest."""
_BLUES, _GREYS = ("#a6cee3", "#4a90c2", "#08306b"), ("#d4d4d4", "#969696", "#404040")
_FLOOR, _WORDS = "#d55e00", "#a04000"
_WIDTH, _LEFT, _RIGHT = 1240.0, 62.0, 128.0
_WIDE, _GAP = 30.0, 4.0
_TOP, _PLOT, _PANEL = 92.0, 190.0, 288.0


@dataclass(frozen=True, slots=True)
class Bars:
    """One group of three. values: by PERCENTILES, in µs; None: not measured."""

    name: str
    below: str
    values: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Floor:
    """The line at `us` µs across so many groups, from `first` on."""

    first: int
    count: int
    us: float


@dataclass(frozen=True, slots=True)
class Panel:
    """Groups side by side. most: µs at the end of its own scale; None: that of the others."""

    title: str
    shades: tuple[str, ...]
    groups: tuple[Bars, ...]
    floors: tuple[Floor, ...] = ()
    most: float | None = None


def panels(outcomes: Sequence[Outcome]) -> list[Panel]:
    """The published one, one for each placement of a run's headline, and its small bars again."""
    published = tuple(Bars(name, "", values) for name, values in PUBLISHED.items())
    found = [Panel("Published in 2017 (Cilium, another machine; no UNIX socket was shown)", _GREYS,
                   published)]  # fmt: skip
    by_load = {outcome.group.load: outcome for outcome in outcomes}
    placed = [by_load[load] for cores in (Cores.SAME, Cores.TWO)
              if (load := headline(How.EPOLL, cores)) in by_load]  # fmt: skip
    for outcome in placed:
        title = f"Measured in this run: {outcome.group.load.text}"
        found.append(_measured(title, [outcome], list(MEASURED)))
    if placed:
        halves = " | ".join(outcome.group.load.cores for outcome in placed)
        plain = [way for way in MEASURED if not WAYS[way].proxy]
        panel = _measured(
            f"Without a proxy, enlarged, on a scale of its own: {halves}", placed, plain
        )
        found.append(replace(panel, most=_enlarged(panel)))
    return found


def _measured(title: str, outcomes: Sequence[Outcome], ways: Sequence[str]) -> Panel:
    groups: list[Bars] = []
    floors: list[Floor] = []
    for outcome in outcomes:
        if floor := _values(outcome, "unix"):
            floors.append(Floor(len(groups), len(ways), floor[0]))
        groups += [Bars(*MEASURED[way], _values(outcome, way)) for way in ways]
    return Panel(title, _BLUES, tuple(groups), tuple(floors))


def _values(outcome: Outcome, way: str) -> tuple[float, ...] | None:
    if way not in outcome.rows:
        return None
    return tuple(outcome.rows[way].percentiles[share].value for share in PERCENTILES)


def scale_end(shown: Sequence[Panel]) -> float:
    """Where the scale of panels without one of their own ends: above the longest bar, but at MOST
    at the latest."""
    groups = [group for panel in shown if panel.most is None for group in panel.groups]
    return min(_step([value for group in groups for value in group.values or ()]), MOST)


def _enlarged(panel: Panel) -> float:
    """Room for every median and what is up to twice the largest one."""
    values = [group.values for group in panel.groups if group.values]
    median = max((one[0] for one in values), default=1.0)
    return _step([min(v, 2 * median) for one in values for v in one])


def _step(values: Sequence[float]) -> float:
    """The next round number above all values."""
    longest = max(values, default=1.0)
    scale = 10.0 ** math.floor(math.log10(longest))
    return next(
        step * scale for step in (1, 1.5, 2, 2.5, 3, 4, 5, 7.5, 10) if step * scale >= longest
    )


def draw(shown: Sequence[Panel]) -> Drawing:
    """The chart."""
    height = _TOP + _PANEL * len(shown) + 14
    title = "Round trip between two applications on one node, in µs"
    drawing = Drawing(_WIDTH, height, title)
    drawing.text(_LEFT, 36, title, 21, bold=True)
    drawing.text(_LEFT, 60, "Less is better. Bars: 50th, 90th and 99th percentile.", 13)
    _legend(drawing)
    most = scale_end(shown)
    for place, panel in enumerate(shown):
        top = _TOP + place * _PANEL
        right, bottom = _WIDTH - _RIGHT, top + 40 + _PLOT
        width = (right - _LEFT) / len(panel.groups)
        _Plot(drawing, panel, panel.most or most, bottom, width).draw()
    return drawing


def _legend(drawing: Drawing) -> None:
    x = _WIDTH - 500
    for place, share in enumerate(PERCENTILES):
        at = x + place * 72
        drawing.rect(at, 48, 14, 14, _GREYS[place])
        drawing.rect(at + 14, 48, 14, 14, _BLUES[place])
        drawing.text(at + 33, 60, f"p{share}", 13)
    drawing.line(x + 232, 55, x + 266, 55, _FLOOR, 2.5, "7 4")
    drawing.text(x + 273, 60, "UNIX socket, median: the floor", 13)


@dataclass(frozen=True, slots=True)
class _Plot:
    """A panel's place. most: µs at the end of the scale; bottom: y of 0; width: of a group."""

    drawing: Drawing
    panel: Panel
    most: float
    bottom: float
    width: float

    def y(self, us: float) -> float:
        """Where a value is."""
        return self.bottom - us * _PLOT / self.most

    def draw(self) -> None:
        top, right = self.bottom - _PLOT - 40, _LEFT + self.width * len(self.panel.groups)
        self.drawing.text(_LEFT, top + 18, self.panel.title, 14, bold=True)
        for step in range(6):
            value = self.most * step / 5
            y = self.y(value)
            self.drawing.line(_LEFT, y, right, y, "#dddddd" if step else "#222222")
            self.drawing.text(_LEFT - 8, y + 4, f"{value:g}", 11, anchor="end", fill="#555555")
        self.drawing.text(_LEFT - 8, top + 22, "µs", 11, anchor="end", fill="#555555")
        for place, group in enumerate(self.panel.groups):
            self.group(group, place)
        for floor in self.panel.floors:
            self.floor(floor, right)
        for place, group in enumerate(self.panel.groups):
            self.numbers(group, place)

    def group(self, group: Bars, place: int) -> None:
        middle = _LEFT + (place + 0.5) * self.width
        self.drawing.text(middle, self.bottom + 18, group.name, 12.5, anchor="middle", bold=True)
        self.drawing.text(
            middle, self.bottom + 34, group.below, 11, anchor="middle", fill="#444444"
        )
        if group.values is not None:
            self.bars(group, group.values, middle)
            return
        floors = [one.us for one in self.panel.floors if one.first <= place < one.first + one.count]
        line = self.bottom - self.y(*floors) if floors else 0
        above = line + 8 if line < 26 else 10  # clear of the floor's line
        self.drawing.text(middle, self.bottom - above, "not measured", 11.5, anchor="middle",
                          italic=True, fill="#555555")  # fmt: skip

    def floor(self, floor: Floor, right: float) -> None:
        if floor.us > self.most:
            return
        y = self.y(floor.us)
        begin = _LEFT + floor.first * self.width
        end = begin + floor.count * self.width
        self.drawing.line(begin, y, end, y, _FLOOR, 2.5, "7 4", name="floor")
        if end > right - 1:  # there is room for words at the end only
            self.drawing.text(right + 6, y - 2, "UNIX socket", 11.5, fill=_WORDS, bold=True)
            self.drawing.text(right + 6, y + 12, f"median {number(floor.us)} µs", 11.5, fill=_WORDS)
        else:
            self.drawing.line(end, self.bottom + 40, end, self.y(self.most), "#888888")

    def bars(self, group: Bars, values: Sequence[float], middle: float) -> None:
        for place, value in enumerate(values):
            x = middle + (place - 1.5) * _WIDE + (place - 1) * _GAP
            top = self.y(min(value, self.most))
            share = PERCENTILES[place]
            label = " ".join(filter(None, (group.name, group.below)))
            self.drawing.rect(x, top, _WIDE, self.bottom - top, self.panel.shades[place],
                              f"{label}, p{share}: {number(value)} µs", us=value, row=label,
                              percentile=share, panel=self.panel.title)  # fmt: skip
            if value > self.most:  # cut: a gap near its end
                self.drawing.rect(x - 1, top + 12, _WIDE + 2, 5, "#ffffff")

    def numbers(self, group: Bars, place: int) -> None:
        """Above the bars, and above the floor's line where a bar ends below it."""
        middle = _LEFT + (place + 0.5) * self.width
        for bar, value in enumerate(group.values or ()):
            size = 11 if value < 1000 else 9.5  # neighbours are 34 px apart
            x, y = middle + (bar - 1) * (_WIDE + _GAP), self.y(min(value, self.most)) - 4
            self.drawing.text(x, y, number(value), size, anchor="middle", halo=True)
