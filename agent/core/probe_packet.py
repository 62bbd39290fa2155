# SPDX-License-Identifier: Apache-2.0
"""The first packet of a connection, as bytes, to ask a loaded program about.

Checksums are left zero where the programs do not look at them; they look at none.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Final

TCP, UDP, ICMP, ICMP6, SCTP = 6, 17, 1, 58, 132
SOURCE_PORT: Final = 54321
_SYN: Final = 0x02


def probe_packet(
    source: IPv4Address | IPv6Address,
    destination: IPv4Address | IPv6Address,
    protocol: int,
    port: int,
    source_mac: bytes = bytes(6),
    destination_mac: bytes = bytes(6),
) -> bytes:
    """An Ethernet frame. Both addresses are of one family; `port` is not used by ICMP."""
    payload = _transport(protocol, port)
    if isinstance(source, IPv4Address):
        header = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0x4000, 64, protocol, 0,
            source.packed, destination.packed,
        )  # fmt: skip
        kind = 0x0800
    else:
        header = struct.pack(
            "!IHBB16s16s", 6 << 28, len(payload), protocol, 64, source.packed, destination.packed
        )
        kind = 0x86DD
    return destination_mac + source_mac + kind.to_bytes(2, "big") + header + payload


def _transport(protocol: int, port: int) -> bytes:
    match protocol:
        case 6:  # RFC 9293, section 3.1
            return struct.pack("!HHIIBBHHH", SOURCE_PORT, port, 1, 0, 0x50, _SYN, 65535, 0, 0)
        case 17:  # RFC 768
            return struct.pack("!HHHH", SOURCE_PORT, port, 8, 0)
        case 132:  # RFC 9260, sections 3.1 and 3.3.2: INIT
            chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65536, 1, 1, 1)
            return struct.pack("!HHII", SOURCE_PORT, port, 0, 0) + chunk
        case 1:  # RFC 792: echo
            return struct.pack("!BBHHH", 8, 0, 0, SOURCE_PORT, 1)
        case 58:  # RFC 4443, section 4.1: echo request
            return struct.pack("!BBHHH", 128, 0, 0, SOURCE_PORT, 1)
        case _:
            return bytes(16)
