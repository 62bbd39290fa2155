# SPDX-License-Identifier: Apache-2.0
"""Server-side apply, and the fields that each manager owns."""

from typing import Any

from bench.lab.apiserver import ApiServer
from tests.unit.apiserver.web import APPLY, LEASES, NODES, THINGS, Web, node, thing

ONE = f"{THINGS}/t"


def part(**spec: Any) -> dict[str, Any]:
    """A Thing with only these fields."""
    item = thing()
    item["spec"] = spec
    return item


def managers(item: dict[str, Any]) -> dict[tuple[str, str], Any]:
    """Fields by (manager, operation)."""
    return {
        (entry["manager"], entry["operation"]): entry["fieldsV1"]
        for entry in item["metadata"].get("managedFields", [])
    }


def test_apply_creates_and_changes(things: Web) -> None:
    made = things.apply(ONE, part(size=1))
    assert made.code == 201 and made.body["spec"] == {"size": 1, "mode": "on"}
    assert managers(made.body) == {("me", "Apply"): {"f:spec": {"f:size": {}}}}
    again = things.apply(ONE, part(size=1))
    assert again.code == 200 and again.version == made.version  # nothing new
    changed = things.apply(ONE, part(size=2, labels={"a": "b"})).body
    assert changed["spec"]["size"] == 2 and changed["metadata"]["generation"] == 2


def test_what_is_not_applied_any_more_goes(things: Web) -> None:
    things.apply(
        ONE, part(size=1, labels={"a": "b", "c": "d"}, ports=[{"number": 1}, {"number": 2}])
    )
    things.apply(ONE, part(labels={"e": "f"}, ports=[{"number": 2}]), "other")
    left = things.apply(ONE, part(size=1, labels={"a": "b"}, ports=[{"number": 1}])).body
    assert left["spec"]["labels"] == {"a": "b", "e": "f"}
    # Port 2 is the other's as well.
    assert sorted(entry["number"] for entry in left["spec"]["ports"]) == [1, 2]
    gone = things.apply(ONE, part(labels={"e": "f"}), "other").body
    assert [entry["number"] for entry in gone["spec"]["ports"]] == [1]


def test_conflicts(things: Web) -> None:
    things.apply(ONE, part(size=1), "first")
    refused = things.apply(ONE, part(size=2), "second")
    assert (refused.code, refused.reason) == (409, "Conflict")
    assert refused.message.startswith('Apply failed with 1 conflict: conflict with "first"')
    (cause,) = refused.body["details"]["causes"]
    assert cause["reason"] == "FieldManagerConflict" and cause["field"] == ".spec.size"
    shared = things.apply(ONE, part(size=1), "second")  # the same value is no conflict
    assert shared.code == 200
    taken = things.apply(ONE, part(size=3), "second", force="true").body
    assert taken["spec"]["size"] == 3
    assert list(managers(taken)) == [("second", "Apply")]


def test_updates_own_what_they_change(things: Web) -> None:
    things.apply(ONE, part(size=1, mode="on"))
    changed = things.patch(ONE, {"spec": {"size": 5}}).body
    assert managers(changed) == {
        ("me", "Apply"): {"f:spec": {"f:mode": {}}},
        ("web", "Update"): {"f:spec": {"f:size": {}}},
    }
    refused = things.apply(ONE, part(size=1, mode="on"))
    assert refused.code == 409 and 'conflict with "web" using example.io/v1: ' in refused.message
    named = things.patch(ONE, {"spec": {"mode": "off"}}, fieldManager="kubelet").body
    assert ("kubelet", "Update") in managers(named)


def test_status_is_applied_apart(things: Web) -> None:
    things.apply(ONE, part(size=1))
    status = thing()
    del status["spec"]
    status["status"] = {"ready": True}
    done = things.apply(f"{ONE}/status", status, "agent").body
    assert done["status"] == {"ready": True} and done["spec"]["size"] == 1
    (entry,) = (e for e in done["metadata"]["managedFields"] if e["manager"] == "agent")
    assert entry["subresource"] == "status"
    kept = things.apply(ONE, part(size=1)).body
    assert kept["status"] == {"ready": True}
    assert (
        things.apply(f"{THINGS}/none/status", {**status, "metadata": {"name": "none"}}).code == 404
    )


def test_node_conditions_by_type(web: Web) -> None:
    web.post(NODES, node(taints=[{"key": "a", "effect": "NoSchedule"}]))
    condition = {"type": "NetworkUnavailable", "status": "False", "reason": "Ready"}
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    web.patch(f"{NODES}/n1/status", ready)
    item = {**node(), "status": {"conditions": [condition]}}
    del item["spec"]
    done = web.apply(f"{NODES}/n1/status", item, "agent").body
    assert {entry["type"] for entry in done["status"]["conditions"]} == {
        "Ready",
        "NetworkUnavailable",
    }
    fields = managers(done)["agent", "Apply"]["f:status"]["f:conditions"]
    assert list(fields) == ['k:{"type":"NetworkUnavailable"}']
    item["status"] = {"conditions": []}
    left = web.apply(f"{NODES}/n1/status", item, "agent").body
    assert [entry["type"] for entry in left["status"]["conditions"]] == ["Ready"]
    taints = {**node(taints=[{"key": "b", "effect": "NoSchedule"}])}
    assert web.apply(f"{NODES}/n1", taints).code == 409  # atomic: the whole list is one field


def test_apply_is_strict_about_its_form(things: Web) -> None:
    assert things.ask("PATCH", ONE, part(size=1), APPLY).fields == {"fieldManager"}
    managed = part(size=1)
    managed["metadata"]["managedFields"] = [{"manager": "x"}]
    assert things.apply(ONE, managed).reason == "BadRequest"
    assert things.apply(ONE, {"spec": {}}).reason == "BadRequest"
    assert things.apply(ONE, {**part(size=1), "metadata": {"name": "u"}}).code == 400
    assert things.apply(ONE, b"a: [").reason == "BadRequest"
    assert things.apply(ONE, b"- 1").reason == "BadRequest"
    assert things.patch(ONE, {}, force="true").fields == {"force"}
    assert things.apply(ONE, part(size=1), "x" * 129).fields == {"fieldManager"}
    uid = part(size=1)
    uid["metadata"]["uid"] = "2f1b4f4e-1d0a-4a6e-8c1a-1a2b3c4d5e6f"
    assert things.apply(ONE, uid).code == 409  # would have to exist
    yaml = b"apiVersion: example.io/v1\nkind: Thing\nmetadata: {name: t}\nspec: {size: 4}\n"
    assert things.apply(ONE, yaml).body["spec"]["size"] == 4
    stale = part(size=5)
    stale["metadata"]["resourceVersion"] = "1"
    assert things.apply(ONE, stale).reason == "Conflict"


def test_dry_runs_and_no_operations(server: ApiServer, things: Web) -> None:
    assert things.apply(ONE, part(size=1), dryRun="All").code == 201
    assert things.get(ONE).code == 404
    spec = {"holderIdentity": "a", "leaseDurationSeconds": 5}
    item = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec}
    item["metadata"] = {"name": "l"}
    first = things.apply(f"{LEASES}/l", item)
    before = server.revision()
    assert things.apply(f"{LEASES}/l", item).body == first.body
    assert server.revision() == before and server.unchanged_writes() == 1
