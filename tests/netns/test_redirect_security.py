# SPDX-License-Identifier: Apache-2.0
"""No process gets into a redirected connection that is not its own, whatever addresses, ports and
namespaces it makes for itself; and whoever tries harms nobody.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from agent.kernel.maps import PinnedMap
from agent.kernel.netns import own_cookie
from agent.kernel.socket_redirect import pinned_sockets
from bench.lab.node import Lab
from bench.lab.station import Pod
from bpf.maps import NAMESPACES, SOCKET_ENDPOINTS
from tests.netns.redirect_pods import (
    ON,
    Link,
    Port,
    cookie_of,
    ready,
    receive,
    redirecting,
    send,
    taught,
)

pytestmark = pytest.mark.kernel

FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module")
def lab(private_mounts: None) -> Iterator[Lab]:
    # So few addresses that they are soon given out again.
    with redirecting(pod_cidrs=("10.244.1.0/28", "fd00:10:244:1::/124")) as made:
        yield made


@pytest.fixture(scope="module")
def victims(lab: Lab) -> tuple[Pod, Pod]:
    return (
        lab.add_pod("one", "a", {"app": "a"}, annotations=ON),
        lab.add_pod("two", "b", {"app": "b"}, annotations=ON),
    )


# In a user and a network namespace of its own, with the victims' addresses on its own loopback,
# plays both ends of the same connections as the victims, and says what it was given.
FORGER = r"""
import json, select, socket, subprocess, sys, time
addresses, ports, source_ports, until = json.loads(sys.argv[1])
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
for one in addresses:
    length = "128" if ":" in one else "32"
    more = ["nodad"] if ":" in one else []
    subprocess.run(["ip", "address", "add", f"{one}/{length}", "dev", "lo", *more], check=True)
here, there = addresses
inet = socket.AF_INET6 if ":" in here else socket.AF_INET
got, ends, sent = 0, [], 0
for port in ports:
    listener = socket.socket(inet)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((there, port)); listener.listen(64); listener.setblocking(False)
    for source_port in source_ports:
        client = socket.socket(inet)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind((here, source_port))
        client.setblocking(False)
        client.connect_ex((there, port))
        # Longer than a SYN that was lost takes to be sent again.
        assert select.select([listener], [], [], 10)[0], (
            f"no connection: {client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)}"
        )
        server, _ = listener.accept()
        server.setblocking(False)
        ends += [client, server]
print("ready", flush=True)
sys.stdin.readline()
stolen = b""
for end in ends:
    for n in range(3):
        end.send(b"FORGED")
deadline = time.monotonic() + until
expected = 18
counts = {end.fileno(): b"" for end in ends}
while time.monotonic() < deadline:
    for end in ends:
        try:
            counts[end.fileno()] += end.recv(65536)
        except BlockingIOError:
            pass
    time.sleep(0.02)
