# SPDX-License-Identifier: Apache-2.0
"""Names, the ring of the last flows, and readers that are too slow."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest

from agent.core.flow import (
    Direction,
    Flow,
    FlowFilter,
    FlowsLost,
    FlowType,
    PolicyName,
    Verdict,
)
from agent.core.views import Busy
from agent.telemetry.flows import FlowHub, Names, Subscription
from bpf import layouts

V4 = bytes(10) + b"\xff\xff"
CLIENT, WEB = V4 + bytes([10, 0, 0, 6]), V4 + bytes([10, 0, 0, 5])
ALLOW_WEB = PolicyName("NetworkPolicy", "default", "allow-web", Direction.INGRESS, 1)
NAMES = Names(
    endpoints={7: ("default", "web"), 8: ("default", "client")},
    addresses={CLIENT: ("default", "client"), WEB: ("default", "web")},
    identities={1234: ("k8s:app=web",), 1235: ("k8s:app=client",)},
    rules={256: ALLOW_WEB},
)


def record(
    *,
    source: bytes = CLIENT,
    kind: int = 1,
    reason: int = 133,
    rule: int = 0,
    endpoint: int = 7,
    identity: int = 1235,
    direction: int = 1,
    length: int = 74,
) -> bytes:
    """An event, by default a denied packet of default/client to default/web."""
    return layouts.Event(
        time=1_000, source=source, destination=WEB, length=length, rule=rule, endpoint=endpoint,
        source_identity=identity, destination_identity=1234, ifindex=1, source_port=1,
        destination_port=2, type=kind, reason=reason, direction=direction, observation=0,
        flags=int(kind != 1), ip_version=4, protocol=6, tcp_flags=2, icmp_type=0, icmp_code=0,
        source_mac=bytes(6), destination_mac=bytes(6),
    ).pack()  # fmt: skip


@dataclass(slots=True)
class World:
    """Clocks and the kernel's counter of lost events."""

    now: int = 10_000_000_000
    lost: int = 0

    def hub(self, size: int = 8, queue: int = 4) -> FlowHub:
        """A hub in this world, with names."""
        hub = FlowHub(
            wall_ns=lambda: self.now + 10**18,
            monotonic_ns=lambda: self.now,
            kernel_lost=lambda: self.lost,
            size=size,
            queue=queue,
        )
        hub.set_names(NAMES)
        return hub


def flows(items: list[Flow | FlowsLost] | None) -> list[Flow]:
    """Only flows are expected."""
    assert items is not None
    assert all(isinstance(item, Flow) for item in items)
    return [item for item in items if isinstance(item, Flow)]


def lengths(items: list[Flow | FlowsLost] | None) -> list[int]:
    """Which flows these are, by the length they were given."""
    return [item.event.length for item in flows(items)]


def last(hub: FlowHub) -> Flow:
    """The newest flow."""
    return flows(hub.subscribe(FlowFilter(), 1, False).next(0))[0]


def test_names() -> None:
    hub = World().hub()
    hub.handle([record()])
    flow = last(hub)
    assert (flow.source.name, flow.destination.name) == ("default/client", "default/web")
    assert flow.source.labels == ("k8s:app=client",)
    assert (flow.decided_by, flow.policy) == ("default deny", None)
    assert flow.time_unix_ns == 10**18 + 1_000

    hub.handle([record(kind=5, reason=0, rule=256)])
    assert (last(hub).decided_by, last(hub).policy) == ("default/allow-web", ALLOW_WEB)
    hub.handle([record(kind=5, reason=0, rule=999)])
    assert last(hub).decided_by == "rule 999"
    hub.handle([record(reason=132)])
    assert last(hub).decided_by == ""


def test_a_forged_source_names_the_pod_that_forged_it() -> None:
    hub = World().hub()
    hub.handle([record(source=WEB, reason=132, endpoint=8, direction=2)])
    assert last(hub).source.name == "default/client"


def test_the_node_is_not_named_after_a_pod() -> None:
    hub = World().hub()
    hub.handle([record(identity=1)])
    assert last(hub).source.name == ""


