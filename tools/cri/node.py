# SPDX-License-Identifier: Apache-2.0
"""A node in namespaces of its own: mounts, network, cgroups, containerd, the agent.

All of it belongs to a process tree that ends with its first process, also when that is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from bench.lab import manifests
from bench.lab.agent import BRISTLE, KEPT, Agent
from bench.lab.manifests import ManifestFolder
from bench.lab.netns import LabError, Namespace, execute, mount
from bench.lab.scope import cgroup2
from bench.lab.station import UPLINK, wire_uplink
from tools.cri import image
from tools.cri.client import Cri, Sandbox
from tools.cri.runtime import Containerd

POD_CIDRS = ["10.244.1.0/24", "fd00:10:244:1::/112"]
CONFLIST = "05-bristle.conflist"
CGROUPS = Path("/sys/fs/cgroup")
FOLDERS = ("bin", "relay", "conf", "manifests", "state", "bpf", "cgroup", "tmp", "var-lib")

T = TypeVar("T")

# Says what the runtime asked for, and passes it on unchanged.
_RECORDER = """#!/bin/sh
input=$(cat)
printf '%s %s\\n' "$CNI_COMMAND" "$input" >>{log}
printf '%s' "$input" | {relay}
"""


class Failure(Exception):
    """Something is not as it has to be; the message says what."""


class Node:
    """A context manager. work: an empty folder. executables: where containerd is. plugins: where
    `loopback` is, which the runtime calls before any other, and other plugins. following: a later
    containerd, which may take over from this one (`restart_runtime`)."""

    def __init__(
        self, executables: Path, plugins: Path, work: Path, prefix: str, following: Path | None
    ) -> None:
        self._plugins = plugins
        self.prefix = prefix
        self.work = work
        self.bin_dir, self.conf_dir = work / "bin", work / "conf"
        self.calls_log = work / "calls"
        self.cgroup = f"/{prefix}/kubepods"
        self.cgroup_root = cgroup2() / prefix
        self.manifests = ManifestFolder(work / "manifests")
        self.containerd = Containerd(executables, work, self.bin_dir, self.conf_dir)
        self.following = following
        self.image: Path | None = None
        """Archive of bristle's own image, if there is one."""
        self.cri: Cri
        self.agent: Agent

    def __enter__(self) -> Node:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        for name in FOLDERS:
            (self.work / name).mkdir()
        self._mount()
        # Where the runtime leaves processes in its own group of version 2, that is ours, too.
        group = self.cgroup_root / "node"
        group.mkdir(parents=True)
        (group / "cgroup.procs").write_text("0")
        self.outside = Namespace("outside")
        wire_uplink(_Own(), self.outside, POD_CIDRS, 1500)  # type: ignore[arg-type]
        for name in ("loopback", "portmap"):
            shutil.copy(self._plugins / name, self.bin_dir)
        relay = self.work / "relay"
        execute([str(BRISTLE), "init", "relay", "--bin-dir", str(relay)])
        recorder = self.bin_dir / "bristle-cni"
        recorder.write_text(_RECORDER.format(log=self.calls_log, relay=relay / "bristle-cni"))
        recorder.chmod(0o755)
        self.agent = Agent(_Own(), self._agent_config(), self.work / "agent.yaml")  # type: ignore[arg-type]
        self.manifests.put("namespace", [manifests.namespace("shop")])
        archive = self.work / "pause.tar"
        image.build(archive, self.work)
        self.cri = self.containerd.start()
        self.containerd.load(archive)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):
            for sandbox in self.cri.sandboxes():
                self.cri.remove(sandbox)
        self.agent.close()
        self.containerd.stop()

    def _mount(self) -> None:
        # Only what is ours can be written to. A runtime's libraries have folders below /var/lib
        # that no configuration names.
        for folder in filter(None, (self.work, KEPT)):
            execute(["mount", "--bind", str(folder), str(folder)])
        execute(["mount", "--bind", str(self.work / "var-lib"), "/var/lib"])
        execute(["mount", "-o", "remount,bind,ro", "/"])
        os.environ["TMPDIR"] = str(self.work / "tmp")
        # sysfs shows this network namespace; the cgroups stay those of the machine.
        kept = self.work / "cgroup"
        execute(["mount", "--rbind", str(CGROUPS), str(kept)])
        mount("tmpfs", Path("/run"))
        mount("sysfs", Path("/sys"))
        execute(["mount", "--rbind", str(kept), str(CGROUPS)])
        execute(["umount", "-l", str(kept)])
        mount("bpf", self.work / "bpf")
        # As systemd makes a machine's mounts: containers may ask to see later ones. Last, for
        # what is unmounted goes everywhere then. It ends at this tree, whose mounts are its own.
        execute(["mount", "--make-rshared", "/"])
        execute(["ip", "link", "set", "lo", "up"])

    def _agent_config(self) -> dict[str, Any]:
        """As the DaemonSet has it, but without an API server."""
        return {
            "node_name": "node-1",
            "run_dir": "/run/bristle",
            "state_dir": str(self.work / "state"),
            "bpffs_dir": str(self.work / "bpf"),
            "pod_cidrs": POD_CIDRS,
            "devices": [UPLINK],
            "masquerade": {"enabled": True},
            "source": {"manifests": str(self.manifests.folder)},
            "cni": {"conf_dir": str(self.conf_dir), "exclusive": True, "version": "1.0.0"},
        }

    # ---- the runtime -------------------------------------------------------------------------

    def restart_runtime(self, executables: Path | None = None) -> None:
        """Kills containerd and starts it again, or another one with the same state."""
        self.containerd.kill()
        if executables is not None:
            self.containerd = Containerd(executables, self.work, self.bin_dir, self.conf_dir)
        self.cri = self.containerd.start()
        self.wait(lambda: self.cri.network()[0], "NetworkReady")

    def runtime_reads(self, file: str) -> None:
        """Waits until the runtime has read a file of its CNI folder."""
        wanted = json.loads((self.conf_dir / file).read_text())

        def read() -> bool:
            answer = self.cri.call("Status", verbose=True)
            networks = json.loads(answer.info["cniconfig"])["Networks"]
            return any(json.loads(one["Config"]["Source"]) == wanted for one in networks)

        self.wait(read, f"the runtime to read {file}")

    # ---- the agent ---------------------------------------------------------------------------

    def restart_agent(self, cni: dict[str, Any] | None = None, **changes: Any) -> None:
        """Starts it anew with the usual configuration and these changes."""
        self.agent.stop()
        base = self._agent_config()
        self.agent.config = {**base, **changes, "cni": {**base["cni"], **(cni or {})}}
        self.agent.start()
        wanted = self.agent.config["cni"]["version"]
        path = self.conf_dir / CONFLIST
        self.wait(lambda: path.exists() and wanted in path.read_text(), "the runtime's file")

    def start_agent(self) -> None:
        """Starts it unless it runs, and waits until the runtime says that the network is ready."""
        if not self.agent_runs():
            self.agent.start()
        self.wait((self.conf_dir / CONFLIST).exists, "the runtime's file")
        self.wait(lambda: self.cri.network()[0], "NetworkReady")

    def agent_runs(self) -> bool:
        """Whether its process is there."""
        with suppress(LabError):
            return bool(self.agent.pid)
        return False

    def cleanup(self) -> str:
        """`bristle cleanup`; what it said."""
        return self.agent.cli("cleanup").stdout

    # ---- pods --------------------------------------------------------------------------------

    def sandbox(self, name: str, **fields: Any) -> Sandbox:
        """A pod, known to the agent by its manifest."""
        labels = {"app": name.partition("-")[0], **fields.pop("labels", {})}
        made = Sandbox(name, f"{self.cgroup}/burstable", labels=labels, **fields)
        self.describe(made)
        return made

    def describe(self, sandbox: Sandbox, **labels: str) -> None:
        """Its manifest, with other labels if there are any."""
        pod = manifests.pod(
            sandbox.namespace, sandbox.name, {**sandbox.labels, **labels}, [("web", "TCP", 8080)]
        )
        self.manifests.put(f"pod-{sandbox.name}", [pod])

    def calls(self) -> list[str]:
        """Commands that the runtime has given to the plugin, each with the configuration."""
        text = self.calls_log.read_text() if self.calls_log.exists() else ""
        return [line for line in text.splitlines() if line]

    def forget_calls(self) -> None:
        """`calls` begins anew."""
        self.calls_log.unlink(missing_ok=True)

    # ---- what is left ------------------------------------------------------------------------

    def devices(self) -> list[str]:
        """Devices of pods on the node."""
        return sorted(one.name for one in Path("/sys/class/net").glob("bri*"))

    def namespaces(self) -> list[str]:
        """Network namespaces that the runtime made."""
        return sorted(one.name for one in Path("/run/netns").glob("cni-*"))

    def spooled(self) -> list[str]:
        """Removals that wait for an agent."""
        spool = self.work / "state/spool"
        return (
            sorted(one.name for one in spool.iterdir() if one.is_file()) if spool.exists() else []
        )

    def used(self) -> list[int]:
        """Addresses in use of each pod network."""
        return [int(pool.used) for pool in self.agent.status().pools]

    def is_clean(self) -> bool:
        """Whether nothing of any pod is left."""
        left = [self.devices(), self.namespaces(), self.spooled(), self.agent.endpoints()]
        return not any(left) and not any(self.used())

    def left(self) -> str:
        """For messages: what is left of pods."""
        keys = [f"{one.namespace}/{one.pod}" for one in self.agent.endpoints()]
        return (
            f"devices {self.devices()}, namespaces {self.namespaces()}, spool {self.spooled()}, "
            f"endpoints {keys}, addresses {self.used()}"
        )

    def wait(self, ready: Callable[[], T], what: str, seconds: float = 20.0) -> T:
        """Asks until it is so. Raises Failure."""
        deadline = time.monotonic() + seconds
        while True:
            with suppress(LabError):
                answer = ready()
                if answer:
                    return answer
            if time.monotonic() > deadline:
                raise Failure(f"waited {seconds:g} s for {what}\n{self.agent.tail(10)}")
            time.sleep(0.05)


class _Own:
    """This process's network namespace, in the form that the lab takes."""

    name = "node"
    path = "/proc/self/ns/net"

    def ip(self, *commands: str) -> None:
        execute(["ip", "-batch", "-"], text="\n".join(commands) + "\n")

    def sysctl(self, settings: dict[str, str | int]) -> None:
        for name, value in settings.items():
            Path("/proc/sys/net", *name.split(".")).write_text(str(value))

    def argv(self, command: list[str]) -> list[str]:
        return ["setpriv", "--pdeathsig", "KILL", "--", *command]


def remove_cgroups(prefix: str) -> None:
    """The groups of a tree that has ended, in every hierarchy of this machine."""
    for line in Path("/proc/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] in ("cgroup", "cgroup2"):
            for folder in sorted(Path(fields[1]).glob(f"{prefix}/**/"), reverse=True):
                with suppress(OSError):
                    os.rmdir(folder)
