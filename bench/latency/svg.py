# SPDX-License-Identifier: Apache-2.0
"""A drawing of rectangles, lines and texts as SVG 1.1; coordinates in pixels from the top left."""

from __future__ import annotations

from html import escape

FONT = "DejaVu Sans, Verdana, Helvetica, sans-serif"


class Drawing:
    """Shapes in the order in which they are added, later ones above."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height = width, height
        self._title = title
        self._parts: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str, hover: str = "",
        **data: object,
    ) -> None:  # fmt: skip
        """hover: shown under the pointer. data: attributes data-NAME for programs."""
        extra = "".join(f' data-{name}="{escape(str(value))}"' for name, value in data.items())
        inner = f"<title>{escape(hover)}</title>" if hover else ""
        self._parts.append(
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
            f' fill="{fill}"{extra}>{inner}</rect>'
        )

    def line(
        self, x1: float, y1: float, x2: float, y2: float, stroke: str, width: float = 1,
        dashes: str = "", name: str = "",
    ) -> None:  # fmt: skip
        """dashes: as stroke-dasharray. name: becomes data-line."""
        extra = f' stroke-dasharray="{dashes}"' if dashes else ""
        extra += f' data-line="{escape(name)}"' if name else ""
        self._parts.append(
            f'<line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" stroke="{stroke}"'
            f' stroke-width="{width}"{extra}/>'
        )

    def text(
        self, x: float, y: float, text: str, size: float = 12, *, anchor: str = "start",
        fill: str = "#222222", bold: bool = False, italic: bool = False,
        halo: bool = False,
    ) -> None:  # fmt: skip
        """y: of the baseline. anchor: start, middle or end. halo: legible across a line."""
        style = ' font-weight="bold"' if bold else ""
        style += ' font-style="italic"' if italic else ""
        style += ' stroke="#ffffff" stroke-width="3" paint-order="stroke"' if halo else ""
        self._parts.append(
            f'<text x="{x:.2f}" y="{y:.2f}" font-size="{size}" text-anchor="{anchor}"'
            f' fill="{fill}"{style}>{escape(text)}</text>'
        )

    def render(self) -> str:
        """The file's text; it can stand inside of HTML as well."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width:g}"'
            f' height="{self.height:g}" viewBox="0 0 {self.width:g} {self.height:g}"'
            f' font-family="{FONT}" role="img">'
        )
        ground = f'<rect width="{self.width:g}" height="{self.height:g}" fill="#ffffff"/>'
        return "\n".join(
            [head, f"<title>{escape(self._title)}</title>", ground, *self._parts, "</svg>"]
        )
