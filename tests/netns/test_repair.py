# SPDX-License-Identifier: Apache-2.0
"""What somebody else does to the agent's maps, programs, pins, routes and neighbours: found by
`policy check`, and put right, when asked and without being asked."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.core.desired import RETIRE_SECONDS
from agent.kernel import bpf, clsact
from agent.kernel.maps import PinnedMap
from agent.kernel.pins import pin_again
from agent.kernel.rtnl import RtnlSocket
from agent.kernel.syscall import AttachType
from agent.kernel.uplinks import uplink_name
from api import agent_pb2 as pb
from bench.lab.netns import LabError
from bench.lab.station import UPLINK
from bench.lab.talk import Server, ask_udp
from bpf.layouts import PolicyKey
from bpf.maps import SPECS
from tests.netns.restart_world import PORT, World, pod_by_role, world

pytestmark = pytest.mark.kernel

MAPS = ("policy", "peers", "endpoints", "addresses", "devices", "places")
WAYS = ("deleted", "added", "altered")
Contents = dict[bytes, bytes]


@pytest.fixture(scope="module")
def scene(private_mounts: None) -> Iterator[World]:
    with world() as made:
        yield made


@pytest.fixture(scope="module")
def maps(scene: World) -> Iterator[dict[str, PinnedMap[Any, Any]]]:
    """The agent's maps, opened by their pins as anybody could."""
    folder = scene.lab.scope.bpffs / "maps"
    opened = {name: PinnedMap.open(SPECS[name], folder, any_size=True) for name in MAPS}
    # What setting up the world has left unused goes some seconds later.
    before = None
    while before != (now := {name: one.raw_items() for name, one in opened.items()}):
        before = now
        time.sleep(1.5 * RETIRE_SECONDS)
    scene.agent.settle()
    yield opened
    for one in opened.values():
        one.close()


def tamper(one: PinnedMap[Any, Any], way: str, number: int = 0) -> bytes:
    """Changes one entry; gives its key."""
    before = one.raw_items()
    filled = {key: value for key, value in before.items() if any(value)}
    key = sorted(filled)[number % len(filled)]
    value = before[key]
    if way == "deleted" and one.spec.type.array:
        one.update_packed(key, bytes(len(value)))
    elif way == "deleted":
        one.delete_packed(key)
    elif way == "altered":
        one.update_packed(key, bytes([value[0] ^ 1]) + value[1:])
    else:
        key = _new_key(one.name, before)
        one.update_packed(key, value)
    assert one.raw_items() != before
    return key


def _new_key(name: str, present: Contents) -> bytes:
    """One that is in use by nobody, but near to what is."""
    some = max(present)
    if name == "peers":
        return (128).to_bytes(4, "little") + b"\xfd" + bytes(14) + b"\x77"
    if name == "policy":
        known = PolicyKey.unpack(some)
        return PolicyKey(known.table, known.peer_class, 4242, 6, 16).pack()
    if name == "places":
        return next(key for key, value in present.items() if not any(value))
    return some[:-1] + bytes([some[-1] ^ 0x55])


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("way", WAYS)
def test_found_and_repaired_when_asked(
    scene: World, maps: dict[str, PinnedMap[Any, Any]], name: str, way: str
) -> None:
    one = maps[name]
    original = one.raw_items()
    # The agent looks by itself too, once in a while: then it was faster, and we try again.
    for number in range(3):
        tamper(one, way, number)
        report = scene.agent.stub.Check(pb.CheckRequest(repair=True), timeout=20)
        assert one.raw_items() == original
        if report.difference_count:
            break
    assert {difference.where.split()[0] for difference in report.differences} == {name}
    again = scene.agent.stub.Check(pb.CheckRequest(), timeout=20)
    assert again.difference_count == 0


def test_the_command_says_so(scene: World, maps: dict[str, PinnedMap[Any, Any]]) -> None:
    assert scene.agent.cli("policy", "check").returncode == 0
    for name in ("addresses", "policy"):
        for number in range(3):
            tamper(maps[name], "deleted", number)
            found = scene.agent.cli("policy", "check", check=False)
            if found.returncode:
                break
        assert found.returncode == 1 and name in found.stdout, found.stdout
        scene.agent.cli("policy", "check", "--repair", check=False)
        assert scene.agent.cli("policy", "check").returncode == 0


