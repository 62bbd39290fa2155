# SPDX-License-Identifier: Apache-2.0
"""Custom resources: definitions, schemas, pruning, defaults, status, generation."""

import copy
import time
from typing import Any

import pytest

from bench.lab.apiserver import ApiServer
from tests.unit.apiserver.web import CRDS, STRATEGIC, THINGS, Web, definition, thing

ONE = f"{THINGS}/t"
NAME = f"{CRDS}/things.example.io"


def schema_of(item: dict[str, Any]) -> dict[str, Any]:
    """The schema of the first version of a definition."""
    found: dict[str, Any] = item["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


# ---- definitions -----------------------------------------------------------------------------


def test_a_definition_is_established(web: Web) -> None:
    assert web.get(THINGS).raw == b"404 page not found\n"
    with web.watch(CRDS) as watch:
        made = web.post(CRDS, definition())
        assert made.code == 201 and made.body["status"]["conditions"] is None
        assert made.body["spec"]["names"]["singular"] == "thing"
        assert made.body["spec"]["names"]["listKind"] == "ThingList"
        assert watch.named() == ("ADDED", "things.example.io")
        kind, item = watch.next()
    found = {entry["type"]: entry["status"] for entry in item["status"]["conditions"]}
    assert kind == "MODIFIED" and found == {"NamesAccepted": "True", "Established": "True"}
    assert item["status"]["storedVersions"] == ["v1"]
    assert web.get(THINGS).body["items"] == []
    entries = {entry["name"]: entry for entry in web.get("/apis/example.io/v1").body["resources"]}
    assert entries["things"]["shortNames"] == ["th"] and "things/status" in entries
    assert "example.io" in {group["name"] for group in web.get("/apis").body["groups"]}


def test_a_definition_can_take_its_time() -> None:
    with ApiServer(establish_seconds=600) as server:
        web = Web(server.url)
        web.post(CRDS, definition())
        assert web.get(THINGS).code == 404
        assert web.get(NAME).body["status"]["conditions"] is None
    with ApiServer(establish_seconds=0.05) as server:
        web = Web(server.url)
        web.post(CRDS, definition())
        while web.get(THINGS).code == 404:
            time.sleep(0.01)
        assert len(web.get(NAME).body["status"]["conditions"]) == 2


NO_FIELD = "<nil>"
"""Where a Status says that CEL rules were left out."""


def with_schema(change: dict[str, Any]) -> dict[str, Any]:
    return definition({"type": "object", "properties": {"a": change}})


@pytest.mark.parametrize(
    ("item", "field"),
    [
        (with_schema({}), "properties[a].type"),
        (with_schema({"type": "text"}), "properties[a].type"),
        (with_schema({"type": "array"}), "properties[a].items"),
        (
            with_schema(
                {
                    "type": "object",
                    "properties": {"b": {"type": "string"}},
                    "additionalProperties": {"type": "string"},
                }
            ),
            "additionalProperties",
        ),
        (with_schema({"type": "string", "pattern": "("}), "pattern"),
        (with_schema({"type": "integer", "default": "x"}), "default"),
        (with_schema({"type": "object", "$ref": "#/x"}), "$ref"),
        (
            with_schema({"type": "string", "anyOf": [{"type": "string"}]}),
            "anyOf[0].type",
        ),
        (
            with_schema(
                {
                    "type": "array",
                    "items": {"type": "object", "properties": {"k": {"type": "string"}}},
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["k"],
                }
            ),
            "default",
        ),
        (definition(scope="World"), "spec.scope"),
        (definition(group="example"), "spec.group"),
        (definition(names={"plural": "others", "kind": "Thing"}), "metadata.name"),
        (definition(versions=[]), "spec.versions"),
        (definition(versions=[{"name": "v1", "served": True, "storage": True}]), "openAPIV3Schema"),
    ],
)
def test_definitions_must_be_structural(web: Web, item: dict[str, Any], field: str) -> None:
    answer = web.post(CRDS, item)
    assert (answer.code, answer.reason) == (422, "Invalid"), answer.body
    assert any(found.endswith(field) for found in answer.fields)


def test_rules_that_nothing_here_could_check_are_refused(web: Web) -> None:
    rule = {"rule": "self != ''"}
    answer = web.post(CRDS, with_schema({"type": "string", "x-kubernetes-validations": [rule]}))
    assert answer.code == 422 and any(found.endswith("rule") for found in answer.fields)


def test_definitions_have_unknown_fields_too(web: Web) -> None:
    item = with_schema({"type": "string", "maximumLength": 3})
    assert "maximumLength" in web.post(CRDS, item, fieldValidation="Strict").message
    assert "maximumLength" in web.post(CRDS, item).headers["Warning"]


def test_definitions_change_within_limits(things: Web) -> None:
    item = things.get(NAME).body
    other = copy.deepcopy(item)
    other["spec"]["scope"] = "Namespaced"
    assert things.put(NAME, other).fields == {"spec.scope"}
    other = copy.deepcopy(item)
    del other["metadata"]["resourceVersion"]
    assert things.put(NAME, other).fields == {"metadata.resourceVersion"}
    properties = schema_of(item)["properties"]["spec"]["properties"]
    properties["more"] = {"type": "string"}
    assert things.put(NAME, item).body["metadata"]["generation"] == 2
    assert things.post(THINGS, thing(more="x")).body["spec"]["more"] == "x"


# ---- values ----------------------------------------------------------------------------------


def test_unknown_fields_are_pruned(things: Web) -> None:
    sent = thing(bogus=1, free={"any": [1]}, labels={"k": "v"})
    sent["more"] = {"x": 1}
    made = things.post(THINGS, sent)
    assert made.body["spec"] == {
        "size": 1,
        "mode": "on",
        "free": {"any": [1]},
        "labels": {"k": "v"},
    }
    assert "more" not in made.body
    assert 'unknown field \\"spec.bogus\\"' in made.headers["Warning"]
    strict = things.post(THINGS, {**sent, "metadata": {"name": "u"}}, fieldValidation="Strict")
    assert (strict.code, strict.reason) == (400, "BadRequest")
    assert 'unknown field "more"' in strict.message
    patch = things.patch(ONE, {"spec": {"bogus": 1}}, fieldValidation="Strict")
    assert (patch.code, patch.fields) == (422, {"patch"})
    assert patch.message.endswith('}": strict decoding error: unknown field "spec.bogus"')
    quiet = things.patch(ONE, {"spec": {"bogus": 1}}, fieldValidation="Ignore")
    assert quiet.body["metadata"]["resourceVersion"] == made.version


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"size": 0}, "spec.size"),
        ({"size": 10}, "spec.size"),
        ({"size": "1"}, "spec.size"),
        ({"size": None}, "spec.size"),
        ({"mode": "maybe"}, "spec.mode"),
        ({"target": 1.5}, "spec.target"),
        ({"labels": {"a": 1}}, "spec.labels.a"),
        ({"free": []}, "spec.free"),
        ({"names": ["a", "a"]}, "spec.names[1]"),
        ({"ports": [{"number": 1}, {"number": 1}]}, "spec.ports[1]"),
        ({"ports": [{"name": "x"}]}, "spec.ports[0].number"),
    ],
)
def test_values_are_checked(things: Web, spec: dict[str, Any], field: str) -> None:
    answer = things.post(THINGS, thing(**spec))
    assert (answer.code, answer.fields - {NO_FIELD}) == (422, {field})


