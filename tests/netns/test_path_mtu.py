# SPDX-License-Identifier: Apache-2.0
"""Path-MTU discovery (RFC 1191, RFC 8201) works from inside of an isolated pod.

pod --1500-- node --1400-- outside --1500-- beyond
                               \\---1300-- narrow
"""

import errno
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from bench.lab import manifests
from bench.lab.netns import Namespace
from bench.lab.node import POD_CIDRS, Lab
from bench.lab.station import OUTSIDE4, OUTSIDE6, Pod, Station

pytestmark = pytest.mark.kernel

UPLINK_MTU, NARROW_MTU = 1400, 1300
MEGABYTE = 1 << 20
# linux/in.h, linux/in6.h: level, MTU_DISCOVER, PMTUDISC_DO, MTU.
DISCOVERY = {4: (0, 10, 2, 14), 6: (41, 23, 2, 24)}


@dataclass(frozen=True)
class Path:
    """Where packets go."""

    lab: Lab
    pod: Pod
    beyond: Station
    narrow: Station


def _attach(lab: Lab, name: str, number: int, mtu: int) -> Station:
    """A host on a link of its own behind the outside host, which routes to it."""
    outside, there = lab.outside_namespace, lab.scope.namespace(name)
    device, net4, net6 = f"to-{name}", f"203.0.113.{number}", f"2001:db8:3:{number}::"
    outside.ip(f"link add {device} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {there.name}")
    for namespace, end in ((outside, device), (there, "eth0")):
        namespace.sysctl({f"ipv6.conf.{end}.accept_dad": 0, "ipv6.conf.all.forwarding": 1})
    outside.ip(
        f"link set {device} up",
        f"address add {net4}/31 dev {device}",
        f"address add {net6}1/64 dev {device} nodad",
    )
    host4 = f"203.0.113.{number + 1}"
    there.ip(
        "link set eth0 up",
        f"address add {host4}/31 dev eth0",
        f"address add {net6}2/64 dev eth0 nodad",
        f"route add default via {net4}",
        f"route add ::/0 via {net6}1",
    )
    return Station(name, there, host4, f"{net6}2")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "masqueraded"])
def path(private_mounts: None, request: pytest.FixtureRequest) -> Iterator[Path]:
    config = {"masquerade": {"enabled": request.param}}
    with Lab(uplink_mtu=UPLINK_MTU, config=config) as lab:
        lab.outside_namespace.sysctl({"ipv4.ip_forward": 1, "ipv6.conf.all.forwarding": 1})
        # A common rule of firewalls: what connection tracking does not know is dropped. Replies
        # to what the programs handed in must not meet it. Not "loose": the middle of a connection
        # is nothing that it knows.
        lab.node_namespace.sysctl({"netfilter.nf_conntrack_tcp_loose": 0})
        lab.node_namespace.nft(
            "table inet strict {\n chain forward {\n  type filter hook forward priority filter;\n"
            "  ct state invalid drop\n }\n}\n"
        )
        pod = lab.add_pod("one", "a", {"app": "a"})
        beyond = _attach(lab, "beyond", 10, 1500)
        narrow = _attach(lab, "narrow", 20, NARROW_MTU)
        world = [{"ipBlock": {"cidr": cidr}} for cidr in ("203.0.113.0/24", "2001:db8:3::/48")]
        rules = [{"from": world, "ports": [{"port": 80}]}]
        spec = {"podSelector": {}, "ingress": rules, "egress": [{"to": world}]}
        lab.set_policies([manifests.policy("one", "world", spec)])
        yield Path(lab, pod, beyond, narrow)


def _learned_mtu(namespace: Namespace, address: str, port: int) -> int:
    """Sends what is too large until the kernel knows better; the path's MTU that it then knows."""
    family = 6 if ":" in address else 4
    level, discover, always, mtu = DISCOVERY[family]

    def send() -> int:
        inet = socket.AF_INET if family == 4 else socket.AF_INET6
        with socket.socket(inet, socket.SOCK_DGRAM) as client:
            client.setsockopt(level, discover, always)
            client.connect((address, port))
            for _ in range(20):
                try:
                    client.send(b"x" * 1450)
                except OSError as error:
                    if error.errno == errno.EMSGSIZE:
                        return client.getsockopt(level, mtu)
                    raise
                threading.Event().wait(0.01)
        return 0

    return namespace.run(send)


