# SPDX-License-Identifier: Apache-2.0
"""Real programs on redirected sockets, with every byte checked, while policies change and agents
are killed: no wrong byte, no unexplained error, no stall."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack

from bench import report
from bench.lab import manifests
from bench.lab.node import Lab
from bench.lab.station import Pod
from bench.report import Claim
from bench.soak.mix import Client, Mix

SECONDS = 600.0
STALL = 1.0
_ON = {"bristle.io/socket-redirect": "on"}
_GRACE = 30.0
FAMILIES = (4, 6)


def run(seconds: float = SECONDS) -> list[Claim]:
    """All claims. Takes ten minutes and a little."""
    dice = random.Random(11)
    done = {"policies changed": 0, "agents killed": 0}
    with ExitStack() as stack:
        lab = stack.enter_context(
            Lab(start=False, config={"socket_redirect": {"enabled": True}, "trace": True})
        )
        stack.enter_context(lab.scope.inhabited())
        lab.agent.start()
        wait_redirect(lab)
        client, server = start_pods(lab)
        mixes = [
            stack.enter_context(Mix(client, server, lab.scope.root / f"mix{family}", family))
            for family in FAMILIES
        ]
        report.say(f"{seconds:.0f} s of mixed load")
        for mix in mixes:
            mix.start(seconds)
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            disturb(lab, dice, done)
            time.sleep(0.3)
        clients = [one for mix in mixes for one in mix.finish(_GRACE)]
        redirected = lab.agent.metric("bristle_socket_redirect_messages_total")
        stalls = lab.agent.metric("bristle_socket_stalls_total")
        missing = [reason for mix in mixes for reason in mix.missing]
    return claims_of(clients, missing, redirected, stalls, done)


def wait_redirect(lab: Lab) -> None:
    """Until the agent says that sockets are redirected. Raises LabError."""
    lab.agent.wait(
        lambda: lab.agent.cli_json("status")["socket_redirect"]["mode"] != "off",
        "the self-test to end",
    )


def start_pods(lab: Lab) -> tuple[Pod, Pod]:
    """A client and a server that ask for redirect, with a policy that lets the one to the other."""
    client = lab.add_pod("soak", "client", {"app": "client"}, annotations=_ON)
    server = lab.add_pod("soak", "server", {"app": "server"}, annotations=_ON)
    allow = {
        "podSelector": {"matchLabels": {"app": "server"}},
        "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": name}}}]}
            for name in ("client", "server")
        ],
    }
    lab.set_policies([manifests.policy("soak", "allow", allow)])
    return client, server


def disturb(lab: Lab, dice: random.Random, done: dict[str, int]) -> None:
    """A policy that concerns these pods but changes nothing for them; now and then the agent's
    sudden death."""
    number = done["policies changed"]
    if dice.random() < 0.05:
        lab.agent.kill()
        lab.agent.start()
        done["agents killed"] += 1
        return
    spec = {
        "podSelector": {"matchLabels": {"app": "server"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": f"other-{number % 5}"}}}]}],
    }
    lab.manifests.put("extra", [manifests.policy("soak", "extra", spec)])
    done["policies changed"] += 1


def claims_of(
    clients: list[Client], missing: list[str], redirected: float, stalls: float,
    done: dict[str, int],
) -> list[Claim]:  # fmt: skip
    """What the clients told."""
    strict = [one for one in clients if one.strict]
    wrong = [f"{one.name}: {'; '.join(one.told.get('errors', [])) or one.words}"
             for one in strict if one.status]  # fmt: skip
    longest = max((one.told.get("longest", 0.0) for one in strict), default=0.0)
    raw = {
        f"{one.name} ({number})": {"status": one.status, "said": one.words, **one.told}
        for number, one in enumerate(clients)
    } | {"disturbances": done, "missing": missing}
    for line in (*wrong, *missing):
        report.say(line)
    exchanges = sum(one.told.get("exchanges", 0) for one in strict)
    return [
        Claim("clients that met a wrong byte or an error", len(wrong), 0, "", raw=raw),
        Claim("longest exchange", longest, STALL, "s"),
        Claim("stalls that the agent saw", stalls, 0, ""),
        Claim("tools of the mix that are missing", len(missing), None, ""),
        Claim("  exchanges, each byte checked", exchanges, None, ""),
        Claim("  messages redirected", redirected, None, ""),
        Claim("  policies changed", done["policies changed"], None, ""),
        Claim("  agents killed", done["agents killed"], None, ""),
    ]
