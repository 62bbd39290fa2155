# SPDX-License-Identifier: Apache-2.0
"""The real relay in a root file system that holds nothing but itself, without an agent.

These need root for chroot(2) only.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cni.config import Command
from cni.protocol import HEADER_SIZE, MAX_CONFIG, MAX_ENVIRONMENT
from cni.results import VERSIONS
from cni.spool import Spool

pytestmark = pytest.mark.kernel

SHIM = Path(__file__).parents[2] / "cni" / "shim.c"
CONFIG: dict[str, Any] = {"cniVersion": "1.1.0", "name": "pods", "type": "bristle-cni"}
FLAGS = ("-std=c11", "-Os", "-static", "-Wall", "-Wextra", "-Werror")


def build(folder: Path, *flags: str) -> Path:
    """Compiles the relay, its warnings being errors."""
    target = folder / "bristle-cni"
    subprocess.run(["gcc", *FLAGS, *flags, "-o", str(target), str(SHIM)], check=True)
    return target


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The relay as it is shipped."""
    return build(tmp_path_factory.mktemp("relay"))


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The relay with timeouts that a test can wait for."""
    flags = ("-DTIMEOUT_MS=1000", "-DSTATUS_TIMEOUT_MS=1000")
    return build(tmp_path_factory.mktemp("impatient"), *flags)


# Tells the system calls that matter on stderr; before number CRASH_AT (a write: half-way), it dies.
TRACE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

ssize_t __real_write(int fd, const void *data, size_t size);

static int crashes(const char *name)
{
    static int calls;
    const char *at = getenv("CRASH_AT");

    __real_write(2, name, strlen(name));
    return ++calls == (at ? atoi(at) : 0);
}

static int die(void)
{
    return kill(getpid(), SIGKILL);
}

#define WRAP(name, parameters, arguments) \
    int __real_##name parameters; \
    int __wrap_##name parameters \
    { \
        return (crashes(#name " ") && die()) ? -1 : __real_##name arguments; \
    }
WRAP(fsync, (int fd), (fd))
WRAP(mkdirat, (int fd, const char *name, mode_t mode), (fd, name, mode))
WRAP(renameat, (int a, const char *b, int c, const char *d), (a, b, c, d))

ssize_t __wrap_write(int fd, const void *data, size_t size)
{
    if (crashes("write ")) {
        __real_write(fd, data, size / 2);
        die();
    }
    return __real_write(fd, data, size);
}
"""


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The relay with TRACE between it and the kernel."""
    folder = tmp_path_factory.mktemp("traced")
    (folder / "trace.c").write_text(TRACE)
    wraps = [f"-Wl,--wrap={name}" for name in ("fsync", "mkdirat", "renameat", "write")]
    return build(folder, *wraps, str(folder / "trace.c"))


@dataclass
class Host:
    """An empty root file system with the relay in it, and a file in the place of a namespace."""

    root: Path

    def replace_relay(self, path: Path) -> None:
        (self.root / "bristle-cni").unlink()
        os.link(path, self.root / "bristle-cni")

    def start(
        self, command: str | None, /, *, stdin: int = subprocess.PIPE, **variables: Any
    ) -> subprocess.Popen[bytes]:
        """Variables replace the usual ones; None: not set."""
        values: dict[str, Any] = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": "/netns",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web",
            "CNI_PATH": "/opt/cni/bin",
            "SECRET": "of the runtime",
            **variables,
        }
        return subprocess.Popen(
            ["chroot", str(self.root), "/bristle-cni"],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": os.environ["PATH"]} | {k: v for k, v in values.items() if v is not None},
        )

    def run(
        self, command: str | None, config: object = CONFIG, **variables: Any
    ) -> tuple[int, Any]:
        """Exit code and the JSON that was printed (None: nothing)."""
        stdin = config if isinstance(config, bytes) else json.dumps(config).encode()
        with self.start(command, **variables) as process:
            out, errors = process.communicate(stdin, timeout=30)
        assert errors == b""
        return process.returncode, json.loads(out) if out else None

    def error(self, command: str | None, config: object = CONFIG, **variables: Any) -> Any:
        code, answer = self.run(command, config, **variables)
        assert code == 1 and answer["msg"] and answer["cniVersion"]
        return answer

    def spool(self, state_dir: str = "/var/lib/bristle") -> Spool:
        return Spool(self.root / state_dir.lstrip("/") / "spool")


@pytest.fixture
def host(tmp_path: Path, relay: Path) -> Host:
    root = tmp_path / "root"
    root.mkdir()
    os.link(relay, root / "bristle-cni")
    (root / "netns").touch()
    return Host(root)


# ---- no agent --------------------------------------------------------------------------------


def test_version(host: Host) -> None:
    for version in VERSIONS:
        answer = {"cniVersion": version, "supportedVersions": list(VERSIONS)}
        assert host.run("VERSION", {"cniVersion": version}) == (0, answer)
    assert host.run("VERSION", b"")[1]["cniVersion"] == "1.1.0"


def test_add_check_and_status_say_so(host: Host) -> None:
    for command, code in (("ADD", 11), ("CHECK", 11), ("STATUS", 50)):
        error = host.error(command, {**CONFIG, "cniVersion": "0.4.0"})
        assert (error["code"], error["cniVersion"]) == (code, "0.4.0")
        assert "/var/run/bristle/cni.sock" in error["msg"]
    assert "/r/cni.sock" in host.error("ADD", {**CONFIG, "runDir": "/r"})["msg"]
    assert os.listdir(host.root) and not (host.root / "var").exists()


@pytest.mark.parametrize("state_dir", [None, "/s", "/a/very//deep/folder/"])
def test_removals_are_kept(host: Host, state_dir: str | None) -> None:
    """Also where the folder does not exist yet, and where the namespace is gone."""
    config = {**CONFIG, "cni.dev/valid-attachments": []}
    if state_dir is not None:
        config["stateDir"] = state_dir
    assert host.run("DEL", config) == (0, None)
    assert host.run("DEL", config, CNI_CONTAINERID="c2", CNI_NETNS="/gone") == (0, None)
    assert host.run("DEL", config, CNI_CONTAINERID="c3", CNI_NETNS=None) == (0, None)
    assert host.run("GC", config, CNI_CONTAINERID=None, CNI_IFNAME=None) == (0, None)
    spool = host.spool(state_dir or "/var/lib/bristle")
    requests = [spool.load(name) for name in spool.names()]
    assert [(r.command, r.container_id) for r in requests] == [
        (Command.DEL, "c1"),
        (Command.DEL, "c2"),
        (Command.DEL, "c3"),
        (Command.GC, ""),
    ]
    assert requests[0].pod is not None and requests[0].pod.name == "web"
    files = list(spool.folder.iterdir())
    assert len(files) == 4 and all(f.stat().st_mode & 0o777 == 0o600 for f in files)
    assert spool.folder.stat().st_mode & 0o777 == 0o700
    assert all(b"SECRET" not in f.read_bytes() for f in files)


def test_removals_are_on_disk_before_the_runtime_hears_of_it(host: Host, traced: Path) -> None:
    """Each new folder in its parent; then the file, its name, and the name in the folder."""
    host.replace_relay(traced)
    with host.start("DEL") as process:
        out, calls = process.communicate(json.dumps(CONFIG).encode(), timeout=30)
    assert (process.returncode, out) == (0, b"")
    folders = ["mkdirat", "fsync"] * 4  # var, lib, bristle, spool
    assert calls.decode().split() == [*folders, "write", "fsync", "renameat", "fsync"]


def test_killed_at_any_step_it_leaves_no_half_file(host: Host, traced: Path) -> None:
    host.replace_relay(traced)
    spool = host.spool()
    for step in range(1, 13):
        shutil.rmtree(host.root / "var", ignore_errors=True)
        with host.start("DEL", CRASH_AT=str(step)) as process:
            out, _ = process.communicate(json.dumps(CONFIG).encode(), timeout=30)
        assert (process.returncode, out) == (-signal.SIGKILL, b"")
        files = os.listdir(spool.folder) if spool.folder.exists() else []
        assert [n for n in files if not n.startswith(".")] == spool.names()
        # Only once it has its name (before the last step) is there anything to replay.
        assert [spool.load(n).container_id for n in spool.names()] == ["c1"] * (step == 12)
    assert spool.folder.exists()
    with host.start("DEL", CRASH_AT="5") as process:  # the folders are there: four calls are left
        process.communicate(json.dumps(CONFIG).encode(), timeout=30)
    assert process.returncode == 0 and len(spool.names()) == 2


def test_a_removal_that_cannot_be_kept_is_not_confirmed(host: Host) -> None:
    (host.root / "s").write_text("no folder")
    error = host.error("DEL", {**CONFIG, "stateDir": "/s"})
    assert error["code"] == 5 and "/s/spool" in error["msg"]


# ---- bad input -------------------------------------------------------------------------------


def test_bad_environment(host: Host) -> None:
    for command in (None, "", "add", "ADD ", "A", "D"):
        error = host.error(command)
        assert error["code"] == 4 and "CNI_COMMAND" in error["msg"]
    for command in ("ADD", "CHECK"):
        for netns in (None, "", "/gone", '/"\\\x01é'):
            error = host.error(command, CNI_NETNS=netns)
            assert error["code"] == 4 and "CNI_NETNS" in error["msg"]
    assert (
        host.error("ADD", CNI_ARGS="x" * 120_000, CNI_PATH="x" * 120_000, CNI_X="x" * 60_000)[
            "code"
        ]
        == 4
    )


def test_bad_configuration(host: Host) -> None:
    for stdin in (b"", b"nonsense", b"[]", b'{"a":', b'{"a":1}}', b"\xff"):
        assert host.error("ADD", stdin)["code"] == 6
        assert host.error("DEL", stdin)["code"] == 6
    for key in ("runDir", "stateDir"):
        for value in ("relative", "", 1, None, "/a\0b", "/" + "x" * 5000):
            error = host.error("DEL", {**CONFIG, key: value})
            assert error["code"] == 7 and key in error["msg"]
    assert host.error("ADD", b" " * (MAX_CONFIG + 1))["code"] == 7
    assert not (host.root / "var").exists()


def test_stdin_that_never_ends(host: Host, impatient: Path) -> None:
    host.replace_relay(impatient)
    reader, writer = os.pipe()
    with host.start("ADD", stdin=reader) as process:
        out, _ = process.communicate(timeout=30)
    os.close(reader)
    os.close(writer)
    assert json.loads(out)["code"] == 5


def test_largest_request_fits_the_spool(host: Host) -> None:
    padding = MAX_CONFIG - len(json.dumps({**CONFIG, "args": {"x": ""}}))
    assert host.run("DEL", {**CONFIG, "args": {"x": "y" * padding}}, CNI_ARGS="") == (0, None)
    spool = host.spool()
    (name,) = spool.names()
    assert spool.load(name).container_id == "c1"
    assert (spool.folder / name).stat().st_size < HEADER_SIZE + MAX_CONFIG + MAX_ENVIRONMENT


# ---- agents that fail ------------------------------------------------------------------------


class BrokenAgent:
    """Listens in the host's runDir, reads what comes, answers `answer` and ends the connection;
    with None it stays silent."""

    def __init__(self, host: Host, answer: bytes | None, accept: bool = True) -> None:
        folder = host.root / "var/run/bristle"
        folder.mkdir(parents=True)
        self.answer = answer
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(os.fspath(folder / "cni.sock"))
        self.listener.listen(0)
        self.held: list[socket.socket] = []
        if accept:
            threading.Thread(target=self.loop, daemon=True).start()

    def loop(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.recv(100)
            if self.answer is None:
                self.held.append(connection)
                continue
            connection.sendall(self.answer)
            connection.close()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.held:
            connection.close()


HEADER = b"BRCA\0\0\0\0"
BROKEN = {
    "dies": b"",
    "dies in the header": HEADER[:6],
    "dies in the text": HEADER + b"\x05\0\0\0ab",
    "speaks otherwise": b"HTTP/1.0 200 OK\r\n\r\n",
    "threatens": HEADER + b"\xff\xff\xff\xff",
    "hangs": None,
}


@pytest.fixture(params=BROKEN, ids=str)
def broken_agent(request: pytest.FixtureRequest, host: Host) -> Iterator[BrokenAgent]:
    agent = BrokenAgent(host, BROKEN[request.param])
    yield agent
    agent.close()


def test_an_agent_that_fails_is_no_agent(
    host: Host, broken_agent: BrokenAgent, impatient: Path
) -> None:
    if broken_agent.answer is None:
        host.replace_relay(impatient)
    assert host.error("ADD")["code"] == 11
    assert host.error("STATUS")["code"] == 50
    assert host.run("DEL") == (0, None)
    spool = host.spool()
    assert [spool.load(name).container_id for name in spool.names()] == ["c1"]


def test_an_agent_that_accepts_nothing(host: Host, impatient: Path) -> None:
    host.replace_relay(impatient)
    agent = BrokenAgent(host, None, accept=False)
    with socket.socket(socket.AF_UNIX) as first:
        first.connect(os.fspath(host.root / "var/run/bristle/cni.sock"))  # the backlog is full
        assert host.error("STATUS")["code"] == 50
        assert host.run("DEL") == (0, None)
    agent.close()
    assert len(host.spool().names()) == 1
