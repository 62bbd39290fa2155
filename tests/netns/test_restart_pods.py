# SPDX-License-Identifier: Apache-2.0
"""Pods whose namespaces or devices went away without a word, before or while no agent ran."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bench.lab.station import Pod
from bench.lab.talk import Server, ask_udp
from tests.netns.restart_world import World, pod_by_role, world

pytestmark = pytest.mark.kernel


@pytest.fixture
def scene(private_mounts: None) -> Iterator[World]:
    with world() as made:
        yield made


def known(scene: World) -> set[str]:
    """Pods that the agent has endpoints for."""
    return {endpoint.pod for endpoint in scene.agent.endpoints()}


def devices(scene: World) -> set[str]:
    """Host ends of pods."""
    lines = scene.lab.node_namespace.command(["ip", "-o", "link"]).splitlines()
    return {name for line in lines if (name := line.split()[1].split("@")[0]).startswith("bri")}


def routes(scene: World, pod: Pod) -> str:
    """What the node has for a pod's addresses."""
    node = scene.lab.node_namespace
    return "".join(
        node.command(["ip", family, "route", "show", address])
        for family, address in (("-4", pod.ipv4), ("-6", pod.ipv6))
    )


def test_gone_without_a_word(scene: World) -> None:
    """A namespace that is deleted takes the pair along; DEL and GC find their work done."""
    first, second, third = (pod_by_role(scene, n) for n in ("client-a", "server-b", "stranger"))
    for pod in (first, second, third):
        scene.lab.scope.drop(pod.namespace)
    left = {pod_by_role(scene, name).host_device for name in ("client-b", "server-a")}
    scene.agent.wait(lambda: devices(scene) == left, "the devices to go with their namespaces")
    for _ in range(2):  # DEL may come again
        scene.lab.cni("DEL", first.container_id, str(first.namespace.path))
    assert "client-a" not in known(scene)
    scene.agent.wait(lambda: not routes(scene, first), "the routes to go")

    # The agent may be killed and start in between: what is gone is gone.
    scene.restart()
    assert known(scene) == {"client-b", "server-a"}
    scene.lab.cni("DEL", second.container_id, "")

    valid: Any = [
        {"containerID": pod_by_role(scene, name).container_id, "ifname": "eth0"}
        for name in ("client-b", "server-a")
    ]
    everything: dict[str, Any] = {"cni.dev/valid-attachments": valid}
    scene.lab.cni("GC", "", "", **everything)
    assert known(scene) == {"client-b", "server-a"} and devices(scene) == left
    client, server = pod_by_role(scene, "client-b"), pod_by_role(scene, "server-a")
    with Server(server.namespace, (9090,)):
        assert ask_udp(client.namespace, server.ipv4, 9090)
        assert ask_udp(client.namespace, server.ipv6, 9090)
    only_one: dict[str, Any] = {"cni.dev/valid-attachments": valid[:1]}
    scene.lab.cni("GC", "", "", **only_one)
    assert known(scene) == {"client-b"}
    # Nothing of the others is in the kernel.
    scene.agent.settle()


def test_deleted_while_no_agent_ran(scene: World) -> None:
    first, second = pod_by_role(scene, "client-a"), pod_by_role(scene, "server-b")
    scene.agent.kill()
    # One by the runtime (the relay keeps the order for later), one pair by somebody's hand.
    scene.lab.cni("DEL", first.container_id, str(first.namespace.path))
    scene.lab.node_namespace.ip(f"link delete {second.host_device}")
    scene.agent.start()
    scene.agent.wait(
        lambda: known(scene) == {"client-b", "server-a", "stranger"}, "the two to be gone"
    )
    assert first.host_device not in devices(scene)
    # Their addresses are free, and others get others first: nothing is given twice.
    used = {pod.ipv4 for pod in scene.lab.pods.values() if pod not in (first, second)}
    fresh = scene.lab.add_pod("shop", "late", {"role": "client"})
    assert fresh.ipv4 not in used
    scene.lab.cni("DEL", second.container_id, str(second.namespace.path))
    scene.agent.settle()
