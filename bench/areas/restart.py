# SPDX-License-Identifier: Apache-2.0
"""Agents killed with -9 under load: what is allowed loses no packet, what is denied never arrives.

A client that the policy names and a stranger that it does not send numbered datagrams, keep a
connection busy and open new ones, all the while. Half of the kills hit an agent that is ready, the
others one that is just starting, at a moment drawn by lot.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import ExitStack

from bench import report
from bench.areas.measure import Helper, summary
from bench.lab import manifests
from bench.lab.netns import LabError
from bench.lab.node import Lab
from bench.lab.station import Station
from bench.report import Claim

KILLS = 50
PORT = 6000
RATE = 1000
_STARTING = 1.5  # seconds in which an agent is hit that is starting
_PORTS = [{"protocol": protocol, "port": PORT} for protocol in ("TCP", "UDP")]
POLICY = {
    "podSelector": {"matchLabels": {"app": "server"}},
    "ingress": [
        {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}], "ports": _PORTS},
    ],
}


class Load:
    """The traffic. `end` stops it and tells what was lost, and what was let in."""

    def __init__(
        self, stack: ExitStack, client: Station, server: Station, stranger: Station
    ) -> None:
        def start(station: Station, mode: str, *arguments: object) -> Helper:
            given = [mode, server.ipv4, PORT, *arguments]
            return stack.enter_context(Helper("flow", given, station.namespace))

        self._sink = start(server, "sink")
        self._datagrams = start(client, "udp", 0, RATE)
        self._connection = start(client, "tcp")
        self._connects = start(client, "connect", 3000)
        self._bad_datagrams = start(stranger, "udp", 1, RATE)
        self._bad_connects = start(stranger, "connect", 50)

    def end(self) -> dict[str, float]:
        """Stops sending, waits for what is on its way, and counts."""
        sent, refused = self._datagrams.ask("end")
        exchanges, retransmits, longest = self._connection.ask("end")
        attempts, connected, late = self._connects.ask("end")
        bad_sent, _ = self._bad_datagrams.ask("end")
        bad_attempts, bad_connected, _ = self._bad_connects.ask("end")
        time.sleep(0.5)
        allowed, denied, *_ = self._sink.ask("count")
        return {
            "datagrams sent": sent,
            "datagrams refused by the client's stack": refused,
            "datagrams lost": sent - allowed,
            "exchanges": exchanges,
            "retransmits": retransmits,
            "longest exchange, ms": longest,
            "connections tried": attempts,
            "connections failed": attempts - connected,
            "connections late": late,
            "denied datagrams sent": bad_sent,
            "denied datagrams admitted": denied,
            "denied connections tried": bad_attempts,
            "denied connections admitted": bad_connected,
        }


def run() -> list[Claim]:
    """All claims of the area. Takes about two minutes."""
    dice = random.Random(3)
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        load = Load(stack, *start_pods(lab))
        report.say(f"{KILLS} kills")
        to_ready: list[float] = []
        for number in range(KILLS):
            lab.agent.kill()
            began = time.monotonic()
            if number % 2:
                lab.agent.start()
                to_ready.append(time.monotonic() - began)
            else:
                lab.agent.launch()
                time.sleep(dice.random() * _STARTING)
        lab.agent.kill()
        lab.agent.start()
        counts = load.end()
    raw = summary(to_ready)
    return [
        *claims_of(counts, f"{KILLS} kills under load"),
        Claim("  killed agent to ready again, median", raw["median"], None, "s", raw=raw),
    ]


def start_pods(lab: Lab) -> Sequence[Station]:
    """Client, server and stranger, with the policy in force."""
    lab.manifests.put("namespaces", [manifests.namespace("bench")])
    pods = [lab.add_pod("bench", name, {"app": name}) for name in ("client", "server", "stranger")]
    lab.set_policies([manifests.policy("bench", "bench", POLICY)])
    return pods


def claims_of(counts: dict[str, float], what: str) -> list[Claim]:
    """Loss and admission, held against zero. Raises LabError if hardly anything was sent."""
    for name in ("datagrams sent", "exchanges", "connections tried", "denied datagrams sent",
                 "denied connections tried"):  # fmt: skip
        if counts[name] < 100:
            raise LabError(f"too little traffic: {name}: {counts[name]:.0f}")
    lost = sum(counts[name] for name in (
        "datagrams lost", "retransmits", "connections failed", "connections late"))  # fmt: skip
    admitted = counts["denied datagrams admitted"] + counts["denied connections admitted"]
    sent = counts["datagrams sent"] + 2 * counts["exchanges"] + 3 * counts["connections tried"]
    denied = counts["denied datagrams sent"] + counts["denied connections tried"]
    return [
        Claim(f"{what}: lost of about {sent:,.0f} allowed packets", lost, 0, "", raw=counts),
        Claim(f"{what}: admitted of {denied:,.0f} denied packets", admitted, 0, "", raw=counts),
    ]
