# SPDX-License-Identifier: Apache-2.0
"""What the CNI_* variables of a request may hold. Pure.

Source: CNI spec 1.1.0, "Section 2: Execution Protocol", parameters; CNI_ARGS: CONVENTIONS.md and
what the runtimes of Kubernetes send (K8S_POD_*). Every error is INVALID_ENVIRONMENT and names the
variable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cni.config import NAME, Command
from cni.errors import CniError, ErrorCode

MAX_IFNAME: Final = 15
"""Bytes: the kernel's IFNAMSIZ without the NUL."""

# Kubernetes: names of pods are DNS subdomains, names of namespaces DNS labels (RFC 1123).
_DNS_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_DNS_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", re.ASCII)
_POD_KEYS: Final = (
    "K8S_POD_NAMESPACE",
    "K8S_POD_NAME",
    "K8S_POD_INFRA_CONTAINER_ID",
    "K8S_POD_UID",
)


@dataclass(frozen=True, slots=True)
class PodRef:
    """The pod that CNI_ARGS names. `uid` and `infra_container_id` may be empty."""

    namespace: str
    name: str
    uid: str = ""
    infra_container_id: str = ""


Variables = Mapping[str, bytes]
"""The CNI_* variables of a request, values as they came."""


def command(variables: Variables) -> Command:
    """CNI_COMMAND."""
    value = _text(variables, "CNI_COMMAND")
    try:
        return Command(value)
    except ValueError as error:
        raise _invalid("CNI_COMMAND", f"{value!a} is unknown") from error


def container_id(variables: Variables) -> str:
    """CNI_CONTAINERID, not empty."""
    value = _text(variables, "CNI_CONTAINERID")
    if not NAME.fullmatch(value):
        raise _invalid(
            "CNI_CONTAINERID",
            f"{value!a} must begin with a letter or digit and hold only those, '_', '.' and '-'",
        )
    return value


def ifname(variables: Variables) -> str:
    """CNI_IFNAME, by the kernel's rule (dev_valid_name); the spec refuses all white space. With a %
    the kernel takes it for a pattern (dev_alloc_name), and gives the device another name."""
    value = _text(variables, "CNI_IFNAME")
    if not value:
        raise _invalid("CNI_IFNAME", "is missing")
    if len(value.encode()) > MAX_IFNAME:
        raise _invalid("CNI_IFNAME", f"{value!a} is longer than {MAX_IFNAME} bytes")
    if value in (".", "..") or any(c in "/:%" or c.isspace() for c in value):
        raise _invalid(
            "CNI_IFNAME", f"{value!a} must hold no '/', ':', '%' or white space, nor be '.' or '..'"
        )
    return value


def netns(variables: Variables, *, required: bool) -> str:
    """CNI_NETNS, empty if it is missing and not required."""
    value = _text(variables, "CNI_NETNS")
    if required and not value:
        raise _invalid("CNI_NETNS", "is missing")
    return value


def pod(variables: Variables, *, lenient: bool) -> PodRef | None:
    """The pod in CNI_ARGS, or None if it names none; lenient: None for a wrong one as well."""
    try:
        return parse_args(_text(variables, "CNI_ARGS"))
    except CniError:
        if lenient:
            return None
        raise


def parse_args(value: str) -> PodRef | None:
    """Reads CNI_ARGS, e.g. "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0".

    Unknown keys are an error unless IgnoreUnknown is true. Returns None if no pod is named.
    """
    pairs: dict[str, str] = {}
    for pair in filter(None, value.split(";")):
        key, separator, text = pair.partition("=")
        if not separator or not key or "=" in text:
            raise _invalid("CNI_ARGS", f"{pair!a} is not of the form KEY=value")
        pairs[key] = text
    ignore = pairs.pop("IgnoreUnknown", "0").lower()
    if ignore not in ("0", "1", "false", "true"):
        raise _invalid("CNI_ARGS", f"IgnoreUnknown={ignore!a} is neither true nor false")
    unknown = sorted(pairs.keys() - set(_POD_KEYS))
    if unknown and ignore in ("0", "false"):
        raise _invalid("CNI_ARGS", f"holds the unknown keys {', '.join(unknown)!a}")
    namespace, name, infra_container_id, uid = (pairs.get(key, "") for key in _POD_KEYS)
    if not namespace and not name:
        return None
    if not _DNS_LABEL.fullmatch(namespace):
        raise _invalid("CNI_ARGS", f"K8S_POD_NAMESPACE={namespace!a} is no namespace")
    if not _DNS_SUBDOMAIN.fullmatch(name):
        raise _invalid("CNI_ARGS", f"K8S_POD_NAME={name!a} is no name of a pod")
    return PodRef(namespace, name, uid, infra_container_id)


def _text(variables: Variables, name: str) -> str:
    try:
        return variables.get(name, b"").decode()
    except UnicodeDecodeError as error:
        raise _invalid(name, "is not UTF-8") from error


def _invalid(name: str, problem: str) -> CniError:
    return CniError(ErrorCode.INVALID_ENVIRONMENT, f"{name} {problem}")
