# SPDX-License-Identifier: Apache-2.0
"""A containerd of our own: its configuration, process and socket."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from bench.lab.netns import execute
from tools.cri.client import Cri, CriError
from tools.cri.image import NAME as IMAGE

START_SECONDS = 30.0

# What both read alike. Plugins that reach beyond our folders, and those that want a device, are
# off. Where processes may not be made less likely to be killed, they are not
# (restrict_oom_score_adj).
_COMMON = """
root = "{root}"
state = "{state}"
disabled_plugins = [
    "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{socket}"
"""
_FIRST = """version = 2
{common}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
restrict_oom_score_adj = true
stream_server_address = "127.0.0.1"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{bin_dir}"
conf_dir = "{conf_dir}"
"""
_SECOND = """version = 3
{common}
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{image}"
[plugins."io.containerd.grpc.v1.cri"]
stream_server_address = "127.0.0.1"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{bin_dir}"]
conf_dir = "{conf_dir}"
"""


class Containerd:
    """Started, killed and stopped like a node's. folder: of the executables."""

    def __init__(self, folder: Path, work: Path, bin_dir: Path, conf_dir: Path) -> None:
        self.version = execute([str(folder / "containerd"), "--version"]).split()[2]
        self.log = work / "containerd.log"
        self.socket = Path("/run/containerd/containerd.sock")
        self._folder = folder
        self._file = work / "containerd.toml"
        self._process: subprocess.Popen[bytes] | None = None
        places = {
            "root": work / "containerd",
            "state": "/run/containerd",
            "socket": self.socket,
        }
        form = _FIRST if self.is_first else _SECOND
        self._file.write_text(
            form.format(
                common=_COMMON.format(**places), image=IMAGE, bin_dir=bin_dir, conf_dir=conf_dir
            )
        )

    @property
    def is_first(self) -> bool:
        """Whether it is of the 1.x releases, whose configuration has other sections."""
        return self.version.lstrip("v").startswith("1.")

    @property
    def title(self) -> str:
        """Its name and version."""
        return f"containerd {self.version.partition('~')[0].partition('+')[0]}"

    def start(self) -> Cri:
        """Starts it and waits until its CRI answers. Raises CriError."""
        environment = {**os.environ, "PATH": f"{self._folder}:{os.environ['PATH']}"}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._folder / "containerd"), "--config", str(self._file)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while True:
            cri = Cri(self.socket)
            try:
                cri.call("Version", seconds=2)
                return cri
            except CriError as error:
                cri.__exit__()
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise CriError(f"containerd does not start: {error}\n{self.tail()}") from error
                time.sleep(0.1)

    def load(self, archive: Path) -> None:
        """Imports an image, as `ctr` does for an administrator. Raises LabError."""
        self.ctr("images", "import", str(archive))

    def ctr(self, *arguments: str) -> str:
        """ctr of the namespace that CRI uses. Raises LabError."""
        command = [str(self._folder / "ctr"), "--address", str(self.socket), "-n", "k8s.io"]
        return execute([*command, *arguments], timeout=60)

    def kill(self) -> None:
        """SIGKILL; sandboxes and their shims go on."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def tail(self, lines: int = 20) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(line[:400] for line in text.splitlines()[-lines:])
