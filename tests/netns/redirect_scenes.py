# SPDX-License-Identifier: Apache-2.0
"""What an application sees of a redirected socket, scene by scene: little programs with both ends
of a connection. Each runs on a connection by the stack and on a redirected one, and must see the
same, except for what the scene itself says. The table in docs/socket-redirect.md is made of these.
"""

from __future__ import annotations

from tests.netns import (
    redirect_scenes_calls,
    redirect_scenes_sockets,
    redirect_scenes_stream,
    redirect_scenes_uring,
)
from tests.netns.redirect_scene import SAME, Scene, scenes_of

SCENES: tuple[Scene, ...] = tuple(
    one
    for module in (
        redirect_scenes_stream,
        redirect_scenes_calls,
        redirect_scenes_uring,
        redirect_scenes_sockets,
    )
    for one in scenes_of(module.__name__)
)


def table() -> str:
    """The table, in Markdown."""
    rows = ["| | by the stack | mode `on` | mode `all` |", "|---|---|---|---|"]
    rows += [f"| {s.title} | {s.stack} | {s.on} | {_all(s)} |" for s in SCENES]
    return "\n".join(rows) + "\n"


def _all(scene: Scene) -> str:
    return scene.all if scene.all == SAME or scene.all != scene.on else "as `on`"
