# SPDX-License-Identifier: Apache-2.0
"""An API server with the project's own kinds, and ways to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.lab.kubeapi.choice import Server, open_server
from tests.cluster.following import Follower, access_to, install_definitions


@pytest.fixture
def server() -> Iterator[Server]:
    """Everybody may do everything; the project's kinds are installed."""
    with open_server(seed=1) as made:
        install_definitions(made)
        yield made


@pytest.fixture
def follower(server: Server, tmp_path: Path) -> Iterator[Follower]:
    """A source that follows the server and has delivered everything once."""
    with Follower(access_to(server, tmp_path)) as made:
        made.synced()
        made.settled(server)
        yield made
