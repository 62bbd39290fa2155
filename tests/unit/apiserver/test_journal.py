# SPDX-License-Identifier: Apache-2.0
"""The journal: who asked what, how often, and which writes were for nothing."""

from bench.lab.apiserver import ApiServer
from tests.unit.apiserver.web import NODES, PODS, Web, node, pod


def test_every_request_is_written_down(server: ApiServer, web: Web) -> None:
    other = Web(server.url, agent="other/2 (x)")
    web.post(NODES, node())
    answer = web.get(NODES, limit=5)
    web.patch(f"{NODES}/n1/status", {"status": {"phase": "x"}})
    other.get(f"{PODS}/none")
    other.get("/version")
    with web.watch(PODS):
        pass
    found = server.requests()
    assert [(entry["verb"], entry["resource"], entry["code"]) for entry in found] == [
        ("create", "nodes", 201),
        ("list", "nodes", 200),
        ("patch", "nodes/status", 200),
        ("get", "pods", 404),
        ("get", "", 200),
        ("watch", "pods", 200),
    ]
    listed = found[1]
    assert listed["query"] == {"limit": "5"} and listed["agent"] == "web/1"
    assert listed["path"] == NODES and listed["sent"] > len(answer.raw)
    assert found[3]["namespace"] == "default" and found[3]["name"] == "none"
    assert '"phase"' in found[2]["body"]
    assert server.count("web", "patch", "nodes/status") == 1
    assert server.count("other") == 2
    assert ("web/1", "create", "nodes", 1) in server.counts()
    assert [entry["verb"] for entry in server.requests(after=found[4]["number"])] == ["watch"]
    server.clear_journal()
    assert server.requests() == [] and server.counts() == []


def test_writes_for_nothing_are_found(server: ApiServer, web: Web) -> None:
    made = web.post(NODES, node()).body
    web.put(f"{NODES}/n1", {**made, "metadata": {**made["metadata"], "labels": {"a": "b"}}})
    web.post(NODES, node())  # fails, and so has not changed anything for nothing
    assert server.useless_writes() == []
    web.patch(f"{NODES}/n1", {"metadata": {"labels": {"a": "b"}}})
    (entry,) = server.useless_writes("web")
    assert (entry["verb"], entry["name"], entry["changed"]) == ("patch", "n1", False)
    assert server.useless_writes("other") == []
    assert server.useless_writes(after=entry["number"]) == []
    assert server.unchanged_writes() == 1


def test_operations_of_tests_are_no_requests(server: ApiServer) -> None:
    server.create(pod())
    server.load([node()])
    assert server.requests() == []
