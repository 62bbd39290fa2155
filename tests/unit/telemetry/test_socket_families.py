# SPDX-License-Identifier: Apache-2.0
"""Metrics of socket redirect: nothing where it is off, and sums in which no byte is twice."""

from agent.telemetry.metrics import socket_families
from bpf.layouts import (
    SocketCounter,
    SocketOutcome,
    SocketTraffic,
    SocketTrafficKey,
    StackReason,
)


def test_off() -> None:
    assert socket_families((), {}, {}, 0) == []


def test_sums() -> None:
    counters = [0] * SocketCounter.SOCKET_COUNTERS
    counters[SocketCounter.SOCKETS_BY_STACK_REASON + StackReason.STACK_POLICY] = 3
    counters[SocketCounter.SOCKETS_BY_OUTCOME + SocketOutcome.SOCKET_TABLE_FULL] = 4
    counters[SocketCounter.SOCKETS_FIRST_DIRECT] = 5
    counters[SocketCounter.SOCKETS_FIRST_STACK] = 6
    closed = {SocketTrafficKey(1, 2): SocketTraffic(1000, 10, 3)}
    living = {
        SocketTrafficKey(1, 2): SocketTraffic(500, 5, 0),
        SocketTrafficKey(2, 1): SocketTraffic(50, 5, 0),
    }
    families = {one.name: one for one in socket_families(counters, closed, living, 2)}

    def samples(name: str) -> dict[tuple[str, ...], float]:
        (found,) = [one for full, one in families.items() if name in full]
        return dict(found.values)

    assert samples("socket_redirect_bytes") == {("1", "2"): 1500, ("2", "1"): 50}
    assert samples("socket_redirect_messages") == {("1", "2"): 15, ("2", "1"): 5}
    stack = samples("socket_stack_messages")
    assert stack[("policy",)] == 3 and sum(stack.values()) == 3
    assert len(stack) == len(StackReason) - 2
    ends = samples("socket_ends")
    assert ends[("table_full",)] == 4 and sum(ends.values()) == 4
    assert samples("socket_first_messages") == {("redirected",): 5, ("stack",): 6}
    assert samples("socket_stalls") == {(): 2}
