# SPDX-License-Identifier: Apache-2.0
"""A container of a pod as an OCI runtime configuration, as a kubelet's runtime would make it.

So that what a DaemonSet asks for can be tried with runc alone: its rights and mounts are taken
from the manifest, not written down a second time. Knows the fields that bristle's manifest uses,
and refuses others of a container.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

Json = dict[str, Any]

_KNOWN: Final = {
    "args", "command", "env", "image", "imagePullPolicy", "livenessProbe", "name", "ports",
    "readinessProbe", "resources", "securityContext", "startupProbe", "terminationMessagePolicy",
    "volumeMounts",
}  # fmt: skip
_SECURITY: Final = {
    "allowPrivilegeEscalation", "appArmorProfile", "capabilities", "privileged",
    "readOnlyRootFilesystem",
}  # fmt: skip
_MASKED: Final = [
    "/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
]  # fmt: skip
_READ_ONLY: Final = [
    "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"
]  # fmt: skip
_PROPAGATION: Final = {None: "rprivate", "None": "rprivate", "HostToContainer": "rslave"}
_ARCHITECTURES: Final = {"x86_64": ("amd64", "SCMP_ARCH_X86_64"),
                         "aarch64": ("arm64", "SCMP_ARCH_AARCH64")}  # fmt: skip


class BundleError(Exception):
    """A manifest with something that is not understood here."""


@dataclass(frozen=True, slots=True)
class Image:
    """An unpacked image: its file system, entry point and environment."""

    root: Path
    entrypoint: Sequence[str]
    environment: Sequence[str]


def runtime_config(
    container: Mapping[str, Any],
    image: Image,
    *,
    volumes: Mapping[str, Path],
    fields: Mapping[str, str],
    cgroup: str,
    seccomp: Path | None,
) -> Json:
    """config.json of one container of a pod with hostNetwork.

    volumes: host folder of each volume. fields: values of fieldRef. cgroup: path below the root.
    seccomp: profile in the containers' format, as RuntimeDefault; None: none.
    Raises BundleError.
    """
    security = container.get("securityContext", {})
    unknown = (container.keys() - _KNOWN) | (security.keys() - _SECURITY)
    if unknown or security.get("privileged"):
        raise BundleError(f"{container['name']}: not understood: {sorted(unknown) or 'privileged'}")
    capabilities = _capabilities(security.get("capabilities", {}))
    environment = {
        entry["name"]: entry["value"]
        if "value" in entry
        else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in container.get("env", [])
    }
    arguments = list(container.get("command", image.entrypoint)) + [
        _expanded(argument, environment) for argument in container.get("args", [])
    ]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": arguments,
            "env": [*image.environment, *(f"{k}={v}" for k, v in environment.items())],
            "cwd": "/",
            "noNewPrivileges": not security.get("allowPrivilegeEscalation", True),
            "capabilities": {kind: capabilities for kind in ("bounding", "effective", "permitted")},
        },
        "root": {
            "path": str(image.root),
            "readonly": security.get("readOnlyRootFilesystem", False),
        },
        "mounts": [*_standard_mounts(), *_volume_mounts(container, volumes)],
        "linux": {
            # Neither network nor uts: the host's, with hostNetwork.
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "mount", "cgroup")],
            "cgroupsPath": cgroup,
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "maskedPaths": _MASKED,
            "readonlyPaths": _READ_ONLY,
            **({} if seccomp is None else {"seccomp": seccomp_filter(seccomp, capabilities)}),
        },
    }


def seccomp_filter(profile: Path, capabilities: Sequence[str]) -> Json:
    """The OCI form of a profile for these capabilities on this machine."""
    document = json.loads(profile.read_text())
    name, architecture = _ARCHITECTURES[platform.machine()]

    def holds(condition: Mapping[str, Any] | None, *, empty: bool) -> bool:
        if not condition:
            return empty
        caps, arches = condition.get("caps", []), condition.get("arches", [])
        return all(one in capabilities for one in caps) and (not arches or name in arches)

    rules = [
        {key: rule[key] for key in ("names", "action", "args", "errnoRet") if rule.get(key)}
        for rule in document["syscalls"]
        if holds(rule.get("includes"), empty=True) and not holds(rule.get("excludes"), empty=False)
    ]
    below = [one["subArchitectures"] for one in document["archMap"]
             if one["architecture"] == architecture]  # fmt: skip
    return {
        "defaultAction": document["defaultAction"],
        "defaultErrnoRet": document.get("defaultErrnoRet", 1),
        "architectures": [architecture, *(below[0] if below else [])],
        "syscalls": rules,
    }


def _capabilities(wanted: Mapping[str, Sequence[str]]) -> list[str]:
    if list(wanted.get("drop", [])) != ["ALL"]:
        raise BundleError("capabilities: a container that keeps the runtime's own is not expected")
    return [f"CAP_{name}" for name in wanted.get("add", [])]


def _expanded(argument: str, environment: Mapping[str, str]) -> str:
    for name, value in environment.items():
        argument = argument.replace(f"$({name})", value)
    return argument


def _volume_mounts(container: Mapping[str, Any], volumes: Mapping[str, Path]) -> list[Json]:
    return [
        {
            "destination": mount["mountPath"],
            "source": str(volumes[mount["name"]]),
            "type": "bind",
            "options": [
                "rbind",
                _PROPAGATION[mount.get("mountPropagation")],
                "ro" if mount.get("readOnly") else "rw",
            ],
        }
        for mount in container.get("volumeMounts", [])
    ]


def _standard_mounts() -> list[Json]:
    def special(destination: str, kind: str, *options: str) -> Json:
        return {
            "destination": destination,
            "type": kind,
            "source": kind,
            "options": ["nosuid", *options],
        }

    return [
        special("/proc", "proc", "noexec", "nodev"),
        special("/dev", "tmpfs", "strictatime", "mode=755", "size=65536k"),
        special("/dev/pts", "devpts", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
        special("/dev/shm", "tmpfs", "noexec", "nodev", "mode=1777", "size=65536k"),
        special("/dev/mqueue", "mqueue", "noexec", "nodev"),
        special("/sys", "sysfs", "noexec", "nodev", "ro"),
        special("/sys/fs/cgroup", "cgroup", "noexec", "nodev", "relatime", "ro"),
    ]
