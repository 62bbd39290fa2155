# SPDX-License-Identifier: Apache-2.0
"""What else a node meets: no address left, one family alone, pods in the node's own network."""

from __future__ import annotations

from tools.cri.client import CriError
from tools.cri.node import Node
from tools.cri.report import Report
from tools.cri.story_failures import refused, remove
from tools.cri.story_pods import reached, run, serves

SMALL = "10.244.9.0/29"
ROOM = 5


def tell(node: Node, report: Report) -> None:
    """Leaves nothing but an agent that runs."""
    node.start_agent()
    _host_network(node, report)
    _replaced(node, report)
    _cleaned_up(node, report)
    node.restart_agent(pod_cidrs=["fd00:10:244:9::/112"])
    found = node.cri.addresses(node.cri.run(node.sandbox("six")))
    report.check(len(found) == 1 and ":" in found[0], "pods of IPv6 alone", found)
    remove(node, report, "nothing is left of them")
    _full(node, report, "1.0.0")
    if not node.containerd.is_first:
        _full(node, report, "1.1.0")
    node.restart_agent()


def _host_network(node: Node, report: Report) -> None:
    node.forget_calls()
    pod = node.cri.run(node.sandbox("hostly", host_network=True))
    report.check(not node.calls(), "a pod in the node's network makes no call")
    node.cri.stop(pod)
    node.cri.remove(pod)


def _replaced(node: Node, report: Report) -> None:
    """kubelet makes a pod's next sandbox before it removes the former one."""
    web, cart = run(node, "web"), run(node, "cart")
    node.cri.stop(web.identity)
    again = run(node, "web", attempt=1)
    node.wait(lambda: serves(node, again), "the new one to listen")
    node.cri.remove(web.identity)
    report.check(reached(node, cart, again) == {4, 6}, "a pod's second sandbox outlives the first")
    labels = node.agent.endpoint("shop/web").labels
    report.check("k8s:app=web" in labels, "and has the pod's labels", labels)
    remove(node, report, "nothing is left of both")


def _cleaned_up(node: Node, report: Report) -> None:
    """`bristle cleanup` on a node that was not drained."""
    pod = node.cri.run(node.sandbox("stranded"))
    node.agent.stop()
    node.cleanup()
    node.wait(lambda: not node.cri.network()[0], "NetworkReady to be false")
    try:
        node.cri.stop(pod)
    except CriError as error:
        report.say(f"StopPodSandbox after the clean-up says: {error}")
    node.start_agent()
    remove(node, report, "sandboxes from before a clean-up go with the next agent")


def _full(node: Node, report: Report, version: str) -> None:
    node.restart_agent({"version": version}, pod_cidrs=[SMALL])
    node.wait(lambda: node.cri.network()[0], "NetworkReady")
    pods = [node.cri.run(node.sandbox(f"small-{number}")) for number in range(ROOM)]
    said = refused(node, node.sandbox("surplus"))
    report.check("no free address" in said, f"no address left says so, CNI {version}", said)
    report.say(f"it says: {said}")
    ready, why = node.cri.network()
    report.check(
        ready == (version == "1.0.0"),
        f"NetworkReady is then {'false' if version == '1.1.0' else 'true'}, CNI {version}",
        why,
    )
    report.say(f"it says: {why}")
    node.cri.stop(pods[0])
    node.cri.remove(pods[0])
    report.check(
        not refused(node, node.sandbox("surplus"), 1),
        f"and works when one is given back, CNI {version}",
    )
    remove(node, report, f"nothing is left of them, CNI {version}")
