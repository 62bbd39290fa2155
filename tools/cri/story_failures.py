# SPDX-License-Identifier: Apache-2.0
"""What kubelet meets when the agent is down, hangs, or dies in the middle of its work."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor

from tools.cri.client import CriError, Sandbox
from tools.cri.node import Node
from tools.cri.report import Report

KILLS = 12
AT_ONCE = 4


def tell(node: Node, report: Report) -> None:
    """Leaves nothing but an agent that runs."""
    node.start_agent()
    _down_at_run(node, report)
    _down_at_stop(node, report)
    _hangs(node, report)
    _dies(node, report)
    _dies_at_stop(node, report)


def refused(node: Node, sandbox: Sandbox, attempt: int = 0, seconds: float = 60.0) -> str:
    """The error of a RunPodSandbox; empty if it works."""
    try:
        node.cri.call("RunPodSandbox", seconds, config=sandbox.config(attempt))
    except CriError as error:
        return str(error)
    return ""


def remove(node: Node, report: Report, what: str) -> None:
    """Removes every sandbox, as kubelet does, and proves that nothing is left."""
    for one in node.cri.sandboxes():
        node.cri.stop(one)
        node.cri.remove(one)
    try:
        node.wait(node.is_clean, "nothing to be left")
    finally:
        report.say(node.left())
    report.note(what)


def _down_at_run(node: Node, report: Report) -> None:
    node.agent.kill()
    sandbox = node.sandbox("late")
    said = refused(node, sandbox)
    report.check("bristle agent" in said, "RunPodSandbox without an agent says so", said)
    report.say(f"it says: {said}")
    report.check(not node.devices() and not node.namespaces(), "and leaves nothing")
    report.check(not node.cri.sandboxes(), "also no sandbox", node.cri.sandboxes())
    report.check(refused(node, sandbox, 1), "so at the next attempt")
    node.start_agent()
    identity = node.cri.run(sandbox, 2)
    report.check(all(node.cri.addresses(identity)), "with the agent back the next attempt works")
    remove(node, report, "and nothing is left of all attempts")


def _down_at_stop(node: Node, report: Report) -> None:
    identity = node.cri.run(node.sandbox("leaving"))
    node.agent.kill()
    node.cri.stop(identity)
    node.cri.stop(identity)
    node.cri.remove(identity)
    report.check(not node.cri.sandboxes(), "StopPodSandbox and RemovePodSandbox need no agent")
    report.check(node.spooled(), "the removal waits in the spool")
    report.check(not node.devices() and not node.namespaces(), "the pod's device goes at once")
    node.start_agent()
    node.wait(node.is_clean, "the removal to be carried out")
    report.note("the agent gives the address back when it comes")


def _hangs(node: Node, report: Report) -> None:
    sandbox = node.sandbox("patient")
    os.kill(node.agent.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        said = refused(node, sandbox, seconds=3)
        report.check(said, "kubelet gives up on an agent that hangs")
        report.say(f"after {time.monotonic() - began:.1f} s: {said}")
    finally:
        os.kill(node.agent.pid, signal.SIGCONT)
    attempt, tried = 1, ""
    while True:
        tried = refused(node, sandbox, attempt)
        if not tried:
            break
        report.say(f"attempt {attempt}: {tried}")
        attempt += 1
        if attempt > 40:
            report.check(False, "a later attempt works", tried)
        time.sleep(0.5)
    report.note("and a later attempt works", f"attempt {attempt + 1}")
    remove(node, report, "nothing is left of the attempt that was given up")


def _dies(node: Node, report: Report) -> None:
    """Kills the agent a while after an ADD began, later each time."""
    broken, last = 0, ""
    for number in range(KILLS):
        sandboxes = [node.sandbox(f"pod-{number}-{one}") for one in range(AT_ONCE)]
        node.forget_calls()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            runs = [pool.submit(refused, node, sandbox) for sandbox in sandboxes]
            node.wait(node.calls, "an ADD to begin")
            time.sleep(0.004 * number)
            node.agent.kill()
            said = [run.result() for run in runs]
        broken += sum(map(bool, said))
        last = next(filter(None, said), last)
        node.start_agent()
        _again(node, report, [s for s, why in zip(sandboxes, said, strict=True) if why])
        addresses = [a for one in node.cri.ready().values() for a in node.cri.addresses(one)]
        report.check_only(len(set(addresses)) == 2 * AT_ONCE, "addresses are unique", addresses)
        known = {a for e in node.agent.endpoints() for a in (e.ipv4, e.ipv6)}
        report.check_only(known == set(addresses), "endpoints are the sandboxes", known)
        if number + 1 < KILLS:
            for one in node.cri.sandboxes():
                node.cri.stop(one)
                node.cri.remove(one)
            node.wait(node.is_clean, "nothing to be left")
    report.check(broken, "an agent killed during ADD: the runtime's attempt fails")
    report.say(f"it says: {last}")
    report.note("the next attempt works, no address is given twice", f"{broken} broken")
    remove(node, report, "and nothing is left afterwards")


def _again(node: Node, report: Report, sandboxes: list[Sandbox]) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs: list[Future[str]] = [pool.submit(refused, node, one, 1) for one in sandboxes]
        for run in runs:
            report.check_only(not run.result(), "the next attempt works", run.result())


def _dies_at_stop(node: Node, report: Report) -> None:
    """Kills the agent a while after a DEL began, later each time."""
    waited = 0
    for number in range(KILLS // 2):
        pods = [node.cri.run(node.sandbox(f"pod-{number}-{one}")) for one in range(AT_ONCE)]
        node.forget_calls()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            stops = [pool.submit(node.cri.stop, pod) for pod in pods]
            node.wait(node.calls, "a DEL to begin")
            time.sleep(0.008 * number)
            node.agent.kill()
            for stop in stops:
                stop.result()
        waited += len(node.spooled())
        for pod in pods:
            node.cri.stop(pod)
            node.cri.remove(pod)
        node.start_agent()
        node.wait(node.is_clean, "nothing to be left")
    report.check(waited, "an agent killed during DEL: StopPodSandbox works, the next agent goes on")
