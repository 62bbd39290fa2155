# SPDX-License-Identifier: Apache-2.0
"""Every byte arrives, in order and once, whatever happens to redirected connections meanwhile; and
a reader that never reads costs little.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from agent.kernel.maps import PinnedMap
from agent.kernel.socket_redirect import RedirectUnavailable, pinned_sockets
from bench.lab import manifests
from bpf import maps
from bpf.layouts import RedirectConfig, RedirectState
from tests.netns.redirect_world import (
    PATIENCE,
    Ends,
    World,
    exchange,
    fill,
    make_world,
    meanwhile,
    pattern,
    receive,
    send_all,
    wait_for,
)

pytestmark = pytest.mark.kernel

SECONDS: Final = 6.0
MOST_MEMORY: Final = 8 << 20
MESSAGE_MEMORY: Final = 1024
"""What the kernel keeps for a redirected message besides its bytes (struct sk_msg, kmalloc-1k)."""


@pytest.fixture(scope="module")
def world(private_mounts: None) -> Iterator[World]:
    with make_world(force=False) as made:
        yield made


# ---- every byte ----------------------------------------------------------------------------------


@dataclass
class Direction:
    """One direction of a connection: a sender and a reader in threads of their own."""

    sender: socket.socket
    reader: socket.socket
    seed: int
    sent: Any = field(default_factory=hashlib.sha256)
    came: Any = field(default_factory=hashlib.sha256)
    sent_bytes: int = 0
    came_bytes: int = 0
    trouble: list[str] = field(default_factory=list)

    def send(self, until: float) -> None:
        """Messages of any size, short ones as often as long ones, until that time."""
        chance = random.Random(self.seed)
        while time.monotonic() < until:
            message = chance.randbytes(int(2 ** chance.uniform(0, 19)))
            at = memoryview(message)
            while at:
                try:
                    at = at[self.sender.send(at) :]
                except BlockingIOError:
                    if not wait_for(self.sender, 4, 6 * PATIENCE):
                        self.trouble.append("no room comes")
                        return
            self.sent.update(message)
            self.sent_bytes += len(message)
            if chance.random() < 0.05:
                time.sleep(chance.uniform(0, 0.02))
        self.sender.shutdown(socket.SHUT_WR)

    def read(self) -> None:
        """All that comes, with pauses, until the end."""
        chance = random.Random(-self.seed)
        while True:
            if not wait_for(self.reader, seconds=6 * PATIENCE):
                self.trouble.append("nothing more comes")
                return
            if chance.random() < 0.02:
                time.sleep(chance.uniform(0, 0.05))
            try:
                piece = self.reader.recv(int(2 ** chance.uniform(0, 18)))
            except BlockingIOError:
                continue
            if not piece:
                return
            self.came.update(piece)
            self.came_bytes += len(piece)


class Disturber:
    """What goes on around the connections, one thing after another by chance."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._chance = random.Random(seed)
        self._policies = 0
        folder = world.lab.scope.bpffs / "maps"
        self._switch = PinnedMap.open_or_create(maps.REDIRECT, folder)
        self.returned: set[tuple[int, int, int]] = set()
        """Ends that went on to be redirected after messages of theirs went by the stack."""
        self._on_stack: dict[tuple[int, int, int], int] = {}

    def until(self, end: float, restart: bool) -> None:
        """Disturbs until then. restart: the agent is killed once, and started again."""
        killing = time.monotonic() + (end - time.monotonic()) / 3 if restart else end
        while time.monotonic() < end:
            if restart and time.monotonic() >= killing:
                restart = False
                self._world.lab.agent.kill()
                self._look()
                self._world.lab.agent.start()
            self._chance.choice((self._flip_policy, self._flip_switch, self._rest))()
            self._look()

    def close(self) -> None:
        """The node as before."""
        self._switch.close()
        self._world.lab.set_policies([])

    def _flip_policy(self) -> None:
        self._policies += 1
        selected = {"podSelector": {"matchLabels": {"app": "d"}}, "policyTypes": ["Ingress"]}
        some = manifests.policy("two", f"unrelated-{self._policies}", selected)
        self._world.lab.set_policies([some] if self._policies % 2 else [])

    def _flip_switch(self) -> None:
        usual = self._switch.lookup(0)
        assert usual is not None
        self._switch.update(0, RedirectConfig(0, usual.unread_max))
        time.sleep(self._chance.uniform(0, 0.02))
        self._switch.update(0, usual)

    def _rest(self) -> None:
        time.sleep(self._chance.uniform(0, 0.05))

    def _look(self) -> None:
        for one in pinned_sockets(self._world.lab.scope.bpffs):
            state = one.state
            key = (state.client, state.server, state.side)
            if state.state == RedirectState.REDIRECT_STACK:
                self._on_stack.setdefault(key, state.messages)
            elif key in self._on_stack and state.messages > self._on_stack[key]:
                self.returned.add(key)


