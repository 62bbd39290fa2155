# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a server for each test, and a client that sees every byte."""

from collections.abc import Iterator

import pytest

from bench.lab.kubeapi import binaries
from bench.lab.kubeapi.choice import Server, open_server
from tests.unit.apiserver.differences import DIFFERENCES
from tests.unit.apiserver.web import CRDS, Web, context_of, definition


@pytest.fixture(autouse=True)
def only_where_it_says_something(request: pytest.FixtureRequest) -> None:
    """Skips what is not about Kubernetes' libraries where they are what is tested."""
    reason = DIFFERENCES.get(request.function.__name__)
    if reason and binaries() is not None:
        pytest.skip(reason)


@pytest.fixture
def server() -> Iterator[Server]:
    """An open server without TLS and tokens."""
    with open_server(seed=1) as made:
        yield made


@pytest.fixture
def web(server: Server) -> Web:
    """A client of that server."""
    return Web(server.url, context=context_of(server))


@pytest.fixture
def things(web: Web) -> Web:
    """The client, with the custom kind Thing served."""
    assert web.post(CRDS, definition()).code == 201
    return web
