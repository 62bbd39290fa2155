# SPDX-License-Identifier: Apache-2.0
"""Names and labels of Kubernetes objects, checked by the rules of the API server. Pure."""

import re
from collections.abc import Mapping
from enum import Enum
from sys import intern

from agent.core.events import MIRROR_ANNOTATION, REDIRECT_ANNOTATION, ResourceKey
from agent.kube.fields import (
    Object,
    TranslateError,
    cut,
    mapping_field,
    required_text,
    shown,
    text_field,
)
from identity.selectors import label_key_problem, label_value_problem

_DNS_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_DNS_SUBDOMAIN = re.compile(
    r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*"
)


class Scope(Enum):
    """Where objects of a kind live, and what their names look like."""

    NAMESPACED = "in a namespace, named by a DNS subdomain"
    CLUSTER = "in none, named by a DNS subdomain"
    CLUSTER_LABEL = "in none, named by a DNS label"


def object_key(kind: str, obj: Object, scope: Scope) -> ResourceKey:
    """The key of an object. Raises TranslateError for names that the API would not take."""
    metadata = mapping_field(obj, "metadata", "metadata")
    if metadata.get("generateName") and not metadata.get("name"):
        raise TranslateError(
            "metadata.generateName", "only an API server can generate names; give metadata.name"
        )
    name = required_text(metadata, "name", "metadata.name")
    is_label = scope is Scope.CLUSTER_LABEL
    if not (is_dns_label(name) if is_label else is_subdomain(name)):
        raise TranslateError(
            "metadata.name",
            f'"{cut(name)}" is no valid name: lower case letters, digits and "-"'
            + (", at most 63 characters" if is_label else ' and "."'),
        )
    if scope is not Scope.NAMESPACED:
        return ResourceKey(kind, "", intern(name))
    namespace = text_field(metadata, "namespace", "metadata.namespace") or "default"
    if not is_dns_label(namespace):
        raise TranslateError(
            "metadata.namespace",
            f'"{cut(namespace)}" is no valid namespace: lower case letters, digits and "-",'
            " at most 63 characters",
        )
    return ResourceKey(kind, intern(namespace), name)


def loose_key(kind: str, obj: Object) -> ResourceKey:
    """The key of an object that is not used, without complaint about what is wrong with it."""
    metadata = obj.get("metadata")
    if not isinstance(metadata, Mapping):
        return ResourceKey(kind, "", "")
    namespace, name = metadata.get("namespace"), metadata.get("name")
    return ResourceKey(
        kind,
        namespace if isinstance(namespace, str) else "",
        name if isinstance(name, str) else "",
    )


def labels_of(metadata: Object) -> Mapping[str, str]:
    """`metadata.labels`, checked. Raises TranslateError."""
    labels: dict[str, str] = {}
    for key, value in mapping_field(metadata, "labels", "metadata.labels").items():
        if not isinstance(key, str):
            raise TranslateError(
                "metadata.labels", f"key {shown(key)} is no text: put it in quotes"
            )
        if value is None:
            value = ""  # what the API server makes of a key without a value
        if not isinstance(value, str):
            path = f"metadata.labels[{cut(key)}]"
            raise TranslateError(path, f"{shown(value)} is no text: put it in quotes")
        if problem := label_key_problem(key):
            raise TranslateError("metadata.labels", cut(problem, 500))
        if problem := label_value_problem(value):
            raise TranslateError(f"metadata.labels[{key}]", cut(problem, 500))
        labels[intern(key)] = intern(value)
    return labels


def redirect_of(metadata: Object) -> str:
    """The annotation that is for socket redirect. A wrong value is no reason to refuse the object:
    it is told where it is used. Raises TranslateError for annotations that are none at all."""
    value = mapping_field(metadata, "annotations", "metadata.annotations").get(REDIRECT_ANNOTATION)
    if value is None:
        return ""
    return intern(value if isinstance(value, str) else shown(value))


def static_uid_of(metadata: Object) -> str:
    """What a runtime takes for the uid of a static pod that the object stands for."""
    value = mapping_field(metadata, "annotations", "metadata.annotations").get(MIRROR_ANNOTATION)
    return value if isinstance(value, str) else ""


def dns_name(obj: Object, name: str, path: str) -> str:
    """The name of another object, or nothing."""
    value = text_field(obj, name, path)
    if value and not is_subdomain(value):
        raise TranslateError(path, f'"{cut(value)}" is no valid name')
    return intern(value)


def is_subdomain(text: str) -> bool:
    """Whether this is a DNS subdomain (RFC 1123), as most names are."""
    return len(text) <= 253 and _DNS_SUBDOMAIN.fullmatch(text) is not None


def is_dns_label(text: str) -> bool:
    """Whether this is a DNS label (RFC 1123), as names of namespaces are."""
    return _DNS_LABEL.fullmatch(text) is not None
