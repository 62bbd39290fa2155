# SPDX-License-Identifier: Apache-2.0
"""NetworkReady: false before the agent, true by it, false again after its clean-up."""

from __future__ import annotations

import time

from tools.cri.node import CONFLIST, Node
from tools.cri.report import Report
from tools.cri.story_failures import refused


def tell(node: Node, report: Report) -> None:
    """Leaves no agent behind."""
    ready, why = node.cri.network()
    report.check(not ready, "NetworkReady is false before the agent", why)
    report.say(f"it says: {why}")
    sandbox = node.sandbox("early")
    said = refused(node, sandbox)
    report.check("cni" in said, "a sandbox is refused before the agent", said)
    report.say(f"it says: {said}")
    report.check(not node.devices(), "and leaves no device")

    node.agent.launch()
    file, early = node.conf_dir / CONFLIST, False
    while not file.exists():
        came = node.cri.network()[0]
        early |= came and not file.exists()
        _ = node.agent.pid  # raises if it has ended
        time.sleep(0.02)
    report.check(not early, "NetworkReady stays false while the agent compiles and loads")
    report.check(node.agent.status().ready, "the file comes once the datapath is in force")
    node.wait(lambda: node.cri.network()[0], "NetworkReady")
    report.note("and makes NetworkReady true")
    identity = node.cri.run(sandbox, attempt=1)
    report.check(all(node.cri.addresses(identity)), "the next attempt of the sandbox works")
    # containerd 1.6 keeps the refused one until there is a network that it can be removed from.
    for one in node.cri.sandboxes():
        node.cri.stop(one)
        node.cri.remove(one)
    report.check(node.is_clean(), "nothing is left of the refused attempt", node.left())

    node.agent.stop()
    report.check(node.cri.network()[0], "it stays true when the agent stops, with CNI 1.0.0")
    said = node.cleanup()
    report.check(CONFLIST in said, "bristle cleanup takes the file back", said)
    node.wait(lambda: not node.cri.network()[0], "NetworkReady to be false")
    report.note("and makes NetworkReady false")
