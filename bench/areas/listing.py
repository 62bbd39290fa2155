# SPDX-License-Identifier: Apache-2.0
"""10,000 pods, listed from an API server over TLS, decoded and passed on: time and memory.

The source runs in a process of its own with nothing else in it, on one core.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from agent.core.events import Event, PodUpserted, SourceFailed, SourceSynced
from agent.kube.access import Access
from agent.kube.cluster import ClusterSource
from agent.kube.credentials import from_kubeconfig
from agent.kube.kinds import NAMESPACE, NODE, POD
from bench.areas.measure import median, summary
from bench.lab.apiserver import ApiServerProcess, write_kubeconfig
from bench.report import REPOSITORY, Claim

PODS = 10_000
ROUNDS = 5
_NODE = "node-1"
_LOAD = 500


def run() -> list[Claim]:
    """All claims of the area."""
    with tempfile.TemporaryDirectory(prefix="bristle-t-listing-") as folder:
        path = Path(folder)
        with ApiServerProcess(path / "server", tls=True) as server:
            size = 0
            for first in range(0, PODS, _LOAD):
                pods = [pod(number) for number in range(first, first + _LOAD)]
                size += sum(len(json.dumps(one, separators=(",", ":"))) for one in pods)
                server.load(pods)
            config = path / "kubeconfig"
            write_kubeconfig(config, server.url, ca=server.ca)
            rounds = [_round(config) for _ in range(ROUNDS)]
    seconds = [one["seconds"] for one in rounds]
    raw = {"seconds": summary(seconds), "rounds": rounds, "bytes_per_pod": size // PODS}
    peak = max(one["peak_mib"] - one["baseline_mib"] for one in rounds)
    return [
        Claim(f"{PODS} pods listed, decoded, emitted", median(seconds), 3, "s", raw=raw),
        Claim("  CPU time of it", median([one["cpu_seconds"] for one in rounds]), 3, "s"),
        Claim("  peak of memory above what it was before", peak, 150, "MiB"),
        Claim("  facts alone, after it", median([one["kept_mib"] for one in rounds]), None, "MiB"),
        Claim("memory of the client's modules", rounds[0]["imports_mib"], None, "MiB"),
    ]


def _round(config: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.areas.listing", str(config)]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(done.stdout)
    return found


# ---- in the process that is measured -------------------------------------------------------------


def measure(config: Path) -> dict[str, float]:
    """One source from its start to its first full delivery."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    bare = _resident()
    done, pods, trouble = threading.Event(), [], []

    def emit(event: Event) -> None:
        if isinstance(event, PodUpserted):
            pods.append(event.pod)
        elif isinstance(event, SourceFailed):
            trouble.append(event.reason)
        elif isinstance(event, SourceSynced):
            done.set()

    access = Access(from_kubeconfig(config), "bristle-bench")
    access.request("GET", NODE.collection)  # imports, certificates, a connection
    baseline = _resident()
    cpu, began = time.process_time(), time.monotonic()
    source = ClusterSource(access, _NODE, emit, kinds=(NODE, NAMESPACE, POD))
    source.start()
    if not done.wait(60):
        raise RuntimeError(f"not synchronised: {trouble}")
    seconds, spent = time.monotonic() - began, time.process_time() - cpu
    kept = _resident() - baseline
    source.stop()
    assert len(pods) == PODS, len(pods)
    return {
        "seconds": seconds,
        "cpu_seconds": spent,
        "baseline_mib": baseline,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "kept_mib": kept,
        "imports_mib": baseline - bare,
    }


def _resident() -> float:
    """MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS in /proc/self/status")


def pod(number: int) -> dict[str, Any]:
    """A pod of about 4 KB, as a Deployment with a sidecar, and the kubelet, leave it."""
    name, workload = f"web-{number // 20:04}-{number:05x}", f"web-{number // 20:04}"
    address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    stamp = "2026-01-01T00:00:00Z"
    mounts = [
        {
            "name": f"kube-api-access-{number:05x}",
            "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
            "readOnly": True,
        }
    ]
    containers = [
        {
            "name": part,
            "image": f"registry.example.org/shop/{part}:1.2.3",
            "imagePullPolicy": "IfNotPresent",
            "ports": [{"name": port, "containerPort": value, "protocol": "TCP"}],
            "env": [{"name": f"SETTING_{i}", "value": f"value-{i}"} for i in range(6)],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
            "volumeMounts": mounts,
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
        }
        for part, port, value in (("main", "http", 8080), ("proxy", "mesh", 15001))
    ]
    fields: dict[str, Any] = {
        f"f:setting-{i}": {".": {}, "f:name": {}, "f:value": {}} for i in range(8)
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": f"shop-{number % 50}",
            "uid": f"00000000-0000-4000-8000-{number:012x}",
            "creationTimestamp": stamp,
            "generateName": f"{workload}-",
            "labels": {
                "app.kubernetes.io/name": workload,
                "app.kubernetes.io/part-of": "shop",
                "tier": "front",
                "pod-template-hash": f"{number // 20:010x}",
            },
            "annotations": {"example.org/checksum": "0123456789abcdef" * 4},
            "ownerReferences": [
                {
                    "apiVersion": "apps/v1",
                    "kind": "ReplicaSet",
                    "name": workload,
                    "uid": f"00000000-0000-4000-9000-{number // 20:012x}",
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
            "managedFields": [
                {
                    "manager": "kube-controller-manager",
                    "operation": "Update",
                    "apiVersion": "v1",
                    "time": stamp,
                    "fieldsType": "FieldsV1",
                    "fieldsV1": {"f:spec": {"f:containers": fields}},
                }
            ],
        },
        "spec": {
            "nodeName": _NODE,
            "serviceAccountName": "shop",
            "restartPolicy": "Always",
            "dnsPolicy": "ClusterFirst",
            "schedulerName": "default-scheduler",
            "terminationGracePeriodSeconds": 30,
            "containers": containers,
            "volumes": [{"name": mounts[0]["name"], "projected": {"defaultMode": 420}}],
        },
        "status": {
            "phase": "Running",
            "hostIP": "192.0.2.1",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "startTime": stamp,
            "conditions": [
                {"type": kind, "status": "True", "lastTransitionTime": stamp}
                for kind in ("Initialized", "Ready", "ContainersReady", "PodScheduled")
            ],
            "containerStatuses": [
                {
                    "name": one["name"],
                    "image": one["image"],
                    "imageID": f"{one['image']}@sha256:{'0123456789abcdef' * 4}",
                    "containerID": f"containerd://{number:064x}",
                    "ready": True,
                    "started": True,
                    "restartCount": 0,
                    "state": {"running": {"startedAt": stamp}},
                }
                for one in containers
            ],
        },
    }


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
