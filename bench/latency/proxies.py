# SPDX-License-Identifier: Apache-2.0
"""Envoy, NGINX and HAProxy as plain TCP proxies: one worker, one CPU, no access log.

tools/bench_tools.sh puts them below .cache/bench/tools; a proxy that is not there but installed on
the machine is taken from there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.lab.netns import LabError
from bench.latency.generator import Seat
from bench.report import REPOSITORY

TOOLS = REPOSITORY / ".cache" / "bench" / "tools"
DEBIAN = TOOLS / "debian"
PYTHON = TOOLS / "python"
START_SECONDS = 20.0
_LISTEN = "0A"  # of enum tcp_state, as /proc/net/tcp prints it


class ToolMissing(LabError):
    """Something to measure with is not there; the message says how to get it."""


@dataclass(frozen=True, slots=True)
class Address:
    """host: an IP address of either family."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Tool:
    """An executable, and what its environment needs."""

    path: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def argv(self, *arguments: str) -> list[str]:
        """The command line, by env(1) where there is an environment."""
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        return [*(["env", *settings] if settings else []), str(self.path), *arguments]


def find(proxy: str) -> Tool:
    """Where a proxy is. Raises ToolMissing."""
    if proxy == "envoy":
        candidates = [Tool(PYTHON / "envoy" / "_bin" / "envoy")]
    else:
        libraries = ":".join(map(str, sorted(DEBIAN.glob("usr/lib/*-linux-gnu*"))))
        candidates = [
            Tool(DEBIAN / folder / proxy, {"LD_LIBRARY_PATH": libraries})
            for folder in ("usr/sbin", "usr/bin")
        ]
    path = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin"
    if installed := shutil.which(proxy, path=path):
        candidates.append(Tool(Path(installed)))
    for tool in candidates:
        if tool.path.exists():
            tool.path.chmod(tool.path.stat().st_mode | 0o111)  # pip keeps no mode of data files
            return tool
    raise ToolMissing(f"{proxy} is missing: tools/bench_tools.sh fetches it")


def version(proxy: str) -> str:
    """What the proxy says it is; empty where it is missing."""
    option = {"envoy": "--version", "nginx": "-v", "haproxy": "-v"}[proxy]
    try:
        done = subprocess.run(
            find(proxy).argv(option), capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, ToolMissing, subprocess.TimeoutExpired):
        return ""
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[0].removeprefix(str(find(proxy).path)).strip() if lines else ""


class Proxy:
    """A running proxy from `listen` to `target`. Raises LabError when it does not start.

    folder: for its configuration and log; must be there. cpu: the only one that it runs on.
    """

    def __init__(
        self, kind: str, seat: Seat, cpu: int, listen: Address, target: Address, folder: Path
    ) -> None:
        self.kind = kind
        tool = find(kind)
        stem = folder / f"{kind}-{listen.port}"
        self._log = stem.with_suffix(".log")
        file = stem.with_suffix(".json" if kind == "envoy" else ".conf")
        file.write_text(_CONFIGURATIONS[kind](listen, target, stem, tool))
        # Precedence like the load generator's: whoever else is on the CPU shall not decide.
        pinned = ["taskset", "-c", str(cpu), "nice", "-n", "-20"]
        command = [*pinned, *tool.argv(*_arguments(kind, file, folder))]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                seat.argv(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
            )
        self.pid = self._process.pid
        try:
            self._wait(listen.port)
        except BaseException:
            self.close()
            raise

    def _wait(self, port: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not listens(self.pid, port):
            if self._process.poll() is not None:
                raise LabError(f"{self.kind} ended: {self._said()}")
            if time.monotonic() > deadline:
                raise LabError(f"{self.kind} does not listen: {self._said()}")
            time.sleep(0.02)

    def _said(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"status {self._process.poll()}, and no word"

    def cpu_ns(self) -> int:
        """Time on a CPU so far, of all its threads. Raises LabError when it has ended."""
        if self._process.poll() is not None:
            raise LabError(f"{self.kind} has ended: {self._said()}")
        return process_cpu_ns(self.pid)

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def process_cpu_ns(pid: int) -> int:
    """Time on a CPU of all threads that a process has (proc(5): schedstat, in ns)."""
    total = 0
    for task in Path("/proc", str(pid), "task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except (OSError, IndexError):
            continue
    return total


def listens(pid: int, port: int, proc: Path = Path("/proc")) -> bool:
    """Whether there is a listener at the port in the process's network namespace."""
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / str(pid) / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                return True
    return False


def _arguments(kind: str, file: Path, folder: Path) -> list[str]:
    if kind == "envoy":
        quiet = ["--log-level", "error", "--disable-hot-restart"]
        return ["-c", str(file), "--concurrency", "1", *quiet]
    if kind == "nginx":
        return ["-p", str(folder), "-e", "stderr", "-c", str(file)]
    return ["-db", "-q", "-f", str(file)]


def _nginx(listen: Address, target: Address, stem: Path, tool: Tool) -> str:
    module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
    if tool.path.is_relative_to(DEBIAN):
        module = DEBIAN / module.relative_to("/")
    load = f"load_module {module};" if module.exists() else ""  # or built in
    return f"""{load}
daemon off;
master_process off;
worker_processes 1;
pid {stem}.pid;
error_log stderr error;
events {{ use epoll; worker_connections 4096; }}
stream {{
  access_log off;
  server {{
    listen {listen};
    proxy_pass {target};
    proxy_timeout 1h;
    tcp_nodelay on;
  }}
}}
"""


def _haproxy(listen: Address, target: Address, stem: Path, tool: Tool) -> str:
    return f"""global
  nbthread 1
  maxconn 4096
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
listen proxy
  bind {listen.host}:{listen.port}
  server target {target.host}:{target.port}
"""


def _envoy(listen: Address, target: Address, stem: Path, tool: Tool) -> str:
    def address(of: Address) -> dict[str, Any]:
        return {"socket_address": {"address": of.host, "port_value": of.port}}

    proxy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "bench",
        "cluster": "target",
        "idle_timeout": "0s",
    }
    filters = [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]
    listener = {
        "name": "listen",
        "address": address(listen),
        "filter_chains": [{"filters": filters}],
    }
    endpoint = {"endpoint": {"address": address(target)}}
    cluster = {
        "name": "target",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": "target",
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }
    return json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}})


_CONFIGURATIONS = {"envoy": _envoy, "nginx": _nginx, "haproxy": _haproxy}
