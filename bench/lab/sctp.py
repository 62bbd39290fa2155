# SPDX-License-Identifier: Apache-2.0
"""The two SCTP packets that open an association (RFC 9260, sections 3 and 5.1), without a stack."""

from __future__ import annotations

import struct
from typing import NamedTuple

INIT, INIT_ACK = 1, 2
_HEADER = struct.Struct("!HHI")
_CHUNK = struct.Struct("!BBHIIHHI")


class Chunk(NamedTuple):
    """First chunk of a packet. tag: the initiate tag, of INIT and INIT ACK."""

    source: int
    destination: int
    verification: int
    kind: int
    tag: int


def init(source: int, destination: int, tag: int) -> bytes:
    """An INIT with this initiate tag."""
    return _packet(source, destination, 0, INIT, tag)


def init_ack(asked: Chunk) -> bytes:
    """The INIT ACK to an INIT. A state cookie, which a real one has, is nobody's business here."""
    return _packet(asked.destination, asked.source, asked.tag, INIT_ACK, asked.tag ^ 0xFFFFFFFF)


def parse(packet: bytes) -> Chunk | None:
    """The packet's first chunk; None when it is none of the two or its checksum is wrong."""
    if len(packet) < 32 or packet[12] not in (INIT, INIT_ACK):
        return None
    if packet[8:12] != _checksum(packet[:8] + bytes(4) + packet[12:]):
        return None
    source, destination, verification = _HEADER.unpack_from(packet)
    return Chunk(
        source, destination, verification, packet[12], int.from_bytes(packet[16:20], "big")
    )


def _packet(source: int, destination: int, verification: int, kind: int, tag: int) -> bytes:
    header = _HEADER.pack(source, destination, verification)
    body = _CHUNK.pack(kind, 0, 20, tag, 65536, 1, 1, 1)
    return header + _checksum(header + bytes(4) + body) + body


def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ 0x82F63B78 * (byte & 1)
        table.append(byte)
    return tuple(table)


_TABLE = _table()


def _checksum(data: bytes) -> bytes:
    """CRC32c as RFC 9260, appendix A, has it: least significant byte first."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return (crc ^ 0xFFFFFFFF).to_bytes(4, "little")
