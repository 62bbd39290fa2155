# SPDX-License-Identifier: Apache-2.0
"""The load generator of the latency benchmark: counts and bytes add up, wrong answers are seen."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from bench.lab.scope import Scope
from bench.lab.station import wire_direct
from bench.latency.generator import Client, GeneratorError, Seat, Server
from bench.latency.matrix import Cores, How, Load, Turn, What

pytestmark = pytest.mark.kernel

LONG = 60_000  # ms: the count ends a run, not the clock
CPU = max(os.sched_getaffinity(0))
_PORTS = count(5000)


@pytest.fixture(scope="module")
def scope(private_mounts: None) -> Iterator[Scope]:
    with Scope() as made:
        yield made


@pytest.fixture(scope="module")
def seats(scope: Scope) -> tuple[Seat, Seat, str]:
    """Two namespaces with one pair between them, both ends in a control group; the second's
    address."""
    first, second = scope.namespace("one"), scope.namespace("two")
    ends = wire_direct(first, second)
    group = scope.cgroup / "pods"
    group.mkdir()
    return Seat(first, group), Seat(second, group), ends[1]


@pytest.fixture(params=["unix", "veth"])
def place(
    request: pytest.FixtureRequest, scope: Scope, seats: tuple[Seat, Seat, str]
) -> tuple[Seat, Seat, str]:
    """Seats of client and server, and where to meet."""
    client, server, host = seats
    port = next(_PORTS)
    if request.param == "unix":
        return client, client, f"unix:{scope.root / f'{port}.sock'}"
    return client, server, f"tcp:{host}:{port}"


def load(how: How, what: What = What.EXCHANGE, size: int = 64, connections: int = 1) -> Load:
    return Load(how, what, size, connections, Cores.SAME)


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize(("size", "connections"), [(64, 1), (65536, 1), (1000, 16)])
def test_exchanges_add_up(
    place: tuple[Seat, Seat, str], how: How, size: int, connections: int
) -> None:
    client_seat, server_seat, at = place
    given = load(how, size=size, connections=connections)
    with (
        Server(server_seat, at, given, CPU) as server,
        Client(client_seat, at, given, CPU) as client,
    ):
        for wanted in (16, 160):
            taken = client.run(Turn(wanted, LONG))
            assert len(taken.samples) == wanted
            assert taken.bytes == 2 * size * wanted
            assert taken.samples.min() > 0
            assert taken.wall_ns * connections >= int(taken.samples.sum())
        assert server.cpu_ns() > 0


@pytest.mark.parametrize("how", How)
def test_a_run_ends_by_the_clock_too(place: tuple[Seat, Seat, str], how: How) -> None:
    client_seat, server_seat, at = place
    with Server(server_seat, at, load(how), CPU), Client(client_seat, at, load(how), CPU) as client:
        taken = client.run(Turn(1_000_000, 50))
        assert 0 < len(taken.samples) < 1_000_000
        assert taken.wall_ns >= 50_000_000


@pytest.mark.parametrize("how", How)
def test_every_byte_of_a_stream_is_acknowledged(place: tuple[Seat, Seat, str], how: How) -> None:
    client_seat, server_seat, at = place
    given = load(how, What.STREAM, 65536, 2)
    with Server(server_seat, at, given, CPU), Client(client_seat, at, given, CPU) as client:
        for _ in range(2):
            taken = client.run(Turn(1, 30))
            assert len(taken.samples) == 2
            assert taken.bytes >= 2 * 65536 and taken.bytes % 65536 == 0


@pytest.mark.parametrize("how", How)
def test_a_wrong_byte_is_an_error_and_no_figure(place: tuple[Seat, Seat, str], how: How) -> None:
    client_seat, server_seat, at = place
    with (
        Server(server_seat, at, load(how), CPU, corrupt=30) as _,
        Client(client_seat, at, load(how), CPU) as client,
    ):
        assert len(client.run(Turn(29, LONG)).samples) == 29
        with pytest.raises(GeneratorError, match="wrong byte in answer 29"):
            client.run(Turn(29, LONG))


@pytest.mark.parametrize("how", How)
def test_a_wrong_byte_of_a_stream_ends_it(place: tuple[Seat, Seat, str], how: How) -> None:
    client_seat, server_seat, at = place
    given = load(how, What.STREAM, 4096)
    with (
        Server(server_seat, at, given, CPU) as server,
        Client(client_seat, at, given, CPU, corrupt=3) as client,
    ):
        assert server.last_word() == ""
        with pytest.raises(GeneratorError, match="ended"):
            client.run(Turn(1, LONG))
        assert "wrong byte in chunk 2" in server.last_word()


@pytest.mark.parametrize("how", How)
def test_a_stall_is_an_error(place: tuple[Seat, Seat, str], how: How) -> None:
    client_seat, server_seat, at = place
    with (
        Server(server_seat, at, load(how), CPU) as server,
        Client(client_seat, at, load(how), CPU, stall_ms=300) as client,
    ):
        os.kill(server.pid, signal.SIGSTOP)
        with pytest.raises(GeneratorError, match="stalled: more than 300 ms"):
            client.run(Turn(10, LONG))


@pytest.mark.parametrize("how", How)
def test_a_server_that_is_gone_is_an_error(place: tuple[Seat, Seat, str], how: How) -> None:
    client_seat, server_seat, at = place
    with Server(server_seat, at, load(how), CPU) as server:
        with Client(client_seat, at, load(how), CPU) as client:
            server.close()
            with pytest.raises(GeneratorError, match="ended"):
                client.run(Turn(10, LONG))
        with pytest.raises(GeneratorError, match="cannot connect"):
            Client(client_seat, at, load(how), CPU)


def test_processes_are_in_the_group_and_the_namespace_of_their_seat(
    seats: tuple[Seat, Seat, str],
) -> None:
    _, seat, host = seats
    assert seat.group is not None
    with Server(seat, f"tcp:{host}:{next(_PORTS)}", load(How.EPOLL), CPU) as server:
        inside = (seat.group / "cgroup.procs").read_text().split()
        assert str(server.pid) in inside
        there = Path("/proc", str(server.pid), "ns", "net").stat()
        assert there.st_ino == os.fstat(seat.namespace.fd).st_ino
