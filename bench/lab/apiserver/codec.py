# SPDX-License-Identifier: Apache-2.0
"""From a document that a client sent to an object in stored form (pure)."""

from __future__ import annotations

import json
from dataclasses import dataclass

from bench.lab.apiserver import builtin, decode, schemajson
from bench.lab.apiserver.errors import ApiError, Object, Problem, bad_request, invalid
from bench.lab.apiserver.kinds import Kind
from bench.lab.apiserver.schema import Schema, add_defaults, prune

POLICIES = ("Ignore", "Warn", "Strict")
MAX_WARNINGS = 50


@dataclass(frozen=True, slots=True)
class Options:
    """What a write is asked for beside its object.

    validation: of unknown fields: Ignore, Warn or Strict. manager: for managedFields.
    """

    validation: str = "Warn"
    dry_run: bool = False
    manager: str = "unknown"
    force: bool = False


@dataclass(frozen=True, slots=True)
class Decoded:
    """An object in stored form, and what shall be said about it."""

    item: Object
    warnings: list[str]


def read(
    kind: Kind, document: Object, options: Options, duplicates: list[str], *, patched: bool = False
) -> Decoded:
    """An object of `kind`, unknown fields removed, defaults of custom kinds added.

    duplicates: fields that were there twice. patched: the document is what a patch made.
    Raises ApiError: 400 for another kind, a wrong type, or unknown fields under Strict.
    """
    _check_kind(kind, document)
    content = {key: value for key, value in document.items() if key not in ("kind", "apiVersion")}
    content["metadata"] = content.get("metadata") or {}
    unknown: list[str] = []
    try:
        if kind.custom:
            item = _read_custom(kind, content, unknown)
        else:
            item = decode.read(kind.schema, content, kind.name, kind.version, unknown)
            if kind.name == "CustomResourceDefinition":
                _read_schemas(item, unknown)
    except ApiError as error:
        if patched and error.code == 400:
            raise _bad_patch(document, error.message) from None
        raise
    item.setdefault("metadata", {})
    said = [f'unknown field "{path}"' for path in unknown]
    said += [f'duplicate field "{path}"' for path in duplicates]
    if said and options.validation == "Strict":
        text = f"strict decoding error: {', '.join(said)}"
        if patched:
            raise _bad_patch(document, text)
        raise decode.cannot_be_handled(kind.name, kind.version, text)
    item = kind.strategy.to_storage(item)
    return Decoded(item, said[:MAX_WARNINGS] if options.validation == "Warn" else [])


def _bad_patch(document: Object, text: str) -> ApiError:
    """With the whole object first: why comes after it."""
    whole = json.dumps(json.dumps(document, separators=(",", ":")))
    problem = Problem("patch", "FieldValueInvalid", f"Invalid value: {whole}: {text}")
    return invalid("", "", "", [problem])


def _check_kind(kind: Kind, document: Object) -> None:
    name, version = document.get("kind", ""), document.get("apiVersion", "")
    if not isinstance(name, str) or not isinstance(version, str):
        raise bad_request("couldn't get version/kind; json parse error: kind must be a string")
    if kind.custom and not name:
        raise bad_request("Object 'Kind' is missing in the body")
    if kind.custom and not version:
        raise bad_request("Object 'apiVersion' is missing in the body")
    if version and version != kind.api_version:
        raise bad_request(
            f"the API version in the data ({version}) does not match the expected API version "
            f"({kind.api_version})"
        )
    if name and name != kind.name:
        raise bad_request(
            f"{name} in version {kind.version!r} cannot be handled as a {kind.name}: the kind in "
            f"the data ({name}) does not match the expected kind ({kind.name})"
        )


def _read_custom(kind: Kind, content: Object, unknown: list[str]) -> Object:
    meta = content["metadata"]
    if not isinstance(meta, dict):
        raise decode.cannot_be_handled(kind.name, kind.version, "metadata must be an object")
    lost: list[str] = []
    read_meta = decode.read(builtin.metadata(), meta, kind.name, kind.version, lost)
    unknown += [f"metadata.{path}" for path in lost]
    rest = {key: value for key, value in content.items() if key != "metadata"}
    item: Object = prune(kind.schema, rest, "", unknown)
    add_defaults(kind.schema, item)
    return {"metadata": read_meta, **item}


def _read_schemas(item: Object, unknown: list[str]) -> None:
    for number, version in enumerate((item.get("spec") or {}).get("versions") or []):
        holder = version.get("schema") or {}
        if "openAPIV3Schema" in holder:
            path = f"spec.versions[{number}].schema.openAPIV3Schema"
            try:
                schema = schemajson.read(holder["openAPIV3Schema"], path, unknown)
            except decode.Mismatch as error:
                kind = "CustomResourceDefinition"
                raise decode.cannot_be_handled(kind, "v1", str(error)) from None
            holder["openAPIV3Schema"] = schema


def whole_schema(kind: Kind) -> Schema:
    """The schema of a kind's stored objects, metadata included."""
    fields = {**kind.schema.fields, "metadata": builtin.metadata()}
    return Schema(type="object", fields=fields, open=kind.schema.open)
