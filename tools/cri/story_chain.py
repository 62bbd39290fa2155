# SPDX-License-Identifier: Apache-2.0
"""Another plugin behind ours: host ports by `portmap`, as docs/configuration.md has it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

from bench.lab import manifests
from bench.lab.netns import execute
from bench.lab.station import NODE4, NODE6, OUTSIDE4
from tools.cri.node import Node
from tools.cri.report import Report
from tools.cri.story_failures import remove
from tools.cri.story_pods import ASK, Pod, reached, run, serves

FILE = "04-bristle-portmap.conflist"
HOST_PORT = 18080

Way = Callable[[str], str]
"""Asks the host port at an address; what came back."""


def tell(node: Node, report: Report) -> None:
    """Leaves nothing but an agent that runs."""
    node.start_agent()
    file = node.conf_dir / FILE
    file.write_text(_chain(node))
    node.wait(lambda: not file.exists(), "the file to be set aside")
    report.note("cni.exclusive sets a file with further plugins aside")
    node.restart_agent({"exclusive": False})
    node.runtime_reads(FILE)
    report.note("without it the file is back, and counts")
    web, cart = run(node, "web", host_port=HOST_PORT), run(node, "cart")
    probe = run(node, "probe")
    for pod in (web, cart, probe):
        node.wait(lambda pod=pod: serves(node, pod), f"{pod.sandbox.name} to listen")  # type: ignore[misc]
    report.check(reached(node, cart, web) == {4, 6}, "with portmap behind bristle pods talk")
    ways: dict[str, Way] = {
        "from outside": lambda address: _ask(["ip", "netns", "exec", "outside"], address),
        "from the node": lambda address: _ask([], address),
        "from a pod of the node": lambda address: _from_pod(node, cart, address),
        "from the pod itself": lambda address: _from_pod(node, web, address),
    }
    for name, way in ways.items():
        said = [way(NODE4), way(NODE6)]
        report.check(said == ["web", "web"], f"a host port answers {name}, both families", said)
    ways["from another pod"] = lambda address: _from_pod(node, probe, address)
    _policy(node, report, ways, lambda: not reached(node, probe, web))
    node.manifests.remove("policies")
    remove(node, report, "nothing is left of the pods")
    rules = [execute([f"{tool}-save", "-t", "nat"]) for tool in ("iptables", "ip6tables")]
    report.check(str(HOST_PORT) not in "".join(rules), "no rule of portmap is left", rules)
    file.unlink()
    node.restart_agent()


def _policy(node: Node, report: Report, ways: dict[str, Way], in_force: Callable[[], bool]) -> None:
    """Who connects to a host port is judged as if it named the pod."""
    admitted = {
        "from a pod of the node": {"podSelector": {"matchLabels": {"app": "cart"}}},
        "from outside": {"ipBlock": {"cidr": f"{OUTSIDE4}/32"}},
    }
    for number, (name, peer) in enumerate(admitted.items()):
        spec = {
            "podSelector": {"matchLabels": {"app": "web"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [peer]}],
        }
        node.manifests.put("policies", [manifests.policy("shop", f"in-{number}", spec)])
        node.wait(in_force, "the policy to be in force")
        node.wait(lambda name=name: ways[name](NODE4) == "web", f"an answer {name}")  # type: ignore[misc]
        others = (admitted.keys() | {"from another pod"}) - {name}
        said = [ways[other](address) for other in others for address in (NODE4, NODE6)]
        report.check("web" not in said, f"policy that admits {name} holds for a host port", said)


def _chain(node: Node) -> str:
    config = node.agent.config
    ours = {"type": "bristle-cni", "runDir": config["run_dir"], "stateDir": config["state_dir"]}
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    plugins = [ours, ports]
    return json.dumps({"cniVersion": "1.0.0", "name": "bristle", "plugins": plugins})


def _ask(prefix: list[str], address: str) -> str:
    command = [*prefix, "/usr/bin/python3", "-c", ASK, address, str(HOST_PORT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()


def _from_pod(node: Node, pod: Pod, address: str) -> str:
    command = ["/usr/bin/python3", "-c", ASK, address, str(HOST_PORT)]
    return node.cri.execute(pod.container, command)[1].strip()
