# SPDX-License-Identifier: Apache-2.0
"""The DaemonSet's pod in the runtime's terms, as kubelet translates it (kuberuntime_container.go).

Knows the fields that bristle's manifest uses; tools/oci_bundle.py refuses what it does not know.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

Json = dict[str, Any]

IMAGE_ENTRY = "/opt/bristle/bin/bristle"
_PROPAGATION = {None: 0, "None": 0, "HostToContainer": 1}
_UNCONFINED, _RUNTIME_DEFAULT = {"profile_type": 1}, {"profile_type": 0}
# What kubelet hides of /proc and /sys (DefaultMaskedPaths, DefaultReadonlyPaths).
_MASKED = [
    "/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
]  # fmt: skip
_READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def pod(*settings: str) -> Json:
    """The pod's specification with these values of the chart."""
    arguments = [word for one in settings for word in ("--set", one)]
    command = [str(Path(sys.prefix, "bin/bristle")), "install", "--no-crds", *arguments]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (found,) = [one for one in yaml.safe_load_all(printed) if one["kind"] == "DaemonSet"]
    return dict(found["spec"]["template"]["spec"])


def host_paths(spec: Mapping[str, Any]) -> dict[str, str]:
    """Folders of the node by volume; those that kubelet makes are missing."""
    volumes = spec["volumes"]
    return {one["name"]: one["hostPath"]["path"] for one in volumes if "hostPath" in one}


def container_config(
    container: Mapping[str, Any],
    *,
    volumes: Mapping[str, str],
    fields: Mapping[str, str],
    lacking: set[str],
    attempt: int,
) -> Json:
    """ContainerConfig. fields: values of fieldRef. lacking: capabilities that nobody can give."""
    security = container["securityContext"]
    capabilities = security["capabilities"]
    environment = {
        one["name"]: one.get("value") or fields[one["valueFrom"]["fieldRef"]["fieldPath"]]
        for one in container.get("env", [])
    }
    arguments = list(container.get("args", []))
    for name, value in environment.items():
        arguments = [argument.replace(f"$({name})", value) for argument in arguments]
    unconfined = security.get("appArmorProfile", {}).get("type") == "Unconfined"
    return {
        "metadata": {"name": container["name"], "attempt": attempt},
        "image": {"image": container["image"]},
        "command": container.get("command", []),
        "args": arguments,
        "envs": [{"key": key, "value": value.encode()} for key, value in environment.items()],
        "log_path": f"{container['name']}_{attempt}.log",
        "mounts": [
            {
                "container_path": one["mountPath"],
                "host_path": volumes[one["name"]],
                "readonly": one.get("readOnly", False),
                "propagation": _PROPAGATION[one.get("mountPropagation")],
            }
            for one in container.get("volumeMounts", [])
        ],
        "linux": {
            "security_context": {
                "capabilities": {
                    "add_capabilities": [one for one in capabilities.get("add", [])
                                         if one not in lacking],
                    "drop_capabilities": capabilities.get("drop", []),
                },
                "namespace_options": {"network": 2, "pid": 1, "ipc": 0},
                "run_as_user": {"value": 0},
                "run_as_group": {"value": 0},
                "readonly_rootfs": security.get("readOnlyRootFilesystem", False),
                "no_new_privs": not security.get("allowPrivilegeEscalation", True),
                "seccomp": _RUNTIME_DEFAULT,
                "apparmor": _UNCONFINED if unconfined else None,
                "masked_paths": _MASKED,
                "readonly_paths": _READ_ONLY,
            }
        },
    }  # fmt: skip
