# SPDX-License-Identifier: Apache-2.0
"""`bristle cleanup` takes away everything that bristle put on the host, and nothing else: not what
others made, and not what another agent with other folders has in the same namespace."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.kernel import bpf
from agent.kernel.syscall import AttachType
from bench.lab import manifests
from bench.lab.manifests import ManifestFolder
from bench.lab.netns import Namespace
from bench.lab.node import Lab
from bench.lab.station import NODE4, NODE6, UPLINK
from bench.lab.talk import Server, ask_udp
from tests.netns.restart_world import AnyAgent

pytestmark = pytest.mark.kernel

CIDRS = ("10.245.7.0/24", "fd00:10:245:7::/112")
PORT = 9090


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A second agent in the namespace of the lab's, and its two pods."""

    agent: AnyAgent
    first: Namespace
    second: Namespace
    addresses: tuple[str, str]
    """Of `second`."""
    containers: tuple[str, str]


@pytest.fixture
def lab(private_mounts: None) -> Iterator[Lab]:
    """No agent yet; things of others on the node, and settings that an agent has to change."""
    with Lab(start=False, config={"masquerade": {"enabled": True}}) as made:
        made.agent = AnyAgent(
            made.node_namespace, made.agent.config, made.scope.root / "agent.yaml"
        )
        made.node_namespace.sysctl({f"ipv4.conf.{UPLINK}.forwarding": 0})
        made.node_namespace.ip(
            "link add brighter type veth peer name brightest",
            "link set brighter addrgenmode none",
            "link set brightest addrgenmode none",
            "link set brighter up",
            "link set brightest up",
            "route add 10.99.0.0/16 dev brighter proto 177",
            f"neighbour add {NODE4[:-1]}77 lladdr 02:00:00:00:00:77 dev {UPLINK} nud permanent",
        )
        tc = ["tc", "qdisc", "add", "dev", UPLINK, "clsact"]
        made.node_namespace.command(tc)
        made.agent.wait(
            lambda: "tentative" not in made.node_namespace.command(["ip", "address"]),
            "duplicate address detection",
        )
        try:
            yield made
        finally:
            made.agent.close()


def inventory(namespace: Namespace) -> dict[str, str]:
    """Everything of a namespace that an agent could change, but for what changes by itself."""
    shown = {
        "links": "ip -o link",
        "addresses": "ip -o address",
        "routes ipv4": "ip -4 route show table all",
        "routes ipv6": "ip -6 route show table all",
        "neighbours": "ip neighbour show nud permanent",
        "rules ipv4": "ip -4 rule",
        "rules ipv6": "ip -6 rule",
        "qdiscs": "tc qdisc show",
        "filters in": f"tc filter show dev {UPLINK} ingress",
        "filters out": f"tc filter show dev {UPLINK} egress",
    }
    found = {name: namespace.command(command.split()) for name, command in shown.items()}
    found |= namespace.run(sysctls)
    found["tcx"] = str(namespace.run(tcx))
    return found


def sysctls() -> dict[str, str]:
    """Settings of the calling thread's namespace."""
    found = {}
    for path in sorted(Path("/proc/sys/net").rglob("*")):
        if path.is_file() and path.stat().st_mode & 0o200 and path.name != "flush":
            try:
                found[str(path)] = path.read_text()
            except OSError:
                continue  # some say that they are not supported, or keep a secret
    return found


def tcx() -> list[list[int]]:
    """Ids of the programs at the uplink."""
    index = socket.if_nametoindex(UPLINK)
    return [
        [program for program, _ in bpf.program_query(index, kind)]
        for kind in (AttachType.TCX_INGRESS, AttachType.TCX_EGRESS)
    ]


def differences(before: dict[str, str], after: dict[str, str]) -> dict[str, tuple[str, str]]:
    """What is not the same."""
    return {
        name: (before.get(name, ""), after.get(name, ""))
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name)
    }


def ids(lab: Lab) -> list[int]:
    """Of the maps that are pinned."""
    found = []
    for pin in (lab.scope.bpffs / "maps").iterdir():
        fd = bpf.object_get(pin)
        found.append(bpf.map_info(fd).id)
        os.close(fd)
    return found