def _stress(world: World, seed: int, restart: bool) -> None:
    before = {one: world.stack_messages(one) for one in ("policy", "disabled", "unread")}
    with contextlib.ExitStack() as stack:
        pairs: list[Ends] = [
            stack.enter_context(world.connection("on", family)) for family in (4, 6, 4)
        ]
        assert [world.states(one) for one in pairs] == [("direct", "direct")] * 3
        directions = []
        for number, ends in enumerate(pairs):
            directions.append(Direction(ends.client, ends.server, seed + 2 * number + 1))
            directions.append(Direction(ends.server, ends.client, seed + 2 * number + 2))
        end = time.monotonic() + SECONDS
        threads = [threading.Thread(target=one.send, args=(end,)) for one in directions]
        threads += [threading.Thread(target=one.read) for one in directions]
        for thread in threads:
            thread.start()
        disturber = Disturber(world, seed)
        try:
            disturber.until(end, restart)
        finally:
            for thread in threads:
                thread.join()
            disturber.close()
        assert [one.trouble for one in directions] == [[]] * len(directions)
        for one in directions:
            assert one.came_bytes == one.sent_bytes
            assert one.came.digest() == one.sent.digest()
        moved = sum(one.sent_bytes for one in directions)
    # What it was to show did happen.
    assert moved > 1 << 20
    assert disturber.returned, "no connection came back from the stack under load"
    after = {one: world.stack_messages(one) for one in before}
    if not restart:  # counters outlive the agent, too, but not the times it is away
        assert all(after[one] > before[one] for one in before), (before, after)


@pytest.mark.parametrize("seed", [1, 20_261])
def test_every_byte_arrives_in_order_and_once(world: World, seed: int) -> None:
    _stress(world, seed, restart=False)


def test_every_byte_arrives_while_the_agent_is_killed(world: World) -> None:
    _stress(world, 3, restart=True)


# ---- a reader that never reads -------------------------------------------------------------------


def _memory(world: World, ends: Ends) -> int:
    """Of both ends: what `ss -m` shows (receive queue, send queue, forward allocation, backlog) and
    what it does not, the kernel's own of each redirected message."""
    total = 0
    port = ends.client.getsockname()[1]
    for pod in world.pair("on"):
        text = pod.namespace.command(["ss", "-tmnHO", f"( sport = :{port} or dport = :{port} )"])
        found = re.findall(r"skmem:\(r(\d+),rb\d+,t(\d+),tb\d+,f(\d+),w(\d+),o(\d+),bl(\d+)", text)
        assert len(found) == 1, text
        total += sum(int(one) for one in found[0])
    listed = world.listed(ends.client, True)
    assert listed is not None
    return total + MESSAGE_MEMORY * listed.state.messages


@pytest.mark.parametrize("size", [1, 64, 1000, 4096, 1 << 16, 1 << 19])
@pytest.mark.parametrize("family", [4, 6])
def test_a_reader_that_never_reads_costs_little(world: World, size: int, family: int) -> None:
    piece, sent = pattern(size), 0
    with world.connection("on", family) as ends:
        with contextlib.suppress(BlockingIOError):
            while sent < 1 << 26:
                sent += ends.client.send(piece)
        assert sent < 1 << 26, "the sender is never stopped"
        assert _memory(world, ends) <= MOST_MEMORY
        listed = world.listed(ends.client, True)
        assert listed is not None
        assert listed.state.state == RedirectState.REDIRECT_STACK
        assert listed.state.messages > 1
        expected = piece * (sent // size + 1)
        assert receive(ends.server, sent) == expected[:sent]


def test_short_messages_come_back_from_the_stack(world: World) -> None:
    with world.connection("on") as ends:
        for _ in range(10_000):
            ends.client.send(b"x")
        assert world.states(ends)[0] == "stack"
        receive(ends.server, 10_000)
        deadline = time.monotonic() + PATIENCE
        while world.states(ends)[0] != "direct":
            assert time.monotonic() < deadline
            send_all(ends.client, b"y")
            assert receive(ends.server, 1) == b"y"


def test_a_stream_of_short_messages_stays_redirected(world: World) -> None:
    """While its reader keeps up, though now and then something always waits."""
    with world.connection("on") as ends:
        send_all(ends.client, b"ahead")
        for _ in range(20_000):
            ends.client.send(b"x")
            assert len(ends.server.recv(1)) == 1
        listed = world.listed(ends.client, True)
        assert listed is not None
        assert listed.state.stack_messages == 0
        assert receive(ends.server, 5) == b"xxxxx"
        assert fill(ends.client) > 0


# ---- taken back ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("private_mounts")
def test_a_node_without_redirect_loses_nothing_of_what_was_redirected() -> None:
    whole = pattern(30_000)
    with make_world(force=False) as own, own.connection("on", 6) as ends:
        send_all(ends.client, whole[:20_000])
        assert own.states(ends)[0] == "direct"
        agent = own.lab.agent
        agent.stop()
        agent.config["socket_redirect"] = {"enabled": False}
        agent.start()
        with pytest.raises(RedirectUnavailable):
            pinned_sockets(own.lab.scope.bpffs)
        send_all(ends.client, whole[20_000:])
        assert receive(ends.server, len(whole)) == whole
        exchange(ends.client, ends.server)


# ---- every message is judged ---------------------------------------------------------------------


@pytest.mark.parametrize("size", [100_000, 200_000, 400_000])
def test_what_follows_a_message_that_was_parted_is_judged(world: World, size: int) -> None:
    """The program is asked about each message after it, whatever became of its parts."""
    with world.connection("on") as ends:
        with meanwhile(lambda: send_all(ends.client, pattern(size))):
            assert receive(ends.server, size) == pattern(size)
        for _ in range(20):
            before = world.listed(ends.client, True)
            send_all(ends.client, b"x")
            assert receive(ends.server, 1) == b"x"
            after = world.listed(ends.client, True)
            assert before is not None and after is not None
            asked = [one.state.messages + one.state.stack_messages for one in (before, after)]
            assert asked[1] == asked[0] + 1
