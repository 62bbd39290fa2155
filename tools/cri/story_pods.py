# SPDX-License-Identifier: Apache-2.0
"""Sandboxes as kubelet asks for them: their addresses, and who reaches whom with real packets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from bench.lab import manifests
from bench.lab.station import OUTSIDE4, OUTSIDE6
from tools.cri.client import Sandbox
from tools.cri.image import NAME as IMAGE
from tools.cri.node import Node
from tools.cri.report import Report

_SERVE = """
import socket
listener = socket.create_server(("::", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    connection, _ = listener.accept()
    connection.sendall(socket.gethostname().encode())
    connection.close()
"""
ASK = """
import socket, sys
try:
    print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 0.7).recv(99).decode())
except OSError as error:
    sys.exit(str(error))
"""


@dataclass(frozen=True, slots=True)
class Pod:
    """A sandbox with a container that answers on port 8080."""

    sandbox: Sandbox
    identity: str
    container: str
    addresses: tuple[str, ...]


def run(node: Node, name: str, attempt: int = 0, **fields: Any) -> Pod:
    """Runs one. Raises CriError."""
    sandbox = node.sandbox(name, **fields)
    identity = node.cri.run(sandbox, attempt)
    command = ["/usr/bin/python3", "-c", _SERVE]
    container = node.cri.start(identity, sandbox, IMAGE, command, attempt)
    return Pod(sandbox, identity, container, tuple(node.cri.addresses(identity)))


def reached(node: Node, source: Pod, target: Pod) -> set[int]:
    """Families (4, 6) in which the target answers the source."""
    found = set()
    for address in target.addresses:
        status, said = node.cri.execute(
            source.container, ["/usr/bin/python3", "-c", ASK, address, "8080"]
        )
        if status == 0 and said.strip() == target.sandbox.name:
            found.add(6 if ":" in address else 4)
    return found


def serves(node: Node, pod: Pod) -> bool:
    """Whether its server listens: it asks itself."""
    return reached(node, pod, pod) == {4, 6}


def tell(node: Node, report: Report) -> None:
    """Leaves nothing but an agent that runs."""
    node.start_agent()
    node.forget_calls()
    web = run(node, "web", host_port=18080, sysctls={"net.ipv4.ip_unprivileged_port_start": "0"})
    four, six = web.addresses
    report.check(
        four.startswith("10.244.1.") and six.startswith("fd00:10:244:1::"),
        "PodSandboxStatus gives an IPv4 address, and the IPv6 address in additional_ips",
        web.addresses,
    )
    (added,) = [line for line in node.calls() if line.startswith("ADD")]
    asked = json.loads(added.partition(" ")[2])
    report.say(f"the plugin's input: {sorted(asked)}, runtimeConfig {asked.get('runtimeConfig')}")
    endpoint = node.agent.endpoint("shop/web")
    report.check("k8s:app=web" in endpoint.labels, "the endpoint has the pod's labels", endpoint)
    shop, other = run(node, "cart"), run(node, "probe")
    for pod in (web, shop, other):
        node.wait(lambda pod=pod: serves(node, pod), f"{pod.sandbox.name} to listen")  # type: ignore[misc]
    inside = _inside(node, web)
    report.check(inside["hostname"] == "web", "the pod has its hostname", inside)
    report.check("10.96.0.10" in inside["resolv"], "and the DNS servers that kubelet names", inside)
    report.check(inside["port_start"] == "0", "and the sysctls", inside)
    report.check(
        inside["group"].endswith(f"{web.identity}") or web.sandbox.cgroup in inside["group"],
        "and is in the cgroup that kubelet names",
        inside["group"],
    )
    _policy(node, report, web, shop, other)
    for address in (OUTSIDE4, OUTSIDE6):
        status, said = node.cri.execute(
            shop.container, ["/usr/bin/ping", "-q", "-c", "3", "-i", "0.2", "-W", "1", address]
        )
        report.check(status == 0, f"a pod pings what is behind the uplink: {address}", said)
    for pod in (web, shop, other):
        node.cri.stop(pod.identity)
        node.cri.stop(pod.identity)
        report.check_only(pod.sandbox.name not in node.cri.ready(), "it is stopped")
        node.cri.remove(pod.identity)
    report.note("StopPodSandbox a second time is no error")
    node.wait(node.is_clean, "nothing to be left")
    report.note("nothing is left: endpoints, addresses, devices, network namespaces")


def _policy(node: Node, report: Report, web: Pod, shop: Pod, other: Pod) -> None:
    report.check(reached(node, other, web) == {4, 6}, "without policy pods talk, both families")
    node.manifests.put("policies", [_deny_all()])
    node.wait(lambda: not reached(node, other, web), "the default deny")
    report.check(not reached(node, shop, web), "a default deny: nobody reaches anybody")
    carts = {"podSelector": {"matchLabels": {"app": "cart"}}}
    to_web = {
        "podSelector": {"matchLabels": {"app": "web"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [carts], "ports": [{"protocol": "TCP", "port": "web"}]}],
    }
    node.manifests.put("policies", [_deny_all(), manifests.policy("shop", "to-web", to_web)])
    node.wait(lambda: reached(node, shop, web) == {4, 6}, "the policy to let in whom it names")
    report.check(not reached(node, other, web), "a policy lets in whom it names, and nobody else")
    node.describe(other.sandbox, app="cart")
    node.wait(lambda: reached(node, other, web) == {4, 6}, "the changed label to let it in")
    report.note("a label that changes lets a pod in")
    node.describe(other.sandbox)
    node.wait(lambda: not reached(node, other, web), "the label to be taken back")
    report.note("and taken back keeps it out")
    node.manifests.remove("policies")
    node.wait(lambda: reached(node, other, web) == {4, 6}, "the policies to be gone")


def _deny_all() -> dict[str, Any]:
    return manifests.policy("shop", "deny-all", {"podSelector": {}, "policyTypes": ["Ingress"]})


def _inside(node: Node, pod: Pod) -> dict[str, str]:
    code = (
        "import json, socket; read = lambda path: open(path).read(); "
        "print(json.dumps({'hostname': socket.gethostname(),"
        " 'resolv': read('/etc/resolv.conf'), 'group': read('/proc/self/cgroup'),"
        " 'port_start': read('/proc/sys/net/ipv4/ip_unprivileged_port_start').strip()}))"
    )
    status, said = node.cri.execute(pod.container, ["/usr/bin/python3", "-c", code])
    assert status == 0, said
    return dict(json.loads(said))
