# SPDX-License-Identifier: Apache-2.0
"""The network configuration that a runtime sends on stdin. Pure.

Source: CNI spec 1.1.0, "Section 1: Network configuration format" and "Deriving request from plugin
configuration"; CONVENTIONS.md for `args`, `capabilities` and `runtimeConfig`. Keys of our own:

* `runDir` (default /var/run/bristle): the relay finds the agent's socket `cni.sock` in it.
* `stateDir` (default /var/lib/bristle): the relay keeps removals in its folder `spool` while no
  agent runs. It must be the agent's state_dir.

ADD and CHECK are read strictly. DEL, GC and STATUS are read leniently: whatever a removal does not
need cannot hinder it, so faults outside name, version and attachments are passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NoReturn, TypeVar

from cni import fields, results
from cni.errors import CniError, ErrorCode
from cni.results import DNS, Result

DEFAULT_RUN_DIR: Final = "/var/run/bristle"
DEFAULT_STATE_DIR: Final = "/var/lib/bristle"

# The spec's form of a network name; a container id has the same one.
NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", re.ASCII)

VALID_ATTACHMENTS: Final = ("cni.dev/valid-attachments", "cni.dev/attachments")
"""The key of the spec, and the one of its drafts; libcni writes both."""

T = TypeVar("T")


class Command(StrEnum):
    """CNI_COMMAND."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    GC = "GC"
    STATUS = "STATUS"
    VERSION = "VERSION"


_SINCE: Final = {Command.CHECK: "0.4.0", Command.GC: "1.1.0", Command.STATUS: "1.1.0"}


@dataclass(frozen=True, slots=True)
class Attachment:
    """What one ADD makes and one DEL removes, within a network."""

    container_id: str
    ifname: str


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """A checked network configuration. Mappings are as decoded; nobody may change them."""

    version: str
    name: str
    type: str
    run_dir: str = DEFAULT_RUN_DIR
    state_dir: str = DEFAULT_STATE_DIR
    dns: DNS = field(default_factory=DNS)
    prev_result: Result | None = None
    """Of the plugin before us (ADD), or of the whole chain's ADD (CHECK, DEL)."""
    valid_attachments: frozenset[Attachment] = frozenset()
    """GC: what may stay, in the network `name`. Empty for other commands."""
    capabilities: frozenset[str] = frozenset()
    runtime_config: Mapping[str, object] = field(default_factory=dict)
    """Values for capabilities, by name; their form is CONVENTIONS.md's, unchecked here."""
    args: Mapping[str, object] = field(default_factory=dict)


