# SPDX-License-Identifier: Apache-2.0
"""Rules of CustomResourceDefinitions and of the objects of the kinds that they make (pure)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from bench.lab.apiserver import structural
from bench.lab.apiserver.errors import (
    Object,
    Problem,
    duplicate,
    forbidden_field,
    invalid_value,
    required,
    unsupported,
)
from bench.lab.apiserver.kinds import Strategy
from bench.lab.apiserver.rules import deep, validate, validate_transition
from bench.lab.apiserver.schema import Schema, add_defaults
from bench.lab.apiserver.validation import dns1035_label, subdomain

GROUP = "apiextensions.k8s.io"
DEFINITIONS = (GROUP, "customresourcedefinitions")
_BLOCKING = {
    f"FieldValue{kind}"
    for kind in ("NotSupported", "Required", "TooLong", "TooMany", "TypeInvalid")
}
_NOT_CHECKED = (
    "Invalid value: null: some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation"
)
_VERSION = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?\Z")


class CustomStrategy(Strategy):
    """Rules of a custom kind, all of them from its schema."""

    unconditional = False
    generation = True
    status_metadata = False

    def __init__(self, schema: Schema, raw: Object, *, status: bool) -> None:
        self._schema = schema
        self._metadata = (raw.get("properties") or {}).get("metadata") or {}
        self._status = status
        self._has_rules = schema.has_rules()

    def complete(self, item: Object) -> None:
        add_defaults(self._schema, item)

    def prepare_create(self, item: Object) -> None:
        if self._status:
            item.pop("status", None)

    def prepare_update(self, item: Object, old: Object) -> None:
        if self._status:
            item.pop("status", None)
            if "status" in old:
                item["status"] = old["status"]

    def validate(self, item: Object) -> Iterator[Problem]:
        content = {key: value for key, value in item.items() if key != "metadata"}
        problems = [
            *validate(self._schema, content, ""),
            *deep(self._metadata, item["metadata"], "metadata"),
        ]
        yield from problems
        if self._has_rules and any(problem.kind in _BLOCKING for problem in problems):
            yield Problem("<nil>", "FieldValueInvalid", _NOT_CHECKED)

    def validate_status(self, item: Object) -> Iterator[Problem]:
        return self.validate(item)

    def validate_update(self, item: Object, old: Object) -> Iterator[Problem]:
        return validate_transition(self._schema, item, old, "")


class DefinitionStrategy(Strategy):
    """Rules of definitions themselves."""

    unconditional = False
    generation = True

    def complete(self, item: Object) -> None:
        spec = item.setdefault("spec", {})
        names = spec.setdefault("names", {})
        kind = names.get("kind", "")
        names.setdefault("singular", kind.lower())
        names.setdefault("listKind", f"{kind}List")
        spec.setdefault("conversion", {"strategy": "None"})

    def prepare_create(self, item: Object) -> None:
        self.complete(item)
        stored = [v.get("name") for v in item["spec"].get("versions") or [] if v.get("storage")]
        names = {"plural": "", "kind": ""}
        item["status"] = {"conditions": None, "acceptedNames": names, "storedVersions": stored}

    def prepare_update(self, item: Object, old: Object) -> None:
        self.complete(item)
        item["status"] = old.get("status", {})

    def validate(self, item: Object) -> Iterator[Problem]:
        spec = item["spec"]
        names, group = spec["names"], spec.get("group", "")
        if not group:
            yield required("spec.group")
        else:
            yield from _each("spec.group", group, subdomain(group))
            if "." not in group:
                yield invalid_value("spec.group", group, "should be a domain with at least one dot")
        wanted = f"{names.get('plural', '')}.{group}"
        if item["metadata"]["name"] != wanted:
            text = 'must be spec.names.plural+"."+spec.group'
            yield invalid_value("metadata.name", item["metadata"]["name"], text)
        if spec.get("scope") not in ("Cluster", "Namespaced"):
            yield unsupported("spec.scope", spec.get("scope", ""), ("Cluster", "Namespaced"))
        for key in ("plural", "singular", "kind", "listKind"):
            name = names.get(key, "")
            if not name:
                yield required(f"spec.names.{key}")
            else:
                yield from _each(f"spec.names.{key}", name, dns1035_label(name.lower()))
        if names.get("kind") and names["kind"] == names.get("listKind"):
            text = "kind and listKind may not be the same"
            yield invalid_value("spec.names.listKind", names["listKind"], text)
        yield from self._versions(spec.get("versions") or [])
        if spec["conversion"].get("strategy") != "None":
            text = "this test server converts no versions"
            yield invalid_value("spec.conversion.strategy", spec["conversion"], text)

    def _versions(self, versions: list[Object]) -> Iterator[Problem]:
        if not versions:
            yield required("spec.versions", "must have at least one version")
        stored = [version for version in versions if version.get("storage")]
        if versions and len(stored) != 1:
            text = "must have exactly one version marked as storage version"
            yield invalid_value("spec.versions", [v.get("name") for v in versions], text)
        seen: set[str] = set()
        for number, version in enumerate(versions):
            path = f"spec.versions[{number}]"
            name = version.get("name", "")
            if not _VERSION.match(name):
                text = "a DNS-1035 label must consist of lower case alphanumeric characters or '-'"
                yield invalid_value(f"{path}.name", name, text)
            if name in seen:
                yield duplicate(f"{path}.name", name)
            seen.add(name)
            schema = (version.get("schema") or {}).get("openAPIV3Schema")
            if not isinstance(schema, dict):
                place = f"{path}.schema.openAPIV3Schema"
                yield required(place, "schemas are required")
            else:
                yield from structural.check(schema, f"{path}.schema.openAPIV3Schema")
            if (version.get("subresources") or {}).get("scale"):
                text = "this test server has no scale subresource"
                yield forbidden_field(f"{path}.subresources.scale", text)

    def validate_update(self, item: Object, old: Object) -> Iterator[Problem]:
        for path in (("group",), ("scope",), ("names", "plural"), ("names", "kind")):
            now, before = _at(item["spec"], path), _at(old["spec"], path)
            if now != before:
                yield invalid_value(f"spec.{'.'.join(path)}", now, "field is immutable")
        known = {version["name"] for version in item["spec"].get("versions") or []}
        for number, stored in enumerate(old.get("status", {}).get("storedVersions") or []):
            if stored not in known:
                text = "must remain in spec.versions since it is in status.storedVersions"
                yield invalid_value(f"status.storedVersions[{number}]", stored, text)


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _each(path: str, value: object, complaints: list[str]) -> Iterator[Problem]:
    for text in complaints:
        yield invalid_value(path, value, text)
