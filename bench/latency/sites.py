# SPDX-License-Identifier: Apache-2.0
"""The places between which is measured: namespaces, control groups and two nodes with an agent.

All of it is made here and goes with the context manager; tools/cleanup.py knows the names of what
a killed run leaves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import report
from bench.lab import manifests
from bench.lab.netns import LabError
from bench.lab.node import Lab
from bench.lab.scope import Scope
from bench.lab.station import Pod, wire_direct
from bench.lab.talk import Server as PlainServer
from bench.lab.talk import ask_tcp
from bench.latency.generator import Seat
from bench.latency.matrix import How, Place

FIRST_PORT, LAST_PORT = 5000, 6999
REDIRECT_SECONDS = 30.0
CHECK_PORT = LAST_PORT
ANNOTATION = "bristle.io/socket-redirect"
ANNOTATIONS = {How.EPOLL: "on", How.BLOCKING: "all"}
"""What a pod asks for so that sockets used in this way are redirected."""

_LABELS = {"app": "bench"}
_BENCH = [{"podSelector": {"matchLabels": _LABELS}}]
_PORTS = [{"protocol": "TCP", "port": FIRST_PORT, "endPort": LAST_PORT}]
POLICY = {
    "podSelector": {"matchLabels": _LABELS},
    "policyTypes": ["Ingress", "Egress"],
    "ingress": [{"from": _BENCH, "ports": _PORTS}],
    "egress": [{"to": _BENCH, "ports": _PORTS}],
}


class Unavailable(LabError):
    """A place that cannot be made here; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Site:
    """Two seats, and the server's address by family. folder: for UNIX sockets; set where that is
    how one talks here."""

    client: Seat
    server: Seat
    addresses: Mapping[int, str]
    folder: Path | None = None

    def host(self, family: int) -> str:
        """Raises Unavailable for a family that is not there."""
        if not self.addresses.get(family):
            raise Unavailable(f"this place has no IPv{family} address")
        return self.addresses[family]


