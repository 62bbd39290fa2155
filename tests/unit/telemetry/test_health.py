# SPDX-License-Identifier: Apache-2.0
"""What a kubelet's probes are told."""

from __future__ import annotations

import socket
from http import HTTPStatus
from http.client import HTTPConnection

import pytest

from agent.telemetry.health import health_server
from agent.telemetry.progress import START_SECONDS, Progress
from agent.telemetry.web import Answer, WebServer


def get(server: WebServer, path: str, method: str = "GET") -> tuple[int, str]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(method, path)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_each_path_has_its_check() -> None:
    state = {"ready": (False, "the cluster's state is not known yet")}

    def broken() -> tuple[bool, str]:
        raise RuntimeError("no loop")

    checks = {"/healthz": lambda: (True, "ok"), "/readyz": lambda: state["ready"], "/odd": broken}
    server = health_server("127.0.0.1", 0, checks)
    server.start()
    try:
        assert get(server, "/healthz") == (200, "ok\n")
        assert get(server, "/healthz?verbose") == (200, "ok\n")
        assert get(server, "/healthz", "HEAD") == (200, "")
        assert get(server, "/readyz") == (503, "the cluster's state is not known yet\n")
        state["ready"] = (True, "ok")
        assert get(server, "/readyz") == (200, "ok\n")
        assert get(server, "/odd") == (503, "no loop\n")
        assert get(server, "/metrics") == (404, "/healthz or /readyz or /odd\n")
    finally:
        server.stop()


def test_an_agent_on_its_way() -> None:
    now = [0.0]
    progress = Progress(lambda: now[0])
    assert progress.alive() == (True, "the agent is starting")
    assert progress.ready() == (False, "the agent is starting")
    # As long as it waits for somebody else, however long that is.
    progress.waits("waiting for the API server")
    now[0] = 10 * START_SECONDS
    assert progress.alive() == (True, "waiting for the API server")
    assert progress.ready() == (False, "waiting for the API server")
    # What it does itself then has its time, and no more.
    progress.waits("")
    now[0] += START_SECONDS - 1
    assert progress.alive() == (True, "the agent is starting")
    now[0] += 1
    alive, text = progress.alive()
    assert not alive and "180 s" in text
    # Slow as it was, it has come up.
    progress.started(lambda: (True, "ok"), lambda: (False, "not yet"))
    assert progress.alive() == (True, "ok") and progress.ready() == (False, "not yet")


def test_any_page_on_either_family() -> None:
    def page(accepted: str) -> Answer:
        return Answer(HTTPStatus.OK, accepted.encode(), "application/json")

    def broken(accepted: str) -> Answer:
        raise RuntimeError("no loop")

    for host in ("127.0.0.1", "::1"):
        server = WebServer("test", host, 0, {"/page": page, "/broken": broken})
        server.start()
        try:
            connection = HTTPConnection(host, server.port, timeout=10)
            connection.request("GET", "/page?x=1", headers={"Accept": "a/b"})
            answer = connection.getresponse()
            assert (answer.read(), answer.headers["Content-Type"]) == (b"a/b", "application/json")
            connection.close()
            with pytest.raises(OSError, match="in use"):
                WebServer("other", host, server.port, {})
            connection.request("GET", "/broken")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (500, b"see the agent's log\n")
            connection.close()
        finally:
            server.stop()


def test_no_name_is_looked_up_before_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("DNS may be far away")

    monkeypatch.setattr(socket, "getfqdn", asked)
    server = WebServer("test", "0.0.0.0", 0, {})
    server.start()
    server.stop()
