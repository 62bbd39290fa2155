# SPDX-License-Identifier: Apache-2.0
"""What the tests of socket redirect share: a lab whose pods' sockets may be redirected, TCP
connections whose every byte is known, and what the kernel says of both their ends.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from agent.kernel import bpf
from agent.kernel.netns import SO_NETNS_COOKIE
from agent.kernel.socket_redirect import SK_MSG, SOCK_OPS, ListedSocket, pinned_sockets
from agent.kernel.syscall import AttachType, Command, call
from bench.lab import manifests
from bench.lab.agent import KEPT, REPOSITORY, Agent, _share
from bench.lab.netns import Namespace
from bench.lab.node import Lab
from bench.lab.station import Pod
from bpf.layouts import RedirectState, SocketSide
from bpf.maps import SOCKETS

ANNOTATION = "bristle.io/socket-redirect"
ON = {ANNOTATION: "on"}
CONFIG: Mapping[str, Any] = {"socket_redirect": {"enabled": True}}
PATIENCE = 10.0
"""Seconds after which what does not come is taken never to come."""


@contextlib.contextmanager
def redirecting(config: Mapping[str, Any] = CONFIG, **settings: Any) -> Iterator[Lab]:
    """A lab with its agent, in whose cgroup this process is, once redirect is on."""
    with Lab(start=False, config=config, **settings) as lab, lab.scope.inhabited():
        lab.agent.start()
        wait_mode(lab, "on", "all")
        yield lab


class AlteredAgent(Agent):
    """An agent that runs from `tree`, if there is one, after `before`: lines of Python that may
    change what it finds or how long it waits."""

    tree: Path | None = None
    before = ""

    def launch(self) -> None:
        """As the agent of the lab."""
        if KEPT is not None:
            _share(KEPT, self.run_dir / "programs")
        self._file.write_text(yaml.safe_dump(self.config))
        tree = self.tree or REPOSITORY
        code = f"import sys; sys.argv[0] = 'bristle'\n{self.before}\n"
        code += "from agent.cli import main; main()"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._namespace.argv(
                    [sys.executable, "-c", code, "agent", "--config", str(self._file)]
                ),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=tree,
                env={**os.environ, "PYTHONPATH": str(tree)},
            )  # fmt: skip

    def said(self, text: str) -> int:
        """How often its log has a text."""
        return self.log.read_text(errors="replace").count(text) if self.log.exists() else 0


@contextlib.contextmanager
def altered(config: Mapping[str, Any] = CONFIG, before: str = "") -> Iterator[Lab]:
    """As `redirecting`, with an AlteredAgent, which is not started yet."""
    with Lab(start=False, config=config) as lab, lab.scope.inhabited():
        agent = AlteredAgent(lab.node_namespace, lab.agent.config, lab.scope.root / "agent.yaml")
        agent.before = before
        lab.agent = agent
        try:
            yield lab
        finally:
            agent.close()


def agent_of(lab: Lab) -> AlteredAgent:
    """The agent of a lab made by `altered`."""
    assert isinstance(lab.agent, AlteredAgent)
    return lab.agent


def wait_mode(lab: Lab, *modes: str) -> Any:
    """Until `status` has one of these modes; its part about redirect. Raises LabError."""

    def there() -> Any:
        found = lab.agent.status().socket_redirect
        return found if found.mode in modes else None

    return lab.agent.wait(there, f"socket redirect to be {' or '.join(modes)}", 60)


def set_pod(lab: Lab, pod: Pod, labels: Mapping[str, str], value: str | None = "on") -> None:
    """The pod's manifest anew: its labels, and its annotation (None: none)."""
    annotations = {ANNOTATION: value} if value is not None else None
    lab.manifests.put(
        f"pod-{pod.pod_namespace}-{pod.pod_name}",
        [manifests.pod(pod.pod_namespace, pod.pod_name, labels, annotations=annotations)],
    )


def isolated(pod: str, namespace: str, *, egress: bool = False) -> manifests.Object:
    """A policy that lets nothing in to (out of) the pods with label `app`."""
    kind = "Egress" if egress else "Ingress"
    spec = {"podSelector": {"matchLabels": {"app": pod}}, "policyTypes": [kind]}
    return manifests.policy(namespace, f"isolated-{pod}-{kind.lower()}", spec)


def cookie_of(one: socket.socket) -> int:
    """Of the network namespace of a socket."""
    return int(struct.unpack("=Q", one.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0])


