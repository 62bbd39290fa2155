# SPDX-License-Identifier: Apache-2.0
"""Lists: which state of which objects a request means, and in which pages (pure)."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.lab.apiserver.cluster import Cluster
from bench.lab.apiserver.errors import (
    ApiError,
    Problem,
    bad_request,
    expired,
    forbidden_field,
    invalid,
    too_large_version,
    unsupported,
)
from bench.lab.apiserver.kinds import Kind
from bench.lab.apiserver.selectors import Selector, parse_fields, parse_labels
from bench.lab.apiserver.store import Compacted, Record

_TOKEN_VERSION = "meta.k8s.io/v1"
_MATCHES = ("Exact", "NotOlderThan")
TOO_OLD_TOKEN = (
    "The provided continue parameter is too old to display a consistent list result. You can "
    "start a new list without the continue parameter, or use the continue token in this response "
    "to retrieve the remainder of the results. Continuing with the provided token results in an "
    "inconsistent list - objects that were created, modified, or deleted between the time the "
    "first chunk was returned and now may show up in the list."
)


@dataclass(frozen=True, slots=True)
class ListQuery:
    """Parameters of list and watch. version, match: which state. initial: sendInitialEvents."""

    selector: Selector = field(default_factory=Selector)
    limit: int = 0
    token: str = ""
    version: str = ""
    match: str = ""
    watch: bool = False
    bookmarks: bool = False
    initial: bool | None = None
    seconds: int | None = None


def flag(query: Mapping[str, str], name: str) -> bool | None:
    """A boolean parameter as Go reads it: given is true, unless it is 0 or false."""
    if name not in query:
        return None
    return query[name].lower() not in ("0", "false")


def number(query: Mapping[str, str], name: str) -> int | None:
    """An integer parameter. Raises ApiError 400."""
    text = query.get(name, "")
    if not text:
        return None
    if not re.match(r"[-+]?[0-9]{1,18}\Z", text, re.ASCII):
        raise bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text)


def parse(kind: Kind, query: Mapping[str, str], name: str = "") -> ListQuery:
    """Reads the parameters. name: of the one object that the path means. Raises ApiError."""
    fields = parse_fields(query.get("fieldSelector", ""), kind.selectable)
    selector = Selector(parse_labels(query.get("labelSelector", "")), fields)
    if name:
        fields += parse_fields(f"metadata.name={name}", kind.selectable)
        selector = Selector(selector.labels, fields)
    found = ListQuery(
        selector,
        number(query, "limit") or 0,
        query.get("continue", ""),
        query.get("resourceVersion", ""),
        query.get("resourceVersionMatch", ""),
        bool(flag(query, "watch")),
        bool(flag(query, "allowWatchBookmarks")),
        flag(query, "sendInitialEvents"),
        number(query, "timeoutSeconds"),
    )
    if found.version and not re.match(r"[0-9]{1,19}\Z", found.version, re.ASCII):
        text = (
            f'resourceVersion: Invalid value: "{found.version}": '
            f'strconv.ParseUint: parsing "{found.version}": invalid syntax'
        )
        if found.watch:
            raise ApiError(500, "", text)
        raise bad_request(f"invalid resource version: {text}")
    problems = _problems(found)
    if problems:
        raise invalid("meta.k8s.io", "ListOptions", "", problems)
    return found


def _problems(query: ListQuery) -> list[Problem]:
    match, found = query.match, []
    if query.watch:
        if query.initial is not None and match != "NotOlderThan":
            text = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            found.append(forbidden_field("resourceVersionMatch", text))
        if match and query.initial is None:
            text = (
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
            )
            found.append(forbidden_field("resourceVersionMatch", text))
        return found
    if query.initial is not None:
        found.append(
            forbidden_field("sendInitialEvents", "sendInitialEvents is forbidden for list")
        )
    if not match:
        return found
    if not query.version:
        text = "resourceVersionMatch is forbidden unless resourceVersion is provided"
        found.append(forbidden_field("resourceVersionMatch", text))
    if query.token:
        text = "resourceVersionMatch is forbidden when continue is provided"
        found.append(forbidden_field("resourceVersionMatch", text))
    if match not in _MATCHES:
        found.append(unsupported("resourceVersionMatch", match, (*_MATCHES, "")))
    if match == "Exact" and query.version == "0":
        text = 'resourceVersionMatch "exact" is forbidden for resourceVersion "0"'
        found.append(forbidden_field("resourceVersionMatch", text))
    return found


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list. token: where it goes on, "" at the end. remaining: None for unknown."""

    records: list[Record]
    revision: int
    token: str = ""
    remaining: int | None = None


def select(cluster: Cluster, kind: Kind, namespace: str, query: ListQuery) -> Page:
    """The page that a request means. Raises ApiError: 400, 410, 504."""
    prefix = f"{namespace}/" if namespace else ""
    collection = cluster.store.collection(kind.resource)
    current = cluster.store.revision
    start = ""
    version = int(query.version or 0)
    revision = current
    if query.token:
        if query.version not in ("", "0"):
            raise bad_request("specifying resource version is not allowed when using continue")
        revision, start = _read_token(query.token)
        revision = current if revision < 0 else revision
    elif version > current:
        raise too_large_version(version, current)
    elif version and (query.match == "Exact" or (not query.match and query.limit)):
        revision = version
    try:
        if revision > current:
            raise too_large_version(revision, current)
        if revision < cluster.store.compacted:
            raise Compacted(revision, cluster.store.compacted)
        if revision == current:
            records = collection.range(prefix, start)
        else:
            records = collection.at(revision, prefix, start)
    except Compacted:
        if query.token:
            raise expired(TOO_OLD_TOKEN, _token(-1, start)) from None
        raise expired("The resourceVersion for the provided list is too old.") from None
    return _cut(kind, records, revision, query)


def _cut(kind: Kind, records: list[Record], revision: int, query: ListQuery) -> Page:
    # The watch cache, which answers for version 0, knows no pages.
    limit = 0 if query.version == "0" and not query.token else max(query.limit, 0)
    chosen: list[Record] = []
    for index, record in enumerate(records):
        if limit and len(chosen) == limit:
            token = _token(revision, chosen[-1].key + "\0")
            left = None if query.selector else len(records) - index
            return Page(chosen, revision, token, left)
        if matches(kind, query.selector, record):
            chosen.append(record)
    return Page(chosen, revision)


def matches(kind: Kind, selector: Selector, record: Record) -> bool:
    """Whether a record is selected."""
    if not selector:
        return True
    item = record.object
    return selector.matches(record.labels, lambda path: kind.strategy.field_value(item, path))


def _token(revision: int, start: str) -> str:
    text = json.dumps({"v": _TOKEN_VERSION, "rv": revision, "start": start})
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_token(token: str) -> tuple[int, str]:
    try:
        found = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        version, revision, start = found["v"], found["rv"], found["start"]
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError) as error:
        raise bad_request(f"continue key is not valid: {error}") from None
    if version != _TOKEN_VERSION or not isinstance(revision, int) or not isinstance(start, str):
        raise bad_request("continue key is not valid: server does not recognize this version")
    return revision, start
