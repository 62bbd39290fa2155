# SPDX-License-Identifier: Apache-2.0
"""What somebody else does to the agent's maps: found by `policy check`, and put right, when asked
and without being asked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from agent.core.desired import RETIRE_SECONDS
from agent.kernel.maps import PinnedMap
from api import agent_pb2 as pb
from bench.lab.netns import LabError
from bpf.layouts import PolicyKey
from bpf.maps import SPECS
from tests.netns.restart_world import World, world

pytestmark = pytest.mark.kernel

MAPS = ("policy", "peers", "endpoints", "addresses", "devices")
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
    key = sorted(before)[number % len(before)]
    value = before[key]
    if way == "deleted":
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