def redirect_state(status: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether `bristle status -o json` says that sockets are redirected, and if not, why."""
    said = status.get("socket_redirect")
    if said is None:
        return False, "this agent knows no socket redirect"
    if not isinstance(said, Mapping):
        return said in (True, "on"), str(said)
    on = said.get("mode") in ("on", "all")
    return on, "" if on else str(said.get("detail") or "the agent does not say why")


class Sites:
    """A context manager. Places are made when they are first asked for; what cannot be made is
    tried once."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._made: dict[str, dict[str, Site] | LabError] = {}
        self.redirecting: Lab | None = None
        """The node on which sockets are redirected, once it is known to do so."""

    def __enter__(self) -> Sites:
        self.scope = self._stack.enter_context(Scope())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def site(self, place: Place, how: How) -> Site:
        """Raises Unavailable with the reason."""
        makers: dict[Place, tuple[str, Callable[[], dict[str, Site]]]] = {
            Place.UNIX: ("bare", self._bare),
            Place.LOOPBACK: ("bare", self._bare),
            Place.DIRECT: ("bare", self._bare),
            Place.ROUTED: ("routed", self._routed),
            Place.POLICY: ("policy", self._policy),
            Place.BESIDE: ("redirect", self._redirect),
            Place.REDIRECTED: ("redirect", self._redirect),
        }
        world, make = makers[place]
        if world not in self._made:
            try:
                self._made[world] = make()
            except LabError as error:
                self._made[world] = error
        made = self._made[world]
        if isinstance(made, LabError):
            raise Unavailable(str(made)) from made
        return made[f"{place}-{ANNOTATIONS[how]}" if place is Place.REDIRECTED else place]

    def _bare(self) -> dict[str, Site]:
        """A UNIX socket, a loopback device, and one pair: no node at all."""
        group = _group(self.scope)
        lonely, first, second = (self.scope.namespace(name) for name in ("lo", "one", "two"))
        ends = wire_direct(first, second)
        here = Seat(lonely, group)
        return {
            Place.UNIX: Site(here, here, {}, self.scope.root),
            Place.LOOPBACK: Site(here, here, {4: "127.0.0.1", 6: "::1"}),
            Place.DIRECT: Site(Seat(first, group), Seat(second, group), {4: ends[1]}),
        }

    def _routed(self) -> dict[str, Site]:
        lab = self._stack.enter_context(Lab(routed=True))
        return {Place.ROUTED: _between(lab, *(lab.add_pod("bench", n) for n in ("a", "b")))}

    def _policy(self) -> dict[str, Site]:
        report.say("starting an agent, with two pods and a policy")
        lab = self._stack.enter_context(Lab())
        pods = _pair(lab, "plain", None)
        _enforce(lab, pods[1])
        return {Place.POLICY: _between(lab, *pods)}

    def _redirect(self) -> dict[str, Site]:
        report.say("starting an agent that redirects sockets")
        lab = self._stack.enter_context(Lab(start=False))
        # Blocking sockets are measured too, which a kernel that treats them wrongly does not take
        # unasked.
        lab.agent.config["socket_redirect"] = {"enabled": True, "force": True}
        try:
            lab.agent.start()
        except LabError as error:
            raise Unavailable(f"no agent that redirects sockets: {_last_word(error)}") from error
        _await_redirect(lab)
        sites = {Place.BESIDE.value: _between(lab, *_pair(lab, "plain", None))}
        for value in ANNOTATIONS.values():
            name = f"{Place.REDIRECTED}-{value}"
            sites[name] = _between(lab, *_pair(lab, value, value))
        _enforce(lab, next(iter(lab.pods.values())))
        self.redirecting = lab
        return sites


def _await_redirect(lab: Lab) -> None:
    """The agent tests the kernel first. Raises Unavailable with what it says."""
    deadline = time.monotonic() + REDIRECT_SECONDS
    while True:
        on, reason = redirect_state(lab.agent.cli_json("status"))
        if on:
            return
        if time.monotonic() > deadline:
            raise Unavailable(f"redirect is off: {reason}")
        time.sleep(0.1)


def _last_word(error: LabError) -> str:
    """The last line of an agent's log, without the names of files that are gone afterwards."""
    line = str(error).strip().splitlines()[-1].removeprefix("Error: ")
    return line.rpartition("agent.yaml: ")[2]


def _group(scope: Scope) -> Path:
    """The control group of a node's pods, below the one that hooks are attached to."""
    folder = scope.cgroup / "pods"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise Unavailable(f"no control group: {error}") from None
    return folder


def _pair(lab: Lab, name: str, redirect: str | None) -> tuple[Pod, Pod]:
    """Two pods of one kind, known to the agent with their labels and annotation."""
    lab.manifests.put("namespaces", [manifests.namespace("bench")])
    pods = []
    for end in ("client", "server"):
        manifest = manifests.pod("bench", f"{name}-{end}", _LABELS)
        if redirect is not None:
            manifest["metadata"]["annotations"] = {ANNOTATION: redirect}
        lab.manifests.put(f"pod-bench-{name}-{end}", [manifest])
        pods.append(lab.add_pod("bench", f"{name}-{end}", manifest=False))
    lab.agent.wait_known(*(pod.name for pod in pods))
    return pods[0], pods[1]


def _enforce(lab: Lab, server: Pod) -> None:
    """Sets the policy, and makes sure that it is one: whom it does not name cannot connect."""
    lab.set_policies([manifests.policy("bench", "bench", POLICY)])
    stranger = lab.add_pod("bench", "stranger", {"app": "other"})
    with PlainServer(server.namespace, [CHECK_PORT]):
        if ask_tcp(stranger.namespace, server.ipv4, CHECK_PORT) is not None:
            raise LabError("the policy is not in force: a pod it does not name could connect")
    lab.delete_pod(stranger)


def _between(lab: Lab, client: Pod, server: Pod) -> Site:
    group = _group(lab.scope)
    addresses = {4: server.ipv4, 6: server.ipv6}
    return Site(Seat(client.namespace, group), Seat(server.namespace, group), addresses)
