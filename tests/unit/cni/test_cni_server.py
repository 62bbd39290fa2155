# SPDX-License-Identifier: Apache-2.0
"""The server with a hand-made relay: what malformed and impatient peers do to it (nothing)."""

import array
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.rpc.cni_server import CniServer, Handler, ServerOptions, SocketBusy
from cni.config import Command
from cni.errors import CniError, ErrorCode
from cni.protocol import Frame, Reply, Request, encode_frame
from cni.spool import Spool

PATIENCE = 30.0
"""Seconds after which a test that waits for an event is hung."""
ROOT = ServerOptions(
    workers=4, allowed_uids=frozenset({os.geteuid()}), refuse_own_netns=False, spool_interval=3600
)
NETNS = "/proc/self/ns/net"


def frame(command: str, container: str = "c", with_netns: bool = False, **keys: Any) -> bytes:
    variables = {
        "CNI_COMMAND": command.encode(),
        "CNI_CONTAINERID": container.encode(),
        "CNI_IFNAME": b"eth0",
        "CNI_NETNS": NETNS.encode(),
    }
    config = {"cniVersion": "1.1.0", "name": "pods", "type": "b", **keys}
    return encode_frame(Frame(variables, json.dumps(config).encode(), with_netns))


def echo(request: Request, netns: int | None) -> Reply:
    """Tells what it got."""
    got = {"command": request.command, "id": request.container_id, "netns": netns is not None}
    return Reply(json.dumps(got).encode())


class Client:
    """One connection of a relay."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(os.fspath(path))

    def send(self, data: bytes, *fds: int) -> None:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with suppress(BrokenPipeError):  # the server may have refused already
            self.socket.sendmsg([data], control)

    def answer(self) -> tuple[int, Any]:
        """Exit code and the JSON text; (-1, None) if the connection just ended."""
        data = b""
        with suppress(ConnectionResetError):
            while chunk := self.socket.recv(1 << 16):
                data += chunk
        self.socket.close()
        if not data:
            return -1, None
        magic, code, size = struct.unpack("<4sII", data[:12])
        assert magic == b"BRCA" and size == len(data) - 12
        return code, json.loads(data[12:]) if size else None


class Lab:
    """A folder with servers in it; they end with the test."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cni.sock"
        self.spool = Spool(folder / "spool")
        self.servers: list[CniServer] = []

    def serve(self, handler: Handler = echo, options: ServerOptions = ROOT) -> CniServer:
        self.servers.append(CniServer(self.path, self.spool, handler, options))
        self.servers[-1].start()
        return self.servers[-1]

    def ask(self, data: bytes, *fds: int) -> tuple[int, Any]:
        client = Client(self.path)
        client.send(data, *fds)
        return client.answer()

    def add(self, container: str = "c") -> tuple[int, Any]:
        fd = os.open(NETNS, os.O_RDONLY)
        try:
            return self.ask(frame("ADD", container, True), fd)
        finally:
            os.close(fd)

    def keep(self, time: int, data: bytes) -> None:
        """What a relay does while no agent runs."""
        self.spool.folder.mkdir(exist_ok=True)
        (self.spool.folder / f".{time:020}").write_bytes(data)
        name = f"{time:020}-1-DEL.frame"
        os.rename(self.spool.folder / f".{time:020}", self.spool.folder / name)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    for server in made.servers:
        server.stop(grace=0.1)