def test_everything_goes_and_nothing_else(lab: Lab) -> None:
    before = inventory(lab.node_namespace)
    (lab.scope.state_dir / "notes.txt").write_text("an administrator's")
    lab.agent.start()
    a, b = lab.add_pod("one", "a", {"app": "a"}), lab.add_pod("one", "b", {"app": "b"})
    changed = differences(before, inventory(lab.node_namespace))
    assert f"/proc/sys/net/ipv4/conf/{UPLINK}/forwarding" in changed and "tcx" in changed
    with Server(b.namespace, (PORT,)):
        assert ask_udp(a.namespace, b.ipv4, PORT)

        # Not while an agent runs; and nothing is touched then.
        during = inventory(lab.node_namespace)
        refused = lab.agent.cli("cleanup", check=False)
        assert refused.returncode != 0 and "another agent runs" in refused.stderr
        assert str(lab.scope.run_dir) in refused.stderr
        assert differences(during, inventory(lab.node_namespace)) == {}
        assert ask_udp(a.namespace, b.ipv4, PORT)

    maps = ids(lab)
    # A killed agent leaves the most.
    lab.agent.kill()
    said = lab.agent.cli("cleanup").stdout
    assert a.host_device in said and "forwarding restored" in said
    assert differences(before, inventory(lab.node_namespace)) == {}
    assert {pin.name for pin in lab.scope.bpffs.iterdir()} <= {"maps.debug", "progs.debug"}
    assert not lab.scope.run_dir.exists() or list(lab.scope.run_dir.iterdir()) == []
    assert [path.name for path in lab.scope.state_dir.iterdir()] == ["notes.txt"]
    lab.agent.wait(lambda: not set(maps) & live_maps(), "the maps to be freed")
    # Again is harmless, and so is to start anew.
    assert lab.agent.cli("cleanup").returncode == 0
    lab.agent.start()
    lab.agent.stop()
    lab.agent.cli("cleanup")
    assert differences(before, inventory(lab.node_namespace)) == {}


def live_maps() -> set[int]:
    """Ids of all maps of this kernel."""
    done = subprocess.run(["bpftool", "-j", "map"], capture_output=True, text=True, check=True)
    return {one["id"] for one in json.loads(done.stdout)}


@pytest.fixture
def neighbour(lab: Lab) -> Iterator[Neighbour]:
    root = lab.scope.root / "second"
    config = {
        **lab.agent.config,
        **{name: str(root / name) for name in ("run_dir", "state_dir")},
        "bpffs_dir": str(lab.scope.bpffs / "second"),
        "pod_cidrs": list(CIDRS),
        "source": {"manifests": str(root / "manifests")},
        "node_name": "node-2",
    }
    for name in ("run_dir", "state_dir", "manifests"):
        (root / name).mkdir(parents=True)
    # The lab's own pins are in the root of its file system; each agent has its folder there.
    lab.agent.config["bpffs_dir"] = str(lab.scope.bpffs / "first")
    agent = AnyAgent(lab.node_namespace, config, root / "agent.yaml")
    lab.outside_namespace.ip(*(f"route add {c} via {NODE6 if ':' in c else NODE4}" for c in CIDRS))
    try:
        lab.agent.start()
        agent.start()
        yield Neighbour(agent, *_second_pods(lab, agent))
    finally:
        agent.close()


def _second_pods(
    lab: Lab, agent: AnyAgent
) -> tuple[Namespace, Namespace, tuple[str, str], tuple[str, str]]:
    made = [lab.scope.namespace(f"second-{n}") for n in range(2)]
    containers = (f"{lab.scope.prefix}-x", f"{lab.scope.prefix}-y")
    config = {"runDir": agent.config["run_dir"], "stateDir": agent.config["state_dir"]}
    results = [
        lab.cni("ADD", container, str(namespace.path), "two", container[-1], **config)
        for container, namespace in zip(containers, made, strict=True)
    ]
    v4, v6 = (entry["address"].partition("/")[0] for entry in results[1]["ips"])
    return made[0], made[1], (v4, v6), containers


def test_side_by_side(lab: Lab, neighbour: Neighbour) -> None:
    """Each serves its pods; cleanup of the first leaves the second as it was."""
    a, b = lab.add_pod("one", "a", {"app": "a"}), lab.add_pod("one", "b", {"app": "b"})
    manifest = Path(neighbour.agent.config["source"]["manifests"])
    folder = ManifestFolder(manifest)
    folder.put("pods", [manifests.pod("two", n, {"app": n}, node="node-2") for n in "xy"])

    def reached() -> list[bool]:
        return [
            bool(ask_udp(source, address, PORT))
            for source in (neighbour.first, lab.node_namespace, lab.outside_namespace)
            for address in neighbour.addresses
        ]

    with Server(neighbour.second, (PORT,)), Server(b.namespace, (PORT,)):
        neighbour.agent.wait(lambda: all(reached()), "the second agent's pods to be reached")
        assert ask_udp(a.namespace, b.ipv4, PORT)
        # From one agent's pod to the other's: each sees the other's as outside.
        assert ask_udp(neighbour.first, b.ipv4, PORT)
        assert ask_udp(a.namespace, neighbour.addresses[0], PORT)
        pins = sorted((lab.scope.bpffs / "second").rglob("*"))
        lab.agent.kill()
        lab.agent.cli("cleanup")
        assert sorted((lab.scope.bpffs / "second").rglob("*")) == pins
        assert reached() == [True] * 6
        neighbour.agent.kill()
        neighbour.agent.start()
        assert reached() == [True] * 6
    neighbour.agent.settle()
    shown = lab.node_namespace.command(["ip", "route", "show", "proto", "178"])
    assert CIDRS[0] in shown and lab.pod_cidrs[0] not in shown and "10.244." not in shown