def decode(stdin: bytes) -> Mapping[str, object]:
    """The JSON object on stdin. CniError: DECODING_FAILURE if it is none (RFC 8259)."""
    try:
        value: object = json.loads(stdin.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CniError(
            ErrorCode.DECODING_FAILURE,
            "the network configuration on stdin is no JSON",
            str(error),
        ) from error
    if not isinstance(value, dict):
        raise CniError(
            ErrorCode.DECODING_FAILURE, "the network configuration on stdin is no JSON object"
        )
    return value


def version_hint(stdin: bytes) -> str:
    """The supported version that an answer to this configuration should have: its own, or the
    newest one if it has none of ours. Never fails."""
    try:
        version = decode(stdin).get("cniVersion")
    except CniError:
        return results.NEWEST
    return version if isinstance(version, str) and version in results.VERSIONS else results.NEWEST


def parse_config(stdin: bytes, command: Command) -> NetworkConfig:
    """Reads and checks a configuration for a command other than VERSION. Raises CniError."""
    top = decode(stdin)
    version = _parse_version(top, command)
    strict = command in (Command.ADD, Command.CHECK)

    def read(parse: Callable[[object, str], T], key: str, fallback: T) -> T:
        try:
            return parse(top.get(key), key)
        except CniError:
            if strict:
                raise
            return fallback

    name = fields.as_string(top.get("name"), "name")
    if not NAME.fullmatch(name):
        raise fields.invalid(
            "name",
            f"{name!a} must begin with a letter or digit and hold only those, '_', '.' and '-'",
        )
    plugin = read(fields.as_string, "type", "")
    if strict and not plugin:
        raise fields.invalid("type", "is missing")
    previous = top.get("prevResult")
    if command is Command.CHECK and previous is None:
        raise fields.invalid("prevResult", "is missing; CHECK needs the result of ADD")
    if command is Command.ADD:
        _refuse_unsupported(top)
    return NetworkConfig(
        version=version,
        name=name,
        type=plugin,
        run_dir=read(_folder, "runDir", "") or DEFAULT_RUN_DIR,
        state_dir=read(_folder, "stateDir", "") or DEFAULT_STATE_DIR,
        dns=read(results.parse_dns, "dns", DNS()),
        prev_result=(None if previous is None else read(_parse_previous, "prevResult", None)),
        valid_attachments=_parse_attachments(top) if command is Command.GC else frozenset(),
        capabilities=read(_parse_capabilities, "capabilities", frozenset()),
        runtime_config=read(fields.as_object, "runtimeConfig", {}),
        args=read(fields.as_object, "args", {}),
    )


def _parse_version(top: Mapping[str, object], command: Command) -> str:
    # The spec's oldest versions had no such key.
    version = fields.as_string(top.get("cniVersion"), "cniVersion") or "0.1.0"
    if version not in results.VERSIONS:
        raise CniError(
            ErrorCode.INCOMPATIBLE_VERSION,
            f"cniVersion {version!a} is not supported; supported: {', '.join(results.VERSIONS)}",
        )
    since = _SINCE.get(command)
    if since is not None and not results.at_least(version, since):
        raise CniError(
            ErrorCode.INCOMPATIBLE_VERSION,
            f"cniVersion {version} has no {command}; it came with {since}",
        )
    return version


def _refuse_unsupported(top: Mapping[str, object]) -> None:
    """What would be ignored silently, to the harm of whoever wrote it."""
    ipam = fields.as_object(top.get("ipam"), "ipam")
    ipam_type = fields.as_string(ipam.get("type"), "ipam.type")
    if ipam_type:
        raise CniError(
            ErrorCode.UNSUPPORTED_FIELD,
            f"ipam.type {ipam_type!a} is not supported: the bristle agent gives the addresses;"
            " remove ipam",
        )
    if fields.as_boolean(top.get("ipMasq"), "ipMasq"):
        raise CniError(
            ErrorCode.UNSUPPORTED_FIELD,
            "ipMasq true is not supported: masquerading is up to the agent; remove ipMasq",
        )


def _parse_previous(value: object, key: str) -> Result | None:
    return results.parse_result(value, key)


def _parse_capabilities(value: object, key: str) -> frozenset[str]:
    entries = fields.as_object(value, key).items()
    return frozenset(name for name, wanted in entries if fields.as_boolean(wanted, f"{key}.{name}"))


def _parse_attachments(top: Mapping[str, object]) -> frozenset[Attachment]:
    """Both keys together: what either of them names may stay.

    A missing key is an error, for it would mean that nothing may stay. null is how libcni writes
    an empty list.
    """
    present = [key for key in VALID_ATTACHMENTS if key in top]
    if not present:
        raise fields.invalid(VALID_ATTACHMENTS[0], "is missing; GC needs to know what may stay")
    found: set[Attachment] = set()
    for key in present:
        for index, item in enumerate(fields.as_list(top[key], key)):
            place = f"{key}[{index}]"
            entry = fields.as_object(item, place)
            container_id = fields.as_string(entry.get("containerID"), f"{place}.containerID")
            ifname = fields.as_string(entry.get("ifname"), f"{place}.ifname")
            if not container_id or not ifname:
                raise fields.invalid(place, "needs containerID and ifname")
            found.add(Attachment(container_id, ifname))
    return frozenset(found)


def _folder(value: object, key: str) -> str:
    text = fields.as_string(value, key)
    if value is not None and (not text.startswith("/") or "\0" in text):
        raise fields.invalid(key, "must be an absolute path")
    return text


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
