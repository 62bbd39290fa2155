# SPDX-License-Identifier: Apache-2.0
"""An agent ends, by whatever means, and another takes its place: of the same kind, with another
layout of the maps, with other table sizes. No packet of an allowed connection is lost, none that is
denied gets through, and nothing of the former agent stays pinned.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.lab.traffic import UdpFlow
from bpf.maps import SPECS
from tests.netns.redirect_world import meanwhile
from tests.netns.restart_world import (
    GROWN_MAPS,
    Load,
    World,
    pod_by_role,
    source_tree,
    world,
)

pytestmark = pytest.mark.kernel

CT_MAX = 4096
MANY = 6000
"""Connections: more than the smaller table holds."""


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Source trees by name: `same` as this one, `grown` with another layout."""
    folder = tmp_path_factory.mktemp("trees")
    return {
        "same": source_tree(folder, grown=False),
        "grown": source_tree(folder, grown=True),
    }


@pytest.fixture(scope="module")
def scene(private_mounts: None) -> Iterator[World]:
    """With everything that an agent can do switched on."""
    with world(config={"masquerade": {"enabled": True}}) as made:
        yield made


@pytest.fixture
def load(scene: World) -> Iterator[Load]:
    """Traffic that began before the test, as its check tells; the agent is as others expect it."""
    with Load(scene) as made:
        made.run_for(0.2)
        yield made


def only_ours(scene: World, grown: bool = False) -> None:
    """The pinned maps are those of one agent."""
    expected = {
        f"{spec.name}_v{spec.version + (grown and name in GROWN_MAPS)}"
        for name, spec in SPECS.items()
    }
    assert scene.pins() == expected


def settle(load: Load, record: Any) -> None:
    """Traffic after the change, long enough for a segment to be sent again; then the check."""
    load.run_for(0.5)
    record(load.check())


@pytest.fixture
def record(request: pytest.FixtureRequest, record_property: Any) -> Any:
    """Keeps figures with the test's result."""

    def keep(figures: dict[str, Any]) -> None:
        numbers = {k: v for k, v in figures.items() if isinstance(v, int)}
        record_property("figures", numbers)
        print(request.node.name, numbers)

    return keep


def test_another_layout_and_back(
    scene: World, load: Load, trees: dict[str, Path], record: Any
) -> None:
    """Slowly: connections are opened between devices that have changed over and ones that have not,
    and between programs of both rounds."""
    scene.agent.pause = 0.1
    try:
        scene.restart(tree=trees["grown"])
        only_ours(scene, grown=True)
        load.run_for(0.5)
        load.check()
        scene.restart(tree=trees["same"])
        only_ours(scene)
        settle(load, record)
    finally:
        scene.agent.pause = 0.0


def test_opened_while_devices_change_over(scene: World, trees: dict[str, Path]) -> None:
    """Masqueraded connections of every moment of a take-over go on after it, both ways."""
    client, stop = pod_by_role(scene, "client-a"), threading.Event()
    flows: list[UdpFlow] = []

    def keep_opening() -> None:
        while not stop.is_set():
            family = 4 if len(flows) % 2 else 6
            flows.append(UdpFlow(client, scene.lab.outside, family, 9100, translated=True))
            # One way alone: what the client sends would make a mapping anew.
            for _ in range(8):
                for flow in flows[-20:]:
                    flow.backward.send()
                stop.wait(0.01)

    scene.agent.pause = 0.1
    with meanwhile(keep_opening):
        try:
            scene.restart(tree=trees["grown"])
            scene.restart(tree=trees["same"])
        finally:
            scene.agent.pause = 0.0
            stop.set()
    for flow in flows:
        flow.answering = True
        flow.step()
    time.sleep(0.2)
    for flow in flows:
        flow.read()
    now = time.monotonic()
    assert {n: lost for n, flow in enumerate(flows) if (lost := flow.lost(0.0, now))} == {}
    assert len(flows) > 50
    for flow in flows:
        for each in flow.sockets():
            each.close()


def test_other_table_sizes_and_back(scene: World, load: Load, record: Any) -> None:
    before = dict(scene.agent.config.get("bpf", {}))
    scene.restart(config={"bpf": {"ct_max": CT_MAX, "nat_max": 20000, "policy_max": 65536}})
    only_ours(scene)
    load.run_for(0.3)
    load.check()
    scene.restart(config={"bpf": {"peers_max": 65536, "endpoints_max": 512, "nat_max": 30000}})
    only_ours(scene)
    load.run_for(0.3)
    load.check()
    scene.restart(config={"bpf": before})
    only_ours(scene)
    settle(load, record)


