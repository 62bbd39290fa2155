# SPDX-License-Identifier: Apache-2.0
"""What the tests of socket redirect share: pods that have it, connections between them that are
redirected or not, and how a little program is run on either to compare what it sees.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from agent.kernel.socket_redirect import ListedSocket, pinned_sockets
from bench.lab.node import Lab
from bench.lab.station import Pod
from bpf.layouts import RedirectState, SocketSide

ANNOTATION: Final = "bristle.io/socket-redirect"
PATIENCE: Final = 5.0
"""Seconds within which something has to come that takes microseconds."""
LOOK: Final = 0.05
"""Seconds given to what must not happen, or has to be under way."""
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_PORTS: Final = itertools.count(9000)  # each once: what is learnt of a port stays

T = TypeVar("T")
Seen = dict[str, Any]
Program = Callable[[socket.socket, socket.socket], Seen]


@dataclass(frozen=True, slots=True)
class Ends:
    """Both ends of one connection."""

    client: socket.socket
    server: socket.socket


class World:
    """A lab whose node redirects, forced, so that blocking sockets can be looked at too.

    Pods one/a and two/b have the annotation "on", one/c and two/d have "all".
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._pairs: dict[str, tuple[Pod, Pod]] = {}
        for mode, names in (("on", "ab"), ("all", "cd")):
            first, second = (
                lab.add_pod(space, name, {"app": name}, annotations={ANNOTATION: mode})
                for space, name in zip(("one", "two"), names, strict=True)
            )
            self._pairs[mode] = first, second

    def pair(self, mode: str) -> tuple[Pod, Pod]:
        """Of mode on or all."""
        return self._pairs[mode]

    @contextlib.contextmanager
    def connection(
        self,
        mode: str,
        family: int = 4,
        *,
        redirected: bool = True,
        blocking: bool = False,
    ) -> Iterator[Ends]:
        """Between the pods of a mode. redirected: False: the very same, but made outside of the
        cgroup whose sockets are redirected. Otherwise one has gone before, by which is learnt how
        the port's sockets are used."""
        first, second = self.pair(mode)
        port = next(_PORTS)
        address = second.address(family)
        inside = self.lab.scope.inhabited() if redirected else contextlib.nullcontext()
        with contextlib.ExitStack() as stack:
            with inside:
                listener = stack.enter_context(second.namespace.run(lambda: _listen(address, port)))
                for _ in range(2 if redirected else 1):
                    client = first.namespace.run(lambda: _dial(address, port, blocking))
                    server = _accept(listener, blocking)
                    exchange(client, server)
                    if _ == 0 and redirected:
                        client.close()
                        server.close()
            listener.close()
            with client, server:
                yield Ends(client, server)

    def listed(self, one: socket.socket, opened: bool) -> ListedSocket | None:
        """What the programs know of a socket; None: it does not take part."""
        port = (one.getsockname() if opened else one.getpeername())[1]
        side = SocketSide.SIDE_OPENED if opened else SocketSide.SIDE_ANSWERED
        for found in pinned_sockets(self.lab.scope.bpffs):
            state = found.state
            if state.side == side and socket.ntohs(state.source_port) == port:
                return found
        return None

    def states(self, ends: Ends) -> tuple[str, str]:
        """Of both ends, by the name of enum redirect_state; "none" where one is not in."""
        found = self.listed(ends.client, True), self.listed(ends.server, False)
        first, second = (
            "none" if one is None else RedirectState(one.state.state).name[9:].lower()
            for one in found
        )
        return first, second

    def redirected_messages(self) -> int:
        """So far, on this node."""
        return int(self.lab.agent.metric("bristle_socket_redirect_messages_total"))

    def stack_messages(self, reason: str) -> int:
        """Of sockets that take part."""
        return int(self.lab.agent.metric("bristle_socket_stack_messages_total", reason=reason))


