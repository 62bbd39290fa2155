# SPDX-License-Identifier: Apache-2.0
"""The source against a server that does not work: nothing is lost, nothing flaps, all is said."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from agent.core.events import FactEvent, PodRemoved, PodUpserted, SourceStale, SourceSynced
from agent.kube.access import Access
from agent.kube.credentials import from_kubeconfig, in_cluster
from agent.kube.kinds import WATCHED
from bench.lab.apiserver import write_kubeconfig, write_service_account
from bench.lab.kubeapi.choice import Server, open_server
from tests.cluster.following import (
    FAST,
    NODE,
    Follower,
    access_to,
    install_definitions,
    pod,
)


def lists(server: Server) -> int:
    return len(server.requests(verb="list", resource="pods"))


def change_pods(server: Server) -> None:
    """Of pods a, b and c: a changes, b goes, d comes."""
    server.load([pod("a", "db")])
    server.delete("Pod", "b", "shop", grace=0)
    server.load([pod("d")])


def assert_changed(events: list[FactEvent]) -> None:
    # Whoever watches the end of a pod has seen it begin.
    events = [one for one in events if not (isinstance(one, PodUpserted) and one.pod.deleted)]
    names = sorted(
        f"+{event.pod.name}" if isinstance(event, PodUpserted) else f"-{event.key.name}"
        for event in events
        if isinstance(event, PodUpserted | PodRemoved)
    )
    assert names == ["+a", "+d", "-b"]
    assert len(events) == 3


@pytest.fixture
def three(server: Server, follower: Follower) -> Follower:
    """Pods a, b and c are known."""
    server.load([pod("a"), pod("b"), pod("c")])
    follower.settled(server)
    return follower


@pytest.mark.parametrize("how", ["event", "http"])
def test_a_forgotten_version_leads_to_a_list_without_a_flap(
    server: Server, three: Follower, how: str
) -> None:
    server.set_expired(how)
    before = lists(server)
    server.stop()
    change_pods(server)
    server.compact()
    server.start()
    assert_changed(three.settled(server))
    assert lists(server) > before


def test_a_watch_that_expires_while_it_runs(server: Server, three: Follower) -> None:
    before = lists(server)
    assert server.expire_watches("pods") == 1
    three.wait(lambda: lists(server) > before, "a list")
    change_pods(server)
    assert_changed(three.settled(server))


@pytest.mark.parametrize("how", ["break", "reset", "cut"])
def test_a_broken_watch_goes_on_where_it_was(server: Server, three: Follower, how: str) -> None:
    before = lists(server)
    for _ in range(3):
        assert server.break_watches(how) > 0
        three.wait(lambda: server.watches() == len(WATCHED), "watches")
    change_pods(server)
    assert_changed(three.settled(server))
    assert lists(server) == before


def test_connections_dropped_under_way(server: Server, three: Follower) -> None:
    server.drop_connections(reset=True)
    change_pods(server)
    assert_changed(three.settled(server))


def test_the_server_ends_watches_as_it_likes(server: Server, three: Follower) -> None:
    before = lists(server)
    server.shorten_watches(0.1)
    server.end_watches()
    change_pods(server)
    assert_changed(three.settled(server))
    assert lists(server) == before


def test_a_silent_watch_is_taken_for_dead(server: Server, tmp_path: Path) -> None:
    timing = replace(FAST, silence=0.3)
    with Follower(access_to(server, tmp_path), timing) as follower:
        follower.synced()
        server.load([pod("a"), pod("b"), pod("c")])
        follower.settled(server)
        assert server.stall_watches(3600.0) > 0
        change_pods(server)
        assert_changed(follower.settled(server))


@pytest.mark.parametrize("line", [b"garbage\n", b'{"type":"MODIFIED","object":5}\n', b"\xff\n"])
def test_nonsense_in_a_watch_leads_to_a_list(server: Server, three: Follower, line: bytes) -> None:
    before = lists(server)
    server.send_raw(base64.b64encode(line).decode(), "pods")
    three.wait(lambda: lists(server) > before, "a list")
    change_pods(server)
    assert_changed(three.settled(server))


def test_slow_streams_in_small_pieces(server: Server, three: Follower) -> None:
    server.slow_watches(40_000)
    server.drop_connections()
    change_pods(server)
    assert_changed(three.settled(server))


def test_nothing_is_removed_while_the_server_is_away(server: Server, three: Follower) -> None:
    server.stop()
    assert "Connection refused" in three.stale()
    assert isinstance(three.report, SourceStale)
    known = dict(three.facts)
    change_pods(server)
    assert three.facts == known
    server.start()
    three.synced()
    assert_changed(three.settled(server))


def test_a_revoked_permission_is_named_and_its_return_noticed(tmp_path: Path) -> None:
    with open_server(tokens={"one": "agent"}) as server:
        install_definitions(server)
        with Follower(access_to(server, tmp_path, "one")) as follower:
            follower.synced()
            server.load([pod("a"), pod("b"), pod("c")])
            follower.settled(server)
            server.deny("agent", "watch", "pods")
            server.end_watches("pods")
            follower.said("pods: watch pods: ")
            assert "nodes" not in follower.stale()
            change_pods(server)
            server.allow_all_again()
            follower.synced()
            assert_changed(follower.settled(server))


@pytest.mark.parametrize("kind", ["networkpolicies", "services", "endpointslices"])
def test_a_permission_that_was_never_given(tmp_path: Path, kind: str) -> None:
    with open_server(tokens={"one": "agent"}) as server:
        install_definitions(server)
        server.deny("agent", "list", kind)
        with Follower(access_to(server, tmp_path, "one")) as follower:
            follower.said(f"{kind}: list {kind}: ")
            assert not any(isinstance(event, SourceSynced) for event in follower.events)
            server.allow_all_again()
            follower.synced()


def rotate_kubeconfig(server: Server, folder: Path) -> tuple[Access, Callable[[str], None]]:
    access = access_to(server, folder, "one")
    return access, lambda token: write_kubeconfig(
        folder / "kubeconfig", server.url, token, server.ca
    )


def rotate_account(server: Server, folder: Path) -> tuple[Access, Callable[[str], None]]:
    account = folder / "account"
    write_service_account(account, "one", server.ca)
    environ = {"KUBERNETES_SERVICE_HOST": server.host, "KUBERNETES_SERVICE_PORT": str(server.port)}
    access = Access(in_cluster(account, environ), "bristle/0.1")
    return access, lambda token: write_service_account(account, token, server.ca)


@pytest.mark.parametrize("way", [rotate_kubeconfig, rotate_account])
def test_a_token_is_exchanged(
    way: Callable[[Server, Path], tuple[Access, Callable[[str], None]]], tmp_path: Path
) -> None:
    tls = way is rotate_account
    with open_server(tokens={"one": "agent"}, tls=tls, folder=tmp_path) as server:
        install_definitions(server)
        access, rotate = way(server, tmp_path)
        with Follower(access) as follower:
            follower.synced()
            server.load([pod("a"), pod("b"), pod("c")])
            follower.settled(server)
            # Both are good for a while: the file counts.
            server.set_tokens({"one": "agent", "two": "agent-two"})
            rotate("two")
            server.end_watches()
            follower.wait(
                lambda: any(entry["user"] == "agent-two" for entry in server.requests()), "two"
            )
            # The server changes first: refused until the file follows.
            server.set_tokens({"three": "agent-three"})
            server.end_watches()
            assert "401" in follower.stale()
            change_pods(server)
            rotate("three")
            follower.synced()
            assert_changed(follower.settled(server))


def test_a_plugin_is_asked_again_when_its_token_is_refused(tmp_path: Path) -> None:
    """Nothing on disk tells that the token is no good any more: only the server does."""
    kind = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}

    def answer(token: str) -> None:
        credential = {**kind, "status": {"token": token}}
        (tmp_path / "answer").write_text(json.dumps(credential))

    answer("one")
    with open_server(tokens={"one": "agent"}) as server:
        install_definitions(server)
        config = tmp_path / "kubeconfig"
        write_kubeconfig(config, server.url, ca=server.ca)
        document = yaml.safe_load(config.read_text())
        command = {"command": "cat", "args": [str(tmp_path / "answer")]}
        document["users"][0]["user"] = {"exec": {"apiVersion": kind["apiVersion"], **command}}
        config.write_text(yaml.safe_dump(document))
        with Follower(Access(from_kubeconfig(config), "bristle/0.1")) as follower:
            follower.synced()
            server.load([pod("a"), pod("b"), pod("c")])
            follower.settled(server)
            answer("two")
            server.set_tokens({"two": "agent"})
            server.end_watches()
            change_pods(server)
            assert_changed(follower.settled(server))


def test_bookmarks_keep_the_version_fresh(server: Server, three: Follower) -> None:
    """Of many changes none is about a pod of this node. Without bookmarks the version of its watch
    would be older than what the server remembers."""
    before = lists(server)
    for number in range(20):
        server.load([pod(f"elsewhere-{number}", node="node-2")])
    revision = server.revision()
    server.send_bookmarks()
    server.end_watches("pods")
    three.wait(
        lambda: any(
            int(entry["query"]["resourceVersion"]) >= revision
            for entry in server.requests(verb="watch", resource="pods")
        ),
        "a watch from the bookmark's version",
    )
    server.compact(revision)
    server.end_watches("pods")
    change_pods(server)
    assert_changed(three.settled(server))
    assert lists(server) == before


def test_a_list_overtaken_by_compaction_begins_again(server: Server, tmp_path: Path) -> None:
    server.load([pod(f"web-{number}") for number in range(8)])
    server.delay(1.0, count=1, verb="list", resource="pods", path="continue=")
    with Follower(access_to(server, tmp_path)) as follower:
        follower.wait(lambda: server.requests(verb="list", resource="pods"), "first chunk")
        follower.wait(lambda: ("shop", "web-0") in _pods(follower), "first chunk")
        server.delete("Pod", "web-0", "shop", grace=0)
        server.load([pod("web-9")])
        server.compact()
        follower.synced()
        assert _pods(follower) == {("shop", f"web-{n}") for n in (1, 2, 3, 4, 5, 6, 7, 9)}
    queries = [e["query"] for e in server.requests(verb="list", resource="pods")]
    assert "continue" in queries[1]
    assert "limit" not in queries[2]


def _pods(follower: Follower) -> set[tuple[str, str]]:
    return {(key.namespace, key.name) for key in follower.facts if key.kind == "Pod"}


def test_a_busy_server_is_left_alone_as_long_as_it_asks(server: Server, tmp_path: Path) -> None:
    waits: list[float] = []
    ended = threading.Event()

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return ended.wait(0.01)

    server.fail_next(code=429, retry_after=17, verb="list", resource="pods")
    try:
        with Follower(access_to(server, tmp_path), wait=wait) as follower:
            follower.synced()
    finally:
        ended.set()
    assert waits == [17.0]


@pytest.mark.parametrize("code", [500, 502, 503, 504])
def test_errors_of_the_server_are_got_over(server: Server, three: Follower, code: int) -> None:
    server.fail_next(count=3, code=code, agent=NODE, resource="pods")
    server.end_watches("pods")
    change_pods(server)
    assert_changed(three.settled(server))


def test_answers_lost_on_the_way(server: Server, tmp_path: Path) -> None:
    server.load([pod("a"), pod("b"), pod("c"), pod("d")])
    server.drop_next(count=2, resource="pods")
    server.drop_next(count=2, resource="nodes", after=True)
    with Follower(access_to(server, tmp_path)) as follower:
        follower.synced()
        assert len(_pods(follower)) == 4


def test_the_end_does_not_wait_for_the_server(server: Server, tmp_path: Path) -> None:
    """Neither with watches that are silent, nor with one that has not begun."""
    with Follower(access_to(server, tmp_path)) as follower:
        follower.synced()
    follower.source.stop()  # again: nothing happens
    assert not [t for t in threading.enumerate() if t.name.startswith(("watch-", "source-kube"))]
