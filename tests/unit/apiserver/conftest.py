# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a server for each test, and a client that sees every byte."""

from collections.abc import Iterator

import pytest

from bench.lab.apiserver import ApiServer
from tests.unit.apiserver.web import CRDS, Web, definition


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """An open server without TLS and tokens."""
    with ApiServer(seed=1) as made:
        yield made


@pytest.fixture
def web(server: ApiServer) -> Web:
    """A client of that server."""
    return Web(server.url)


@pytest.fixture
def things(web: Web) -> Web:
    """The client, with the custom kind Thing served."""
    assert web.post(CRDS, definition()).code == 201
    return web
