# SPDX-License-Identifier: Apache-2.0
"""docs/socket-redirect.md says of sockets what the kernel's tests assert."""

from pathlib import Path

from tests.netns.redirect_scenes import SCENES, table

PAGE = Path(__file__).resolve().parents[3] / "docs" / "socket-redirect.md"


def test_the_table_is_that_of_the_scenes() -> None:
    """Otherwise: `python -c "from tests.netns.redirect_scenes import table; print(table())"`."""
    assert table() in PAGE.read_text()


def test_each_scene_has_words_for_what_differs() -> None:
    for scene in SCENES:
        differs = bool(scene.differs or scene.may_differ)
        assert differs <= (scene.all != "the same"), scene.name
        # What is stated to differ is stated of the stack, too, if it is a thing of no time.
        assert differs <= bool(scene.stack_is or scene.name == "cork"), scene.name