def test_rules_are_not_checked_where_values_are_missing_or_of_another_type(things: Web) -> None:
    missing = thing()
    del missing["spec"]["size"]
    answer = things.post(THINGS, missing)
    assert answer.fields == {"spec.size", NO_FIELD}
    assert "some validation rules were not checked" in answer.message
    assert things.post(THINGS, thing(size=0)).fields == {"spec.size"}


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ({"type": "string", "pattern": "^a+$"}, "aa", "aa\n"),
        ({"type": "string", "maxLength": 2}, "éé", "abc"),
        ({"type": "string", "minLength": 1}, "a", ""),
        ({"type": "string", "format": "date-time"}, "2024-01-01T00:00:00Z", "2024-01-01"),
        ({"type": "string", "format": "ipv4"}, "10.0.0.1", "10.0.0.256"),
        ({"type": "string", "format": "ipv6"}, "::1", "10.0.0.1"),
        ({"type": "string", "format": "cidr"}, "10.0.0.0/8", "10.0.0.0"),
        ({"type": "string", "format": "uuid"}, "2f1b4f4e-1d0a-4a6e-8c1a-1a2b3c4d5e6f", "x"),
        ({"type": "string", "format": "byte"}, "YQ==", "?"),
        ({"type": "string", "format": "whatever"}, "x", 1),
        ({"type": "integer", "format": "int32"}, 1, 1 << 31),
        ({"type": "integer", "multipleOf": 5}, 10, 11),
        ({"type": "integer", "minimum": 1, "exclusiveMinimum": True}, 2, 1),
        ({"type": "integer", "maximum": 5, "exclusiveMaximum": True}, 4, 5),
        ({"type": "number"}, 1, "1"),
        ({"type": "boolean"}, True, 1),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 1}, [1], [1, 2]),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1}, [1], []),
        (
            {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": 1},
            {"a": "b"},
            {"a": "b", "c": "d"},
        ),
        (
            {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1},
            {"a": "b"},
            {},
        ),
        ({"type": "string", "nullable": True}, None, 1),
        ({"type": "string", "anyOf": [{"pattern": "^a"}, {"pattern": "^b"}]}, "b", "c"),
        ({"type": "string", "oneOf": [{"pattern": "a"}, {"pattern": "b"}]}, "a", "ab"),
        ({"type": "string", "allOf": [{"pattern": "a"}, {"maxLength": 2}]}, "ab", "abc"),
        ({"type": "string", "not": {"pattern": "x"}}, "a", "x"),
        ({"x-kubernetes-int-or-string": True}, "80%", []),
    ],
)
def test_rules_of_schemas(web: Web, rule: dict[str, Any], good: Any, bad: Any) -> None:
    made = web.post(CRDS, with_schema(rule))
    assert made.code == 201, made.body
    item = thing()
    item["spec"] = {"a": good}
    assert web.post(THINGS, item).code == 201
    item["metadata"]["name"] = "u"
    item["spec"] = {"a": bad}
    assert web.post(THINGS, item).code == 422


