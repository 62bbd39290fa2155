# SPDX-License-Identifier: Apache-2.0
"""Names, labels and metadata: what every kind has, checked as a real server does (pure)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from bench.lab.apiserver.errors import Object, Problem, invalid_value, required, too_long

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"{_LABEL}(\.{_LABEL})*\Z")
_DNS_LABEL = re.compile(rf"{_LABEL}\Z")
_DNS1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?\Z")
_NAME_PART = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]\Z")
_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?\Z")
_PORT_NAME = re.compile(r"[-a-z0-9]+\Z")
MAX_ANNOTATIONS_BYTES = 256 * 1024

SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used "
    "for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and "
    "must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used "
    "for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
DNS1035_TEXT = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an "
    "alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', "
    "regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')"
)
QUALIFIED_TEXT = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end "
    "with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for "
    "validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  "
    "or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)

NameRule = Callable[[str], list[str]]


def subdomain(name: str) -> list[str]:
    """What is wrong with a DNS subdomain (RFC 1123, at most 253 characters)."""
    return _checked(name, 253, _SUBDOMAIN, SUBDOMAIN_TEXT)


def dns_label(name: str) -> list[str]:
    """What is wrong with a DNS label (RFC 1123, at most 63 characters)."""
    return _checked(name, 63, _DNS_LABEL, LABEL_TEXT)


def dns1035_label(name: str) -> list[str]:
    """What is wrong with a DNS label that begins with a letter: names of services."""
    return _checked(name, 63, _DNS1035, DNS1035_TEXT)


def path_segment(name: str) -> list[str]:
    """What is wrong with a name that only has to fit into a path."""
    if name in (".", ".."):
        return [f"may not be '{name}'"]
    return [f"may not contain '{part}'" for part in "/%" if part in name]


def qualified_name(name: str) -> list[str]:
    """What is wrong with a label key, a taint key or the like: [prefix/]name."""
    prefix, slash, last = name.rpartition("/")
    if slash and not prefix:
        return ["prefix part must be non-empty"]
    if "/" in prefix:
        return [
            "a qualified name must consist of alphanumeric characters, '-', '_' or '.', with an "
            "optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        ]
    complaints = [f"prefix part {text}" for text in subdomain(prefix)] if slash else []
    if not last:
        return [*complaints, "name part must be non-empty", QUALIFIED_TEXT]
    if len(last) > 63:
        complaints.append("name part must be no more than 63 bytes")
    if not _NAME_PART.match(last):
        complaints.append(QUALIFIED_TEXT)
    return complaints


def label_value(value: str) -> list[str]:
    """What is wrong with a label's value."""
    return _checked(value, 63, _VALUE, VALUE_TEXT)


def port_name(name: str) -> list[str]:
    """What is wrong with the name of a port (IANA service name)."""
    if len(name) > 15:
        return ["must be no more than 15 characters"]
    if not _PORT_NAME.match(name):
        return ["must contain only alphanumeric characters (a-z, 0-9), and hyphens (-)"]
    if not re.search("[a-z]", name):
        return ["must contain at least one letter (a-z)"]
    if "--" in name:
        return ["must not contain consecutive hyphens"]
    return [] if name.strip("-") == name else ["must not begin or end with a hyphen"]


def port_number(value: object) -> list[str]:
    """What is wrong with a port number."""
    good = isinstance(value, int) and 1 <= value <= 65535
    return [] if good else ["must be between 1 and 65535, inclusive"]


def _checked(text: str, limit: int, pattern: re.Pattern[str], complaint: str) -> list[str]:
    complaints = [f"must be no more than {limit} bytes"] if len(text.encode()) > limit else []
    return complaints if pattern.match(text) else [*complaints, complaint]


# ---- metadata --------------------------------------------------------------------------------


def labels(value: dict[str, str], path: str) -> Iterator[Problem]:
    """Problems of a map of labels."""
    for key, text in value.items():
        yield from (invalid_value(path, key, why) for why in qualified_name(key))
        yield from (invalid_value(path, text, why) for why in label_value(text))


def metadata(meta: Object, *, namespaced: bool, rule: NameRule, core: bool) -> Iterator[Problem]:
    """Problems of `metadata` at creation; the name has been generated already.

    core: finalizers without a prefix must be known ones.
    """
    generate, name = meta.get("generateName", ""), meta.get("name", "")
    if generate:
        # A generated name gets a suffix: a trailing dash is fine here.
        yield from (
            invalid_value("metadata.generateName", generate, why)
            for why in rule(re.sub("-$", "a", generate))
        )
    if not name:
        yield required("metadata.name", "name or generateName is required")
    else:
        yield from (invalid_value("metadata.name", name, why) for why in rule(name))
    namespace = meta.get("namespace", "")
    if namespaced:
        if not namespace:
            yield required("metadata.namespace")
        else:
            yield from (
                invalid_value("metadata.namespace", namespace, why) for why in dns_label(namespace)
            )
    elif namespace:
        yield Problem(
            "metadata.namespace", "FieldValueForbidden", "Forbidden: not allowed on this type"
        )
    yield from mutable_metadata(meta, core=core)


def mutable_metadata(meta: Object, *, core: bool) -> Iterator[Problem]:
    """Problems of what may change: labels, annotations, finalizers, owners."""
    yield from labels(meta.get("labels") or {}, "metadata.labels")
    annotations: dict[str, str] = meta.get("annotations") or {}
    for key in annotations:
        yield from (
            invalid_value("metadata.annotations", key, why) for why in qualified_name(key.lower())
        )
    if sum(len(k.encode()) + len(v.encode()) for k, v in annotations.items()) > (
        MAX_ANNOTATIONS_BYTES
    ):
        yield too_long("metadata.annotations", MAX_ANNOTATIONS_BYTES)
    for name in meta.get("finalizers") or []:
        yield from (invalid_value("metadata.finalizers", name, why) for why in qualified_name(name))
        if core and "/" not in name and name not in ("orphan", "foregroundDeletion", "kubernetes"):
            text = "name is neither a standard finalizer name nor is it fully qualified"
            yield invalid_value("metadata.finalizers", name, text)
    yield from _owners(meta.get("ownerReferences") or [])


def _owners(owners: list[Object]) -> Iterator[Problem]:
    controllers = [owner for owner in owners if owner.get("controller")]
    for number, owner in enumerate(owners):
        path = f"metadata.ownerReferences[{number}]"
        for field in ("apiVersion", "kind", "name", "uid"):
            if not owner.get(field):
                yield invalid_value(f"{path}.{field}", owner.get(field, ""), "must not be empty")
    if len(controllers) > 1:
        text = "Only one reference can have Controller set to true"
        yield invalid_value("metadata.ownerReferences", owners, text)


def metadata_update(meta: Object, old: Object, *, core: bool) -> Iterator[Problem]:
    """Problems of `metadata` against what is stored; both are complete."""
    for field in ("name", "namespace", "uid"):
        if meta.get(field) != old.get(field):
            value = meta.get(field)
            yield invalid_value(f"metadata.{field}", value, "field is immutable")
    if old.get("deletionTimestamp"):
        fresh = set(meta.get("finalizers") or []) - set(old.get("finalizers") or [])
        if fresh:
            yield Problem(
                "metadata.finalizers",
                "FieldValueForbidden",
                "Forbidden: no new finalizers can be added if the object is being deleted, found "
                f"new finalizers {sorted(fresh)!r}",
            )
    yield from mutable_metadata(meta, core=core)


def text(value: Any) -> str:
    """A string field that may be absent."""
    return value if isinstance(value, str) else ""
