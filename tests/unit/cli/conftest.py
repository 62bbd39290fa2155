# SPDX-License-Identifier: Apache-2.0
"""A fake agent behind the real gRPC server on a real UNIX socket."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.rpc.server import AgentServer
from tests.unit.cli.fake import Agent, FakeView


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """A fake agent that listens."""
    view = FakeView()
    server = AgentServer(view, tmp_path)
    server.start()
    try:
        yield Agent(view, tmp_path)
    finally:
        server.stop()
