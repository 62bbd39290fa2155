# SPDX-License-Identifier: Apache-2.0
"""The real relay and the real server, with an agent behind it that only pretends."""

import ipaddress
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from agent.rpc.cni_server import CniServer
from cni.config import Command
from cni.errors import CniError, ErrorCode
from cni.protocol import Reply, Request, success
from cni.results import VERSIONS, Interface, IPConfig, Result, merge
from cni.spool import Spool

pytestmark = pytest.mark.kernel

SHIM = Path(__file__).parents[2] / "cni" / "shim.c"
PATIENCE = 30.0


class Namespace(Protocol):
    """What the fixture `netns` gives."""

    @property
    def fd(self) -> int: ...
    @property
    def path(self) -> str: ...


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("relay") / "bristle-cni"
    flags = ["-std=c11", "-Os", "-static", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, "-o", str(path), str(SHIM)], check=True)
    return path


@dataclass
class FakeAgent:
    """Gives each container the same address and notes what it was asked."""

    log: list[str] = field(default_factory=list)
    seen: list[os.stat_result | None] = field(default_factory=list)
    error: CniError | None = None
    hold: threading.Event | None = None
    entered: threading.Event = field(default_factory=threading.Event)

    def __call__(self, request: Request, netns: int | None) -> Reply:
        self.log.append(f"{request.command} {request.container_id}".strip())
        self.seen.append(None if netns is None else os.fstat(netns))
        self.entered.set()
        if self.hold is not None:
            assert self.hold.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        if request.command is not Command.ADD:
            return success(request)
        ours = Result(
            (Interface("bri1", "02:00:00:00:00:01"), Interface("eth0", "", request.netns, 1500)),
            (IPConfig(ipaddress.ip_interface("10.1.0.5/32"), None, 1),),
        )
        return success(request, merge(request.config.prev_result, ours))


@dataclass
class Node:
    """A node with its folders; `root` is where the relay sees them."""

    folder: Path
    relay: Path
    netns: Namespace
    servers: list[CniServer] = field(default_factory=list)

    @property
    def spool(self) -> Spool:
        return Spool(self.folder / "state" / "spool")

    def serve(self, agent: FakeAgent) -> CniServer:
        (self.folder / "run").mkdir(exist_ok=True)
        self.servers.append(CniServer(self.folder / "run" / "cni.sock", self.spool, agent))
        self.servers[-1].start()
        return self.servers[-1]

    def start(
        self, command: str, container: str = "c1", netns: str | None = None, **keys: Any
    ) -> subprocess.Popen[bytes]:
        config = {
            **{"cniVersion": "1.1.0", "name": "pods", "type": "bristle-cni"},
            **{"runDir": str(self.folder / "run"), "stateDir": str(self.folder / "state")},
            **keys,
        }
        process = subprocess.Popen(
            [self.relay],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": container,
                "CNI_NETNS": self.netns.path if netns is None else netns,
                "CNI_IFNAME": "eth0",
            },
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(config).encode())
        process.stdin.close()
        process.stdin = None
        return process

    def run(self, command: str, container: str = "c1", **keys: Any) -> tuple[int, Any]:
        return finish(self.start(command, container, **keys))


def finish(process: subprocess.Popen[bytes]) -> tuple[int, Any]:
    """Exit code and what was printed (None: nothing)."""
    with process:
        out, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, json.loads(out) if out else None


@pytest.fixture
def node(tmp_path: Path, relay: Path, netns: Namespace) -> Iterator[Node]:
    made = Node(tmp_path, relay, netns)
    yield made
    for server in made.servers:
        server.stop(grace=0.1)


@pytest.mark.parametrize("version", VERSIONS)
def test_add_hands_over_the_namespace_and_prints_the_result(node: Node, version: str) -> None:
    agent = FakeAgent()
    node.serve(agent)
    previous = {"interfaces": [{"name": "br0"}], "ips": []}
    code, result = node.run("ADD", cniVersion=version, prevResult=previous)
    assert code == 0 and result["cniVersion"] == version
    assert [i["name"] for i in result["interfaces"]] == ["br0", "bri1", "eth0"]
    assert result["interfaces"][2]["sandbox"] == node.netns.path
    assert result["ips"][0]["interface"] == 2
    (seen,) = agent.seen
    assert seen is not None and seen.st_ino == os.fstat(node.netns.fd).st_ino


