# SPDX-License-Identifier: Apache-2.0
"""An application sees of a redirected socket what it would see by the stack: the same programs on
both, and everything that differs on this kernel said exactly (a kernel in which it does no longer
fails here: then the scene and the table in docs/socket-redirect.md change).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.netns.redirect_scene import Scene
from tests.netns.redirect_scenes import SCENES
from tests.netns.redirect_world import Ends, Seen, World, make_world

pytestmark = pytest.mark.kernel

_NEVER_BLOCK = [one for one in SCENES if not one.blocking]
_BLOCK = [one for one in SCENES if one.blocking]


@pytest.fixture(scope="module")
def world(private_mounts: None) -> Iterator[World]:
    with make_world() as made:
        yield made


def _roles(ends: Ends, opener_acts: bool) -> tuple[Any, Any]:
    return (ends.client, ends.server) if opener_acts else (ends.server, ends.client)


def _hold(scene: Scene, stack: Seen, found: Seen) -> None:
    """What is said of a scene is so, and nothing else differs."""
    assert {key: stack[key] for key in scene.stack_is} == scene.stack_is
    for key, value in scene.may_differ.items():
        if found[key] == value:
            stack = stack | {key: value}
    assert found == {**stack, **scene.differs}


def _see(world: World, scene: Scene, mode: str, family: int, opener_acts: bool,
         redirected: bool, states: tuple[str, str]) -> Seen:  # fmt: skip
    with world.connection(mode, family, redirected=redirected, blocking=scene.blocking) as ends:
        assert world.states(ends) == states
        return scene.program(*_roles(ends, opener_acts))


@pytest.mark.parametrize("family, opener_acts", [(4, True), (6, False)], ids=["opener", "other"])
@pytest.mark.parametrize("mode", ["on", "all"])
@pytest.mark.parametrize("scene", _NEVER_BLOCK, ids=lambda one: one.name)
def test_a_socket_that_never_blocks(
    world: World, scene: Scene, mode: str, family: int, opener_acts: bool
) -> None:
    stack = _see(world, scene, mode, family, opener_acts, False, ("none", "none"))
    found = _see(world, scene, mode, family, opener_acts, True, ("direct", "direct"))
    _hold(scene, stack, found)


@pytest.mark.parametrize("family, opener_acts", [(4, True), (6, False)], ids=["opener", "other"])
@pytest.mark.parametrize("scene", _BLOCK, ids=lambda one: one.name)
def test_a_socket_that_blocks(world: World, scene: Scene, family: int, opener_acts: bool) -> None:
    stack = _see(world, scene, "on", family, opener_acts, False, ("none", "none"))
    by_default = _see(world, scene, "on", family, opener_acts, True, ("none", "none"))
    forced = _see(world, scene, "all", family, opener_acts, True, ("direct", "direct"))
    assert by_default == stack
    _hold(scene, stack, forced)
