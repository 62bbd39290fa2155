# SPDX-License-Identifier: Apache-2.0
"""Requests on resources: from a Request to a Response, or to the beginning of a watch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import yaml

from bench.lab.apiserver import apply, codec, decode, deletion, listing, patch
from bench.lab.apiserver.cluster import Cluster, Outcome
from bench.lab.apiserver.codec import Options
from bench.lab.apiserver.deletion import Deleted, DeleteOptions, Remover
from bench.lab.apiserver.errors import (
    Object,
    Problem,
    bad_request,
    forbidden_field,
    invalid,
    modified,
    not_found,
    required,
    too_long,
    unsupported,
    unsupported_media_type,
)
from bench.lab.apiserver.forms import Form
from bench.lab.apiserver.http import Request, Response
from bench.lab.apiserver.kinds import Kind
from bench.lab.apiserver.routes import Target

_encode = msgspec.json.Encoder().encode
BODIES = ("application/json", "application/yaml")
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
PATCHES = (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH)
MAX_MANAGER = 128


class _Loader(yaml.SafeLoader):
    """YAML as JSON can say it: times stay text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, and whether the store has changed; None for reads."""

    response: Response
    changed: bool | None = None


class Handler:
    """Answers requests on resources. Whoever calls it keeps other writers away meanwhile.

    may: raises ApiError 403 if who asks must not use a further verb, such as `create` for an apply
    that creates.
    """

    def __init__(self, cluster: Cluster, remover: Remover) -> None:
        self._cluster = cluster
        self._remover = remover

    def answer(
        self, request: Request, target: Target, form: Form, may: Callable[[str], None]
    ) -> Answer:
        """Does what is asked. Raises ApiError."""
        match target.verb:
            case "get":
                record = self._cluster.get(target.kind, target.namespace, target.name)
                return Answer(_one(form, 200, record))
            case "list":
                return Answer(self._list(request, target, form))
            case "create":
                return self._create(request, target, form)
            case "update":
                return self._update(request, target, form, may)
            case "patch":
                return self._patch(request, target, form, may)
            case "delete":
                return self._delete(request, target, form)
        return self._delete_all(request, target, form)

    # ---- reading -----------------------------------------------------------------------------

    def _list(self, request: Request, target: Target, form: Form) -> Response:
        query = listing.parse(target.kind, request.query)
        page = listing.select(self._cluster, target.kind, target.namespace, query)
        meta: Object = {"resourceVersion": str(page.revision)}
        if page.token:
            meta["continue"] = page.token
        if page.remaining is not None:
            meta["remainingItemCount"] = page.remaining
        return Response(200, form.many(page.records, meta))

    # ---- writing -----------------------------------------------------------------------------

    def _create(self, request: Request, target: Target, form: Form) -> Answer:
        options = _options(request, "CreateOptions")
        duplicates: list[str] = []
        document = _document(request, options, duplicates)
        decoded = codec.read(target.kind, document, options, duplicates)
        outcome = self._cluster.create(target.kind, target.namespace, decoded.item, options)
        return _written(form, outcome, decoded.warnings)

    def _update(
        self, request: Request, target: Target, form: Form, may: Callable[[str], None]
    ) -> Answer:
        options = _options(request, "UpdateOptions")
        duplicates: list[str] = []
        document = _document(request, options, duplicates)
        decoded = codec.read(target.kind, document, options, duplicates)
        self._may_create(target, may)
        outcome = self._cluster.update(
            target.kind,
            target.namespace,
            target.name,
            decoded.item,
            options,
            target.subresource,
        )
        return _written(form, outcome, decoded.warnings)

    def _may_create(self, target: Target, may: Callable[[str], None]) -> None:
        if self._cluster.find(target.kind, target.namespace, target.name) is None:
            may("create")

    def _patch(
        self, request: Request, target: Target, form: Form, may: Callable[[str], None]
    ) -> Answer:
        kind = target.kind
        offered = [name for name in PATCHES if name != STRATEGIC_PATCH or not kind.custom]
        media = _media(request)
        if media not in offered:
            raise unsupported_media_type(offered)
        options = _options(request, "PatchOptions", apply=media == APPLY_PATCH)
        duplicates: list[str] = []
        if media == APPLY_PATCH:
            document = _yaml_object(request.body)
            self._may_create(target, may)
            outcome = apply.apply(
                self._cluster,
                kind,
                target.namespace,
                target.name,
                document,
                options,
                target.subresource,
            )
            return _written(form, outcome, outcome.warnings)
        watched = None if options.validation == "Ignore" else duplicates
        try:
            change = decode.parse_json(request.body, watched)
        except ValueError as error:
            raise bad_request(f"error decoding patch: {error}") from None
        old = self._cluster.find(kind, target.namespace, target.name)
        if old is None:
            raise not_found(kind.group, kind.plural, target.name)
        patched = _patched(kind, media, kind.document(old.object), change)
        decoded = codec.read(kind, patched, options, duplicates, patched=True)
        if decoded.item["metadata"].get("resourceVersion", "") not in ("", str(old.revision)):
            raise modified(kind.group, kind.plural, target.name)
        decoded.item["metadata"]["resourceVersion"] = str(old.revision)
        outcome = self._cluster.update(
            kind, target.namespace, target.name, decoded.item, options, target.subresource
        )
        return _written(form, outcome, decoded.warnings)

    # ---- deleting ----------------------------------------------------------------------------

    def _delete(self, request: Request, target: Target, form: Form) -> Answer:
        options = self._delete_options(request)
        deleted = self._remover.delete(target.kind, target.namespace, target.name, options)
        return Answer(_deleted(form, target.kind, deleted), not options.dry_run)

    def _delete_all(self, request: Request, target: Target, form: Form) -> Answer:
        options = self._delete_options(request)
        query = listing.parse(target.kind, request.query)
        page = listing.select(self._cluster, target.kind, target.namespace, query)
        for record in page.records:
            if self._cluster.find(target.kind, record.namespace, record.name) is not None:
                self._remover.delete(target.kind, record.namespace, record.name, options)
        meta: Object = {"resourceVersion": str(page.revision)}
        response = Response(200, form.many(page.records, meta))
        return Answer(response, bool(page.records) and not options.dry_run)

    def _delete_options(self, request: Request) -> DeleteOptions:
        body = None
        if request.body:
            body = _document(request, Options("Ignore"), [])
        return deletion.read_options(body, request.query)


def _one(form: Form, code: int, record: Any, warnings: list[str] | None = None) -> Response:
    return Response(code, [form.one(record) + b"\n"], warnings=tuple(warnings or ()))


def _written(form: Form, outcome: Outcome, warnings: list[str]) -> Answer:
    return Answer(_one(form, outcome.code, outcome.record, warnings), outcome.changed)


def _deleted(form: Form, kind: Kind, deleted: Deleted) -> Response:
    # Some kinds answer with the object that was.
    if not deleted.gone or kind.plural in ("pods", "services"):
        return _one(form, 200, deleted.record)
    details = {"name": deleted.record.name, "group": kind.group, "kind": kind.plural}
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": {k: v for k, v in details.items() if v} | {"uid": deleted.record.uid},
    }
    return Response(200, [_encode(status) + b"\n"])


# ---- bodies and options ----------------------------------------------------------------------


def _media(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _document(request: Request, options: Options, duplicates: list[str]) -> Object:
    media = _media(request)
    if media and media not in BODIES:
        raise unsupported_media_type(BODIES)
    if media == "application/yaml":
        return _yaml_object(request.body)
    return decode.parse_object(request.body, None if options.validation == "Ignore" else duplicates)


def _yaml_object(body: bytes) -> Object:
    """YAML that says what JSON could. Raises ApiError 400."""
    try:
        found = yaml.load(body, _Loader)
        # Once through JSON: no other types, no keys but text, no shared or endless parts.
        return decode.parse_object(_encode(found))
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise bad_request(f"error decoding YAML: {str(error)[:200]}") from None


def _patched(kind: Kind, media: str, document: Object, change: Any) -> Object:
    if media == JSON_PATCH:
        patched = patch.json_patch(document, change)
    elif media == MERGE_PATCH:
        if not isinstance(change, dict):
            raise bad_request(
                "json: cannot unmarshal into Go value of type map[string]interface {}"
            )
        patched = patch.merge_patch(document, change)
    else:
        patched = patch.strategic_patch(codec.whole_schema(kind), document, change)
    if not isinstance(patched, dict):
        raise bad_request("the patched document is no object")
    return patched


def _options(request: Request, kind: str, *, apply: bool = False) -> Options:
    """Query parameters of a write. Raises ApiError 422."""
    query, problems = request.query, []
    validation = query.get("fieldValidation") or "Warn"
    if validation not in codec.POLICIES:
        problems.append(unsupported("fieldValidation", validation, codec.POLICIES))
    dry = query.get("dryRun", "")
    if dry not in ("", "All"):
        problems.append(unsupported("dryRun", dry, ("All",)))
    manager = query.get("fieldManager", "")
    if len(manager.encode()) > MAX_MANAGER:
        problems.append(too_long("fieldManager", MAX_MANAGER))
    if not manager.isprintable():
        text = "Invalid value: should only contain printable characters"
        problems.append(Problem("fieldManager", "FieldValueInvalid", text))
    force = listing.flag(query, "force")
    if kind == "PatchOptions":
        if apply and not manager:
            problems.append(required("fieldManager", "is required for apply patch"))
        if not apply and force is not None:
            text = "may not be specified for non-apply patch"
            problems.append(forbidden_field("force", text))
    if problems:
        raise invalid("meta.k8s.io", kind, "", problems)
    manager = manager or request.agent.partition("/")[0][:MAX_MANAGER] or "unknown"
    return Options(validation, bool(dry), manager, bool(force))
