# SPDX-License-Identifier: Apache-2.0
"""10,000 pods and 1,000 policies in a real agent with 110 pods of its own: cold start, changes,
memory. A change is timed from the manifest's rename until the kernel's maps show it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agent.kernel.maps import PinnedMap
from bench import report
from bench.areas.measure import median, percentile, summary
from bench.areas.world import PodSpec, World
from bench.lab import manifests
from bench.lab.netns import LabError
from bench.lab.node import Lab
from bench.report import Claim
from bpf import maps
from bpf.layouts import PeerKey

LOCAL = 110
CHANGES = 100
PAUSE = 0.1
_PODS = "pods"
_PATIENCE = 60.0


def run() -> list[Claim]:
    """All claims of the area. Takes about two minutes."""
    world = World.make(LOCAL)
    changing = (world.pods[5], world.local[3])
    claims: list[Claim] = []
    with Lab() as lab:
        report.say(f"CNI ADD of {LOCAL} pods")
        for pod in world.local:
            lab.add_pod(pod.namespace, pod.name, manifest=False)
        lab.agent.stop()
        for kind in ("yaml", "json"):
            shutil.rmtree(lab.scope.manifests)
            lab.scope.manifests.mkdir()
            size = world.write(lab.scope.manifests, kind, changing)
            for index, pod in enumerate(changing):
                lab.manifests.put(f"changing-{index}", [pod.manifest(pod in world.local)])
            claims += _cold(lab, kind, size)
            if kind == "yaml":
                lab.agent.stop()
        claims += memory(lab.agent.pid, "10,000 pods", 250)
        claims += _changes(lab, world, changing)
        claims += memory(lab.agent.pid, "after the changes", None)
        lab.agent.stop()
        started = time.monotonic()
        _launch(lab)
        claims.append(Claim("  again, with the kernel's maps as they were (JSON)",
                            time.monotonic() - started, None, "s"))  # fmt: skip
    return claims + _small()


def _cold(lab: Lab, kind: str, size: int) -> list[Claim]:
    """Without compiled programs, programs and maps from before."""
    report.say(f"cold start, {kind}, {size >> 20} MiB of manifests")
    for folder in (lab.scope.bpffs / "maps", lab.scope.bpffs / "programs"):
        for pin in folder.iterdir():
            pin.unlink()
    shutil.rmtree(lab.scope.run_dir / "programs")
    began = time.monotonic()
    marks = _launch(lab)
    took = time.monotonic() - began
    entries = {one.name: one.entries for one in lab.agent.status().maps}
    raw = {"seconds_to": marks, "manifest_bytes": size, "entries": entries}
    return [Claim(f"cold start to in force, manifests as {kind}", took, 10, "s", raw=raw)]


def _launch(lab: Lab) -> dict[str, float]:
    """Starts the agent and waits until it has written `in force`; seconds to some of its lines."""
    at = lab.agent.log.stat().st_size
    began = time.monotonic()
    marks: dict[str, float] = {}
    lab.agent.launch()
    while "in force" not in marks:
        time.sleep(0.002)
        text = lab.agent.log.read_bytes()[at:]
        now = time.monotonic() - began
        for mark in ("endpoints:", "is up", "in force"):
            if mark.encode() in text:
                marks.setdefault(mark, now)
        if now > _PATIENCE:
            raise LabError(f"not in force after {now:.0f} s\n{lab.agent.tail()}")
    lab.agent.wait_ready()
    return marks


def memory(pid: int, what: str, bar: float | None) -> list[Claim]:
    """Resident memory of a process, now and at its highest."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    values = {name: int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM", "RssAnon")}
    return [
        Claim(f"agent resident, {what}", values["VmRSS"], bar, "MiB", raw=values),
        Claim("  at its highest", values["VmHWM"], bar, "MiB", raw=values),
    ]


def _changes(lab: Lab, world: World, changing: Sequence[PodSpec]) -> list[Claim]:
    folder = lab.scope.bpffs / "maps"
    remote, local = changing
    times: dict[str, list[float]] = {}
    with (
        PinnedMap.open(maps.PEERS, folder) as peers,
        PinnedMap.open(maps.ENDPOINTS, folder) as endpoints,
    ):
        key = PeerKey(128, bytes(10) + b"\xff\xff" + bytes(map(int, remote.address.split("."))))
        number = lab.agent.endpoint(f"{local.namespace}/{local.name}").id

        def own() -> Any:
            value = endpoints.lookup(number)
            return value and value.identity

        def change(index: int, pod: PodSpec, seen: Callable[[], Any], turn: int) -> float:
            # Another identity each time, which another set of selectors matches.
            labels = {"a": f"a-{turn % 20}", "version": f"v{turn}"}
            before = seen()
            began = time.monotonic()
            lab.manifests.put(f"changing-{index}", [pod.manifest(pod in world.local, **labels)])
            while seen() == before:
                time.sleep(0.0002)
                if time.monotonic() - began > _PATIENCE:
                    raise LabError(f"the change of {pod.name} is not in force\n{lab.agent.tail()}")
            took = (time.monotonic() - began) * 1000
            time.sleep(PAUSE)
            return took

        report.say(f"{CHANGES} label changes of a remote pod, then of a local one")
        times["of a pod elsewhere"] = [
            change(0, remote, lambda: peers.lookup(key), turn) for turn in range(CHANGES)
        ]
        times["of a pod of this node"] = [change(1, local, own, turn) for turn in range(CHANGES)]
    claims = []
    for what, values in times.items():
        raw = {**summary(values), "rounds": values}
        claims.append(Claim(f"label change {what}, manifest to kernel, p99",
                            percentile(values, 99), 50, "ms", raw=raw))  # fmt: skip
        claims.append(Claim("  median", median(values), None, "ms"))
    return claims


def _small() -> list[Claim]:
    """An ordinary node: 100 pods of its own."""
    report.say("100 pods")
    rule = {"from": [{"podSelector": {"matchLabels": {"app": "app-1"}}}]}
    with Lab() as lab:
        pods = [manifests.pod(_PODS, f"p{i}", {"app": f"app-{i % 10}"}) for i in range(100)]
        policy = manifests.policy(_PODS, "policy", {"podSelector": {}, "ingress": [rule]})
        lab.manifests.put("world", [manifests.namespace(_PODS), *pods, policy])
        for i in range(100):
            lab.add_pod(_PODS, f"p{i}", manifest=False)
        return memory(lab.agent.pid, "100 pods", 100)