print(json.dumps([data.decode("latin-1") for data in counts.values()]), flush=True)
"""


@FAMILIES
def test_forged_tuples(lab: Lab, victims: tuple[Pod, Pod], family: int) -> None:
    """The same addresses and ports, in a namespace that a process of a pod made for itself, before
    and while the victims' connection lives."""
    a, b = victims
    here, there = a.address(family), b.address(family)
    port, source_port = 7000 + family, 41000 + family
    with Port(b.namespace, port) as served:
        taught(lab, a.namespace, served, there)
        with Link(lab, a.namespace, served, there, source=(here, source_port)) as link:
            link.exchange_until_direct()
            known = {(one.state.netns, one.state.side) for one in pinned_sockets(lab.scope.bpffs)}
            arguments = json.dumps([[here, there], [port], [source_port], 1.0])
            forger = subprocess.Popen(
                a.namespace.argv(
                    ["unshare", "-Urn", sys.executable, "-c", FORGER, arguments]
                ),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            try:
                assert forger.stdin is not None and forger.stdout is not None
                assert forger.stdout.readline() == "ready\n"
                now = {(one.state.netns, one.state.side) for one in pinned_sockets(lab.scope.bpffs)}
                assert now == known, "the forger's sockets take part"
                for n in range(50):
                    link.exchange(4)
                    if n == 5:
                        forger.stdin.write("go\n")
                        forger.stdin.flush()
                    # While it lives others, with ports of their own, come and go.
                    if n % 10 == 0:
                        with Link(lab, a.namespace, served, there) as other:
                            other.exchange()
                out, _ = forger.communicate(timeout=30)
                assert json.loads(out.splitlines()[-1]) == ["FORGED" * 3] * 2
            finally:
                forger.kill()
                forger.wait()
            link.exchange()
            assert link.direct() == (True, True)
            assert not ready(link.client, select.POLLIN, 0.05)
            assert not ready(link.server, select.POLLIN, 0.05)


@pytest.mark.parametrize("loopback", ["127.0.0.1", "::1"])
def test_equal_loopback_tuples(lab: Lab, victims: tuple[Pod, Pod], loopback: str) -> None:
    """Two pods with the very same addresses and ports at once: each has its own bytes."""
    links = []
    with (
        Port(victims[0].namespace, 7100, loopback) as first,
        Port(victims[1].namespace, 7100, loopback) as second,
    ):
        for pod, port in zip(victims, (first, second), strict=True):
            taught(lab, pod.namespace, port, loopback)
        for pod, port in zip(victims, (first, second), strict=True):
            links.append(Link(lab, pod.namespace, port, loopback, source=(loopback, 42100)))
        try:
            for link in links:
                link.exchange_until_direct()
            for n in range(20):
                for number, link in enumerate(links):
                    send(link.client, f"{number} {n:4} there".encode())
                    send(link.server, f"{number} {n:4} back.".encode())
                for number, link in enumerate(links):
                    assert receive(link.server, 12) == f"{number} {n:4} there".encode()
                    assert receive(link.client, 12) == f"{number} {n:4} back.".encode()
            states = [link.state() for link in links]
            assert all(states) and len({one.state.netns for one in states if one}) == 2
        finally:
            for link in links:
                link.__exit__()


@FAMILIES
def test_address_of_a_former_pod(lab: Lab, victims: tuple[Pod, Pod], family: int) -> None:
    """A pod goes, its processes (and so its namespace and sockets) do not; the next pod has its
    addresses and opens the same connection."""
    a, _ = victims
    there, source_port = a.address(family), 43000 + family
    old = lab.add_pod("two", f"old-{family}", {"app": "old"}, annotations=ON)
    here = old.address(family)
    with Port(a.namespace, 7200) as served:
        taught(lab, old.namespace, served, there)
        with Link(lab, old.namespace, served, there, source=(here, source_port)) as former:
            former.exchange_until_direct()
            cookie = cookie_of(former.client)
            lab.delete_pod(old)
            lab.agent.wait(lambda: not known(lab, old), "the former pod to be forgotten")
            assert mode_of(lab, cookie) is None
            new = next_with(lab, here, family)
            assert new.namespace.run(own_cookie) != cookie
            # What the former pod sends reaches nobody, what is sent to it neither: that end learns
            # from the new pod that there is no such connection.
            for end in (former.client, former.server):
                with contextlib.suppress(OSError):
                    end.send(b"of a former pod")
            assert not ready(former.client, select.POLLIN, 0.3)
            with pytest.raises((ConnectionResetError, BlockingIOError)):
                former.server.recv(4096)
            taught(lab, new.namespace, served, there)
            with Link(lab, new.namespace, served, there) as link:
                link.exchange_until_direct()
                # And the very same four numbers: the new pod's own connection.
                with Link(lab, new.namespace, served, there, source=(here, source_port)) as twin:
                    twin.exchange()
                    assert not ready(former.client, select.POLLIN, 0.1)
                link.exchange()
    lab.delete_pod(new)


def known(lab: Lab, pod: Pod) -> bool:
    """Whether the agent has an endpoint of this pod."""
    return any(f"{one.namespace}/{one.pod}" == pod.name for one in lab.agent.endpoints())


def next_with(lab: Lab, address: str, family: int) -> Pod:
    """A new pod that has this address, which was freed last: the pool is small."""
    others = []
    try:
        for n in range(40):
            pod = lab.add_pod("two", f"next-{n}", {"app": "next"}, annotations=ON)
            if pod.address(family) == address:
                return pod
            others.append(pod)
            # Two at a time, so that the pool does not run out.
            if len(others) > 2:
                lab.delete_pod(others.pop(0))
        raise AssertionError(f"{address} is not given out again")
    finally:
        for pod in others:
            lab.delete_pod(pod)


def mode_of(lab: Lab, cookie: int) -> int | None:
    """The mode that the programs have for a namespace."""
    folder = lab.scope.bpffs / "maps"
    namespaces = PinnedMap.open_or_create(NAMESPACES, folder)
    endpoints = PinnedMap.open_or_create(SOCKET_ENDPOINTS, folder)
    try:
        number = namespaces.lookup(cookie)
        found = endpoints.lookup(number) if number is not None else None
        return found.mode if found is not None else None
    finally:
        namespaces.close()
        endpoints.close()


@FAMILIES
def test_beside_pods_that_have_it_not(lab: Lab, victims: tuple[Pod, Pod], family: int) -> None:
    """One end without the annotation, either one: the stack carries it, and pods with it beside
    are redirected."""
    a, b = victims
    plain = lab.add_pod("two", f"plain-{family}", {"app": "plain"})
    try:
        with (
            Port(plain.namespace, 7300) as there,
            Port(a.namespace, 7300) as here,
            Port(b.namespace, 7300) as beside,
        ):
            taught(lab, b.namespace, here, a.address(family))
            taught(lab, a.namespace, beside, b.address(family))
            for source, port, pod in ((a, there, plain), (plain, here, a)):
                for _ in range(3):
                    with Link(lab, source.namespace, port, pod.address(family)) as link:
                        link.exchange()
                        assert link.direct() == (False, False)
                        assert link.redirected_bytes() == 0
            with Link(lab, a.namespace, beside, b.address(family)) as link:
                link.exchange_until_direct()
            # On one's own there is no other end: an own address needs no annotation elsewhere.
            with Link(lab, plain.namespace, there, plain.address(family)) as link:
                link.exchange()
                assert link.state() is None
    finally:
        lab.delete_pod(plain)


def test_wrong_cookie(lab: Lab, victims: tuple[Pod, Pod]) -> None:
    """The maps name another namespace for an endpoint, or one for none: its sockets stay out, and
    are in again when the record is right."""
    a, b = victims
    folder = lab.scope.bpffs / "maps"
    namespaces = PinnedMap.open_or_create(NAMESPACES, folder)
    endpoints = PinnedMap.open_or_create(SOCKET_ENDPOINTS, folder)
    own, other = (pod.namespace.run(own_cookie) for pod in victims)
    number = namespaces.lookup(own)
    assert number is not None
    right = endpoints.lookup(number)
    assert right is not None and right.netns == own
    try:
        with Port(b.namespace, 7400) as served, Port(a.namespace, 7401) as back:
            taught(lab, a.namespace, served, b.ipv4)
            taught(lab, b.namespace, back, a.ipv4)
            for wrong in (0, other, 0xDEAD):
                endpoints.update(number, replace(right, netns=wrong))
                for source, port, pod in ((a, served, b), (b, back, a)):
                    with Link(lab, source.namespace, port, pod.ipv4) as link:
                        link.exchange()
                        assert link.redirected_bytes() == 0, f"with cookie {wrong:#x}"
                endpoints.update(number, right)
                with Link(lab, a.namespace, served, b.ipv4) as link:
                    link.exchange_until_direct()
    finally:
        endpoints.update(number, right)
        namespaces.close()
        endpoints.close()


TWINS = """
table inet twins {
  chain prerouting {
    type nat hook prerouting priority -100
    tcp dport 7510-7517 redirect to :7500
  }
  chain output {
    type nat hook output priority -100
    tcp dport 7520-7527 redirect to :7500
  }
}
"""


@FAMILIES
@pytest.mark.parametrize("inside", [False, True], ids=["between pods", "inside one"])
def test_twins(lab: Lab, victims: tuple[Pod, Pod], family: int, inside: bool) -> None:
    """Eight connections that all claim the same source port, and arrive at one: addresses and
    ports do not tell them apart, the first sequence numbers do."""
    a, b = victims
    served_by, first = (a, 7520) if inside else (b, 7510)
    there = b.address(family)
    served_by.namespace.nft(TWINS)
    links = []
    try:
        with Port(served_by.namespace, 7500) as served:
            for n in range(8):
                taught(lab, a.namespace, served, there, first + n)
            for n in range(8):
                source = (a.address(family), 44000 + family)
                links.append(Link(lab, a.namespace, served, there, first + n, source=source))
            for round_ in range(5):
                for n, link in enumerate(links):
                    send(link.client, f"{n} {round_} there".encode())
                    send(link.server, f"{n} {round_} back.".encode())
                for n, link in enumerate(links):
                    assert receive(link.server, 9) == f"{n} {round_} there".encode()
                    assert receive(link.client, 9) == f"{n} {round_} back.".encode()
            ways = [link.direct() for link in links]
            # Between pods, where translation gave one another source port, the stack has it.
            assert ways[0] == (True, True)
            if inside:
                assert ways == [(True, True)] * 8
            else:
                by_stack = [link for link, way in zip(links, ways, strict=True) if not any(way)]
                assert sum(link.redirected_bytes() for link in by_stack) == 0
    finally:
        for link in links:
            link.__exit__()
        served_by.namespace.nft("delete table inet twins")


@FAMILIES
def test_socket_that_connects_again(lab: Lab, victims: tuple[Pod, Pod], family: int) -> None:
    """connect(AF_UNSPEC) ends a connection and keeps the socket: the next one to another pod is
    that one's alone, also while the first one's other end has not heard of it."""
    a, b = victims
    c = lab.add_pod("two", f"c-{family}", {"app": "c"}, annotations=ON)
    try:
        with Port(b.namespace, 7600) as first, Port(c.namespace, 7600) as second:
            taught(lab, a.namespace, first, b.address(family))
            taught(lab, a.namespace, second, c.address(family))
            with Link(lab, a.namespace, first, b.address(family)) as link:
                link.exchange_until_direct()
                # The reset that tells b's end is lost.
                a.namespace.nft(
                    "table inet lost {\nchain output {\ntype filter hook output priority 0\n"
                    "tcp flags & rst == rst drop\n}\n}"
                )
                send(link.server, b"never read")
                disconnect(link.client)
                code = link.client.connect_ex((c.address(family), 7600))
                assert code in (0, errno.EINPROGRESS)
                former, link.server = link.server, second.accept()
                with former:
                    # Its end of the former connection lives, and sends.
                    former.send(b"from the former connection")
                    link.exchange(5)
                    assert not ready(former, select.POLLIN, 0.1), "bytes for c came to b"
                    assert link.state() is not None
                    link.exchange_until_direct()
                    assert not ready(former, select.POLLIN, 0.1), "bytes for c came to b"
    finally:
        a.namespace.nft("table inet lost\ndelete table inet lost")
        lab.delete_pod(c)


def disconnect(one: socket.socket) -> None:
    """connect(2) to AF_UNSPEC, which Python's own refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    address = struct.pack("=H14x", socket.AF_UNSPEC)
    assert libc.connect(one.fileno(), address, len(address)) == 0, os.strerror(ctypes.get_errno())


TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21
RECV_QUEUE, SEND_QUEUE = 1, 2


def test_chosen_sequence_numbers(lab: Lab, victims: tuple[Pod, Pod]) -> None:
    """A pod that may administer its namespace makes a socket with the victims' sequence numbers
    (TCP_REPAIR): its own address does not let it be one of them, and they go on."""
    a, b = victims
    evil = lab.add_pod("two", "evil", {"app": "evil"}, annotations=ON)
    try:
        with Port(b.namespace, 7700) as served:
            taught(lab, a.namespace, served, b.ipv4)
            with Link(lab, a.namespace, served, b.ipv4) as link:
                link.exchange_until_direct()
                listed = link.state()
                assert listed is not None
                state = listed.state

                def forge() -> socket.socket:
                    made = socket.socket()
                    made.setblocking(False)
                    made.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
                    for queue, number in ((SEND_QUEUE, state.client), (RECV_QUEUE, state.server)):
                        made.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
                        made.setsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ,
                                        struct.pack("=I", number))  # fmt: skip
                    made.bind((evil.ipv4, link.client.getsockname()[1]))
                    made.connect((b.ipv4, 7700))
                    made.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
                    return made

                with evil.namespace.run(forge) as forged:
                    # At most it takes itself for a connection within its own namespace.
                    for one in pinned_sockets(lab.scope.bpffs):
                        if one.state.netns == cookie_of(forged):
                            assert one.state.far_netns == one.state.netns
                            assert not one.state.far_socket
                    with contextlib.suppress(OSError):
                        forged.send(b"FORGED")
                    link.exchange(5)
                    assert link.direct() == (True, True)
                    with contextlib.suppress(OSError):
                        assert not forged.recv(100), "the forger was given bytes"
    finally:
        lab.delete_pod(evil)