def test_repaired_unasked(scene: World, maps: dict[str, PinnedMap[Any, Any]]) -> None:
    """Every kind of change in every map, all at once; then the agent is left alone."""
    original = {name: one.raw_items() for name, one in maps.items()}
    for one in maps.values():
        for number, way in enumerate(WAYS):
            tamper(one, way, number)

    def different() -> dict[str, dict[str, list[str]]]:
        return {
            name: {
                "missing": sorted(key.hex() for key, _ in before.items() - now.items()),
                "left over": sorted(key.hex() for key, _ in now.items() - before.items()),
            }
            for name, one in maps.items()
            if (now := one.raw_items()) != (before := original[name])
        }

    try:
        scene.agent.wait(lambda: not different(), "the maps to be repaired", 60)
    except LabError:
        assert different() == {}
    assert scene.agent.stub.Check(pb.CheckRequest(), timeout=20).difference_count == 0


# ---- beside the maps' entries --------------------------------------------------------------------

Break = Callable[[World, str], None]


def tc(scene: World, command: str) -> None:
    scene.lab.node_namespace.command(["tc", *command.split()])


def exchange_program(scene: World, device: str) -> None:
    pin = next((scene.lab.scope.bpffs / "programs").glob("to_pod-*"))
    tc(scene, f"filter replace dev {device} ingress prio 1 handle 1 bpf da pinned {pin}")


def exchange_qdisc(scene: World, device: str) -> None:
    tc(scene, f"qdisc del dev {device} clsact")
    tc(scene, f"qdisc add dev {device} ingress")


def uplink_pin(scene: World) -> Path:
    return scene.lab.scope.bpffs / "links" / uplink_name(UPLINK)


def detach_uplink(scene: World, device: str) -> None:
    link = bpf.object_get(uplink_pin(scene))
    bpf.link_detach(link)
    os.close(link)


def exchange_link_pin(scene: World, device: str) -> None:
    uplink_pin(scene).unlink()
    pin_again(bpf_map(scene, "peers"), uplink_pin(scene))


def map_pin(scene: World, name: str) -> Path:
    return scene.lab.scope.bpffs / "maps" / SPECS[name].pin_name


def bpf_map(scene: World, name: str) -> int:
    return bpf.object_get(map_pin(scene, name))


def exchange_map_pin(scene: World, device: str) -> None:
    pin_again(bpf_map(scene, "peers"), map_pin(scene, "endpoints"))


def unpin_program(scene: World, device: str) -> None:
    next((scene.lab.scope.bpffs / "programs").glob("from_pod-*")).unlink()


def ip(scene: World, device: str, kind: str) -> None:
    pod = next(one for one in scene.lab.pods.values() if one.host_device == device)
    neighbour = f"lladdr 02:00:00:00:00:09 dev {device} nud permanent"
    commands = {
        "route4": [f"route del {pod.ipv4} dev {device}"],
        "route6": [f"route replace {pod.ipv6} dev {UPLINK} proto 178"],
        "neighbour4": [f"neigh del {pod.ipv4} dev {device}"],
        "neighbour6": [f"neigh replace {pod.ipv6} {neighbour}"],
        "down": [f"link set {device} down"],
    }
    scene.lab.node_namespace.ip(*commands[kind])


# What is done -> (how, where it is found, part of the name under which; {} is the device).
BREAKS: dict[str, tuple[Break, str, str]] = {
    "both programs": (lambda s, d: tc(s, f"qdisc del dev {d} clsact"), "programs", "{} ingress"),
    "one program": (lambda s, d: tc(s, f"filter del dev {d} egress"), "programs", "{} egress"),
    "another program": (exchange_program, "programs", "{} ingress"),
    "another qdisc": (exchange_qdisc, "programs", "{} egress"),
    "uplink detached": (detach_uplink, "programs", f"{UPLINK} ingress"),
    "link unpinned": (lambda s, d: uplink_pin(s).unlink(), "programs", f"{UPLINK} ingress"),
    "another link pin": (exchange_link_pin, "programs", f"{UPLINK} ingress"),
    "map unpinned": (lambda s, d: map_pin(s, "ct").unlink(), "pins", SPECS["ct"].pin_name),
    "another map pin": (exchange_map_pin, "pins", SPECS["endpoints"].pin_name),
    "program unpinned": (unpin_program, "pins", "from_pod-"),
    "route4": (lambda s, d: ip(s, d, "route4"), "routes", "10.244."),
    "route6": (lambda s, d: ip(s, d, "route6"), "routes", "fd00:"),
    "neighbour4": (lambda s, d: ip(s, d, "neighbour4"), "neighbours", "10.244."),
    "neighbour6": (lambda s, d: ip(s, d, "neighbour6"), "neighbours", "{}"),
    "device down": (lambda s, d: ip(s, d, "down"), "routes", "10.244."),
}