def test_same_again(scene: World, load: Load, record: Any) -> None:
    scene.restart(orderly=True)
    load.run_for(0.2)
    load.check()
    scene.restart()
    only_ours(scene)
    settle(load, record)


def test_more_connections_than_the_new_table_holds(scene: World) -> None:
    """What was established is still there, in the table or among what may give way."""
    client, server = pod_by_role(scene, "client-b"), pod_by_role(scene, "server-b")
    asked = [(client.ipv4, server.ipv4, port) for port in range(20000, 20000 + MANY)]
    opened = open_many(client, asked)
    before = dict(scene.agent.config.get("bpf", {}))
    said = scene.agent.said("carried over to ct_overflow")
    scene.restart(config={"bpf": {"ct_max": CT_MAX}})
    try:
        assert scene.agent.said("carried over to ct_overflow") > said
        # Replies that policy alone would not let out of the server.
        assert answered(server, opened) == MANY
    finally:
        for each in opened:
            each.close()
        scene.restart(config={"bpf": before})
    only_ours(scene)


# Where an agent that takes over can be killed: before it wrote anything, with a half of the maps
# made, between any two devices of both rounds, and in between.
POINTS = (
    "carry_over:1",
    "copy_connections:1",
    "attach_endpoint:1",
    "attach_endpoint:3",
    "attach_uplink:1",
    "copy_connections:2",
    "unpin:1",
    "attach_endpoint:6",
    "attach_endpoint:8",
    "attach_uplink:2",
    "bump_epoch:2",
)


def test_killed_while_taking_over(
    scene: World, load: Load, trees: dict[str, Path], record: Any, record_property: Any
) -> None:
    """Again and again, each next one with another layout or size than the one before."""
    seed = random.randrange(1 << 32)
    record_property("seed", seed)
    generator = random.Random(seed)
    chosen = ["attach_endpoint:3", "attach_endpoint:8", *generator.sample(POINTS, 3)]
    generator.shuffle(chosen)
    reached = 0
    for number, point in enumerate(chosen):
        scene.agent.kill()
        scene.agent.tree = trees["same" if number % 2 else "grown"]
        scene.agent.config["bpf"] = {"ct_max": 70000 + number} if number == 3 else {}
        if number == 2:
            scene.agent.config["bpf"] = {"nat_max": 30001}
        reached += scene.agent.launch_to_die(point)
        load.run_for(0.1)
        assert load.figures()["lost"] == {}, (seed, chosen, point)
    print("killed at", chosen, reached)
    assert reached
    scene.restart(config={"bpf": {}})
    only_ours(scene)
    settle(load, record)


def test_killed_while_starting(scene: World, load: Load, record: Any) -> None:
    """At moments that nobody chose."""
    for _ in range(3):
        scene.agent.kill()
        scene.agent.tree = None
        scene.agent.launch()
        load.run_for(random.uniform(0.1, 2.0))
    scene.restart()
    only_ours(scene)
    settle(load, record)


# ---- many connections ------------------------------------------------------------------------


def open_many(client: Any, asked: list[tuple[str, str, int]]) -> list[socket.socket]:
    """One datagram each from one source port; the sockets that know them, as one."""

    def send() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        made.bind((asked[0][0], 20000))
        for _, address, port in asked:
            made.sendto(b"?", (address, port))
        return made

    return [client.namespace.run(send)]


def answered(server: Any, opened: list[socket.socket]) -> int:
    """How many of the ports can answer the one socket."""
    here = opened[0].getsockname()

    def reply(port: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.bind((server.ipv4, port))
            made.sendto(b"!", here)

    def all_of_them() -> None:
        for port in range(20000, 20000 + MANY):
            reply(port)

    server.namespace.run(partial(all_of_them))
    opened[0].settimeout(2)  # the last ones may still be under way
    count = 0
    try:
        while opened[0].recv(16):
            count += 1
    except TimeoutError:
        return count
    except ConnectionRefusedError:
        raise AssertionError("an answer to an answer") from None
    return count
