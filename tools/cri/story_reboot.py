# SPDX-License-Identifier: Apache-2.0
"""A node that starts anew: nothing of the kernel's state and of /run is left, but all files are."""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path

from bench.lab.netns import execute, mount, unmount
from tools.cri.node import Node
from tools.cri.report import Report
from tools.cri.story_failures import refused, remove
from tools.cri.story_pods import reached, run, serves

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def tell(node: Node, report: Report) -> None:
    """Leaves nothing but an agent that runs."""
    node.start_agent()
    before = [run(node, name) for name in ("web", "cart")]
    _boot(node)
    node.cri = node.containerd.start()
    report.check(not node.cri.ready(), "after a boot no sandbox runs")
    node.wait(lambda: node.cri.network()[0], "NetworkReady")
    said = refused(node, before[0].sandbox, 1)
    report.check("bristle agent" in said, "before the agent a sandbox is refused", said)
    report.say(f"it says: {said}")
    for pod in before:
        node.cri.stop(pod.identity)
    report.note("former sandboxes can be stopped")
    node.start_agent()
    after = [run(node, pod.sandbox.name, 2) for pod in before]
    for pod in after:
        node.wait(lambda pod=pod: serves(node, pod), f"{pod.sandbox.name} to listen")  # type: ignore[misc]
    report.check(reached(node, after[0], after[1]) == {4, 6}, "with the agent pods run and talk")
    for pod in before:
        node.cri.remove(pod.identity)
    report.check(len(node.agent.endpoints()) == 2, "removing the former ones harms none of them")
    remove(node, report, "and nothing is left of both boots")


def _boot(node: Node) -> None:
    """Ends every process of this tree, and what a kernel forgets."""
    assert os.getpid() == 1, "this tree is not ours alone"
    for process in Path("/proc").glob("[0-9]*"):
        if process.name != "1":
            os.kill(int(process.name), signal.SIGKILL)
    node.agent.kill()
    node.containerd.kill()
    execute(["umount", "-R", "-l", "/run"])
    mount("tmpfs", Path("/run"))
    Path("/run/netns").mkdir()
    node.outside.path.touch()
    execute(
        [
            "mount",
            "--no-canonicalize",
            "--bind",
            f"/proc/1/fd/{node.outside.fd}",
            str(node.outside.path),
        ]
    )
    unmount(node.work / "bpf")
    mount("bpf", node.work / "bpf")
    node.wait(lambda: not node.devices(), "pods' devices to be gone")
    fresh = node.work / "boot_id"
    fresh.write_text(f"{uuid.uuid4()}\n")
    execute(["mount", "--bind", str(fresh), str(BOOT_ID)])
