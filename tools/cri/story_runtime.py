# SPDX-License-Identifier: Apache-2.0
"""A runtime that is started anew or replaced, and what it asks of the plugin by version of CNI."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter

from tools.cri.client import CriError
from tools.cri.node import Node
from tools.cri.report import Report
from tools.cri.story_failures import refused, remove
from tools.cri.story_pods import Pod, reached, run, serves

KILLS = 6


def tell(node: Node, report: Report) -> None:
    """Leaves nothing but an agent that runs."""
    node.start_agent()
    node.forget_calls()
    pods = _pods(node)
    node.restart_runtime()
    _live_on(node, report, pods, "containerd killed and started")
    _kill_pause(node, pods[0].identity)
    node.wait(lambda: "web" not in node.cri.ready(), "the sandbox to be seen as ended")
    node.cri.run(pods[0].sandbox, attempt=1)
    report.note("a sandbox whose process died is made anew beside the old one")
    remove(node, report, "nothing is left of sandboxes from before its restart")
    _killed_at_run(node, report)
    asked = _asked(node)
    report.check(set(asked) == {"ADD", "DEL"}, "it asks ADD and DEL alone, CNI 1.0.0", asked)
    if node.containerd.is_first:
        _newest_refused(node, report)
    else:
        _newest_used(node, report)
    node.restart_agent()


def _pods(node: Node) -> list[Pod]:
    pods = [run(node, name) for name in ("web", "cart")]
    for pod in pods:
        node.wait(lambda pod=pod: serves(node, pod), f"{pod.sandbox.name} to listen")  # type: ignore[misc]
    return pods


def _live_on(node: Node, report: Report, pods: list[Pod], what: str) -> None:
    ready = node.cri.ready()
    for pod in pods:
        report.check_only(ready.get(pod.sandbox.name) == pod.identity, "it runs", ready)
        found = tuple(node.cri.addresses(pod.identity))
        report.check_only(found == pod.addresses, "it has its addresses", found)
    report.note(f"{what}: sandboxes run, with their addresses")
    fresh = run(node, "fresh")
    node.wait(lambda: serves(node, fresh), "the new one to listen")
    both = [reached(node, pods[1], pods[0]), reached(node, fresh, pods[0])]
    report.check(both == [{4, 6}, {4, 6}], "old and new ones reach each other", both)


def _asked(node: Node) -> Counter[str]:
    return Counter(line.partition(" ")[0] for line in node.calls())


def _kill_pause(node: Node, sandbox: str) -> None:
    tasks = [line.split() for line in node.containerd.ctr("tasks", "list").splitlines()]
    (pid,) = [int(fields[1]) for fields in tasks if fields[0] == sandbox]
    os.kill(pid, signal.SIGKILL)


def _killed_at_run(node: Node, report: Report) -> None:
    """Kills the runtime while it makes a sandbox, at several moments."""
    broken = 0
    for number in range(KILLS):
        sandbox = node.sandbox(f"broken-{number}")
        node.forget_calls()
        said: list[str] = []
        caller = threading.Thread(target=lambda: said.append(refused(node, sandbox)))  # noqa: B023
        caller.start()
        node.wait(node.calls, "an ADD to begin")
        time.sleep(0.01 * number)
        node.containerd.kill()
        caller.join()
        broken += bool(said[0])
        node.restart_runtime()
        attempt = 1
        while why := refused(node, sandbox, attempt):
            attempt += 1
            report.check_only(attempt < 20, "the next attempt works", why)
            time.sleep(0.5)
    report.check(broken, "killed while it makes a sandbox: the next attempt works")
    remove(node, report, "nothing is left of broken attempts")


def _newest_refused(node: Node, report: Report) -> None:
    """containerd 1.6 does not know the results of CNI 1.1.0."""
    before = node.cri.run(node.sandbox("before"))
    node.restart_agent({"version": "1.1.0"})
    node.wait(lambda: refused(node, node.sandbox("newest")), "the runtime to refuse results")
    report.note("it refuses results of CNI 1.1.0")
    report.say(f"it says: {refused(node, node.sandbox('newest'), 1)}")
    try:
        node.cri.stop(before)
    except CriError as error:
        report.say(f"StopPodSandbox says: {error}")
    node.restart_agent()
    remove(node, report, "nothing is left, back with CNI 1.0.0")


def _newest_used(node: Node, report: Report) -> None:
    before = node.cri.run(node.sandbox("before"))
    node.restart_agent({"version": "1.1.0"})
    node.forget_calls()
    node.wait(lambda: node.cri.network()[0], "NetworkReady")
    newest = node.cri.run(node.sandbox("newest"))
    report.check(len(node.cri.addresses(newest)) == 2, "a sandbox runs, CNI 1.1.0")
    node.agent.kill()
    ready, why = node.cri.network()
    report.check(not ready, "without an agent NetworkReady is false, CNI 1.1.0")
    report.say(f"it says: {why}")
    node.cri.stop(newest)
    node.start_agent()
    report.note("and true again with it, CNI 1.1.0")
    node.restart_runtime()
    node.cri.stop(before)
    asked = _asked(node)
    wanted = {"ADD", "DEL", "STATUS"}
    report.check(set(asked) == wanted, "it asks STATUS, too, not CHECK nor GC, CNI 1.1.0", asked)
    after = node.cri.run(node.sandbox("after"))
    node.restart_agent()
    node.cri.stop(after)
    remove(node, report, "sandboxes outlive a change of cni.version, and can be removed")


def upgrade(node: Node, report: Report) -> None:
    """Another release takes over, as by an upgrade of the machine's packages. There is no way
    back, so this is the last story."""
    if node.following is None:
        return
    node.start_agent()
    pods = _pods(node)
    node.restart_runtime(node.following)
    _live_on(node, report, pods, f"replaced by {node.containerd.title}")
    remove(node, report, f"all of them can be removed by {node.containerd.title}")
