# SPDX-License-Identifier: Apache-2.0
"""Sidecars: what an application opens is answered by a proxy in its own pod, which opens the next
connection itself. Dialled directly, or given the connection by a rule of packet translation that
neither end of it sees, each leg is redirected, and every byte is right.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bench.lab.netns import Namespace
from bench.lab.node import Lab
from bench.lab.station import Pod
from tests.netns.redirect_pods import (
    ON,
    Link,
    Port,
    inet_of,
    outcomes,
    ready,
    receive,
    redirecting,
    send,
    taught,
)

pytestmark = pytest.mark.kernel

FAMILIES = pytest.mark.parametrize("family", [4, 6])
OUTBOUND, INBOUND, SERVICE, APPLICATION = 15001, 15006, 80, 8080
MARK = 0x77
"""What a sidecar puts on its own connections, so that no rule takes them."""

OUTPUT_RULE = f"""
table inet outbound {{
  chain output {{
    type nat hook output priority -100
    meta mark != {MARK} tcp dport {SERVICE} redirect to :{OUTBOUND}
  }}
}}
"""
PREROUTING_RULE = f"""
table inet inbound {{
  chain prerouting {{
    type nat hook prerouting priority -100
    tcp dport {SERVICE} redirect to :{INBOUND}
  }}
}}
"""
TPROXY_RULE = f"""
table inet inbound {{
  chain prerouting {{
    type filter hook prerouting priority -150
    meta nfproto ipv4 tcp dport {SERVICE} tproxy ip to :{INBOUND} meta mark set 1 accept
    meta nfproto ipv6 tcp dport {SERVICE} tproxy ip6 to :{INBOUND} meta mark set 1 accept
  }}
}}
"""
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75


@dataclass(frozen=True)
class Scene:
    lab: Lab
    client: Pod
    server: Pod


@pytest.fixture(scope="module")
def scene(private_mounts: None) -> Iterator[Scene]:
    with redirecting() as lab:
        yield Scene(
            lab,
            lab.add_pod("one", "client", {"app": "client"}, annotations=ON),
            lab.add_pod("two", "server", {"app": "server"}, annotations=ON),
        )


@contextlib.contextmanager
def rules(namespace: Namespace, text: str) -> Iterator[None]:
    """A table of nftables, for a time."""
    name = text.split("table inet ", 1)[1].split()[0]
    namespace.nft(text)
    try:
        yield
    finally:
        namespace.nft(f"delete table inet {name}")


def transparent(one: socket.socket) -> None:
    """Takes connections to any address."""
    one.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    one.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)


@contextlib.contextmanager
def transparent_routes(namespace: Namespace) -> Iterator[None]:
    """What is marked is for this host, whatever its destination."""
    for family in ("-4", "-6"):
        namespace.command(["ip", family, "rule", "add", "fwmark", "1", "lookup", "100"])
        namespace.command(["ip", family, "route", "add", "local", "default", "dev", "lo",
                           "table", "100"])  # fmt: skip
    try:
        yield
    finally:
        for family in ("-4", "-6"):
            namespace.command(["ip", family, "rule", "del", "fwmark", "1", "lookup", "100"])
            namespace.command(["ip", family, "route", "flush", "table", "100"])


def check_second(
    scene: Scene, namespace: Namespace, port: Port, address: str, number: int = 0
) -> None:
    """The first connection shows how the port is used; each one after it is redirected."""
    with Link(scene.lab, namespace, port, address, number) as first:
        first.exchange()
    for _ in range(3):
        with Link(scene.lab, namespace, port, address, number) as link:
            link.exchange()
            assert link.direct() == (True, True), link.explain()
            # From the first byte on.
            assert link.redirected_bytes() == 3 * 24


@FAMILIES
@pytest.mark.parametrize("own", [False, True], ids=["loopback", "own-address"])
def test_dialled_directly(scene: Scene, family: int, own: bool) -> None:
    client = scene.client
    address = client.address(family) if own else ("127.0.0.1" if family == 4 else "::1")
    with Port(client.namespace, OUTBOUND) as sidecar:
        check_second(scene, client.namespace, sidecar, address)


@FAMILIES
@pytest.mark.parametrize("place", ["pod", "outside", "nowhere"])
def test_redirect_in_output(scene: Scene, family: int, place: str) -> None:
    """Whatever is dialled: a pod of this node, an address off the node, one that nobody has."""
    nowhere = "203.0.113.9" if family == 4 else "2001:db8:9::9"
    address = {
        "pod": scene.server.address(family),
        "outside": scene.lab.outside.address(family),
        "nowhere": nowhere,
    }[place]
    client = scene.client
    with Port(client.namespace, OUTBOUND) as sidecar, rules(client.namespace, OUTPUT_RULE):
        check_second(scene, client.namespace, sidecar, address, SERVICE)


@FAMILIES
@pytest.mark.parametrize("way", ["redirect", "tproxy"])
def test_into_the_receiving_pod(scene: Scene, family: int, way: str) -> None:
    """A sidecar in the receiving pod takes what is dialled to its application."""
    client, server = scene.client, scene.server
    address = server.address(family)
    with contextlib.ExitStack() as stack:
        if way == "tproxy":
            stack.enter_context(transparent_routes(server.namespace))
            sidecar = Port(server.namespace, INBOUND, settings=transparent)
            stack.enter_context(rules(server.namespace, TPROXY_RULE))
        else:
            sidecar = Port(server.namespace, INBOUND)
            stack.enter_context(rules(server.namespace, PREROUTING_RULE))
        stack.enter_context(sidecar)
        check_second(scene, client.namespace, sidecar, address, SERVICE)


@FAMILIES
def test_sidecar_to_sidecar(scene: Scene, family: int) -> None:
    """Application, sidecar, sidecar, application: three legs, of which the first two dial the same
    address and port; a message goes through all and back."""
    client, server = scene.client, scene.server
    address = server.address(family)
    loopback = "127.0.0.1" if family == 4 else "::1"

    with (
        Port(client.namespace, OUTBOUND) as out,
        Port(server.namespace, INBOUND) as into,
        Port(server.namespace, APPLICATION) as application,
        rules(client.namespace, OUTPUT_RULE),
        rules(server.namespace, PREROUTING_RULE),
    ):
        for n in range(4):
            with contextlib.ExitStack() as stack:
                first = stack.enter_context(
                    Link(scene.lab, client.namespace, out, address, SERVICE)
                )
                middle = stack.enter_context(Marked(scene.lab, client.namespace, into, address))
                last = stack.enter_context(Link(scene.lab, server.namespace, application, loopback))
                legs = [first, middle, last]
                for number in range(5):
                    text = f"{n} {number} through all".encode()
                    for leg in legs:
                        send(leg.client, text)
                        text = receive(leg.server, len(text))
                    for leg in reversed(legs):
                        send(leg.server, text)
                        text = receive(leg.client, len(text))
                    assert text == f"{n} {number} through all".encode()
                if n:
                    assert [leg.direct() for leg in legs] == [(True, True)] * 3


class Marked(Link):
    """A connection that a sidecar opens."""

    def __init__(self, lab: Lab, namespace: Namespace, port: Port, address: str) -> None:
        def work() -> socket.socket:
            made = socket.socket(inet_of(address))
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
            code = made.connect_ex((address, SERVICE))
            assert code in (0, errno.EINPROGRESS), os.strerror(code)
            return made

        self._lab = lab
        self.client = namespace.run(work)
        self.server = port.accept()


@FAMILIES
def test_rules_come_and_go(scene: Scene, family: int) -> None:
    """The same address and port, now taken by a sidecar, now not: each connection is redirected to
    whoever answers it, and those that live go on when the rule is gone."""
    client, server = scene.client, scene.server
    address = server.address(family)
    with (
        Port(client.namespace, OUTBOUND) as sidecar,
        Port(server.namespace, SERVICE) as application,
    ):
        taught(scene.lab, client.namespace, application, address)
        with rules(client.namespace, OUTPUT_RULE):
            taught(scene.lab, client.namespace, sidecar, address, SERVICE)
        for _ in range(3):
            with contextlib.ExitStack() as stack:
                with rules(client.namespace, OUTPUT_RULE):
                    taken = stack.enter_context(
                        Link(scene.lab, client.namespace, sidecar, address, SERVICE)
                    )
                    taken.exchange()
                    assert taken.direct() == (True, True), taken.explain()
                with Link(scene.lab, client.namespace, application, address) as link:
                    link.exchange()
                    assert link.direct() == (True, True), link.explain()
                    taken.exchange()
        # Off the node, after what was taken by the sidecar.
        outside = scene.lab.outside
        before = outcomes(scene.lab)
        with (
            Port(outside.namespace, SERVICE) as far,
            Link(scene.lab, client.namespace, far, outside.address(family)) as link,
        ):
            link.exchange()
            assert link.state() is None
        assert outcomes(scene.lab)["far_away"] == before["far_away"] + 1
        assert not ready(sidecar.listener, select.POLLIN, 0)
