# SPDX-License-Identifier: Apache-2.0
"""Events: what is well-formed comes out as it went in, everything else is a DecodeError."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core import flow
from agent.core.flow import Direction, FlowType, Verdict
from agent.telemetry.decode import SIZE, DecodeError, decode
from bpf import layouts

V4 = bytes(10) + b"\xff\xff"


def event(**changes: object) -> layouts.Event:
    """A denied TCP SYN from 10.0.0.6:40000 to 10.0.0.5:80."""
    values: dict[str, object] = {
        "time": 5_000_000_000,
        "source": V4 + bytes([10, 0, 0, 6]),
        "destination": V4 + bytes([10, 0, 0, 5]),
        "length": 74,
        "rule": 0,
        "endpoint": 7,
        "source_identity": 1235,
        "destination_identity": 1234,
        "ifindex": 9,
        "source_port": swap(40000),
        "destination_port": swap(80),
        "type": layouts.EventType.EVENT_DROP,
        "reason": layouts.DropReason.DROP_POLICY_DENIED,
        "direction": layouts.Direction.DIRECTION_INGRESS,
        "observation": 0,
        "flags": 0,
        "ip_version": 4,
        "protocol": 6,
        "tcp_flags": 2,
        "icmp_type": 0,
        "icmp_code": 0,
        "source_mac": bytes(6),
        "destination_mac": b"\x02\0\0\0\0\x01",
    }
    return layouts.Event(**{**values, **changes})  # type: ignore[arg-type]


def swap(port: int) -> int:
    """The number that the host reads where `port` was stored in network order."""
    import sys

    return int.from_bytes(port.to_bytes(2, "big"), sys.byteorder)


def test_every_field() -> None:
    seen = decode(event().pack())
    assert seen == flow.FlowEvent(
        time_ns=5_000_000_000,
        type=FlowType.DROP,
        verdict=Verdict.DROPPED,
        reason=133,
        direction=Direction.INGRESS,
        observation=0,
        source=IPv4Address("10.0.0.6"),
        destination=IPv4Address("10.0.0.5"),
        protocol=6,
        source_port=40000,
        destination_port=80,
        tcp_flags=2,
        icmp_type=0,
        icmp_code=0,
        source_identity=1235,
        destination_identity=1234,
        rule=0,
        endpoint=7,
        ifindex=9,
        length=74,
        reply=False,
        fragment=False,
        source_mac=bytes(6),
        destination_mac=b"\x02\0\0\0\0\x01",
    )
    assert flow.tcp_flag_names(seen.tcp_flags) == ("SYN",)


@pytest.mark.parametrize(
    ("kind", "flags", "verdict"),
    [
        (layouts.EventType.EVENT_DROP, layouts.EventFlag.EVENT_ALLOWED, Verdict.DROPPED),
        (layouts.EventType.EVENT_TRACE, 0, Verdict.FORWARDED),
        (layouts.EventType.EVENT_POLICY_VERDICT, 0, Verdict.DROPPED),
        (
            layouts.EventType.EVENT_POLICY_VERDICT,
            layouts.EventFlag.EVENT_ALLOWED,
            Verdict.FORWARDED,
        ),
    ],
)
def test_verdicts(kind: int, flags: int, verdict: Verdict) -> None:
    assert decode(event(type=kind, flags=flags).pack()).verdict is verdict


def test_families() -> None:
    six = decode(event(ip_version=6, source=bytes(15) + b"\1").pack())
    assert six.source == IPv6Address("::1")
    assert decode(event(ip_version=0).pack()).source is None
    with pytest.raises(DecodeError, match="IPv4-mapped"):
        decode(event(source=bytes(16)).pack())


def test_numbers_of_a_newer_program_are_kept() -> None:
    seen = decode(event(reason=250, observation=99).pack())
    assert flow.drop_reason_name(seen.reason) == "Unknown reason 250"
    assert flow.observation_name(seen.observation) == "point-99"


@pytest.mark.parametrize("change", [{"type": 9}, {"direction": 3}, {"ip_version": 5}])
def test_what_cannot_be_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(DecodeError):
        decode(event(**change).pack())


@given(st.binary(max_size=2 * SIZE) | st.binary(min_size=SIZE, max_size=SIZE))
def test_garbage_is_a_decode_error_or_an_event(raw: bytes) -> None:
    try:
        seen = decode(raw)
    except DecodeError:
        return
    assert len(raw) == SIZE
    assert 0 <= seen.source_port <= 65535


@given(st.integers(0, SIZE - 1))
def test_truncated(length: int) -> None:
    with pytest.raises(DecodeError, match="expected 96"):
        decode(event().pack()[:length])


def test_numbers_agree_with_the_layout() -> None:
    """agent.core.flow repeats numbers that the programs use; none may be without a text."""
    for kind in layouts.EventType:
        assert FlowType(kind).name == kind.name.removeprefix("EVENT_")
    for direction in layouts.Direction:
        assert Direction(direction).name == direction.name.removeprefix("DIRECTION_")
    for reason in set(layouts.DropReason) - {layouts.DropReason.REASON_FORWARDED}:
        assert reason in flow.DROP_REASON_NAMES
    for point in layouts.Observation:
        text = point.name.removeprefix("OBSERVE_").lower().replace("_", "-")
        assert flow.OBSERVATION_NAMES[point] == text
    for rule in layouts.ReservedRule:
        text = rule.name.removeprefix("RULE_").lower().replace("_", " ")
        assert flow.RESERVED_RULE_NAMES[rule] == text
    for identity in layouts.ReservedIdentity:
        text = identity.name.removeprefix("IDENTITY_").lower().replace("_", "-")
        assert flow.RESERVED_IDENTITY_NAMES[identity] == text
