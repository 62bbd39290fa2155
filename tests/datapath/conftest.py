# SPDX-License-Identifier: Apache-2.0
"""The loaded datapath, once for all tests of this folder that ask for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.datapath.overlay import Overlay
from tests.datapath.world import World


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """All programs through the verifier, with maps of their own."""
    made = World(tmp_path_factory.mktemp("programs"))
    yield made
    made.close()


@pytest.fixture
def world(loaded: World) -> Iterator[World]:
    """A reset world, with the test inside its network namespace."""
    with loaded.inside():
        loaded.reset()
        yield loaded


@pytest.fixture(scope="module")
def attached(loaded: World) -> Iterator[Overlay]:
    with loaded.inside():
        loaded.reset()
        made = Overlay(loaded)
    yield made
    with loaded.inside():
        made.close()
        loaded.clear("tunnels")


@pytest.fixture
def overlay(world: World, attached: Overlay) -> Overlay:
    attached.reset()
    return attached
