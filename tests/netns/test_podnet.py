# SPDX-License-Identifier: Apache-2.0
"""Pods wired for real, without programs: the node is a network namespace, and so is each pod."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.kernel.netns import InvalidNetns, own_cookie
from agent.kernel.podcheck import check_wiring
from agent.kernel.podnet import (
    NameClash,
    PodNetwork,
    RouteClash,
    WiringError,
)
from agent.kernel.sysctl import SysctlJournal
from agent.kernel.sysctl import read as read_sysctl
from tests.netns.bare_node import (
    MTU,
    NODE4,
    NODE6,
    MakeNetns,
    Netns,
    T,
    add,
    make_node,
    no_programs,
    record,
    state,
    wanted,
)

pytestmark = pytest.mark.kernel


@pytest.fixture
def node(make_netns: MakeNetns) -> Netns:
    return make_node(make_netns)


@pytest.fixture
def network() -> PodNetwork:
    return PodNetwork("t", no_programs)


def test_pods_and_node_reach_each_other_at_once(
    node: Netns, network: PodNetwork, make_netns: MakeNetns, tmp_path: Path
) -> None:
    ip_forward = node.run(lambda: read_sysctl("net/ipv4/ip_forward"))
    # Without programs packets between pods go by the stack, which kernels before 6.17 would refuse.
    node.run(SysctlJournal(tmp_path / "sysctl", "boot").set_ipv6_forwarding)
    pods = [make_netns(), make_netns()]
    requests = [wanted(5), wanted(6)]
    wirings = [add(node, network, *pair) for pair in zip(pods, requests, strict=True)]
    for source, target in ((pods[0], 6), (pods[1], 5), (node, 5), (node, 6)):
        source.command("ping", "-c1", "-W1", f"10.244.0.{target}")
        source.command("ping", "-c1", "-W1", f"fd00::{target}")
    pods[0].command("ping", "-c1", "-W1", NODE4)
    pods[0].command("ping", "-c1", "-W1", NODE6)
    # A full packet passes, a larger one does not: the MTU is set at both ends.
    pods[0].command("ping", "-c1", "-W1", "-Mdo", f"-s{MTU - 28}", "10.244.0.6")
    with pytest.raises(AssertionError, match="ping"):
        pods[0].command("ping", "-c1", "-W1", "-Mdo", f"-s{MTU - 27}", "10.244.0.6")
    for pod, request, wiring in zip(pods, requests, wirings, strict=True):
        assert node.run(lambda: check_wiring(pod.fd, record(request, wiring))) == ()  # noqa: B023
        assert wiring.netns_cookie == pod.run(own_cookie)
        assert "tentative" not in pod.ip("-6", "addr", "show", "dev", "eth0", "scope", "global")
    # The host side has no address of its own, not even a link-local one.
    for wiring in wirings:
        assert "inet" not in node.ip("addr", "show", "dev", wiring.host_name)
    conf = f"conf/{wirings[0].host_name}"
    for setting, value in {
        f"net/ipv4/{conf}/forwarding": "1",
        f"net/ipv4/{conf}/rp_filter": "0",
        f"net/ipv4/{conf}/send_redirects": "0",
        f"net/ipv6/{conf}/forwarding": "1",
        "net/ipv4/ip_forward": ip_forward,
    }.items():
        assert node.run(lambda: read_sysctl(setting)) == value, setting  # noqa: B023


def _echo(family: int, address: str) -> bool:
    """One ICMP echo request, without the time a process takes to start."""
    # Of ICMPv6 the kernel fills in the checksum (RFC 3542, 3.1).
    head = b"\x08\x00\xe5\xca" if family == 4 else b"\x80\x00\x00\x00"
    domain, protocol = (socket.AF_INET, 1) if family == 4 else (socket.AF_INET6, 58)
    with socket.socket(domain, socket.SOCK_RAW, protocol) as probe:
        probe.settimeout(1)
        probe.sendto(head + b"\x12\x34\x00\x01", (address, 0))
        try:
            while True:
                answer = probe.recv(200)
                if answer[20 if family == 4 else 0] == (0 if family == 4 else 129):
                    return True
        except TimeoutError:
            return False


def test_the_first_packet_after_add_arrives(
    node: Netns, network: PodNetwork, make_netns: MakeNetns
) -> None:
    # The kernel activates queues and local routes by work queues: a race, so try it often.
    for number in range(30, 50):
        pod, request = make_netns(), wanted(number)
        add(node, network, pod, request)
        assert node.run(lambda: _echo(6, str(request.ipv6))), number  # noqa: B023
        assert pod.run(lambda: _echo(4, NODE4)), number
        assert pod.run(lambda: _echo(6, NODE6)), number
        pod, request = make_netns(), replace(wanted(number + 100), ipv6=None)
        add(node, network, pod, request)
        assert node.run(lambda: _echo(4, str(request.ipv4))), number  # noqa: B023


CHANGES = {
    "address in the pod": ("pod", "addr del fd00::5/128 dev eth0"),
    "MTU of eth0 in the pod": ("pod", "link set eth0 mtu 1600"),
    "MTU of bri": ("node", "link set {host} mtu 1300"),
    "MAC of eth0 in the pod": ("pod", "link set eth0 address 02:00:00:00:00:09"),
    "state of eth0 in the pod": ("pod", "link set eth0 down"),
    "device eth0 in the pod": ("pod", "link set eth0 down name eth7"),
    "route to 0.0.0.0/0": ("pod", "route del default"),
    "route to ::/0": ("pod", "-6 route del default"),
    "neighbour 169.254.1.1": ("pod", "neigh del 169.254.1.1 dev eth0"),
    "route to 10.244.0.5/32": ("node", "route del 10.244.0.5"),
    "route to fd00::5/128": ("node", "-6 route del fd00::5"),
    "neighbour fd00::5": ("node", "neigh replace fd00::5 lladdr 02:00:00:00:00:09 dev {host}"),
    "state of bri": ("node", "link set {host} down"),
    "device bri": ("node", "link del {host}"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_check_names_what_was_changed(
    node: Netns, network: PodNetwork, make_netns: MakeNetns, what: str
) -> None:
    pod, request = make_netns(), wanted(5)
    wiring = add(node, network, pod, request)
    where, command = CHANGES[what]
    changed = pod if where == "pod" else node
    changed.ip(*command.format(host=wiring.host_name).split())
    found = node.run(lambda: check_wiring(pod.fd, record(request, wiring)))
    assert any(difference.what.startswith(what) for difference in found), found


def test_check_bears_what_later_plugins_do(
    node: Netns, network: PodNetwork, make_netns: MakeNetns
) -> None:
    pod, request = make_netns(), wanted(5)
    wiring = add(node, network, pod, request)
    pod.ip("link", "set", "eth0", "mtu", "1300")  # tuning
    for family, gateway in (("-4", "169.254.1.1"), ("-6", "fe80::1")):  # sbr
        pod.ip(*f"{family} route del default".split())
        pod.ip(*f"{family} route add default via {gateway} dev eth0 onlink table 100".split())
    assert node.run(lambda: check_wiring(pod.fd, record(request, wiring))) == ()


def _pod_has_eth0(pod: Netns) -> None:
    pod.ip("link", "add", "eth0", "type", "veth", "peer", "name", "other")


def _pod_has_default_route(pod: Netns) -> None:
    pod.ip("link", "add", "net1", "type", "veth", "peer", "name", "net2")
    pod.ip("link", "set", "net1", "up")
    pod.ip("route", "add", "default", "dev", "net1")


def _nothing(pod: Netns) -> None:
    pass


def _attach_fails(ifindex: int, name: str) -> None:
    raise WiringError("attach refused")


@pytest.mark.parametrize(
    ("prepare", "ifname", "attach", "error"),
    [
        (_pod_has_eth0, "eth0", no_programs, NameClash),
        (_pod_has_default_route, "eth0", no_programs, RouteClash),
        (_nothing, "eth0", _attach_fails, WiringError),
        (_nothing, "not a name/", no_programs, WiringError),
        (_nothing, "much-too-long-a-name", no_programs, WiringError),
        (_nothing, "lo", no_programs, NameClash),
    ],
)
def test_what_fails_leaves_nothing_behind(
    node: Netns,
    make_netns: MakeNetns,
    prepare: Callable[[Netns], None],
    ifname: str,
    attach: Callable[[int, str], None],
    error: type[WiringError],
) -> None:
    pod = make_netns()
    prepare(pod)
    before = state(node), state(pod)
    with pytest.raises(error):
        add(node, PodNetwork("t", attach), pod, wanted(5, ifname))
    assert (state(node), state(pod)) == before


def test_an_address_routed_elsewhere_is_refused(
    node: Netns, network: PodNetwork, make_netns: MakeNetns
) -> None:
    first = add(node, network, make_netns(), wanted(5))
    before = state(node)
    with pytest.raises(RouteClash, match=r"10\.244\.0\.5"):
        add(node, network, make_netns(), wanted(5))
    assert state(node) == before
    assert first.host_name in before


def test_programs_are_attached_before_the_pod_end_is_up(node: Netns, make_netns: MakeNetns) -> None:
    pod = make_netns()
    seen: list[str] = []

    def attach(ifindex: int, name: str) -> None:
        seen.append(f"{ifindex} {name}")
        assert ",UP" not in pod.ip("link", "show", "eth0")
        assert "inet" not in pod.ip("addr", "show", "dev", "eth0")

    wiring = add(node, PodNetwork("t", attach), pod, wanted(5))
    assert seen == [f"{wiring.host_ifindex} {wiring.host_name}"]


def test_delete_is_idempotent_and_works_without_the_pod(
    node: Netns, network: PodNetwork, make_netns: MakeNetns
) -> None:
    before = state(node)
    pod = make_netns()
    empty = state(pod)
    wiring = add(node, network, pod, wanted(5))
    assert node.run(lambda: network.delete(wiring.host_name)) is True
    assert node.run(lambda: network.delete(wiring.host_name)) is False
    assert (state(node), state(pod)) == (before, empty)
    # The pod's namespace takes its end along, and so the pair.
    gone = subprocess.Popen(["unshare", "-n", "sleep", "60"])
    try:
        while os.readlink(f"/proc/{gone.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            time.sleep(0.01)
        fd = os.open(f"/proc/{gone.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        wiring = node.run(lambda: network.add(fd, wanted(6)))
        os.close(fd)
    finally:
        gone.kill()
        gone.wait()
    deadline = time.monotonic() + 10
    while wiring.host_name in state(node) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert node.run(lambda: network.delete(wiring.host_name)) is False
    assert state(node) == before


def test_a_device_of_someone_else_is_not_deleted(
    node: Netns, network: PodNetwork, make_netns: MakeNetns
) -> None:
    other = PodNetwork("another-agent", no_programs)
    wiring = add(node, other, make_netns(), wanted(5))
    with pytest.raises(WiringError, match="not this agent's"):
        node.run(lambda: network.delete(wiring.host_name))
    assert node.run(network.remove_devices) == ()
    assert node.run(other.remove_devices) == (wiring.host_name,)


def test_many_pods_at_once(node: Netns, network: PodNetwork, make_netns: MakeNetns) -> None:
    before = state(node)
    pods = [make_netns() for _ in range(40)]
    requests = [wanted(10 + number) for number in range(len(pods))]

    def in_node(work: Callable[[Any], T], items: list[Any]) -> list[T]:
        return list(workers.map(lambda item: node.run(lambda: work(item)), items))

    with ThreadPoolExecutor(8) as workers:
        wirings = in_node(lambda pair: network.add(*pair), [
            (pod.fd, request) for pod, request in zip(pods, requests, strict=True)
        ])  # fmt: skip
        assert len(node.run(network.devices)) == 40
        found = in_node(lambda item: check_wiring(*item), [
            (pod.fd, record(request, wiring))
            for pod, request, wiring in zip(pods, requests, wirings, strict=True)
        ])  # fmt: skip
        assert set(found) == {()}
        # Half of them one by one from eight threads, the others as what cleanup finds.
        names = [wiring.host_name for wiring in wirings]
        assert all(in_node(network.delete, names[:20]))
    kept = set(names[20:25])
    assert set(node.run(lambda: network.remove_devices(kept))) == set(names[25:])
    assert {link.name for link in node.run(network.devices)} == kept
    node.run(network.remove_devices)
    assert state(node) == before


KILLED = """
import sys
from ipaddress import IPv4Address
from agent.kernel.podnet import PodNetwork, WiringRequest, new_endpoint_id
network = PodNetwork("t", lambda ifindex, name: None)
print("ready", flush=True)
for number, fd in enumerate(map(int, sys.argv[1:])):
    address = IPv4Address("10.244.0.0") + number
    network.add(fd, WiringRequest(new_endpoint_id(()), "o", "eth0", 1500, address, None))
