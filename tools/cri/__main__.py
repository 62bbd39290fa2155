# SPDX-License-Identifier: Apache-2.0
"""Runs the agent as the network of a real containerd, driven by its CRI as kubelet drives it.

    python -m tools.cri --proto API.PROTO --work FOLDER CONTAINERD_FOLDER...

Each containerd has a process tree of its own with its own network and mounts, so nothing of the
machine is touched, and all of it ends with that tree, also when it is killed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from bench.lab.netns import LabError
from tools.cri import (
    report,
    story_chain,
    story_daemonset,
    story_failures,
    story_limits,
    story_many,
    story_pods,
    story_ready,
    story_reboot,
    story_redirect,
    story_runtime,
)
from tools.cri.client import CriError, generate
from tools.cri.node import Failure, Node, remove_cgroups

ROOT = Path(__file__).resolve().parents[2]
STORIES = {
    "ready": story_ready.tell,
    "pods": story_pods.tell,
    "failures": story_failures.tell,
    "runtime": story_runtime.tell,
    "many": story_many.tell,
    "limits": story_limits.tell,
    "reboot": story_reboot.tell,
    "chain": story_chain.tell,
    "redirect": story_redirect.tell,
    "daemonset": story_daemonset.tell,
    "upgrade": story_runtime.upgrade,
}


def main() -> int:
    """Exit status 1 if anything is not as it has to be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--proto", type=Path, required=True, help="the CRI's api.proto")
    parser.add_argument("--plugins", type=Path, required=True, help="where loopback is")
    parser.add_argument("--work", type=Path, required=True, help="an empty folder of the caller's")
    parser.add_argument("--image", type=Path, help="archive of bristle's image: daemonset, too")
    parser.add_argument("--only", action="append", choices=STORIES, help="some stories alone")
    parser.add_argument("--following", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("executables", type=Path, nargs="+", help="folders of a containerd each")
    options = parser.parse_args()
    if options.inside is not None:
        (executables,) = options.executables
        return _inside(options, executables)
    reports, status = [], 0
    folders = options.executables
    for number, (executables, following) in enumerate(
        zip(folders, [*folders[1:], None], strict=True)
    ):
        work = options.work / f"node-{number}"
        work.mkdir()
        status |= _outside(options, executables, following, work, number)
        if (work / "report").exists():
            reports.append(work / "report")
    if reports:
        print(f"\n{report.table(reports)}")
    return status


def _outside(
    options: argparse.Namespace, executables: Path, following: Path | None, work: Path, number: int
) -> int:
    """The same again as process 1 of namespaces of its own, which die with it."""
    prefix = f"bristle-t-{os.getpid()}-cri{number}"
    only = [word for story in options.only or () for word in ("--only", story)]
    if options.image is not None:
        only += ["--image", str(options.image.resolve())]
    if following is not None:
        only += ["--following", str(following)]
    command = [
        "setpriv", "--pdeathsig", "KILL", "--",
        "unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child",
        "--mount-proc", sys.executable, "-m", "tools.cri", "--proto", str(options.proto),
        "--plugins", str(options.plugins), "--work", str(work), *only,
        "--inside", prefix, str(executables),
    ]  # fmt: skip
    try:
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    finally:
        remove_cgroups(prefix)


def _inside(options: argparse.Namespace, executables: Path) -> int:
    generate(options.proto, options.work)
    title = "containerd"
    try:
        with Node(
            executables, options.plugins, options.work, options.inside, options.following
        ) as node:
            node.image = options.image
            title = node.containerd.title
            told = report.Report(title)
            try:
                for name, tell in STORIES.items():
                    if not options.only or name in options.only:
                        told.chapter = name
                        tell(node, told)
            finally:
                told.save(options.work / "report")
    except (Failure, LabError, CriError) as error:
        print(f"{title}: FAILED: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
