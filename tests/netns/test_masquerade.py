# SPDX-License-Identifier: Apache-2.0
"""Pods reach a host that knows nothing of pod addresses, under the node's address.

In two nodes: one without any rules, and one whose firewall tracks connections and drops what it
does not know, with strict reverse-path filtering. Path MTU is in test_path_mtu.py, take-over by
another agent in test_upgrade.py.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from agent.kernel import bpf
from agent.kernel.syscall import ProgramType
from agent.kernel.uplinks import uplink_name
from bench.lab.agent import Agent
from bench.lab.netns import LabError, Namespace
from bench.lab.node import Lab
from bench.lab.station import FAR4, FAR6, NODE4, NODE6, OUTSIDE4, OUTSIDE6, UPLINK, Pod, Station
from bench.lab.talk import Server, ask_tcp, ask_udp
from bench.lab.traffic import TcpFlow, Traffic, UdpFlow

pytestmark = pytest.mark.kernel

families = pytest.mark.parametrize("family", [4, 6])
NODE = {4: NODE4, 6: NODE6}
OUTSIDE = {4: OUTSIDE4, 6: OUTSIDE6}
FIRST, LAST = 61000, 65535
SERVICE = {4: "10.96.0.10", 6: "fd00:96::10"}
EXCLUDED = {4: "203.0.113.77", 6: "2001:db8:3::77"}
MEGABYTES = 8 << 20
ASK: dict[str, Callable[..., str | None]] = {"tcp": ask_tcp, "udp": ask_udp}

_STRICT = """
table inet strict {
  chain forward {
    type filter hook forward priority filter;
    ct state invalid drop
  }
  chain input {
    type filter hook input priority filter;
    ct state invalid drop
  }
}"""
CONFIG = {"masquerade": {"enabled": True, "exclude": [f"{EXCLUDED[4]}/32", f"{EXCLUDED[6]}/128"]}}


@pytest.fixture(scope="module", params=["no rules", "firewall"])
def lab(private_mounts: None, request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(config=CONFIG) as made:
        # Nobody outside has a way to a pod's address.
        made.outside_namespace.ip(*(f"route del {cidr}" for cidr in made.pod_cidrs))
        made.outside_namespace.ip(
            f"address add {EXCLUDED[4]}/32 dev lo", f"address add {EXCLUDED[6]}/128 dev lo nodad"
        )
        if request.param == "firewall":
            made.node_namespace.sysctl(
                {
                    "netfilter.nf_conntrack_tcp_loose": 0,
                    "ipv4.conf.all.rp_filter": 1,
                    f"ipv4.conf.{UPLINK}.rp_filter": 1,
                }
            )
            made.node_namespace.nft(_STRICT)
        yield made


@pytest.fixture(scope="module")
def pod(lab: Lab) -> Pod:
    return lab.add_pod("one", "a", {"app": "a"})


@pytest.fixture(scope="module", autouse=True)
def server(lab: Lab) -> Iterator[None]:
    with Server(lab.outside_namespace):
        yield


@families
@pytest.mark.parametrize("protocol", ASK)
def test_the_outside_sees_the_node(lab: Lab, pod: Pod, protocol: str, family: int) -> None:
    ask = ASK[protocol]
    for _ in range(3):
        assert ask(pod.namespace, OUTSIDE[family]) == NODE[family]
        assert ask(lab.node_namespace, OUTSIDE[family]) == NODE[family]


@families
@pytest.mark.parametrize("size", [56, 4000])
def test_ping(lab: Lab, pod: Pod, family: int, size: int) -> None:
    """In one packet and in fragments, while the node pings too."""
    command = ["ping", "-c", "3", "-i", "0.05", "-W", "2", "-s", str(size), OUTSIDE[family]]
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(lambda n: n.command(command), [pod.namespace, lab.node_namespace]))
    assert all("3 received" in one for one in said)


@families
def test_large_datagrams(pod: Pod, family: int) -> None:
    assert ask_udp(pod.namespace, OUTSIDE[family], size=6000) == NODE[family]


@families
def test_a_refusal_reaches_the_pod(pod: Pod, family: int) -> None:
    """Port unreachable, by the host outside."""

    def send() -> None:
        inet = socket.AF_INET if family == 4 else socket.AF_INET6
        with socket.socket(inet, socket.SOCK_DGRAM) as client:
            client.settimeout(2)
            client.connect((OUTSIDE[family], 9))
            client.send(b"?")
            client.recv(1)

    with pytest.raises(ConnectionRefusedError):
        pod.namespace.run(send)


def _seen(namespace: Namespace, address: str, port: int = 0, to: int = 80) -> tuple[int, int]:
    """Own port, and the port that the server at `to` saw."""

    def ask() -> tuple[int, int]:
        inet = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(inet, socket.SOCK_STREAM) as client:
            client.settimeout(5)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind(("", port))
            client.connect((address, to))
            return client.getsockname()[1], int(client.recv(99).decode().split()[1])

    return namespace.run(ask)


@families
def test_the_node_and_pods_at_once(lab: Lab, pod: Pod, family: int) -> None:
    """Hundreds of connections to one place: each gets its answer, none of the node's is touched."""
    with ThreadPoolExecutor(8) as pool:
        places = [pod.namespace, lab.node_namespace] * 150
        answers = list(pool.map(lambda n: _seen(n, OUTSIDE[family]), places))
    for own, seen in answers[1::2]:
        assert own == seen
    ports = [seen for _, seen in answers[::2]]
    assert all(FIRST <= port <= LAST for port in ports)


