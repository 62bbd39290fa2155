# SPDX-License-Identifier: Apache-2.0
"""The mix: NGINX, HAProxy, redis, iperf3, wrk and curl beside our own clients, in pods of a lab."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.lab.netns import LabError
from bench.lab.station import Pod
from bench.latency.proxies import Address, find
from bench.report import REPOSITORY
from bench.soak.worker import BLOB

ECHO, BLOCKING, REDIS, WEB, BALANCED, IPERF = 7001, 7002, 6379, 8080, 8081, 5201
_START_SECONDS = 20.0

_NGINX = """
daemon off; user root; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; keepalive_requests 100000;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  server {{ listen {at}; root {folder}/www; }}
}}
"""
_HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend web
  bind {at}
  default_backend nginx
backend nginx
  server one {target}
"""


@dataclass(slots=True)
class Client:
    """A client under way. strict: it may neither err nor stall."""

    name: str
    process: subprocess.Popen[bytes]
    strict: bool
    told: dict[str, Any] = field(default_factory=dict)
    status: int = 0
    words: str = ""


class Mix:
    """A context manager: servers run in `server`, clients in `client` once `start` is called."""

    def __init__(self, client: Pod, server: Pod, folder: Path, family: int = 4) -> None:
        self._client, self._server = client, server
        self._host = server.address(family)
        self._folder = folder
        self._stack = ExitStack()
        self.clients: list[Client] = []
        self.missing: list[str] = []

    def __enter__(self) -> Mix:
        self._folder.mkdir(exist_ok=True)
        (self._folder / "www").mkdir(exist_ok=True)
        (self._folder / "www" / "blob").write_bytes(BLOB)
        try:
            for role, port in (("echo-server", ECHO), ("blocking-server", BLOCKING)):
                self._serve(role, [*_WORKER, role, self._host, str(port), "0", "0"], port)
            self._serve_tools()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _serve_tools(self) -> None:
        nginx, haproxy = self._folder / "nginx.conf", self._folder / "haproxy.cfg"
        web, balanced = Address(self._host, WEB), Address(self._host, BALANCED)
        nginx.write_text(_NGINX.format(folder=self._folder, at=web))
        haproxy.write_text(_HAPROXY.format(at=balanced, target=web))
        commands = {
            "nginx": (["-e", f"{self._folder}/nginx.log", "-c", str(nginx)], WEB),
            "haproxy": (["-db", "-f", str(haproxy)], BALANCED),
            "redis-server": (
                ["--port", str(REDIS), "--bind", self._host, "--save", "",
                 "--protected-mode", "no"],
                REDIS,
            ),
            "iperf3": (["-s", "-B", self._host, "-p", str(IPERF)], IPERF),
        }  # fmt: skip
        for name, (arguments, port) in commands.items():
            try:
                command = find(name).argv(*arguments)
            except LabError as error:
                self.missing.append(str(error))
                continue
            self._serve(name, command, port)

    def _serve(self, name: str, command: Sequence[str], port: int) -> None:
        log = (self._folder / f"{name}.log").open("wb")
        self._stack.callback(log.close)
        process = subprocess.Popen(
            self._server.namespace.argv(command), cwd=REPOSITORY, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        self._stack.callback(_end, process)
        deadline = time.monotonic() + _START_SECONDS
        while not self._listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                said = (self._folder / f"{name}.log").read_text(errors="replace")[-500:]
                raise LabError(f"{name} does not serve: {said}")
            time.sleep(0.05)

    def _listens(self, port: int) -> bool:
        found = self._server.namespace.command(["ss", "-Hltn", f"sport = :{port}"])
        return f"{Address(self._host, port)} " in found

    # ---- clients ---------------------------------------------------------------------------------

    def start(self, seconds: float) -> None:
        """Every client, for so long."""
        span, whole = f"{seconds:g}", str(max(1, int(seconds)))
        for number, (role, port) in enumerate(
            (("echo", ECHO), ("echo", ECHO), ("redis", REDIS), ("http", WEB), ("http", BALANCED),
             ("blocking", BLOCKING))
        ):  # fmt: skip
            if self._has(role, port):
                command = [*_WORKER, role, self._host, str(port), span, str(number)]
                self._run(f"{role} {number} to port {port}", command, strict=True)
        web, balanced = Address(self._host, WEB), Address(self._host, BALANCED)
        tools = {
            "wrk": ["-c", "8", "-t", "1", "-d", f"{whole}s", f"http://{web}/blob"],
            "redis-benchmark": ["-h", self._host, "-p", str(REDIS), "-c", "4", "-n", "100000000",
                                "-d", "200", "-t", "set,get", "-q"],
            "iperf3": ["-c", self._host, "-p", str(IPERF), "-t", whole, "-b", "2G", "-J"],
        }  # fmt: skip
        for name, arguments in tools.items():
            try:
                tool = find(name)
            except LabError as error:
                self.missing.append(str(error))
                continue
            bound = ["timeout", "-s", "INT", f"{seconds + 2:g}"]
            self._run(name, ["nice", "-n", "10", *bound, *tool.argv(*arguments)], strict=False)
        script = _CURL.format(url=f"http://{balanced}/blob", seconds=whole)
        self._run("curl", ["sh", "-c", script], strict=True)

    def _has(self, role: str, port: int) -> bool:
        return role in ("echo", "blocking") or self._listens(port)

    def _run(self, name: str, command: Sequence[str], strict: bool) -> None:
        process = subprocess.Popen(
            self._client.namespace.argv(command), cwd=REPOSITORY, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.clients.append(Client(name, process, strict))
        self._stack.callback(_end, process)

    def finish(self, seconds: float) -> list[Client]:
        """Waits for all of them; those that do not end are a fault."""
        deadline = time.monotonic() + seconds
        for one in self.clients:
            try:
                out, err = one.process.communicate(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                one.status, one.words = -1, "does not end"
                continue
            one.status = one.process.returncode
            one.words = (err or out).decode(errors="replace").strip()[-300:]
            if out.startswith(b'{"exchanges"'):
                one.told = json.loads(out)
        return self.clients


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all that it started, such as a web server's workers."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


_WORKER = [sys.executable, "-m", "bench.soak.worker"]
_CURL = """
end=$(($(date +%s) + {seconds})); wanted=; n=0
while [ "$(date +%s)" -lt "$end" ]; do
    sum=$(curl -sS --max-time 20 {url} | sha256sum) || exit 1
    [ -z "$wanted" ] && wanted=$sum
    [ "$sum" = "$wanted" ] || {{ echo "curl: another sum" >&2; exit 1; }}
    n=$((n + 1))
done
echo "{{\\"exchanges\\": $n, \\"longest\\": 0, \\"errors\\": []}}"
"""
