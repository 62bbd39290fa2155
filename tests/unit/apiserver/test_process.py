# SPDX-License-Identifier: Apache-2.0
"""The server as a process, and its operations through the control socket."""

import inspect
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from bench.lab.apiserver import ApiError, ApiServer, ApiServerProcess, ControlClient, fields
from bench.lab.apiserver.control import METHODS, ControlSocket
from bench.lab.apiserver.operations import Operations
from bench.lab.netns import LabError
from tests.unit.apiserver.web import NODES, PODS, Web, node, pod


def test_a_process_does_what_it_is_told(tmp_path: Path) -> None:
    tokens = {"secret": "agent"}
    with ApiServerProcess(tmp_path / "api", tls=True, tokens=tokens) as server:
        assert server.ca is not None
        context = ssl.create_default_context(cafile=str(server.ca))
        web = Web(server.url, "secret", context=context)
        assert server.load([pod(f"p{number}") for number in range(100)]) == 100
        assert len(web.get(PODS).body["items"]) == 100
        assert server.get("Pod", "p7", "default")["metadata"]["name"] == "p7"
        assert len(server.objects("Pod", selector="a!=b")) == 100
        with web.watch(NODES) as watch:
            server.create(node())
            assert watch.named() == ("ADDED", "n1")
            assert server.watches("nodes") == 1
            server.end_watches()
            assert watch.line() == b""
        server.fail_next(1, 429, retry_after=1, verb="list")
        assert web.get(PODS).code == 429
        server.stop()
        with pytest.raises(OSError):
            web.get(PODS)
        server.start()
        assert web.get(f"{NODES}/n1").code == 200
        assert server.count("web", "list", "pods") == 2
        assert ("web/1", "watch", "nodes", 1) in server.counts()
        with pytest.raises(ApiError) as error:
            server.get("Pod", "none", "default")
        assert error.value.code == 404 and error.value.reason == "NotFound"
        with pytest.raises(ApiError):
            server.call("explode", {})
        with pytest.raises(ApiError):
            server.call("get", {"nonsense": 1})
    with pytest.raises(LabError):
        server.revision()


def test_options_of_the_process(tmp_path: Path) -> None:
    options = ["--no-kubelet", "--no-watch-list", "--bookmark-seconds", "0.1", "--history", "10"]
    with ApiServerProcess(tmp_path, options=options) as server:
        web = Web(server.url)
        server.create(pod(nodeName="n1"))
        assert web.delete(f"{PODS}/a").body["metadata"]["deletionTimestamp"]
        assert web.get(f"{PODS}/a").code == 200
        assert web.get(PODS, watch="1", sendInitialEvents="true").code == 422
        with web.watch(NODES, allowWatchBookmarks="1") as watch:
            assert watch.next()[0] == "BOOKMARK"


def test_a_process_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        ApiServer() as taken,
        pytest.raises(LabError, match="Address already in use"),
        ApiServerProcess(tmp_path, port=taken.port),
    ):
        pass


def test_control_client_has_every_operation(tmp_path: Path) -> None:
    assert {"load", "compact", "break_watches", "stop", "set_rules", "requests"} <= METHODS
    for name in METHODS:
        assert getattr(ControlClient, name) is not getattr(Operations, name)
        signature = inspect.signature(getattr(Operations, name))
        for other in (ControlClient, ApiServer):
            assert inspect.signature(getattr(other, name)) == signature, name
    with ApiServer() as server, ControlSocket(server, tmp_path / "s", {}):
        control = ControlClient(tmp_path / "s")
        control.create(node())
        control.deny("agent", verb="list")
        assert control.revision() == server.revision()
        control.close()


def test_fields_are_those_of_the_official_client() -> None:
    """After an update of the client: python -m bench.lab.apiserver.fields."""
    assert fields.text(fields.generate()) == fields.FILE.read_text()


def test_nothing_here_imports_the_client_or_the_agent() -> None:
    """The official client proves the server; it must not be a part of it."""
    probe = (
        "import sys, bench.lab.apiserver;"
        "print([m for m in sys.modules if m.split('.')[0] in ('kubernetes', 'grpc', 'pyroute2')])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
