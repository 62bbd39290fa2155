# SPDX-License-Identifier: Apache-2.0
"""Faults on purpose: of requests, of streams, of the server as a whole."""

import base64
import http.client
import json
import time

import pytest

from bench.lab.apiserver import ApiError, ApiServer
from tests.unit.apiserver.web import LEASES, NODES, PODS, Web, lease, node, pod

BROKEN = (http.client.IncompleteRead, ConnectionError)


# ---- the server ------------------------------------------------------------------------------


def test_it_goes_and_comes_back_with_what_it_had(server: ApiServer, web: Web) -> None:
    version = web.post(PODS, pod()).version
    port = server.port
    idle = web.connection()
    idle.request("GET", "/readyz")
    idle.getresponse().read()
    with web.watch(PODS) as watch:
        assert watch.named() == ("ADDED", "a")
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            web.get(PODS)
        with pytest.raises(BROKEN):
            watch.line()
    assert server.watches() == 0
    server.start()
    assert server.port == port
    with web.watch(PODS, resourceVersion=version) as watch:
        server.create(pod("b"))
        assert watch.named() == ("ADDED", "b")  # the history is there too
    idle.close()


def test_connections_are_dropped(server: ApiServer, web: Web) -> None:
    with web.watch(PODS) as watch:
        server.drop_connections(reset=True)
        with pytest.raises(ConnectionResetError):
            watch.line()
    with web.watch(PODS) as watch:
        server.drop_connections()
        with pytest.raises(http.client.IncompleteRead):
            watch.line()
    assert web.get(PODS).code == 200


# ---- requests --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [429, 500, 503, 504])
def test_the_next_requests_fail(server: ApiServer, web: Web, code: int) -> None:
    server.fail_next(2, code, retry_after=7)
    for _ in range(2):
        answer = web.get(PODS)
        assert answer.code == code and answer.body["kind"] == "Status"
        assert answer.headers["Retry-After"] == "7"
        assert answer.body["details"]["retryAfterSeconds"] == 7
    assert web.get(PODS).code == 200
    server.fail_next(code=code)
    assert "Retry-After" not in web.get(PODS).headers


def test_faults_can_be_for_some_only(server: ApiServer, web: Web) -> None:
    other = Web(server.url, agent="other/2")
    server.fail_next(None, 503, verb="update", resource="nodes")
    server.fail_next(None, 500, agent="other")
    server.fail_next(None, 429, path="limit=7")
    web.post(NODES, node())
    assert web.put(f"{NODES}/n1", node()).code == 503
    assert web.get(NODES).code == 200 and web.patch(f"{NODES}/n1", {}).code == 200
    assert other.get(NODES).code == 500
    assert web.get(NODES, limit=7).code == 429
    server.clear_faults()
    assert other.put(f"{NODES}/n1", node(), limit=7).code == 200


def test_answers_are_lost_before_or_after_the_deed(server: ApiServer, web: Web) -> None:
    server.drop_next(resource="leases", verb="create")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        web.post(LEASES, lease())
    assert web.get(f"{LEASES}/l").code == 404
    server.drop_next(after=True, resource="leases", verb="create")
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        web.post(LEASES, lease())
    assert web.get(f"{LEASES}/l").code == 200


def test_requests_are_delayed(server: ApiServer, web: Web) -> None:
    server.delay(0.2, count=1, verb="list")
    begun = time.monotonic()
    assert web.get(PODS).code == 200
    assert time.monotonic() - begun >= 0.2
    server.delay(60, verb="list")
    impatient = Web(server.url, timeout=0.2)
    with pytest.raises(TimeoutError):
        impatient.get(PODS)
    server.stop()  # does not wait for it


# ---- streams ---------------------------------------------------------------------------------


def test_streams_break_in_the_middle_of_a_line(server: ApiServer, web: Web) -> None:
    for how in ("break", "reset"):
        with web.watch(PODS) as watch:
            assert server.break_watches(how) == 1
            with pytest.raises(BROKEN):
                watch.line()
    with web.watch(PODS) as watch:
        assert server.break_watches("cut", "pods") == 1
        half = watch.line()
        assert half.startswith(b'{"type":') and not half.endswith(b"\n")
        with pytest.raises(ValueError):
            json.loads(half)
        assert watch.line() == b""  # the answer itself is complete
    with pytest.raises(ApiError):
        server.break_watches("bend")


def test_streams_end_or_expire(server: ApiServer, web: Web) -> None:
    with web.watch(PODS) as pods, web.watch(NODES) as nodes:
        assert server.end_watches("pods") == 1
        assert pods.line() == b""
        assert server.expire_watches() == 1
        kind, status = nodes.next()
        assert (kind, status["code"], status["reason"]) == ("ERROR", 410, "Expired")
        assert nodes.line() == b""


def test_streams_stall(server: ApiServer, web: Web) -> None:
    with web.watch(PODS) as watch:
        begun = time.monotonic()
        server.stall_watches(0.3)
        server.create(pod())
        assert watch.named() == ("ADDED", "a")
        assert time.monotonic() - begun >= 0.3


def test_streams_are_slow(server: ApiServer, web: Web) -> None:
    server.slow_watches(2000)
    server.create(pod())
    begun = time.monotonic()
    with web.watch(PODS) as watch:
        line = watch.line()
    assert len(line) > 400 and time.monotonic() - begun >= len(line) / 2000 * 0.8


def test_watches_are_shortened(server: ApiServer, web: Web) -> None:
    server.shorten_watches(0.1)
    with web.watch(PODS, timeoutSeconds="600") as watch:
        assert watch.line() == b""


def test_bookmarks_are_repeated(server: ApiServer, web: Web) -> None:
    server.set_bookmarks(0.05, copies=3)
    with web.watch(PODS, allowWatchBookmarks="true") as watch:
        versions = [watch.next()[1]["metadata"]["resourceVersion"] for _ in range(3)]
        assert len(set(versions)) == 1
    with web.watch(NODES) as watch:
        server.send_bookmarks(2, "nodes")
        assert [watch.next()[0] for _ in range(2)] == ["BOOKMARK"] * 2


def test_streams_are_garbled(server: ApiServer, web: Web) -> None:
    with web.watch(PODS) as watch:
        server.send_raw(base64.b64encode(b'{"type":"ADDED"\n').decode())
        assert watch.line() == b'{"type":"ADDED"\n'


def test_a_client_that_leaves_is_noticed(server: ApiServer, web: Web) -> None:
    with web.watch(PODS):
        assert server.watches("pods", "web") == 1
    deadline = time.monotonic() + 10
    while server.watches() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.watches() == 0
