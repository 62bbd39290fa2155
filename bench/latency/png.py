# SPDX-License-Identifier: Apache-2.0
"""PNG from SVG, by the renderer that tools/bench_tools.sh fetches (resvg, 1.4 MB).

In a process of its own: the module is no part of the project's environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.latency.proxies import DEBIAN, PYTHON, ToolMissing

ZOOM = 2.0
"""Pixels of the PNG for one of the SVG."""
_SCRIPT = """
import sys
from pathlib import Path
from resvg_py import svg_to_bytes
source, target, fonts, zoom = sys.argv[1:]
data = svg_to_bytes(svg_path=source, zoom=float(zoom), font_dirs=[fonts], background="white")
Path(target).write_bytes(bytes(data))
"""


def render(source: Path, target: Path) -> None:
    """Draws an SVG file as a PNG file. Raises ToolMissing with the reason."""
    if not (PYTHON / "resvg_py").exists():
        raise ToolMissing("the SVG renderer resvg-py is missing: tools/bench_tools.sh fetches it")
    fonts = DEBIAN / "usr/share/fonts"
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(source), str(target), str(fonts), str(ZOOM)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(PYTHON)},
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no word"]
        raise ToolMissing(f"the SVG renderer failed: {last[0]}")