@families
def test_a_port_that_the_node_listens_at(lab: Lab, pod: Pod, family: int) -> None:
    """The pod's own port is kept where it can be; here it cannot, and the node's service works."""
    own, to = FIRST + 5, 81
    # A place of its own: to port 80, an earlier connection may have been given this very port.
    with Server(lab.outside_namespace, (to,)), Server(lab.node_namespace, (own + 1,)):
        assert _seen(pod.namespace, OUTSIDE[family], own, to) == (own, own)
        asked, seen = _seen(pod.namespace, OUTSIDE[family], own + 1, to)
        assert asked == own + 1 != seen and FIRST <= seen <= LAST
        assert ask_tcp(lab.outside_namespace, NODE[family], own + 1) == OUTSIDE[family]
        assert ask_udp(lab.outside_namespace, NODE[family], own + 1) == OUTSIDE[family]


@families
def test_a_pod_cannot_pass_for_what_goes_straight(lab: Lab, family: int) -> None:
    """By the mark that from_pod leaves for to_uplink (tc_index, bpf/lib/straight.h): with its own
    traffic control a pod sets it to what it likes, and the node's address is still in its place."""
    forger = lab.add_pod("one", f"forger{family}", {"app": "f"})
    # r2 = 0xb715; skb->tc_index = r2; return TC_ACT_UNSPEC
    code = b"".join(
        struct.pack("=BBhi", *one)
        for one in ((0xB7, 2, 0, 0xB715), (0x63, 0x21, 44, 0), (0xB7, 0, 0, -1), (0x95, 0, 0, 0))
    )
    program = bpf.program_load(ProgramType.SCHED_CLS, code, "forge", licence="GPL")
    pin = lab.scope.bpffs / f"forge{family}"
    bpf.object_pin(program, pin)
    os.close(program)
    for command in ("qdisc add dev eth0 clsact", f"filter add dev eth0 egress bpf da pinned {pin}"):
        forger.namespace.command(["tc", *command.split()])
    try:
        for ask in ASK.values():
            assert ask(forger.namespace, OUTSIDE[family]) == NODE[family]
    finally:
        pin.unlink()
        lab.delete_pod(forger)


@families
@pytest.mark.parametrize("protocol", ASK)
def test_an_excluded_destination(lab: Lab, pod: Pod, protocol: str, family: int) -> None:
    """Sees the pod as it is, and has a way to answer."""
    cidr = lab.pod_cidrs[family == 6]
    route = f"route add {cidr} via {NODE[family]} src {EXCLUDED[family]}"
    if family == 6:
        route = f"-6 {route}"
    lab.node_namespace.ip(f"route add {EXCLUDED[family]} via {OUTSIDE[family]}")
    lab.outside_namespace.command(["ip", *route.split()])
    try:
        assert _from(lab, pod, protocol, family) == pod.address(family)
    finally:
        lab.outside_namespace.ip(f"route del {cidr}")
        lab.node_namespace.ip(f"route del {EXCLUDED[family]}")


