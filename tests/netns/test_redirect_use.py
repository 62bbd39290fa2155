# SPDX-License-Identifier: Apache-2.0
"""How a port's sockets are used is learnt, and what redirect is nothing for is left alone: before
its first byte where that shows in time, else from the next connection to the port on.
"""

from __future__ import annotations

import itertools
import mmap
import select
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from bench.lab.node import Lab
from bench.lab.station import Pod
from tests.netns.redirect_pods import (
    ANNOTATION,
    Link,
    Port,
    outcomes,
    ready,
    receive,
    redirecting,
)

pytestmark = pytest.mark.kernel

SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000
_PORTS = itertools.count(7000)


@dataclass(frozen=True)
class Scene:
    mode: str
    lab: Lab
    client: Pod
    server: Pod

    def link(self, port: Port, settings: Callable[[socket.socket], None] = lambda _: None) -> Link:
        """A connection over IPv6 to the server's port."""
        return Link(self.lab, self.client.namespace, port, self.server.ipv6, settings=settings)


@pytest.fixture(scope="module", params=["on", "all"])
def scene(private_mounts: None, request: pytest.FixtureRequest) -> Iterator[Scene]:
    config = {"socket_redirect": {"enabled": True, "force": True}}
    annotations = {ANNOTATION: request.param}
    with redirecting(config) as lab:
        yield Scene(
            request.param,
            lab,
            lab.add_pod("one", "client", {"app": "client"}, annotations=annotations),
            lab.add_pod("two", "server", {"app": "server"}, annotations=annotations),
        )


def zero_copy(one: socket.socket) -> None:
    """Lets a socket send with MSG_ZEROCOPY."""
    one.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)


def completed(sender: socket.socket, receiver: socket.socket) -> bool:
    """Whether a message sent without copying arrives and its completion is told."""
    page = mmap.mmap(-1, 4096)
    page.write(b"z" * 4096)
    assert sender.send(page, MSG_ZEROCOPY) == 4096
    assert receive(receiver, 4096) == b"z" * 4096
    if not ready(sender, 0, 1):  # POLLERR
        return False
    _, ancillary, _, _ = sender.recvmsg(0, 256, socket.MSG_ERRQUEUE)
    first, last = struct.unpack_from("II", ancillary[0][2], 8)
    return bool(first == last == 0)


def left_alone(link: Link) -> bool:
    """Whether nothing of a connection is redirected, whatever is sent."""
    link.exchange(5)
    return link.direct() == (False, False) and link.redirected_bytes() == 0


def test_opened_to_send_without_copying(scene: Scene) -> None:
    """The very first connection, and every other."""
    with Port(scene.server.namespace, next(_PORTS)) as port:
        before = outcomes(scene.lab).get("zerocopy", 0)
        for _ in range(3):
            with scene.link(port, zero_copy) as link:
                assert left_alone(link)
                assert completed(link.client, link.server)
        assert outcomes(scene.lab)["zerocopy"] - before == 3
        # The next one does not, and nothing was learnt that would keep it out.
        for _ in range(2):
            with scene.link(port) as link:
                link.exchange(5)
                redirected = link.direct()
        assert redirected == (True, True)


def test_accepted_to_send_without_copying(scene: Scene) -> None:
    """The option is the listener's, and so that of all that it accepts."""
    with Port(scene.server.namespace, next(_PORTS), settings=zero_copy) as port:
        for _ in range(3):
            with scene.link(port) as link:
                assert left_alone(link)
                assert completed(link.server, link.client)


@pytest.mark.parametrize("end", ["client", "server"])
def test_set_to_send_without_copying_later(scene: Scene, end: str) -> None:
    """Seen with its first messages: the connections after it are left alone, while it lives and
    when it has ended."""
    with Port(scene.server.namespace, next(_PORTS)) as port:
        with scene.link(port) as first:
            zero_copy(getattr(first, end))
            first.exchange(3)
            _left_alone_with(scene, port, end)
        _left_alone_with(scene, port, end)


def _left_alone_with(scene: Scene, port: Port, end: str) -> None:
    with scene.link(port) as link:
        zero_copy(getattr(link, end))
        assert left_alone(link)
        ends = link.client, link.server
        assert completed(*(ends if end == "client" else ends[::-1]))


def test_server_that_speaks_alone(scene: Scene) -> None:
    """A client that never sends looks at nothing; how it is used shows when it closes."""
    with Port(scene.server.namespace, next(_PORTS)) as port:
        with scene.link(port) as link:
            zero_copy(link.server)
            link.server.send(b"news")
            assert receive(link.client, 4) == b"news"
        _left_alone_with(scene, port, "server")


def test_blocks_after_it_was_opened(scene: Scene) -> None:
    """As libraries do that use O_NONBLOCK to bound the time of connect alone. Mode all takes what
    blocks as well."""
    with Port(scene.server.namespace, next(_PORTS)) as port:
        with scene.link(port) as link:
            link.exchange(3)
        with scene.link(port) as link:
            assert ready(link.client, select.POLLOUT)
            link.client.setblocking(True)
            link.exchange(3)
        with scene.link(port) as link:
            link.client.setblocking(True)
            assert left_alone(link) is (scene.mode == "on")
