# SPDX-License-Identifier: Apache-2.0
"""What the tests of restarts share: an agent that can run from another source tree, pods under
policies that let replies pass by connection tracking alone, and traffic whose every packet counts.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from api import agent_pb2 as pb
from bench.lab import manifests
from bench.lab.agent import REPOSITORY, Agent
from bench.lab.netns import LabError, Namespace
from bench.lab.node import Lab
from bench.lab.station import OUTSIDE4, OUTSIDE6, Pod, Station
from bench.lab.talk import Server, ask_tcp, ask_udp
from bench.lab.traffic import TcpFlow, Traffic, UdpFlow

PACKAGES = ("agent", "api", "bpf", "cni", "identity", "policy", "tools")
PORT = 9090
_TOTAL_RETRANS = 100  # offset of tcpi_total_retrans in struct tcp_info (linux/tcp.h)


class AnyAgent(Agent):
    """An agent whose code can be that of another tree: None is this repository's."""

    def __init__(self, namespace: Namespace, config: Mapping[str, Any], file: Path) -> None:
        super().__init__(namespace, config, file)
        self.tree: Path | None = None
        self.die = ""
        """Where it is to end itself, see `source_tree`."""
        self.pause = 0.0
        """Seconds that it waits after each device that it attaches to, see `source_tree`."""

    def launch(self) -> None:
        """As the agent of the lab, but from `tree`."""
        self._file.write_text(yaml.safe_dump(self.config))
        tree = self.tree or REPOSITORY
        code = "import sys; from agent.cli import main; sys.argv[0] = 'bristle'; main()"
        command = [sys.executable, "-c", code, "agent", "--config", str(self._file)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._namespace.argv(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=tree,
                env={
                    **os.environ,
                    "PYTHONPATH": str(tree),
                    "BRISTLE_T_DIE": self.die,
                    "BRISTLE_T_PAUSE": str(self.pause or ""),
                },
            )

    def launch_to_die(self, die: str) -> bool:
        """Starts it and kills it: at `die`, or when it is ready if it never comes there.

        Gives whether it came there. Raises LabError if it ends in another way.
        """
        self.die = die
        self.launch()
        self.die = ""
        try:
            self.wait_ready()
            self.kill()
            return False
        except LabError:
            if self._process is None or self._process.poll() != -signal.SIGKILL:
                raise
            self._disconnect()
            return True

    def settle(self) -> None:
        """Waits until the kernel holds just what it should: what is not wanted any more goes last.
        Raises LabError."""

        def clean() -> bool:
            return not self.stub.Check(pb.CheckRequest(), timeout=20).difference_count

        self.wait(clean, "policy check to find nothing", 30)

    def ended(self) -> bool:
        """Whether its process is gone."""
        return self._process is None or self._process.poll() is not None

    def said(self, text: str) -> int:
        """How often its log has a text."""
        return self.log.read_text(errors="replace").count(text) if self.log.exists() else 0


def source_tree(folder: Path, *, grown: bool) -> Path:
    """A copy of the packages that dies on demand (see `_DIES`).

    grown: three shared structures have one more member, as in a later version; the maps that hold
    them have the next version, and bpf/layouts.py is generated anew.
    """
    tree = folder / ("grown" if grown else "same")
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, tree / name, ignore=ignored)
    with (tree / "agent/kernel/datapath.py").open("a") as source:
        source.write(_DIES)
    if not grown:
        return tree
    for name, member in GROWN.items():
        pattern = rf"(\nstruct {name} {{.*?)\n}};"
        _edit(tree / "bpf/lib/layout.h", pattern, rf"\1\n\t{member}\n}};")
    # How maps are listed is the file's own affair; that there is a list by name is not.
    with (tree / "bpf/maps.py").open("a") as source:
        source.write(_NEXT_VERSION)
    subprocess.run(
        [sys.executable, "-m", "tools.generate_layouts"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        check=True,
    )
    return tree


def _edit(path: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.DOTALL)
    assert count == 1, f"{path} has nothing like {pattern}"
    path.write_text(text)


GROWN = {
    "ct_entry": "__u64 pad91;",
    "endpoint_policy": "__u64 pad91;",
    "local_address": "__u32 pad91;",
    "nat_entry": "__u64 pad91;",
    "nat_origin": "__u32 pad91;",
}
GROWN_MAPS = ("ct", "ct_overflow", "endpoints", "addresses", "nat", "nat_reverse")
_NEXT_VERSION = f"""

SPECS = {{
    name: replace(spec, version=spec.version + 1) if name in {GROWN_MAPS!r} else spec
    for name, spec in SPECS.items()
}}
"""
# BRISTLE_T_DIE=attach_endpoint:3 ends the agent by SIGKILL when it calls that for the third time.
# BRISTLE_T_PAUSE: seconds after each device, so that for long some have changed over, some not.
_DIES = """

def _deadly(owner, name, left):
    method = getattr(owner, name)

    def dies(*arguments):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)
        return method(*arguments)

    setattr(owner, name, dies)


def _slow(method, seconds):
    def slow(*arguments):
        result = method(*arguments)
        time.sleep(seconds)
        return result

    return slow


if os.environ.get("BRISTLE_T_PAUSE"):
    for _name in ("attach_endpoint", "attach_uplink"):
        _seconds = float(os.environ["BRISTLE_T_PAUSE"])
        setattr(Datapath, _name, _slow(getattr(Datapath, _name), _seconds))
if os.environ.get("BRISTLE_T_DIE"):
    _name, _, _count = os.environ["BRISTLE_T_DIE"].partition(":")
    _owner = Former if _name in ("copy_connections", "carry_over", "unpin") else Datapath
    _deadly(PinnedMap if _name == "update_packed" else _owner, _name, int(_count))
"""


@dataclass(frozen=True, slots=True)
class World:
    """A lab with pods that may talk and pods that may not."""

    lab: Lab
    agent: AnyAgent
    allowed: list[tuple[Station, Station, int]]
    denied: list[tuple[Station, Station, int]]

    def translated(self, source: Station, destination: Station) -> bool:
        """Whether the destination sees the node's address."""
        enabled = self.agent.config.get("masquerade", {}).get("enabled", False)
        return bool(enabled) and isinstance(source, Pod) and destination is self.lab.outside

    def restart(
        self,
        *,
        tree: Path | None = None,
        orderly: bool = False,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """End the agent, by SIGKILL unless orderly, and start another."""
        if orderly:
            assert self.agent.stop() == 0
        else:
            self.agent.kill()
        self.agent.tree = tree
        self.agent.config.update(config or {})
        self.agent.start()

    def pins(self) -> set[str]:
        """Names of the pinned maps."""
        return {pin.name for pin in (self.lab.scope.bpffs / "maps").iterdir()}


@contextlib.contextmanager
def world(**settings: Any) -> Iterator[World]:
    """A started agent, five pods and the policies in force; all gone afterwards."""
    with Lab(start=False, **settings) as lab:
        agent = AnyAgent(lab.node_namespace, lab.agent.config, lab.scope.root / "agent.yaml")
        lab.agent = agent
        try:
            agent.start()
            yield _furnish(lab, agent)
        finally:
            agent.close()


def _furnish(lab: Lab, agent: AnyAgent) -> World:
    lab.manifests.put("namespace-shop", [manifests.namespace("shop")])
    pods = {
        name: lab.add_pod("shop", name, {"role": role})
        for name, role in (
            ("client-a", "client"),
            ("client-b", "client"),
            ("server-a", "server"),
            ("server-b", "server"),
            ("stranger", "stranger"),
        )
    }
    lab.set_policies(policies())
    a, b, x, y = (pods[name] for name in ("client-a", "client-b", "server-a", "server-b"))
    stranger = pods["stranger"]
    return World(
        lab,
        agent,
        allowed=[
            (a, x, 4),
            (a, x, 6),
            (b, y, 4),
            (b, x, 6),
            (a, lab.outside, 4),
            (b, lab.outside, 6),
            (lab.outside, y, 4),
            (lab.outside, x, 6),
            (lab.node, x, 4),
        ],
        denied=[(stranger, x, 4), (stranger, y, 6), (a, stranger, 4), (lab.far, y, 4)],
    )


def policies() -> list[manifests.Object]:
    """Everything is isolated both ways, and what is allowed is so in one direction: replies have
    nothing but connection tracking to let them pass."""

    def role(name: str) -> manifests.Object:
        return {"matchLabels": {"role": name}}

    outside = [{"ipBlock": {"cidr": f"{OUTSIDE4}/32"}}, {"ipBlock": {"cidr": f"{OUTSIDE6}/128"}}]
    both = ["Ingress", "Egress"]
    clients, servers = {"podSelector": role("client")}, {"podSelector": role("server")}
    return [
        manifests.policy("shop", "isolated", {"podSelector": {}, "policyTypes": both}),
        manifests.policy(
            "shop",
            "servers",
            {"podSelector": role("server"), "ingress": [{"from": [clients, *outside]}]},
        ),
        manifests.policy(
            "shop",
            "clients",
            {
                "podSelector": role("client"),
                "policyTypes": ["Egress"],
                "egress": [{"to": [servers, *outside]}],
            },
        ),
        # The stranger may send; it is the servers' ingress that refuses.
        manifests.policy(
            "shop",
            "stranger",
            {"podSelector": role("stranger"), "policyTypes": ["Egress"], "egress": [{}]},
        ),
    ]


class Load:
    """A context manager: streams in both directions, new connections all the time, and attempts
    that policy denies, from when it is entered. `figures` is what became of them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.udp = [
            UdpFlow(*pair, translated=world.translated(*pair[:2])) for pair in world.allowed
        ]
        self.tcp = [TcpFlow(*pair) for pair in world.allowed]
        self.denied = [UdpFlow(*pair) for pair in world.denied]
        self._traffic = Traffic([*self.udp, *self.tcp, *self.denied])
        self._stack = contextlib.ExitStack()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._open_allowed, name="opens", daemon=True),
            threading.Thread(target=self._open_denied, name="tries", daemon=True),
        ]
        self.opened = self.tried = 0
        self.failed: list[str] = []
        self.admitted: list[str] = []
        self._began = 0.0

    def __enter__(self) -> Load:
        with contextlib.ExitStack() as stack:
            served = {id(d.namespace): d.namespace for _, d, _ in self._pairs()}
            for namespace in served.values():
                stack.enter_context(Server(namespace, (PORT,)))
            stack.enter_context(self._traffic)
            self._began, _ = self._traffic.run_for(0.1)
            for flow in (*self.udp, *self.denied):
                flow.answering = True
            for thread in self._threads:
                thread.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._stack.close()

    def run_for(self, seconds: float) -> None:
        """Lets it go on."""
        time.sleep(seconds)

    def figures(self) -> dict[str, Any]:
        """Counts since it began; only sent, opened and tried may be anything but 0 or empty."""
        _, until = self._traffic.run_for(0.02)
        return {
            "sent": sum(len(w.sent) for f in self.udp for w in (f.forward, f.backward)),
            "lost": {f.name: n for f in self.udp if (n := f.lost(self._began, until))},
            "duplicated": sum(f.duplicated() for f in self.udp),
            "admitted": {f.name: n for f in self.denied if (n := f.admitted(self._began, until))},
            "tcp_bytes": sum(sum(f.received()) for f in self.tcp),
            "retransmitted": {f.name: n for f in self.tcp if (n := retransmissions(f))},
            "broken": [f"{f.name}: {f.broken}" for f in self.tcp if f.broken],
            "opened": self.opened,
            "failed": list(self.failed),
            "tried": self.tried,
            "got through": list(self.admitted),
        }

    def check(self) -> dict[str, Any]:
        """The figures, after asserting that nothing was lost and nothing admitted."""
        figures = self.figures()
        wrong = ("lost", "duplicated", "admitted", "retransmitted", "broken", "failed",
                 "got through")  # fmt: skip
        assert {k: figures[k] for k in wrong if figures[k]} == {}, self._world.agent.tail()
        assert figures["sent"] and figures["tcp_bytes"] and figures["opened"] and figures["tried"]
        return figures

    def _pairs(self) -> list[tuple[Station, Station, int]]:
        return [*self._world.allowed, *self._world.denied]

    def _open_allowed(self) -> None:
        while not self._stop.is_set():
            for source, destination, family in self._world.allowed:
                for ask in (ask_udp, ask_tcp):
                    address, here = destination.address(family), source.address(family)
                    if not ask(source.namespace, address, PORT, source=here):
                        name = f"{ask.__name__} {source.name} -> {destination.name} ipv{family}"
                        self.failed.append(f"{time.monotonic():.3f} {name}")
                    self.opened += 1
                    time.sleep(0.005)

    def _open_denied(self) -> None:
        while not self._stop.is_set():
            for source, destination, family in self._world.denied:
                for ask in (ask_udp, ask_tcp):
                    address, here = destination.address(family), source.address(family)
                    if ask(source.namespace, address, PORT, source=here):
                        self.admitted.append(f"{source.name} -> {destination.name} ipv{family}")
                    self.tried += 1


def retransmissions(flow: TcpFlow) -> int:
    """Segments sent again on a connection, both ends."""
    total = 0
    for end in flow.sockets():
        info = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        total += int(struct.unpack_from("=I", info, _TOTAL_RETRANS)[0])
    return total


def pod_by_role(world: World, name: str) -> Pod:
    """A pod of the world by its name in the namespace shop."""
    return world.lab.pods[f"shop/{name}"]


__all__ = ["AnyAgent", "Load", "World", "pod_by_role", "policies", "source_tree", "world"]