def _from(lab: Lab, pod: Pod, protocol: str, family: int) -> str | None:
    # A datagram's answer comes from where it was asked only if a socket is bound there.
    if protocol == "tcp":
        return ask_tcp(pod.namespace, EXCLUDED[family])
    seen: list[str] = []

    def bound() -> socket.socket:
        inet = socket.AF_INET if family == 4 else socket.AF_INET6
        made = socket.socket(inet, socket.SOCK_DGRAM)
        made.bind((EXCLUDED[family], 8080))
        made.settimeout(2)
        return made

    with lab.outside_namespace.run(bound) as there:
        ask_udp(pod.namespace, EXCLUDED[family], 8080)
        seen.append(there.recvfrom(99)[1][0])
    return seen[0]


@families
def test_asked_by_its_own_address(lab: Lab, pod: Pod, family: int) -> None:
    """Who knows a way to the pod gets the answer from the address that it asked."""
    cidr = lab.pod_cidrs[family == 6]
    lab.outside_namespace.ip(f"route add {cidr} via {NODE[family]}")
    try:
        with Server(pod.namespace, (81,)):
            for ask in ASK.values():
                assert ask(lab.outside_namespace, pod.address(family), 81) == OUTSIDE[family]
                # And at the same time the other way round.
                assert ask(pod.namespace, OUTSIDE[family]) == NODE[family]
    finally:
        lab.outside_namespace.ip(f"route del {cidr}")


@families
@pytest.mark.parametrize("protocol", ASK)
def test_services_of_the_nodes_own_translation(
    lab: Lab, pod: Pod, protocol: str, family: int
) -> None:
    """A service address that the node's rules turn into a host outside, and a node port that they
    turn into the pod: both translations of one connection, undone in the right order."""
    ip, to = ("ip", pod.ipv4) if family == 4 else ("ip6", f"[{pod.ipv6}]")
    lab.node_namespace.nft(f"""
table {ip} services {{
  chain prerouting {{
    type nat hook prerouting priority dstnat;
    {ip} daddr {SERVICE[family]} meta l4proto {{ tcp, udp }} dnat to {OUTSIDE[family]}
    {ip} daddr {NODE[family]} {protocol} dport 30080 dnat to {to}:80
  }}
}}""")
    try:
        assert ASK[protocol](pod.namespace, SERVICE[family]) == NODE[family]
        with Server(pod.namespace):
            seen = ASK[protocol](lab.outside_namespace, NODE[family], 30080)
            assert seen == OUTSIDE[family]
    finally:
        lab.node_namespace.nft(f"delete table {ip} services\n")


def _offload(namespace: Namespace, device: str, on: bool) -> None:
    """Whether the device is left to compute checksums (ETHTOOL_STXCSUM of linux/ethtool.h)."""

    def switch() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            value = bytearray(struct.pack("=II", 0x17, int(on)))
            held = (ctypes.c_char * len(value)).from_buffer(value)
            request = struct.pack("16sQ16x", device.encode(), ctypes.addressof(held))
            fcntl.ioctl(any_socket, 0x8946, request)  # SIOCETHTOOL

    namespace.run(switch)


def _transfer(server: Station, client: Station, family: int, upload: bool) -> int:
    """Bytes of 8 MiB that arrive, on a connection that the client opens."""
    inet = socket.AF_INET if family == 4 else socket.AF_INET6

    def listen() -> socket.socket:
        made = socket.socket(inet, socket.SOCK_STREAM)
        made.bind((server.address(family), 0))
        made.listen()
        made.settimeout(5)
        return made

    with server.namespace.run(listen) as listener:
        place = server.address(family), listener.getsockname()[1]

        def connect() -> socket.socket:
            made = socket.socket(inet, socket.SOCK_STREAM)
            made.settimeout(5)
            made.connect(place)
            return made

        with client.namespace.run(connect) as there, listener.accept()[0] as here:
            source, target = (there, here) if upload else (here, there)
            target.settimeout(10)
            work = threading.Thread(target=partial(source.sendall, b"." * MEGABYTES), daemon=True)
            work.start()
            count = 0
            while count < MEGABYTES and (data := target.recv(1 << 20)):
                count += len(data)
            work.join()
    return count


