# SPDX-License-Identifier: Apache-2.0
"""IPv6 extension headers (RFC 8200, section 4): read past, never a way around policy."""

from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bench.lab import manifests
from bench.lab.node import Lab
from bench.lab.station import Pod
from bench.lab.wire import Wire, host_mac, pod_mac

pytestmark = pytest.mark.kernel

INVALID_EXTENSION_HEADER, POLICY_DENIED, INVALID_PACKET, CT_INVALID_HEADER = 156, 133, 134, 135
Drops = Callable[[int], int]

# The argument is the protocol behind the headers, which only AH has to be told.
CHAINS: dict[str, Callable[[int], Packet]] = {
    "hop-by-hop": lambda _: IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)]),
    "destination options": lambda _: IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 12)]),
    "routing, none left": lambda _: IPv6ExtHdrRouting(addresses=["2001:db8::1"], segleft=0),
    "authentication": lambda following: AH(
        nh=following, payloadlen=4, spi=1, seq=1, icv=b"\0" * 12
    ),
    "a long chain": lambda _: (
        IPv6ExtHdrHopByHop(options=[PadN(optdata=b"\0" * 4)])
        / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)])
        / IPv6ExtHdrRouting(addresses=["2001:db8::1"], segleft=0)
        / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 200)])
    ),
}


@pytest.fixture(scope="module")
def wires(pair: tuple[Pod, Pod]) -> Iterator[tuple[Wire, Wire]]:
    with Wire(pair[0].namespace) as sender, Wire(pair[1].namespace) as receiver:
        yield sender, receiver


def _frame(pair: tuple[Pod, Pod], *parts: Packet) -> bytes:
    packet = Ether(src=pod_mac(pair[0]), dst=host_mac(pair[0]))
    packet /= IPv6(src=pair[0].ipv6, dst=pair[1].ipv6)
    for part in parts:
        packet /= part
    return bytes(packet)


def _arrives(wires: tuple[Wire, Wire], frame: bytes) -> bool:
    wires[1].pending()
    wires[0].send(frame)
    return frame[14:] in [got[14:] for got in wires[1].pending()]


@pytest.mark.parametrize("chain", CHAINS)
def test_policy_sees_past_the_headers(
    clean_lab: Lab, pair: tuple[Pod, Pod], wires: tuple[Wire, Wire], drops: Drops, chain: str
) -> None:
    """The port behind the headers decides: 80 passes, 81 and ICMP are denied."""
    rules = [{"ports": [{"protocol": "UDP", "port": 80}]}]
    name = "only80-" + chain.replace(" ", "-").replace(",", "")
    clean_lab.set_policies([manifests.policy("two", name, {"podSelector": {}, "ingress": rules})])
    made = CHAINS[chain]
    before = drops(POLICY_DENIED)
    assert _arrives(wires, _frame(pair, made(17), UDP(sport=5000, dport=80), Raw(b"x")))
    assert not _arrives(wires, _frame(pair, made(17), UDP(sport=5000, dport=81), Raw(b"x")))
    assert not _arrives(wires, _frame(pair, made(6), TCP(sport=5000, dport=80, flags="S")))
    assert not _arrives(wires, _frame(pair, made(58), ICMPv6EchoRequest()))
    assert drops(POLICY_DENIED) == before + 3


def _options(size: int) -> bytes:
    """Destination options of so many 8-byte units after the first, followed by the same again."""
    return bytes([60, size, 1, 4, 0, 0, 0, 0])


# Options, then two fragment headers, each of a first fragment.
_TWICE = bytes([44, 0, 1, 4, 0, 0, 0, 0]) + bytes([44, 0, 0, 1, 0, 0, 0, 9]) * 2 + b"\0" * 8


@pytest.mark.parametrize(
    ("reason", "payload"),
    [
        (INVALID_EXTENSION_HEADER, _options(0) * 12 + b"\0" * 16),
        (INVALID_EXTENSION_HEADER, _options(200)),
        (INVALID_EXTENSION_HEADER, _options(0)[:4]),
        (INVALID_EXTENSION_HEADER, _TWICE),
        (CT_INVALID_HEADER, bytes([17, 0, 1, 4, 0, 0, 0, 0, 1, 2])),
    ],
    ids=["too many", "beyond the packet", "cut short", "fragmented twice", "no room for UDP"],
)
def test_malformed_chains_are_dropped(
    pair: tuple[Pod, Pod], wires: tuple[Wire, Wire], drops: Drops, reason: int, payload: bytes
) -> None:
    """Each with its reason, and counted once."""
    before = drops(reason)
    frame = bytes(
        Ether(src=pod_mac(pair[0]), dst=host_mac(pair[0]))
        / IPv6(src=pair[0].ipv6, dst=pair[1].ipv6, nh=60)
        / Raw(payload)
    )
    assert not _arrives(wires, frame)
    assert drops(reason) == before + 1


def test_length_beyond_the_frame(
    pair: tuple[Pod, Pod], wires: tuple[Wire, Wire], drops: Drops
) -> None:
    """A header that promises more than came."""
    before = drops(INVALID_PACKET)
    assert not _arrives(wires, _frame(pair, UDP(dport=80), Raw(b"x" * 64))[:-40])
    assert drops(INVALID_PACKET) == before + 1