def around(scene: World) -> dict[str, object]:
    """All that the agent made beside the maps' entries, as the kernel shows it."""
    devices = sorted(pod.host_device for pod in scene.lab.pods.values())

    def programs() -> dict[str, object]:
        found: dict[str, object] = {}
        with RtnlSocket() as netlink:
            for device in devices:
                found[device] = clsact.attached(netlink, socket.if_nametoindex(device))
        index = socket.if_nametoindex(UPLINK)
        uplink = bpf.program_query(index, AttachType.TCX_INGRESS)
        return {**found, UPLINK: [program for program, _ in uplink]}

    found = scene.lab.node_namespace.run(programs)
    for command in ("-4 route show proto 178", "-6 route show proto 178", "neigh show nud perm"):
        shown = scene.lab.node_namespace.command(["ip", *command.split()])
        found[command] = sorted(line.split() for line in shown.splitlines())
    for folder in ("maps", "programs", "links"):
        for pin in sorted((scene.lab.scope.bpffs / folder).iterdir()):
            fd = bpf.object_get(pin)
            kind = bpf.object_kind(fd)
            number = {
                "map": lambda fd: bpf.map_info(fd).id,
                "prog": lambda fd: bpf.program_info(fd).id,
            }.get(kind, lambda fd: 0)(fd)
            found[f"{folder}/{pin.name}"] = (kind, number)
            os.close(fd)
    return found


def still_judged(scene: World) -> None:
    """Policy is in force for what comes from a pod and from outside."""
    a, stranger, x = (pod_by_role(scene, n) for n in ("client-a", "stranger", "server-a"))
    with Server(x.namespace, (PORT,)):
        for family in (4, 6):
            assert ask_udp(a.namespace, x.address(family), PORT)
            assert ask_udp(scene.lab.node_namespace, x.address(family), PORT)
            assert not ask_udp(stranger.namespace, x.address(family), PORT)


@pytest.mark.parametrize("case", BREAKS)
def test_surroundings_repaired_when_asked(scene: World, case: str) -> None:
    before = around(scene)
    damage, where, name = BREAKS[case]
    device = pod_by_role(scene, "server-a").host_device
    for _ in range(3):  # as above
        damage(scene, device)
        epoch = scene.agent.status().policy_epoch
        report = scene.agent.stub.Check(pb.CheckRequest(repair=True), timeout=20)
        assert around(scene) == before
        if report.difference_count:
            break
    found = [(one.where, one.peer) for one in report.differences]
    assert any(one == where and name.format(device) in at for one, at in found), found
    if where == "programs":
        assert scene.agent.status().policy_epoch > epoch
    again = scene.agent.stub.Check(pb.CheckRequest(), timeout=20)
    assert again.difference_count == 0, again
    assert not scene.agent.status().problems


def test_surroundings_repaired_unasked(scene: World) -> None:
    before = around(scene)
    status = scene.agent.status()
    devices = sorted(pod.host_device for pod in scene.lab.pods.values())
    uplink = {"uplink detached", "link unpinned"}
    for number, (case, (damage, _, _)) in enumerate(BREAKS.items()):
        if case not in uplink:  # the other one of the uplink's
            damage(scene, devices[number % len(devices)])
    try:
        scene.agent.wait(lambda: around(scene) == before, "all to be put back", 60)
    except LabError:
        assert around(scene) == before
    still_judged(scene)
    after = scene.agent.status()
    assert after.policy_epoch > status.policy_epoch and not after.problems
    for kind in ("programs", "pins", "routes", "neighbours"):
        assert scene.agent.metric("bristle_host_repairs_total", kind=kind)
        assert scene.agent.said(f"{kind} are not as they should be")


def test_a_pod_that_is_gone_is_left_to_del(scene: World) -> None:
    pod = scene.lab.add_pod("shop", "brief", {"role": "client"})
    others = around(scene)
    del others[pod.host_device]
    scene.lab.node_namespace.ip(f"link del {pod.host_device}")
    report = scene.agent.stub.Check(pb.CheckRequest(repair=True), timeout=20)
    assert report.difference_count == 0, report
    endpoint = scene.agent.endpoint("shop/brief")
    assert endpoint.state == "disconnecting" and pod.host_device in endpoint.reason
    assert not scene.agent.status().problems
    scene.lab.delete_pod(pod)
    scene.agent.settle()
    assert [one for one in scene.agent.endpoints() if one.pod == "brief"] == []