@families
@pytest.mark.parametrize("upload", [True, False], ids=["up", "down"])
@pytest.mark.parametrize("checksums", ["offloaded", "computed"])
def test_bulk(lab: Lab, pod: Pod, family: int, upload: bool, checksums: str) -> None:
    """Large segments both ways; with checksums that are filled in after the program, and then
    verified by the receiver."""
    ends = [(lab.node_namespace, UPLINK), (lab.outside_namespace, "eth0")]
    for namespace, device in ends:
        _offload(namespace, device, checksums == "offloaded")
    try:
        assert _transfer(lab.outside, pod, family, upload) == MEGABYTES
        assert ask_udp(pod.namespace, OUTSIDE[family]) == NODE[family]
    finally:
        for namespace, device in ends:
            _offload(namespace, device, True)


def test_agent_killed_under_load(lab: Lab, pod: Pod) -> None:
    """Nothing is lost, and what begins meanwhile works too."""
    udp = [UdpFlow(pod, lab.outside, family, translated=True) for family in (4, 6)]
    tcp = [TcpFlow(pod, lab.outside, family) for family in (4, 6)]
    with Traffic([*udp, *tcp]) as traffic:
        for flow in udp:
            flow.answering = True
        began, _ = traffic.run_for(0.1)
        for _ in range(3):
            before = [flow.received() for flow in tcp]
            lab.agent.kill()
            for family in (4, 6):
                assert ask_tcp(pod.namespace, OUTSIDE[family]) == NODE[family]
                assert ask_udp(pod.namespace, OUTSIDE[family]) == NODE[family]
            lab.agent.launch()
            lab.agent.wait_ready()
            traffic.run_for(0.1)
            assert all(min(flow.received()) > min(b) for flow, b in zip(tcp, before, strict=True))
        _, until = traffic.run_for(0.1)
        assert [flow.lost(began, until) for flow in udp] == [0, 0]
        assert [flow.broken for flow in tcp] == ["", ""]


def test_what_was_taken_away_is_put_back(lab: Lab, pod: Pod) -> None:
    pin = lab.scope.bpffs / "links" / uplink_name(UPLINK).replace("ingress", "egress")
    pin.unlink()
    lab.agent.wait(lambda: ask_udp(pod.namespace, OUTSIDE4) is None, "the program to be gone")
    said = lab.agent.cli("policy", "check", "--repair", check=False).stdout
    # Unless the agent's own look, every 15 s, came first.
    assert f"{UPLINK} egress" in said or lab.agent.metric("bristle_host_repairs_total")
    assert ask_udp(pod.namespace, OUTSIDE4) == NODE4 and pin.exists()


def test_another_address_of_the_uplink(lab: Lab, pod: Pod) -> None:
    """What is new takes it; what is there goes on as long as the node has the old one."""
    other = {4: "192.0.2.77", 6: "2001:db8:1::77"}
    flows = [UdpFlow(pod, lab.outside, family, 9200, translated=True) for family in (4, 6)]
    node = lab.node_namespace
    with Traffic(flows) as traffic:
        for flow in flows:
            flow.answering = True
        try:
            node.ip(f"address add {other[4]}/24 dev {UPLINK}", f"address add {other[6]}/64 dev"
                    f" {UPLINK} nodad")  # fmt: skip
            # Not the kernel's own choice any more, but still there.
            node.ip(
                f"address change {NODE4}/24 dev {UPLINK} preferred_lft 0",
                f"address change {NODE6}/64 dev {UPLINK} preferred_lft 0",
            )
            for family in (4, 6):
                lab.agent.wait(
                    lambda f=family: ask_udp(pod.namespace, OUTSIDE[f]) == other[f],  # type: ignore[misc]
                    "the other address to be taken",
                )
            began, until = traffic.run_for(0.2)
            assert [flow.lost(began, until) for flow in flows] == [0, 0]
        finally:
            for each, length in ((NODE4, 24), (NODE6, 64)):
                node.ip(f"address change {each}/{length} dev {UPLINK} preferred_lft forever")
            for each, length in ((other[4], 24), (other[6], 64)):
                node.ip(f"address del {each}/{length} dev {UPLINK}")
    for family in (4, 6):
        lab.agent.wait(
            lambda f=family: ask_udp(pod.namespace, OUTSIDE[f]) == NODE[f],  # type: ignore[misc]
            "the address to be back",
        )


