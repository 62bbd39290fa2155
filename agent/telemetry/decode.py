# SPDX-License-Identifier: Apache-2.0
"""Bytes of one event to a FlowEvent: pure, and total but for DecodeError.

The layout is struct event of bpf/lib/layout.h, native byte order but for ports.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from agent.core.flow import Direction, FlowEvent, FlowType, IPAddress, Verdict
from bpf.layouts import Event, EventFlag

SIZE: Final = Event.SIZE
_SWAP_PORTS: Final = sys.byteorder == "little"
_V4_MAPPED: Final = bytes(10) + b"\xff\xff"
_TYPES: Final = {int(kind): kind for kind in FlowType}
_DIRECTIONS: Final = {int(direction): direction for direction in Direction}


class DecodeError(Exception):
    """These bytes are no event. The message says which part is not."""


def decode(raw: bytes) -> FlowEvent:
    """The event in `raw`, which must be SIZE bytes.

    Numbers that only grow over time (reasons, observation points, rules) are passed on as
    they are: the program may be newer than this agent. Raises DecodeError.
    """
    if len(raw) != SIZE:
        raise DecodeError(f"event of {len(raw)} bytes, expected {SIZE}")
    (
        time_ns,
        source,
        destination,
        length,
        rule,
        endpoint,
        source_identity,
        destination_identity,
        ifindex,
        source_port,
        destination_port,
        kind,
        reason,
        direction,
        observation,
        flags,
        ip_version,
        protocol,
        tcp_flags,
        icmp_type,
        icmp_code,
        source_mac,
        destination_mac,
    ) = Event.FORMAT.unpack(raw)
    if kind not in _TYPES:
        raise DecodeError(f"event type {kind} is not known")
    if direction not in _DIRECTIONS:
        raise DecodeError(f"direction {direction} is not known")
    return FlowEvent(
        time_ns,
        _TYPES[kind],
        _verdict(kind, flags),
        reason,
        _DIRECTIONS[direction],
        observation,
        _address(source, ip_version),
        _address(destination, ip_version),
        protocol,
        _host_order(source_port),
        _host_order(destination_port),
        tcp_flags,
        icmp_type,
        icmp_code,
        source_identity,
        destination_identity,
        rule,
        endpoint,
        ifindex,
        length,
        bool(flags & EventFlag.EVENT_REPLY),
        bool(flags & EventFlag.EVENT_FRAGMENT),
        source_mac,
        destination_mac,
    )


def _host_order(port: int) -> int:
    return (port & 0xFF) << 8 | port >> 8 if _SWAP_PORTS else port


def _verdict(kind: int, flags: int) -> Verdict:
    if kind == FlowType.DROP:
        return Verdict.DROPPED
    if kind == FlowType.TRACE or flags & EventFlag.EVENT_ALLOWED:
        return Verdict.FORWARDED
    return Verdict.DROPPED


# Most events are about few addresses, and making an address object is a third of the work.
@lru_cache(maxsize=4096)
def _address(raw: bytes, ip_version: int) -> IPAddress | None:
    if ip_version == 4:
        if not raw.startswith(_V4_MAPPED):
            raise DecodeError("an IPv4 event with an address that is not IPv4-mapped")
        return IPv4Address(raw[12:])
    if ip_version == 6:
        return IPv6Address(raw)
    if ip_version == 0:
        return None
    raise DecodeError(f"IP version {ip_version}")