def test_embedded_objects(web: Web) -> None:
    rule = {
        "type": "object",
        "x-kubernetes-embedded-resource": True,
        "x-kubernetes-preserve-unknown-fields": True,
    }
    assert web.post(CRDS, with_schema(rule)).code == 201
    item = thing()
    item["spec"] = {"a": {"kind": "Pod", "spec": {"x": 1}}}
    assert web.post(THINGS, item).fields == {"spec.a.apiVersion"}
    item["spec"]["a"]["apiVersion"] = "v1"
    assert web.post(THINGS, item).body["spec"]["a"]["spec"] == {"x": 1}


def test_some_fields_are_fixed(things: Web) -> None:
    things.post(THINGS, thing(fixed="a"))
    refused = things.patch(ONE, {"spec": {"fixed": "b"}})
    assert refused.fields == {"spec.fixed"} and "is fixed" in refused.message
    assert things.patch(ONE, {"spec": {"size": 2}}).code == 200


def test_a_custom_object_says_what_it_is(things: Web) -> None:
    bare = thing()
    del bare["kind"]
    assert things.post(THINGS, bare).code == 400
    bare = thing()
    del bare["apiVersion"]
    assert things.post(THINGS, bare).code == 400
    assert things.patch(ONE, {}, STRATEGIC).reason == "UnsupportedMediaType"


# ---- status, versions, scope -----------------------------------------------------------------


def test_status_and_spec_are_written_apart(things: Web) -> None:
    made = things.post(THINGS, {**thing(), "status": {"ready": True}}).body
    assert "status" not in made and made["metadata"]["generation"] == 1
    status = {**made, "spec": {"size": 5}, "status": {"ready": True}}
    status["metadata"] = {**made["metadata"], "labels": {"a": "b"}}
    done = things.put(f"{ONE}/status", status).body
    assert done["status"] == {"ready": True} and done["spec"]["size"] == 1
    assert "labels" not in done["metadata"] and done["metadata"]["generation"] == 1
    assert things.put(f"{ONE}/status", status).code == 409  # an older version now
    changed = things.put(ONE, {**done, "spec": {"size": 2}, "status": {"ready": False}}).body
    assert changed["status"] == {"ready": True} and changed["metadata"]["generation"] == 2
    labelled = things.patch(ONE, {"metadata": {"labels": {"a": "b"}}}).body
    assert labelled["metadata"]["generation"] == 2
    wrong = things.patch(f"{ONE}/status", {"status": {"ready": "yes"}})
    assert wrong.fields == {"status.ready", NO_FIELD}
    assert things.patch(f"{THINGS}/none/status", {"status": {}}).code == 404


def test_without_the_subresource_status_is_a_field(web: Web) -> None:
    web.post(CRDS, definition(status=False))
    made = web.post(THINGS, {**thing(), "status": {"ready": True}}).body
    assert made["status"] == {"ready": True}
    assert web.get(f"{ONE}/status").code == 404
    assert web.patch(ONE, {"status": {"ready": False}}).body["metadata"]["generation"] == 2


def test_updates_must_name_the_version(things: Web) -> None:
    things.post(THINGS, thing())
    refused = things.put(ONE, thing())
    assert (refused.code, refused.fields) == (422, {"metadata.resourceVersion"})
    assert things.put(f"{THINGS}/none", thing("none", "1")).code == 404


def test_several_versions_of_one_kind(web: Web) -> None:
    item = definition()
    old = copy.deepcopy(item["spec"]["versions"][0])
    old |= {"name": "v1alpha1", "storage": False}
    off = {**copy.deepcopy(old), "name": "v1beta1", "served": False}
    item["spec"]["versions"] = [old, off, item["spec"]["versions"][0]]
    web.post(CRDS, item)
    web.post(THINGS, thing())
    seen = web.get("/apis/example.io/v1alpha1/things/t").body
    assert seen["apiVersion"] == "example.io/v1alpha1"
    assert web.get("/apis/example.io/v1beta1/things").code == 404
    group = web.get("/apis/example.io").body
    assert [entry["version"] for entry in group["versions"]] == ["v1", "v1alpha1"]


def test_namespaced_things(web: Web) -> None:
    web.post(CRDS, definition(scope="Namespaced"))
    inside = "/apis/example.io/v1/namespaces/default/things"
    assert web.post(inside, thing()).body["metadata"]["namespace"] == "default"
    assert len(web.get(THINGS).body["items"]) == 1
    assert web.post(THINGS, thing("u")).code == 404
    assert web.get(f"{THINGS}/t").code == 404