def test_every_command(node: Node) -> None:
    agent = FakeAgent()
    node.serve(agent)
    assert node.run("CHECK", prevResult={}) == (0, None)
    assert node.run("DEL") == (0, None)
    assert node.run("DEL", "c2", netns="/gone") == (0, None)
    attachments: dict[str, Any] = {"cni.dev/valid-attachments": []}
    assert node.run("GC", **attachments) == (0, None)
    assert node.run("STATUS") == (0, None)
    assert agent.log == ["CHECK c1", "DEL c1", "DEL c2", "GC", "STATUS"]
    assert [seen is not None for seen in agent.seen] == [True, True, False, False, False]
    assert node.spool.names() == []


def test_errors_pass_through(node: Node) -> None:
    agent = FakeAgent(error=CniError(ErrorCode.LIMITED, "no policy is in force", "why"))
    node.serve(agent)
    code, error = node.run("STATUS")
    expected = {"code": 51, "msg": "no policy is in force", "details": "why"}
    assert (code, error) == (1, {"cniVersion": "1.1.0", **expected})
    assert node.run("ADD", cniVersion="0.2.0")[1]["code"] == 1
    assert node.run("ADD", name="?")[1]["code"] == 7
    assert node.run("ADD", container="?")[1]["code"] == 4
    assert node.run("CHECK", cniVersion="0.3.1")[1]["code"] == 1
    for path in (f"/proc/{os.getpid()}/ns/net", "/proc/self/ns/uts", "/dev/null"):
        code, error = node.run("ADD", netns=path)
        assert (code, error["code"]) == (1, 4) and path in error["msg"]
    assert agent.log == ["STATUS"]


def test_many_at_once(node: Node) -> None:
    agent = FakeAgent(hold=threading.Event())
    assert agent.hold is not None
    node.serve(agent)
    running = [node.start("ADD", f"c{n}") for n in range(20)]
    agent.entered.wait(PATIENCE)
    agent.hold.set()
    assert [finish(process)[0] for process in running] == [0] * 20
    assert sorted(agent.log) == sorted(f"ADD c{n}" for n in range(20))


def test_an_agent_that_ends_in_the_middle_and_its_successor(node: Node) -> None:
    first = FakeAgent(hold=threading.Event())
    assert first.hold is not None
    server = node.serve(first)
    add, delete = node.start("ADD", "c1"), node.start("DEL", "c2")
    while len(first.log) < 2:
        first.entered.wait(0.01)
    server.stop(grace=0.0)
    code, error = finish(add)
    assert (code, error["code"]) == (1, 11)
    assert finish(delete) == (0, None)
    first.hold.set()
    assert node.run("STATUS")[1]["code"] == 50
    assert node.run("DEL", "c3") == (0, None)
    second = FakeAgent()
    node.serve(second)
    assert node.run("ADD", "c4")[0] == 0
    assert second.log == ["DEL c2", "DEL c3", "ADD c4"] and node.spool.names() == []


def test_in_an_empty_root(node: Node, tmp_path: Path, private_mounts: None) -> None:
    """Nothing but the relay, the socket's folder and the namespace; no /proc, no libraries."""
    root = tmp_path / "root"
    (root / "run").mkdir(parents=True)
    os.link(node.relay, root / "relay")
    (root / "netns").touch()
    node.folder = root
    agent = FakeAgent()
    node.serve(agent)
    config = {"cniVersion": "1.0.0", "name": "pods", "type": "b", "runDir": "/run"}
    variables = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_IFNAME": "eth0"}
    subprocess.run(["mount", "--bind", node.netns.path, root / "netns"], check=True)
    try:
        run = subprocess.run(
            ["chroot", root, "/relay"],
            input=json.dumps(config).encode(),
            stdout=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "CNI_NETNS": "/netns", **variables},
            timeout=PATIENCE,
            check=False,
        )
    finally:
        subprocess.run(["umount", root / "netns"], check=True)
    result = json.loads(run.stdout)
    assert run.returncode == 0 and result["interfaces"][1]["sandbox"] == "/netns"
    (seen,) = agent.seen
    assert seen is not None and seen.st_ino == os.fstat(node.netns.fd).st_ino