def open_fds() -> dict[str, str]:
    """The descriptors of this process and what they are, but for that of the listing itself."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def test_serves_and_passes_the_namespace(lab: Lab) -> None:
    lab.serve()
    assert lab.path.stat().st_mode & 0o777 == 0o600
    before = open_fds()
    assert lab.add("a") == (0, {"command": "ADD", "id": "a", "netns": True})
    assert lab.ask(frame("DEL")) == (0, {"command": "DEL", "id": "c", "netns": False})
    code, answer = lab.ask(frame("VERSION"))
    assert code == 0 and answer["supportedVersions"] == ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    assert open_fds() == before


def test_what_is_no_namespace(lab: Lab) -> None:
    lab.serve()
    other_kind = os.open("/proc/self/ns/uts", os.O_RDONLY)
    null = os.open("/dev/null", os.O_RDONLY)
    for fd in (other_kind, null):
        code, answer = lab.ask(frame("ADD", "c", True), fd)
        assert (code, answer["code"]) == (1, 4) and "CNI_NETNS" in answer["msg"]
        assert lab.ask(frame("DEL", "c", True), fd)[1]["netns"] is False
        os.close(fd)
    assert lab.ask(frame("ADD"))[1]["code"] == 4


def test_the_agents_own_namespace_is_no_pod(lab: Lab) -> None:
    options = ServerOptions(workers=2, allowed_uids=ROOT.allowed_uids)
    lab.serve(options=options)
    code, answer = lab.add()
    assert (code, answer["code"]) == (1, 4) and "agent's own" in answer["msg"]


def test_other_users_are_refused(lab: Lab) -> None:
    nobody = frozenset({os.geteuid() + 1})
    lab.serve(options=ServerOptions(workers=2, allowed_uids=nobody))
    assert lab.ask(frame("STATUS")) == (-1, None)


def test_handlers_errors_keep_their_code(lab: Lab) -> None:
    errors: list[Exception] = [
        CniError(ErrorCode.ADDRESSES_EXHAUSTED, "no address is left"),
        RuntimeError("secret"),
    ]

    def handler(request: Request, netns: int | None) -> Reply:
        raise errors.pop(0)

    lab.serve(handler)
    code, answer = lab.add()
    assert (code, answer["code"], answer["msg"]) == (1, 100, "no address is left")
    code, answer = lab.add()
    assert (code, answer["code"]) == (1, 999) and "secret" not in answer["msg"]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_survives_malformed_frames(lab: Lab, data: st.DataObject) -> None:
    if not lab.servers:
        lab.serve()
    raw = bytearray(frame("STATUS"))
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    size = data.draw(st.integers(0, len(raw)))
    fds = [1] * data.draw(st.integers(0, 3)) if size else []
    before = open_fds()
    client = Client(lab.path)
    client.send(bytes(raw[:size]), *fds)
    client.socket.shutdown(socket.SHUT_WR)
    code, answer = client.answer()
    assert code in (-1, 0) or answer["code"] in (1, 4, 6, 7)
    assert lab.ask(frame("STATUS"))[0] == 0
    assert open_fds() == before


def test_a_silent_peer_holds_its_worker_for_the_timeout_only(lab: Lab) -> None:
    lab.serve(options=ServerOptions(workers=1, allowed_uids=ROOT.allowed_uids, receive_timeout=0.5))
    silent = Client(lab.path)
    silent.send(frame("STATUS")[:10])
    assert lab.ask(frame("STATUS"))[0] == 0
    assert silent.answer()[1]["code"] == ErrorCode.DECODING_FAILURE


class Gate:
    """A handler that lets each container's request through when told."""

    def __init__(self) -> None:
        self.entered: dict[str, threading.Event] = {}
        self.open: dict[str, threading.Event] = {}
        self.order: list[str] = []
        self.lock = threading.Lock()

    def event(self, events: dict[str, threading.Event], key: str) -> threading.Event:
        with self.lock:
            return events.setdefault(key, threading.Event())

    def __call__(self, request: Request, netns: int | None) -> Reply:
        key = f"{request.command} {request.container_id}"
        self.order.append(key)
        self.event(self.entered, key).set()
        assert self.event(self.open, key).wait(PATIENCE)
        return Reply(json.dumps(key).encode())

    def wait_for(self, key: str) -> None:
        assert self.event(self.entered, key).wait(PATIENCE)

    def let(self, *keys: str) -> None:
        for key in keys:
            self.event(self.open, key).set()


def test_several_at_once_but_one_attachment_in_order(lab: Lab) -> None:
    gate = Gate()
    lab.serve(gate)
    clients = {}
    for key in ("DEL a", "DEL b"):
        clients[key] = Client(lab.path)
        clients[key].send(frame("DEL", key[-1]))
        gate.wait_for(key)  # both are inside at the same time
    fd = os.open(NETNS, os.O_RDONLY)
    clients["ADD a"] = Client(lab.path)
    clients["ADD a"].send(frame("ADD", "a", True), fd)
    os.close(fd)
    gate.let("DEL b", "ADD a")
    assert clients["DEL b"].answer() == (0, "DEL b")
    assert "ADD a" not in gate.order
    gate.let("DEL a")
    assert clients["DEL a"].answer() == (0, "DEL a") and clients["ADD a"].answer()[0] == 0
    assert gate.order == ["DEL a", "DEL b", "ADD a"]