@contextlib.contextmanager
def make_world(force: bool = True, **redirect: Any) -> Iterator[World]:
    """A lab of its own. redirect: further keys of the node's `socket_redirect`."""
    config = {"socket_redirect": {"enabled": True, "force": force, **redirect}}
    with Lab(start=False, config=config) as lab:
        with lab.scope.inhabited():
            lab.agent.start()
        wanted = "all" if force else "on"
        lab.agent.wait(
            lambda: lab.agent.cli_json("status")["socket_redirect"]["mode"] == wanted,
            f"socket redirect to be {wanted}",
        )
        yield World(lab)


def _listen(address: str, port: int) -> socket.socket:
    family = _FAMILIES[6 if ":" in address else 4]
    listener = socket.create_server((address, port), family=family)
    listener.settimeout(PATIENCE)
    return listener


def _dial(address: str, port: int, blocking: bool) -> socket.socket:
    client = socket.socket(_FAMILIES[6 if ":" in address else 4])
    client.setblocking(blocking)
    with contextlib.suppress(BlockingIOError):
        client.connect((address, port))
    return client


def _accept(listener: socket.socket, blocking: bool) -> socket.socket:
    server, _ = listener.accept()
    server.setblocking(blocking)
    return server


# ---- what little programs are made of ------------------------------------------------------------


def exchange(one: socket.socket, other: socket.socket) -> None:
    """A message each way."""
    for sender, receiver in ((one, other), (other, one)):
        send_all(sender, b"hello")
        assert receive(receiver, 5) == b"hello"


def outcome(work: Callable[..., T], *arguments: Any) -> T | str:
    """What a call gives, or the name of its error."""
    try:
        return work(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


def wait_for(one: socket.socket, events: int = select.POLLIN, seconds: float = PATIENCE) -> int:
    """The events that poll tells; 0 after that time."""
    poll = select.poll()
    poll.register(one, events)
    return next((found for _, found in poll.poll(seconds * 1000)), 0)


def names_of(events: int, of: str = "POLL") -> list[str]:
    """Names of the events of poll, or of epoll (`of`="EPOLL")."""
    plain = ("IN", "PRI", "OUT", "ERR", "HUP", "RDHUP")
    return [name for name in plain if events & getattr(select, of + name)]


def receive(one: socket.socket, size: int) -> bytes:
    """Exactly so many bytes; fewer where the stream ends or nothing more comes."""
    found = bytearray()
    while len(found) < size:
        if not one.getblocking() and not wait_for(one):
            break
        try:
            piece = one.recv(size - len(found))
        except BlockingIOError:
            continue
        if not piece:
            break
        found += piece
    return bytes(found)


def receive_end(one: socket.socket) -> tuple[bytes, str]:
    """What comes until the end, and what the end is: "end", "silence" or an error's name."""
    found = bytearray()
    while True:
        if not wait_for(one):
            return bytes(found), "silence"
        piece = outcome(one.recv, 1 << 16)
        if isinstance(piece, str):
            if piece == "EAGAIN":
                continue
            return bytes(found), piece
        if not piece:
            return bytes(found), "end"
        found += piece


def send_all(one: socket.socket, data: bytes) -> None:
    """All of it, whether the socket blocks or not."""
    at = memoryview(data)
    while at:
        try:
            at = at[one.send(at) :]
        except BlockingIOError:
            assert wait_for(one, select.POLLOUT), "no room comes"


def fill(one: socket.socket, most: int = 1 << 26) -> int:
    """Sends until there is no more room, and what was under way has made none either; how many
    bytes that took."""
    piece, sent = pattern(1 << 16), 0
    while True:
        with contextlib.suppress(BlockingIOError):
            while sent < most:
                sent += one.send(piece)
        if sent >= most or not wait_for(one, select.POLLOUT, LOOK):
            return sent


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes in which a gap, a double or an exchange shows."""
    whole = b"".join((seed + n).to_bytes(4, "big") for n in range((size + 3) // 4))
    return whole[:size]


@contextlib.contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[threading.Thread]:
    """Runs it in a thread, which has to end."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    yield thread
    thread.join(6 * PATIENCE)
    assert not thread.is_alive(), "it does not end"
    if errors:
        raise errors[0]


def in_child(work: Callable[[], object]) -> int:
    """Runs it in a forked process; its exit status, 0 if all is well."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + 2 * PATIENCE
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -1