@pytest.mark.parametrize("family", [4, 6])
def test_the_node_says_what_fits(path: Path, family: int) -> None:
    """The error comes from the node, about its uplink."""
    assert _learned_mtu(path.pod.namespace, path.beyond.address(family), 7) == UPLINK_MTU


@pytest.mark.parametrize("family", [4, 6])
def test_a_router_says_what_fits(path: Path, family: int) -> None:
    """The error comes from a router that the pod may not talk to, about a link behind it."""
    assert (OUTSIDE4, OUTSIDE6)[family == 6] not in (path.narrow.ipv4, path.narrow.ipv6)
    known = 0
    for _ in range(3):  # first the uplink's MTU is learned, then the narrow link's
        known = _learned_mtu_small(path.pod.namespace, path.narrow.address(family))
        if known == NARROW_MTU:
            break
    assert known == NARROW_MTU


def _learned_mtu_small(namespace: Namespace, address: str) -> int:
    """The same with datagrams that fit the uplink and not the narrow link."""
    family = 6 if ":" in address else 4
    level, discover, always, mtu = DISCOVERY[family]

    def send() -> int:
        inet = socket.AF_INET if family == 4 else socket.AF_INET6
        with socket.socket(inet, socket.SOCK_DGRAM) as client:
            client.setsockopt(level, discover, always)
            client.connect((address, 7))
            for _ in range(20):
                try:
                    client.send(b"x" * 1330)
                except OSError as error:
                    if error.errno != errno.EMSGSIZE:
                        raise
                    break
                threading.Event().wait(0.01)
            return client.getsockopt(level, mtu)

    return namespace.run(send)


def _transfer(server: Station, client: Station, family: int, upload: bool) -> int:
    """Bytes of a megabyte that one side sends to the other and that arrive within ten seconds."""
    inet = socket.AF_INET if family == 4 else socket.AF_INET6

    def listen() -> socket.socket:
        made = socket.socket(inet, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((server.address(family), 80))
        made.listen()
        made.settimeout(5)
        return made

    def connect() -> socket.socket:
        made = socket.socket(inet, socket.SOCK_STREAM)
        made.settimeout(5)
        made.connect((server.address(family), 80))
        return made

    with server.namespace.run(listen) as listener, client.namespace.run(connect) as there:
        here, _ = listener.accept()
        with here:
            source, target = (there, here) if upload else (here, there)
            for end in (source, target):
                end.settimeout(10)
            sending = threading.Thread(target=partial(_send_all, source), daemon=True)
            sending.start()
            count = 0
            try:
                while count < MEGABYTE and (data := target.recv(65536)):
                    count += len(data)
            except TimeoutError:
                pass
            sending.join()
    return count


def _send_all(source: socket.socket) -> None:
    try:
        source.sendall(b"." * MEGABYTE)
    except OSError:
        return


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("peer", ["beyond", "narrow"])
def test_bulk_from_the_pod(path: Path, peer: str, family: int) -> None:
    """The pod opens a connection and sends: through the node's stack."""
    there: Station = getattr(path, peer)
    assert _transfer(there, path.pod, family, upload=True) == MEGABYTE


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("peer", ["beyond", "narrow"])
def test_bulk_in_answer(path: Path, peer: str, family: int) -> None:
    """Somebody outside opens a connection and the pod sends: past the node's stack."""
    there: Station = getattr(path, peer)
    assert _transfer(path.pod, there, family, upload=False) == MEGABYTE


@pytest.mark.parametrize("family", [4, 6])
def test_bulk_to_the_pod(path: Path, family: int) -> None:
    """Somebody outside sends."""
    assert _transfer(path.pod, path.beyond, family, upload=True) == MEGABYTE


def test_pod_ranges_are_those_of_the_lab(path: Path) -> None:
    """The routes back, which _attach's hosts rely on, are the outside host's."""
    assert path.lab.pod_cidrs == POD_CIDRS