def test_a_relay_that_has_gone_before_its_turn_is_not_served(lab: Lab) -> None:
    gate = Gate()
    lab.serve(gate)
    first, second, third = (Client(lab.path) for _ in range(3))
    first.send(frame("DEL", "a"))
    gate.wait_for("DEL a")
    second.send(frame("DEL", "a"))
    second.socket.close()
    third.send(frame("DEL", "a"))
    gate.let("DEL a")
    assert first.answer()[0] == third.answer()[0] == 0
    assert lab.ask(frame("DEL", "a"))[0] == 0  # behind all others
    assert gate.order == ["DEL a"] * 3


# ---- the spool -------------------------------------------------------------------------------


def recorder(log: list[str], refuse: Callable[[Request], bool] = lambda _: False) -> Handler:
    def handler(request: Request, netns: int | None) -> Reply:
        log.append(f"{request.command} {request.container_id}")
        if refuse(request):
            raise CniError(ErrorCode.TRY_AGAIN_LATER, "not ready")
        return Reply()

    return handler


def test_spool_is_replayed_before_the_first_request(lab: Lab) -> None:
    log: list[str] = []
    lab.keep(2, frame("DEL", "b"))
    lab.keep(1, frame("DEL", "a"))
    lab.serve(recorder(log))
    assert log == ["DEL a", "DEL b"] and lab.spool.names() == []


def test_spool_that_fills_later_is_replayed_before_an_add(lab: Lab) -> None:
    log: list[str] = []
    lab.serve(recorder(log))
    lab.keep(1, frame("DEL", "old"))
    lab.keep(2, frame("DEL", "new"))  # its own attachment's: no deadlock
    assert lab.ask(frame("STATUS", ""))[0] == 0
    assert lab.add("new")[0] == 0
    assert log == ["STATUS ", "DEL old", "DEL new", "ADD new"]


def test_no_address_before_the_spool_is_done(lab: Lab) -> None:
    log: list[str] = []
    ready = threading.Event()
    lab.keep(1, frame("DEL", "old"))
    lab.serve(recorder(log, lambda r: r.command is Command.DEL and not ready.is_set()))
    code, answer = lab.add("new")
    assert (code, answer["code"]) == (1, 11) and "ADD new" not in log
    ready.set()
    assert lab.add("new")[0] == 0
    assert log[-2:] == ["DEL old", "ADD new"] and lab.spool.names() == []


def test_spooled_removal_waits_for_the_same_attachments_add(lab: Lab) -> None:
    """The relay of a slow ADD gave up, its DEL was spooled; another pod's ADD comes."""
    gate = Gate()
    lab.serve(gate)
    slow, fd = Client(lab.path), os.open(NETNS, os.O_RDONLY)
    slow.send(frame("ADD", "slow", True), fd)
    os.close(fd)
    gate.wait_for("ADD slow")
    lab.keep(1, frame("DEL", "slow"))
    gate.let("ADD other", "ADD third", "DEL slow")
    assert lab.add("other")[0] == 0 and len(lab.spool.names()) == 1
    gate.let("ADD slow")
    assert slow.answer()[0] == 0
    assert lab.add("third")[0] == 0
    assert gate.order == ["ADD slow", "ADD other", "DEL slow", "ADD third"]


# ---- the socket ------------------------------------------------------------------------------


def test_stale_socket_is_replaced_and_a_live_one_is_not(lab: Lab) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(lab.path))
    first = lab.serve()
    with pytest.raises(SocketBusy, match=str(lab.path)):
        CniServer(lab.path, lab.spool, echo, ROOT).start()
    assert lab.ask(frame("STATUS"))[0] == 0
    first.stop()
    assert not lab.path.exists()
    lab.path.write_text("a file")
    with pytest.raises(SocketBusy, match="no socket"):
        CniServer(lab.path, lab.spool, echo, ROOT).start()


def test_stop_lets_requests_end_and_cuts_off_the_rest(lab: Lab) -> None:
    gate = Gate()
    server = lab.serve(gate)
    quick, hung = Client(lab.path), Client(lab.path)
    quick.send(frame("DEL", "quick"))
    hung.send(frame("DEL", "hung"))
    gate.wait_for("DEL quick")
    gate.wait_for("DEL hung")
    stopping = threading.Thread(target=server.stop, args=(1.0,))
    stopping.start()
    gate.let("DEL quick")
    assert quick.answer() == (0, "DEL quick")
    assert hung.answer() == (-1, None)
    stopping.join()
    gate.let("DEL hung")
    with pytest.raises(OSError):
        Client(lab.path)


def test_stop_leaves_the_successors_socket(lab: Lab) -> None:
    first = lab.serve()
    lab.path.unlink()
    lab.serve()
    first.stop()
    assert lab.ask(frame("STATUS"))[0] == 0
