# SPDX-License-Identifier: Apache-2.0
"""Many sandboxes at a time, and what is left of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tools.cri.client import Sandbox
from tools.cri.node import Node
from tools.cri.report import Report
from tools.cri.story_failures import refused, remove

PODS = 80
AT_ONCE = 8

S = TypeVar("S")
T = TypeVar("T")


def tell(node: Node, report: Report) -> None:
    """Leaves nothing but an agent that runs."""
    node.start_agent()
    sandboxes = [node.sandbox(f"many-{number}") for number in range(PODS)]
    seconds, identities = _timed(node.cri.run, sandboxes)
    report.note(f"{PODS} sandboxes, {AT_ONCE} at a time", f"{seconds:.1f} s")
    addresses = [a for one in identities for a in node.cri.addresses(one)]
    report.check(len(set(addresses)) == 2 * PODS, "each has two addresses of its own")
    node.agent.wait_known(*(f"shop/{one.name}" for one in sandboxes))
    report.check(len(node.devices()) == PODS == len(node.agent.endpoints()), "an endpoint each")
    report.check(node.agent.cli("policy", "check").returncode == 0, "the kernel is as it should be")
    _timed(node.cri.stop, identities)
    seconds, _ = _timed(node.cri.stop, identities)
    report.note("StopPodSandbox, twice for each", f"again: {seconds:.1f} s")
    _timed(node.cri.remove, identities)
    node.wait(node.is_clean, "nothing to be left")
    report.note("their addresses, devices and network namespaces are gone")
    report.check(not node.cri.sandboxes(), "no sandbox is left")
    _upgraded(node, report)


def _upgraded(node: Node, report: Report) -> None:
    """The agent is replaced while sandboxes are made; each is tried again, as kubelet does."""
    sandboxes = [node.sandbox(f"many-{number}") for number in range(PODS // 2)]
    attempts: list[int] = []

    def work(sandbox: Sandbox) -> str:
        attempt = 0
        while refused(node, sandbox, attempt):
            attempt += 1
            time.sleep(0.3)
        attempts.append(attempt)
        return node.cri.ready()[sandbox.name]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = [pool.submit(work, sandbox) for sandbox in sandboxes]
        node.wait(lambda: len(attempts) >= AT_ONCE, "the first ones")
        node.agent.stop()
        node.start_agent()
        identities = [run.result(120) for run in runs]
    addresses = [a for one in identities for a in node.cri.addresses(one)]
    report.check(len(set(addresses)) == PODS, "an agent replaced meanwhile: each has its addresses")
    report.say(f"{sum(map(bool, attempts))} of {len(attempts)} needed another attempt")
    node.agent.wait_known(*(f"shop/{one.name}" for one in sandboxes))
    report.check(
        node.agent.cli("policy", "check").returncode == 0, "and the kernel is as it should be"
    )
    remove(node, report, "and all of them can be removed")


def _timed(work: Callable[[S], T], items: Iterable[S]) -> tuple[float, list[T]]:
    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = list(pool.map(work, items))
    return time.monotonic() - began, done
