# SPDX-License-Identifier: Apache-2.0
"""A real agent process in a lab's node namespace, and what one asks it: gRPC, CLI, CNI relay."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import grpc
import yaml

from api import agent_pb2 as pb
from api.agent_pb2_grpc import AgentStub
from bench.lab.netns import LabError, Namespace

REPOSITORY = Path(__file__).resolve().parents[2]
RELAY = Path(sys.prefix, "bin", "bristle-cni")
BRISTLE = Path(sys.prefix, "bin", "bristle")
READY_SECONDS = 150.0
MOST_KEPT = 40
DONE = 2  # ObjectState of api/agent.proto
KEPT = Path(os.environ["BRISTLE_LAB_KEPT"]) if "BRISTLE_LAB_KEPT" in os.environ else None
"""Compiled programs that agents of one lab leave for those of the next: compiling the same again
takes most of a fresh agent's start. Tests set it; benchmarks, where that start counts, do not."""

T = TypeVar("T")


class Agent:
    """Starts, asks, kills and stops one agent. Its log is in `log`.

    config: the agent's whole configuration, written to `file` as YAML by `start`.
    """

    def __init__(self, namespace: Namespace, config: Mapping[str, Any], file: Path) -> None:
        self.config = dict(config)
        self.run_dir = Path(self.config["run_dir"])
        self.log = file.with_suffix(".log")
        self._namespace = namespace
        self._file = file
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: grpc.Channel | None = None

    # ---- life --------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """Process id of the running agent. Raises LabError."""
        if self._process is None or self._process.poll() is not None:
            raise LabError(f"the agent is not running\n{self.tail()}")
        return self._process.pid

    def launch(self) -> None:
        """Starts the process without waiting for anything."""
        if KEPT is not None:
            _share(KEPT, self.run_dir / "programs")
        self._file.write_text(yaml.safe_dump(self.config))
        command = [str(BRISTLE), "agent", "--config", str(self._file)]
        with self.log.open("ab") as log:
            argv = self._namespace.argv(command)
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=REPOSITORY
            )

    def start(self) -> None:
        """Starts the process and waits until it says that it is ready. Raises LabError."""
        self.launch()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Until the agent that runs now says it is ready. Raises LabError with its log's end."""
        pid = self.pid

        def ready() -> bool:
            assert self._process is not None
            if self._process.poll() is not None:
                raise LabError(f"the agent ended: status {self._process.returncode}\n{self.tail()}")
            with contextlib.suppress(grpc.RpcError):
                status = self.status()
                return bool(status.ready) and status.pid == pid
            return False

        self.wait(ready, "the agent to be ready", READY_SECONDS)
        if KEPT is not None:
            _share(self.run_dir / "programs", KEPT)

    def kill(self) -> None:
        """SIGKILL, and waits for the process to be gone."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._disconnect()

    def stop(self, seconds: float = 20) -> int:
        """SIGTERM; returns the exit status. Kills it and raises LabError if it does not end."""
        if self._process is None:
            return 0
        self._process.terminate()
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise LabError(f"the agent did not stop in {seconds} s\n{self.tail()}") from None
        finally:
            self._disconnect()

    def close(self) -> None:
        """Ends it whatever its state."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(LabError):
                self.stop(5)
        self._disconnect()

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        if not self.log.exists():
            return "(no log)"
        text = self.log.read_text(errors="replace").splitlines()
        return "\n".join(line[:300] for line in text[-lines:])  # the verifier's are very long

    def _disconnect(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    # ---- questions ---------------------------------------------------------------------------

    @property
    def stub(self) -> AgentStub:
        """The agent's own gRPC service."""
        if self._channel is None:
            self._channel = grpc.insecure_channel(f"unix:{self.run_dir / 'agent.sock'}")
        return AgentStub(self._channel)  # type: ignore[no-untyped-call]

    def status(self) -> Any:
        """api.AgentStatus. Raises grpc.RpcError."""
        try:
            return self.stub.Status(pb.StatusRequest(), timeout=5)
        except grpc.RpcError:
            self._disconnect()  # a new socket is a new file: no back-off for the old one
            raise

    def policies(self) -> Any:
        """api.PolicyList."""
        return self.stub.ListPolicies(pb.ListPoliciesRequest(), timeout=10)

    def endpoint(self, pod: str) -> Any:
        """api.EndpointInfo of "ns/pod". Raises grpc.RpcError."""
        return self.stub.GetEndpoint(pb.GetEndpointRequest(key=pod), timeout=10)

    def endpoints(self) -> list[Any]:
        """Every api.EndpointInfo."""
        request = pb.ListEndpointsRequest()
        return list(self.stub.ListEndpoints(request, timeout=10).endpoints)

    def explain(self, source: str, destination: str, protocol: int, port: int) -> Any:
        """api.Explanation."""
        query = pb.ExplainQuery(
            source=source, destination=destination, protocol=protocol, port=port
        )
        return self.stub.Explain(query, timeout=10)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that bear these labels."""
        return sum(
            float(sample.value)
            for sample in self.stub.Metrics(pb.MetricsRequest(), timeout=10).samples
            if sample.name == name
            and labels.items() <= {label.name: label.value for label in sample.labels}.items()
        )

    def flows(self, last: int = 50) -> list[Any]:
        """The latest recorded api.Flow messages, oldest first."""
        request = pb.MonitorRequest(last=last, no_follow=True)
        batches = self.stub.Monitor(request, timeout=10)
        events = [event for batch in batches for event in batch.events]
        return [event.flow for event in events if event.WhichOneof("event") == "flow"]

    def cli(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`bristle ARGUMENTS` for this agent's folders. Raises LabError on failure."""
        command = [str(BRISTLE), *arguments]
        done = subprocess.run(
            self._namespace.argv(command),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=REPOSITORY,
            env=self._environment(),
        )
        if check and done.returncode:
            said = done.stderr.strip() or done.stdout.strip()
            raise LabError(f"bristle {' '.join(arguments)}: status {done.returncode}: {said}")
        return done

    def cli_json(self, *arguments: str) -> Any:
        """What `bristle ARGUMENTS -o json` prints, decoded."""
        return json.loads(self.cli(*arguments, "-o", "json").stdout)

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "BRISTLE_RUN_DIR": str(self.run_dir),
            "BRISTLE_STATE_DIR": str(self.config["state_dir"]),
            "BRISTLE_BPFFS_DIR": str(self.config["bpffs_dir"]),
            "PYTHONUNBUFFERED": "1",
        }

    def cni(
        self,
        command: str,
        container: str,
        netns: str,
        namespace: str = "",
        name: str = "",
        uid: str = "",
        **config: Any,
    ) -> dict[str, Any]:
        """Runs the relay as a container runtime does, in the node's namespace.

        netns: a path. namespace, name, uid: of the pod; none: the runtime does not say. config:
        further keys of the network configuration. Raises LabError on a CNI error.
        """
        document = {
            "cniVersion": "1.1.0",
            "name": "bristle",
            "type": "bristle-cni",
            "runDir": str(self.run_dir),
            "stateDir": str(self.config["state_dir"]),
            **config,
        }
        pod = f"K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={uid}"
        done = subprocess.run(
            self._namespace.argv([str(RELAY)]),
            input=json.dumps(document),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            env={
                "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": container,
                "CNI_NETNS": netns,
                "CNI_IFNAME": "eth0",
                "CNI_ARGS": f"IgnoreUnknown=1;{pod}" if name else "",
                "CNI_PATH": str(RELAY.parent),
            },
        )
        if done.returncode:
            raise LabError(f"CNI {command} {namespace}/{name}: {done.stdout}{done.stderr}")
        answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
        return answer

    @contextlib.contextmanager
    def monitoring(self, *arguments: str) -> Iterator[Path]:
        """Runs `bristle monitor ARGUMENTS` meanwhile; the file that it writes to."""
        output = self.log.with_name(f"monitor-{time.monotonic_ns()}.log")
        command = [str(BRISTLE), "monitor", *arguments]
        with output.open("wb") as log:
            process = subprocess.Popen(
                self._namespace.argv(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
                env=self._environment(),
            )
        try:
            yield output
        finally:
            process.terminate()
            process.wait(10)

    # ---- waiting -----------------------------------------------------------------------------

    def wait(self, ready: Callable[[], T], what: str, seconds: float = 20) -> T:
        """Asks `ready` every 5 ms until its answer is true. Raises LabError."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            answer = ready()
            if answer:
                return answer
            time.sleep(0.005)
        raise LabError(f"waited {seconds} s in vain for {what}\n{self.tail()}")

    def wait_known(self, *pods: str) -> None:
        """Until the labels of these endpoints ("ns/name") are known and in force."""
        wanted = set(pods)

        def known() -> bool:
            ready = {f"{e.namespace}/{e.pod}" for e in self.endpoints() if e.state == "ready"}
            return wanted <= ready

        self.wait(known, f"the labels of {', '.join(sorted(wanted))} to be in force")

    def has_policies(self, names: set[str]) -> bool:
        """Whether exactly these policies ("ns/name") are there, and all are in force."""
        listed = self.policies().policies
        found = {f"{p.namespace}/{p.name}" for p in listed if p.status == DONE}
        return found == names and len(listed) == len(names)


def _share(source: Path, target: Path) -> None:
    """Copies compiled programs that are not there yet. Their names are digests of all that they
    are made of (agent/kernel/loader.py)."""
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in source.glob("*-*") if source.is_dir() else ():
        if not (target / file.name).exists() and not file.name.startswith("."):
            fresh = target / f".{file.name}.{os.getpid()}"
            with contextlib.suppress(FileNotFoundError):  # an old one that was just removed
                shutil.copyfile(file, fresh)
                os.replace(fresh, target / file.name)
    for old in sorted(target.iterdir(), key=lambda one: one.stat().st_mtime)[:-MOST_KEPT]:
        old.unlink(missing_ok=True)