def test_names_are_those_of_the_moment() -> None:
    hub = World().hub()
    hub.handle([record()])
    hub.set_names(Names())
    assert last(hub).source.name == "default/client"
    hub.handle([record()])
    assert last(hub).source.name == ""


def test_garbage_costs_only_itself() -> None:
    hub = World().hub()
    hub.handle([record(length=1), b"", record(kind=200), record(length=2)])
    assert lengths(hub.subscribe(FlowFilter(), 10, False).next(0)) == [1, 2]
    assert (hub.counters.flows, hub.counters.undecodable) == (2, 2)


def test_last_then_follow_has_no_gap_and_no_double() -> None:
    hub = World().hub(size=3)
    hub.handle([record(length=n) for n in range(5)])
    reader = hub.subscribe(FlowFilter(), 2, True)
    hub.handle([record(length=5)])
    assert lengths(reader.next(0)) == [3, 4, 5]
    assert reader.next(0) == []
    reader.close()
    reader.close()
    hub.handle([record(length=6)])
    assert reader.next(0) is None
    ended = hub.subscribe(FlowFilter(), 9, False)
    assert lengths(ended.next(0)) == [4, 5, 6]
    assert ended.next(0) is None


def test_a_slow_reader_is_told_what_it_lost_where_it_lost_it() -> None:
    hub = World().hub(queue=4)
    slow, quick = (hub.subscribe(FlowFilter(), 0, True) for _ in range(2))
    for n in range(7):
        hub.handle([record(length=n)])
        assert lengths(quick.next(0)) == [n]
    items = slow.next(0)
    assert items is not None
    assert lengths(items[:4]) == [0, 1, 2, 3]
    assert items[4:] == [FlowsLost("OBSERVER_EVENTS_QUEUE", 3)]
    hub.handle([record(length=7)])
    assert lengths(slow.next(0)) == [7]
    assert hub.counters.queue_lost == 3


def test_losses_in_the_kernel_are_told() -> None:
    world = World(lost=100)
    hub = world.hub()
    hub.handle([record()])
    reader = hub.subscribe(FlowFilter(), 0, True)
    world.lost, world.now = 142, world.now + 2 * 10**9
    hub.handle([record(length=1)])
    items = reader.next(0)
    assert items is not None
    assert items[0] == FlowsLost("PERF_EVENT_RING_BUFFER", 42)
    assert lengths(items[1:]) == [1]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (FlowFilter(types=frozenset({FlowType.DROP})), [0, 2]),
        (FlowFilter(verdicts=frozenset({Verdict.FORWARDED})), [1]),
        (FlowFilter(pods=("default/cli",)), [0, 1]),
        (FlowFilter(pods=("web",)), [0, 1, 2]),
        (FlowFilter(pods=("/client",)), [0, 1]),
        (FlowFilter(pods=("other/",)), []),
        (FlowFilter(types=frozenset({FlowType.DROP}), pods=("other/", "default/")), [0, 2]),
    ],
)
def test_filters(wanted: FlowFilter, expected: list[int]) -> None:
    hub = World().hub()
    hub.handle(
        [
            record(length=0),
            record(length=1, kind=5, reason=0, rule=256),
            record(length=2, source=bytes(10) + b"\xff\xff" + bytes([9, 9, 9, 9])),
        ]
    )
    assert lengths(hub.subscribe(wanted, 10, False).next(0) or []) == expected


def test_too_many_readers_are_refused_until_one_leaves() -> None:
    hub = World().hub()
    readers: list[Subscription] = []
    with pytest.raises(Busy, match="stop one"):
        while len(readers) < 1000:
            readers.append(hub.subscribe(FlowFilter(), 0, True))
    readers[0].close()
    hub.subscribe(FlowFilter(), 0, True)


def test_waiting_reader_is_woken() -> None:
    hub = World().hub()
    reader = hub.subscribe(FlowFilter(), 0, True)
    seen: list[list[Flow | FlowsLost] | None] = []
    waiting = threading.Thread(target=lambda: seen.append(reader.next(60)))
    waiting.start()
    hub.handle([record(length=3)])
    waiting.join(30)
    assert lengths(seen[0]) == [3]