"""


def test_a_kill_leaves_only_tagged_devices(
    node: Netns, network: PodNetwork, make_netns: MakeNetns
) -> None:
    before = state(node)
    left = 0
    for _ in range(6):
        fds = [make_netns().fd for _ in range(12)]

        def start(fds: list[int] = fds) -> subprocess.Popen[str]:
            command = [sys.executable, "-c", KILLED, *map(str, fds)]
            return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=fds)

        process = node.run(start)
        assert process.stdout is not None
        with process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(random.uniform(0, 0.03))
            process.send_signal(signal.SIGKILL)
        left += len(node.run(network.remove_devices))
        assert state(node) == before
    assert left > 0


def test_namespaces_that_are_none_are_refused(node: Netns, network: PodNetwork) -> None:
    with open("/dev/null") as stream, pytest.raises(InvalidNetns, match="not a namespace"):
        add(node, network, _at(stream.fileno()), wanted(5))
    with open("/proc/self/ns/mnt") as stream, pytest.raises(InvalidNetns, match="not a network"):
        add(node, network, _at(stream.fileno()), wanted(5))
    with pytest.raises(InvalidNetns, match="node's own"):
        add(node, network, node, wanted(5))


def _at(fd: int) -> Netns:
    class Descriptor:
        def __init__(self) -> None:
            self.fd = fd

    return Descriptor()  # type: ignore[return-value]


def test_ipv6_switched_off_by_the_runtime_is_switched_on(
    node: Netns, network: PodNetwork, make_netns: MakeNetns
) -> None:
    pod = make_netns()
    for name in ("all", "default"):
        pod.command("sysctl", "-qw", f"net.ipv6.conf.{name}.disable_ipv6=1")
    add(node, network, pod, wanted(5))
    node.command("ping", "-c1", "-W1", "fd00::5")
    pod_conf = "net/ipv6/conf/eth0"
    assert pod.run(lambda: read_sysctl(f"{pod_conf}/accept_ra")) == "0"
    assert pod.run(lambda: read_sysctl(f"{pod_conf}/accept_dad")) == "0"
