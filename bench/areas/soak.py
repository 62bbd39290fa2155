# SPDX-License-Identifier: Apache-2.0
"""Ten minutes of mixed load: pods come and go, labels and policies change, agents are killed, and
all the while what is allowed loses no packet and what is denied never arrives."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack

from bench import report
from bench.areas.restart import Load as Traffic
from bench.areas.restart import claims_of, start_pods
from bench.areas.scale import memory
from bench.lab import manifests
from bench.lab.node import Lab
from bench.lab.station import Pod
from bench.report import Claim

SECONDS = 600.0
_PODS_AT_MOST = 20
_EXTRA = {"podSelector": {"matchLabels": {"app": "none"}}}


def run(seconds: float = SECONDS) -> list[Claim]:
    """All claims. Takes ten minutes."""
    dice = random.Random(4)
    done = {"pods added": 0, "pods deleted": 0, "policies changed": 0, "labels changed": 0,
            "agents killed": 0}  # fmt: skip
    with ExitStack() as stack:
        lab = stack.enter_context(Lab())
        traffic = Traffic(stack, *start_pods(lab))
        pods: list[Pod] = []
        before = memory(lab.agent.pid, "at the start", None)
        ends = time.monotonic() + seconds
        told = 0.0
        while (left := ends - time.monotonic()) > 0:
            if time.monotonic() - told > 60:
                told = time.monotonic()
                report.say(f"{left:.0f} s left; {done}")
            _step(lab, pods, dice, done)
            time.sleep(0.02)
        checked = lab.agent.cli("policy", "check", check=False).returncode
        after = memory(lab.agent.pid, "at the end", None)
        counts = traffic.end()
    return [
        *claims_of(counts, f"{seconds / 60:.0f} minutes"),
        Claim("exit status of policy check afterwards", checked, 0, "", raw=done),
        *before,
        *after,
    ]


def _step(lab: Lab, pods: list[Pod], dice: random.Random, done: dict[str, int]) -> None:
    what = dice.random()
    number = sum(done.values())
    labels = {"app": f"app-{dice.randrange(10)}", "version": str(number)}
    if what < 0.01:
        lab.agent.kill()
        lab.agent.start()
        done["agents killed"] += 1
    elif what < 0.2 and pods:
        pod = dice.choice(pods)
        lab.manifests.put(
            f"pod-bench-{pod.pod_name}", [manifests.pod("bench", pod.pod_name, labels)]
        )
        done["labels changed"] += 1
    elif what < 0.4:
        rule = {"from": [{"podSelector": {"matchLabels": labels}}]}
        policy = manifests.policy("bench", f"extra-{number % 7}", {**_EXTRA, "ingress": [rule]})
        lab.manifests.put(f"extra-{number % 7}", [policy])
        done["policies changed"] += 1
    elif len(pods) < dice.randint(1, _PODS_AT_MOST):
        pods.append(lab.add_pod("bench", f"soak-{number}", labels))
        done["pods added"] += 1
    else:
        lab.delete_pod(pods.pop(dice.randrange(len(pods))))
        done["pods deleted"] += 1