def test_what_is_shown(lab: Lab, pod: Pod) -> None:
    own, seen = _seen(pod.namespace, OUTSIDE4)
    rows = lab.agent.cli_json("bpf", "nat", "list")
    mine = ("TCP", pod.ipv4, own)
    (row,) = (r for r in rows if (r["protocol"], r["local"], r["local_port"]) == mine)
    assert (row["endpoint_name"], row["node"], row["node_port"]) == (pod.name, NODE4, seen)
    assert (row["remote"], row["remote_port"]) == (OUTSIDE4, 80)
    assert pod.name in lab.agent.cli("bpf", "nat", "list").stdout
    assert lab.agent.metric("bristle_bpf_nat_created_total") > 0
    assert lab.agent.metric("bristle_bpf_map_capacity", map_group="nat") == 65536
    assert lab.agent.metric("bristle_bpf_nat_exhausted_total") == 0


def test_a_protocol_that_has_no_ports(lab: Lab, pod: Pod) -> None:
    """ESP: dropped, counted and reported with the pod's name."""

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, 50) as raw:
            raw.sendto(b"\1" * 32, (FAR4, 0))
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, 50) as raw:
            raw.sendto(b"\1" * 32, (FAR6, 0))

    pod.namespace.run(send)

    def told() -> list[str]:
        return [f.source.pod for f in lab.agent.flows() if f.drop_reason == 168]

    lab.agent.wait(lambda: len(told()) >= 2, "the drops to be reported")
    assert set(told()) == {pod.pod_name}
    assert (
        lab.agent.metric(
            "bristle_drop_count_total", reason="Unsupported protocol for NAT masquerade"
        )
        >= 2
    )


def test_a_pod_that_goes_leaves_nothing(lab: Lab) -> None:
    gone = lab.add_pod("one", "gone", {"app": "gone"})
    for ask in ASK.values():
        assert ask(gone.namespace, OUTSIDE4) == NODE4
    lab.delete_pod(gone)

    def left() -> int:
        return sum(row["local"] == gone.ipv4 for row in lab.agent.cli_json("bpf", "nat", "list"))

    lab.agent.wait(lambda: left() == 0, "its mappings to be collected", 70)


@pytest.mark.parametrize(
    ("masquerade", "devices", "message"),
    [
        ({"ports": "50000-62000"}, [UPLINK], "masquerade.ports: 50000-62000 overlaps net.ipv4"),
        ({"ports": "30000-31000"}, [UPLINK], "masquerade.ports: 30000-31000 overlaps the range of"),
        ({}, [], "masquerade.enabled: needs uplinks"),
    ],
)
def test_what_cannot_be_is_refused_at_start(
    private_mounts: None, masquerade: dict[str, str], devices: list[str], message: str
) -> None:
    config = {"masquerade": {"enabled": True, **masquerade}, "devices": devices}
    with Lab(start=False, config=config) as made:
        with pytest.raises(LabError, match=message):
            made.agent.start()
        if "50000" in message:
            made.node_namespace.sysctl({"ipv4.ip_local_reserved_ports": "50000-60999"})
            made.agent.start()


NAT_MAX = 32


def test_a_full_table(private_mounts: None) -> None:
    """New connections are refused, with a reason; old ones go on. Another pod's turn comes."""
    with Lab(config={**CONFIG, "bpf": {"nat_max": NAT_MAX}}) as made:
        pod, other = (made.add_pod("one", name, {"app": name}) for name in "ab")
        with Server(made.outside_namespace, (80, 81)):
            flow = UdpFlow(pod, made.outside, 4, translated=True)
            with Traffic([flow]) as traffic:
                flow.answering = True
                answers = [
                    ask_udp(pod.namespace, OUTSIDE4, 80, source_port=20_000 + n)
                    for n in range(NAT_MAX + 4)
                ]
                assert answers.count(NODE4) == NAT_MAX - 1 and None in answers
                assert _full(made.agent) >= 5
                began, until = traffic.run_for(0.2)
                assert flow.lost(began, until) == 0
                # Unlike the first pod's, which go with it.
                made.delete_pod(pod)
                made.agent.wait(
                    lambda: ask_udp(other.namespace, OUTSIDE4, 81) == NODE4,
                    "room for another's connection",
                    40,
                )


def _full(agent: Agent) -> float:
    return agent.metric("bristle_bpf_nat_full_total")
