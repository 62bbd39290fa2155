# SPDX-License-Identifier: Apache-2.0
"""Later fragments follow the verdict of the first; what would trick the reader is dropped.

RFC 791, RFC 8200 section 4.5; attacks: RFC 1858 (tiny, overlapping), RFC 5722, RFC 7112. Whole
datagrams in fragments, both ways and in every case of policy, are in test_policy_matrix.py.
"""

from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, PadN
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from bench.lab import manifests
from bench.lab.node import Lab
from bench.lab.station import Pod
from bench.lab.wire import Wire, host_mac, pod_mac

pytestmark = pytest.mark.kernel

FRAGMENT_NOT_FOUND, INVALID_PACKET, POLICY_DENIED = 175, 134, 133
Drops = Callable[[int], int]
UDP_NUMBER, TCP_NUMBER = 17, 6


class Sender:
    """Makes fragments from one pod to the other, in one family, and tells which arrive."""

    def __init__(self, pair: tuple[Pod, Pod], wires: tuple[Wire, Wire], family: int) -> None:
        self.source, self.destination = pair
        self.family = family
        self._out, self._in = wires

    def fragment(
        self, number: int, offset: int, payload: bytes, more: bool, protocol: int = UDP_NUMBER
    ) -> bytes:
        """One fragment: `offset` in bytes from the begin of the datagram's payload."""
        ether = Ether(src=pod_mac(self.source), dst=host_mac(self.source))
        source, destination = (
            self.source.address(self.family),
            self.destination.address(self.family),
        )
        if self.family == 4:
            ip = IP(src=source, dst=destination, id=number, proto=protocol, frag=offset // 8)
            ip.flags = "MF" if more else 0
            return bytes(ether / ip / Raw(payload))
        header = IPv6ExtHdrFragment(id=number, offset=offset // 8, m=int(more), nh=protocol)
        return bytes(ether / IPv6(src=source, dst=destination) / header / Raw(payload))

    def arrive(self, *frames: bytes) -> list[bool]:
        """Sends frames and says of each whether it came out at the other pod, whole."""
        self._in.pending()
        self._out.send(*frames)
        got = {frame[14:] for frame in self._in.pending()}
        return [frame[14:] in got for frame in frames]


@pytest.fixture(scope="module")
def wires(pair: tuple[Pod, Pod]) -> Iterator[tuple[Wire, Wire]]:
    with Wire(pair[0].namespace) as sender, Wire(pair[1].namespace) as receiver:
        yield sender, receiver


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def sender(
    pair: tuple[Pod, Pod], wires: tuple[Wire, Wire], request: pytest.FixtureRequest
) -> Sender:
    return Sender(pair, wires, request.param)


def _udp(port: int, length: int, source_port: int = 4000) -> bytes:
    """A UDP header that promises `length` bytes in all, and the first 16 of them."""
    return bytes(UDP(sport=source_port, dport=port, len=length, chksum=0)) + b"a" * 8


def test_later_fragments_follow_the_first(sender: Sender, drops: Drops) -> None:
    """In any order among themselves, once the first has passed; repeated ones too."""
    first = sender.fragment(1, 0, _udp(80, 40), True)
    middle = sender.fragment(1, 16, b"b" * 16, True)
    last = sender.fragment(1, 32, b"c" * 8, False)
    before = drops(FRAGMENT_NOT_FOUND)
    assert sender.arrive(first, last, middle, middle, first) == [True] * 5
    assert drops(FRAGMENT_NOT_FOUND) == before


def test_unknown_fragment(sender: Sender, drops: Drops) -> None:
    """A later fragment whose first one was never seen, also one with another identification."""
    before = drops(FRAGMENT_NOT_FOUND)
    known = sender.fragment(2, 0, _udp(80, 32), True)
    assert sender.arrive(known, sender.fragment(3, 16, b"b" * 16, False)) == [True, False]
    assert drops(FRAGMENT_NOT_FOUND) == before + 1


def test_fragment_of_another_protocol(sender: Sender, drops: Drops) -> None:
    """IPv4 tells datagrams apart by protocol too; in IPv6 the first fragment's counts."""
    first = sender.fragment(4, 0, _udp(80, 32), True)
    later = sender.fragment(4, 16, b"b" * 16, False, protocol=TCP_NUMBER)
    before = drops(FRAGMENT_NOT_FOUND)
    assert sender.arrive(first, later) == [True, sender.family == 6]
    assert drops(FRAGMENT_NOT_FOUND) == before + (sender.family == 4)


def test_tiny_first_fragment(sender: Sender, drops: Drops) -> None:
    """A first fragment that ends before the transport header does (RFC 1858, section 3)."""
    tcp = bytes(TCP(sport=4001, dport=80, flags="S"))
    tiny = sender.fragment(5, 0, tcp[:8], True, protocol=TCP_NUMBER)
    rest = sender.fragment(5, 8, tcp[8:] + b"....", False, protocol=TCP_NUMBER)
    before = drops(FRAGMENT_NOT_FOUND)
    assert sender.arrive(tiny, rest) == [False, False]
    assert drops(FRAGMENT_NOT_FOUND) == before + 2


def test_overlapping_fragment(sender: Sender, drops: Drops) -> None:
    """A later fragment that would write over what the first one said (RFC 1858, section 4)."""
    first = sender.fragment(6, 0, _udp(80, 40), True)
    over = sender.fragment(6, 8, b"x" * 16, True)
    before = drops(FRAGMENT_NOT_FOUND)
    assert sender.arrive(first, over) == [True, False]
    assert drops(FRAGMENT_NOT_FOUND) == before + 1


@pytest.mark.parametrize(
    "other", [_udp(81, 40), _udp(80, 40, source_port=4009), _udp(80, 40)[:8]], ids=len
)
def test_second_first_fragment(sender: Sender, drops: Drops, other: bytes) -> None:
    """Another first fragment of the same datagram that says something else."""
    number = 200 + len(other) + other[3] + other[1]
    first = sender.fragment(number, 0, _udp(80, 40), True)
    before = drops(FRAGMENT_NOT_FOUND)
    assert sender.arrive(first, sender.fragment(number, 0, other, True)) == [True, False]
    assert drops(FRAGMENT_NOT_FOUND) == before + 1


def test_beyond_the_largest_datagram(sender: Sender, drops: Drops) -> None:
    """What would end behind byte 65535 (the "ping of death")."""
    first = sender.fragment(90, 0, _udp(80, 65528), True)
    before = drops(INVALID_PACKET)
    assert sender.arrive(first, sender.fragment(90, 65528, b"x" * 64, False)) == [True, False]
    assert drops(INVALID_PACKET) == before + 1


def test_denied_first_fragment(clean_lab: Lab, sender: Sender, drops: Drops) -> None:
    """What follows a denied first fragment is unknown; what follows an allowed one passes."""
    rules = [{"ports": [{"protocol": "UDP", "port": 80}]}]
    policy = manifests.policy(
        "two", f"only80-{sender.family}", {"podSelector": {}, "ingress": rules}
    )
    clean_lab.set_policies([policy])
    before = drops(POLICY_DENIED), drops(FRAGMENT_NOT_FOUND)
    denied = sender.fragment(91, 0, _udp(81, 32), True)
    assert sender.arrive(denied, sender.fragment(91, 16, b"b" * 16, False)) == [False, False]
    assert (drops(POLICY_DENIED), drops(FRAGMENT_NOT_FOUND)) == (before[0] + 1, before[1] + 1)
    allowed = sender.fragment(92, 0, _udp(80, 32), True)
    assert sender.arrive(allowed, sender.fragment(92, 16, b"b" * 16, False)) == [True, True]


def test_fragments_stop_when_policy_does(clean_lab: Lab, sender: Sender) -> None:
    """A datagram that began before a change: its later fragments are judged by what is now."""
    first = sender.fragment(93, 0, _udp(80, 48), True)
    assert sender.arrive(first, sender.fragment(93, 16, b"b" * 16, True)) == [True, True]
    spec = {"podSelector": {}, "policyTypes": ["Ingress"]}
    clean_lab.set_policies([manifests.policy("two", f"none-{sender.family}", spec)])
    assert sender.arrive(sender.fragment(93, 32, b"b" * 16, False)) == [False]


def test_header_chain_must_be_whole(
    pair: tuple[Pod, Pod], wires: tuple[Wire, Wire], drops: Drops
) -> None:
    """RFC 7112: extension headers that go on behind the first fragment hide the ports."""
    sender = Sender(pair, wires, 6)
    options = bytes(IPv6ExtHdrDestOpt(nh=UDP_NUMBER, options=[PadN(optdata=b"\0" * 20)]))
    first = sender.fragment(94, 0, options[:16], True, protocol=60)
    before = drops(FRAGMENT_NOT_FOUND)
    assert sender.arrive(first) == [False]
    assert drops(FRAGMENT_NOT_FOUND) == before + 1


def test_atomic_fragment_is_a_whole_packet(pair: tuple[Pod, Pod], wires: tuple[Wire, Wire]) -> None:
    """RFC 6946: offset 0 and nothing follows; it is nobody's first fragment."""
    sender = Sender(pair, wires, 6)
    atomic = sender.fragment(95, 0, _udp(80, 16), False)
    assert sender.arrive(atomic, atomic) == [True, True]
    assert sender.arrive(sender.fragment(95, 16, b"b" * 16, False)) == [False]