def inet_of(address: str) -> socket.AddressFamily:
    """The family of an address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


Settings = Callable[[socket.socket], None]
"""Further options for a socket, set before it is bound or connected."""


def opened(
    namespace: Namespace,
    address: str,
    port: int,
    source: tuple[str, int] | None = None,
    settings: Settings = lambda _: None,
) -> socket.socket:
    """A socket that never blocks, connecting."""

    def work() -> socket.socket:
        made = socket.socket(inet_of(address), socket.SOCK_STREAM)
        made.setblocking(False)
        settings(made)
        if source is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(source)
        code = made.connect_ex((address, port))
        if code not in (0, errno.EINPROGRESS):
            made.close()
            raise OSError(code, os.strerror(code))
        return made

    return namespace.run(work)


def ready(one: socket.socket, events: int, seconds: float = PATIENCE) -> bool:
    """Whether a socket becomes readable (writable) in a time."""
    poll = select.poll()
    poll.register(one, events)
    return bool(poll.poll(seconds * 1000))


def receive(one: socket.socket, count: int) -> bytes:
    """So many bytes. Raises AssertionError when they do not come."""
    found = bytearray()
    while len(found) < count:
        assert ready(one, select.POLLIN), f"{len(found)} of {count} bytes came"
        with contextlib.suppress(BlockingIOError):
            piece = one.recv(count - len(found))
            assert piece, f"the end after {len(found)} of {count} bytes"
            found += piece
    return bytes(found)


def send(one: socket.socket, data: bytes) -> None:
    """All of it. Raises AssertionError when the other end does not take it."""
    view = memoryview(data)
    while view:
        assert ready(one, select.POLLOUT), f"{len(view)} bytes are not taken"
        with contextlib.suppress(BlockingIOError):
            view = view[one.send(view) :]


@dataclass
class Port:
    """A context manager: a listening socket; what it accepts never blocks."""

    namespace: Namespace
    port: int
    address: str = "::"
    settings: Settings = lambda _: None
    listener: socket.socket = field(init=False)

    def __enter__(self) -> Port:
        self.listener = self.namespace.run(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()

    def _listen(self) -> socket.socket:
        made = socket.socket(inet_of(self.address), socket.SOCK_STREAM)
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.address == "::":
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.settings(made)
        made.bind((self.address, self.port))
        made.listen(128)
        return made

    def accept(self) -> socket.socket:
        """The next connection."""
        assert ready(self.listener, select.POLLIN), f"nothing comes to port {self.port}"
        made, _ = self.listener.accept()
        made.setblocking(False)
        return made


class Link:
    """A context manager: one connection, its two ends, and what the kernel says of them."""

    def __init__(
        self,
        lab: Lab,
        namespace: Namespace,
        port: Port,
        address: str,
        number: int = 0,
        source: tuple[str, int] | None = None,
        settings: Settings = lambda _: None,
    ) -> None:
        """number: the port that is dialled, if it is not the one that answers."""
        self._lab = lab
        self.client = opened(namespace, address, number or port.port, source, settings)
        try:
            self.server = port.accept()
        except BaseException:
            self.client.close()
            raise

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.close()

    def exchange(self, times: int = 3) -> None:
        """Messages there and back, each byte of which must be right."""
        for n in range(times):
            there, back = f"there {n:6}".encode(), f"back {n:7}".encode()
            send(self.client, there)
            assert receive(self.server, len(there)) == there
            send(self.server, back)
            assert receive(self.client, len(back)) == back

    def state(self, side: int = SocketSide.SIDE_OPENED) -> ListedSocket | None:
        """What is known of its opening (answering) end; None where it takes no part."""
        listed = pinned_sockets(self._lab.scope.bpffs)
        cookie, port = cookie_of(self.client), socket.htons(self.client.getsockname()[1])
        for one in listed:
            state = one.state
            if (state.netns, state.side) == (cookie, SocketSide.SIDE_OPENED) and (
                state.source_port == port
                and socket.ntohs(state.destination_port) == self.client.getpeername()[1]
            ):
                break
        else:
            return None
        if side == SocketSide.SIDE_OPENED:
            return one
        numbers = state.client, state.server, side
        for other in listed:
            if (other.state.client, other.state.server, other.state.side) == numbers:
                return other
        return None

    def direct(self) -> tuple[bool, bool]:
        """Whether what the client, the server sends goes past the stack."""
        ends = [self.state(side) for side in (SocketSide.SIDE_OPENED, SocketSide.SIDE_ANSWERED)]
        client, server = (
            end is not None and end.state.state == RedirectState.REDIRECT_DIRECT for end in ends
        )
        return client, server

    def redirected_bytes(self) -> int:
        """What both ends have sent past the stack."""
        ends = [self.state(side) for side in (SocketSide.SIDE_OPENED, SocketSide.SIDE_ANSWERED)]
        return sum(end.state.bytes for end in ends if end is not None)

    def exchange_until_direct(self) -> None:
        """Goes on until both directions go past the stack."""
        deadline = time.monotonic() + PATIENCE
        while self.direct() != (True, True):
            assert time.monotonic() < deadline, f"stays on the stack: {self.explain()}"
            self.exchange(1)

    def explain(self) -> str:
        """State and reason of both ends, for messages."""
        ends = [self.state(side) for side in (SocketSide.SIDE_OPENED, SocketSide.SIDE_ANSWERED)]
        return " ".join("absent" if e is None else f"{e.state.state}/{e.state.reason}"
                        for e in ends)  # fmt: skip


class Stream:
    """A context manager: numbered words both ways, as fast as 2 ms allow, and a check of each."""

    def __init__(self, *links: Link) -> None:
        self.ways = [Way(*ends) for one in links
                     for ends in ((one.client, one.server), (one.server, one.client))]  # fmt: skip
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)
        self.failure: BaseException | None = None

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self.failure is None, self.failure

    def received(self) -> list[int]:
        """Words so far, by direction."""
        return [way.got for way in self.ways]

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.002):
                for way in self.ways:
                    way.step()
            deadline = time.monotonic() + 4 * PATIENCE
            while any(way.behind for way in self.ways) and time.monotonic() < deadline:
                for way in self.ways:
                    way.flush()
                    way.read()
                time.sleep(0.001)
            left = [way.behind for way in self.ways]
            assert not any(left), f"bytes that never came: {left}"
        except BaseException as error:
            self.failure = error


class Way:
    """One direction: 8-byte words that count up."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source, self.target = source, target
        self.sent = self.got = 0
        self.last = 0.0
        """When the last word came."""
        self._pending = self._held = b""
        self.bytes = 0

    @property
    def behind(self) -> int:
        return self.sent * 8 - self.got * 8

    def step(self) -> None:
        if not self._pending and self.behind < 1 << 20:
            self._pending = self.sent.to_bytes(8, "big")
            self.sent += 1
        self.flush()
        self.read()

    def flush(self) -> None:
        try:
            while self._pending:
                count = self.source.send(self._pending)
                self.bytes += count
                self._pending = self._pending[count:]
        except BlockingIOError:
            pass

    def read(self) -> None:
        try:
            while data := self.target.recv(65536):
                self.last = time.monotonic()
                self._held += data
                while len(self._held) >= 8:
                    number = int.from_bytes(self._held[:8], "big")
                    assert number == self.got, f"word {number} instead of {self.got}"
                    self.got += 1
                    self._held = self._held[8:]
        except BlockingIOError:
            pass


def grown(streams: Sequence[Stream], before: Sequence[list[int]]) -> bool:
    """Whether each direction has had words since."""
    return all(
        now > then
        for stream, former in zip(streams, before, strict=True)
        for now, then in zip(stream.received(), former, strict=True)
    )


def both_direct(link: Link) -> bool:
    """Whether both directions go past the stack."""
    return link.direct() == (True, True)


def taught(lab: Lab, namespace: Namespace, port: Port, address: str, number: int = 0) -> None:
    """Lets the first connections to a port show how its sockets are used, and where they are."""
    for _ in range(3):
        with Link(lab, namespace, port, address, number) as link:
            link.exchange()


def detach_from_cgroup(lab: Lab) -> None:
    """Ends the link of the program that sees connections begin."""
    link = bpf.object_get(lab.scope.bpffs / "redirect" / SOCK_OPS)
    bpf.link_detach(link)
    os.close(link)


def detach_from_table(lab: Lab) -> None:
    """Takes the program away that judges messages."""
    program = bpf.object_get(next((lab.scope.bpffs / "programs").glob(f"{SK_MSG}-*")))
    table = bpf.object_get(lab.scope.bpffs / "maps" / SOCKETS.pin_name)
    words = struct.pack("=IIII", table, program, AttachType.SK_MSG_VERDICT, 0)
    call(Command.PROG_DETACH, words, "the program of the table")
    os.close(program)
    os.close(table)


def outcomes(lab: Lab) -> dict[str, float]:
    """Ends of connections by what became of them."""
    return by_label(lab, "bristle_socket_ends_total", "outcome")


def by_label(lab: Lab, metric: str, label: str) -> dict[str, float]:
    """Values of a metric by one of its labels."""
    from api import agent_pb2 as pb

    found: dict[str, float] = {}
    for sample in lab.agent.stub.Metrics(pb.MetricsRequest(), timeout=10).samples:
        if sample.name == metric:
            name = next(one.value for one in sample.labels if one.name == label)
            found[name] = found.get(name, 0) + sample.value
    return found


def pods(lab: Lab, annotations: Mapping[str, str] | None = ON) -> tuple[Pod, Pod]:
    """one/a and two/b."""
    return (
        lab.add_pod("one", "a", {"app": "a"}, annotations=annotations),
        lab.add_pod("two", "b", {"app": "b"}, annotations=annotations),
    )


def start(lab: Lab, *modes: str) -> Any:
    """Starts the agent, and waits for redirect to be as is said."""
    lab.agent.start()
    return wait_mode(lab, *(modes or ("on", "all")))


def pins(lab: Lab) -> set[str]:
    """Everything that redirect has pinned."""
    root = lab.scope.bpffs
    names = ("redirect", "sockets", "handshakes", "listeners", "socket_states", "spliced",
             "socket_counters", "socket_traffic")  # fmt: skip
    found = {pin for name in names for pin in (root / "maps").glob(f"{name}_v*")}
    for name in ("sock_ops", "sk_msg", "rcv_space_adjust", "list_sockets"):
        found |= set((root / "programs").glob(f"{name}-*"))
        found |= {one for one in [root / "redirect" / name] if one.exists()}
    return {str(pin.relative_to(root)) for pin in found}
