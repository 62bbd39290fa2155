# SPDX-License-Identifier: Apache-2.0
"""ICMP errors belong to the connection that they quote (RFC 792, RFC 4443, RFC 5508): those of a
known one reach its owner whatever the policy says, others are packets like any. That a closed
port's error comes back is part of every case in test_policy_matrix.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6TimeExceeded, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from bench.lab import manifests
from bench.lab.node import Lab
from bench.lab.station import FAR4, FAR6, OUTSIDE4, OUTSIDE6, UPLINK, Pod
from bench.lab.traffic import UdpFlow
from bench.lab.wire import Wire, host_mac, pod_mac

pytestmark = pytest.mark.kernel

POLICY_DENIED = 133
Drops = Callable[[int], int]
ROUTERS = {4: "203.0.113.1", 6: "2001:db8:99::1"}
"""A router on the way, which no policy allows."""

ERRORS: dict[str, tuple[int, Callable[[], Packet]]] = {
    "unreachable": (4, lambda: ICMP(type=3, code=1)),
    "fragmentation needed": (4, lambda: ICMP(type=3, code=4, nexthopmtu=1300)),
    "time exceeded": (4, lambda: ICMP(type=11, code=0)),
    "parameter problem": (4, lambda: ICMP(type=12, code=0)),
    "unreachable v6": (6, lambda: ICMPv6DestUnreach(code=3)),
    "too big v6": (6, lambda: ICMPv6PacketTooBig(mtu=1300)),
    "time exceeded v6": (6, lambda: ICMPv6TimeExceeded()),
}


@dataclass(frozen=True)
class Scene:
    """An isolated pod that may only send to outside, UDP port 9000, and has done so."""

    pod: Pod
    ports: dict[int, int]
    """Its source port, by family."""
    at_pod: Wire
    from_outside: Wire
    uplink_mac: str


@pytest.fixture(scope="module")
def scene(lab: Lab, pair: tuple[Pod, Pod]) -> Iterator[Scene]:
    pod = pair[0]
    lab.set_policies([_outside_only(9000)])
    flows = {family: UdpFlow(pod, lab.outside, family) for family in (4, 6)}
    ports = {}
    for family, flow in flows.items():
        flow.forward.send()
        ports[family] = flow.forward.sender.getsockname()[1]
    with (
        Wire(pod.namespace) as at_pod,
        Wire(lab.outside_namespace) as outside,
        Wire(lab.node_namespace, UPLINK) as uplink,
    ):
        yield Scene(pod, ports, at_pod, outside, uplink.mac)
    for flow in flows.values():
        for each in flow.sockets():
            each.close()


def _outside_only(port: int) -> manifests.Object:
    """Isolates namespace one but for datagrams to a port of the outside host."""
    blocks = [{"ipBlock": {"cidr": f"{OUTSIDE4}/32"}}, {"ipBlock": {"cidr": f"{OUTSIDE6}/128"}}]
    rule = {"to": blocks, "ports": [{"protocol": "UDP", "port": port}]}
    spec = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "egress": [rule]}
    return manifests.policy("one", "outside-only", spec)


def _quote(family: int, source: str, destination: str, sport: int, dport: int) -> bytes:
    ip = IP if family == 4 else IPv6
    return bytes(ip(src=source, dst=destination) / UDP(sport=sport, dport=dport) / Raw(b"." * 8))


def _error(
    scene: Scene, name: str, *, sport: int | None = None, dport: int = 9000, far: bool = False
) -> bytes:
    """An error from a router to the pod about a packet that the pod sent, or did not."""
    family, build = ERRORS[name]
    pod, ip = scene.pod, IP if family == 4 else IPv6
    there = (OUTSIDE4, OUTSIDE6, FAR4, FAR6)[(family == 6) + 2 * far]
    quoted = _quote(family, pod.address(family), there, sport or scene.ports[family], dport)
    ether = Ether(src=scene.from_outside.mac, dst=scene.uplink_mac)
    return bytes(ether / ip(src=ROUTERS[family], dst=pod.address(family)) / build() / Raw(quoted))


def _is_from(router: str, frame: bytes) -> bool:
    packed = ip_address(router).packed
    at = 26 if len(packed) == 4 else 22
    return frame[at : at + len(packed)] == packed


@pytest.mark.parametrize("name", ERRORS)
def test_error_about_a_known_connection(scene: Scene, drops: Drops, name: str) -> None:
    """From a router that the isolated pod may not talk to: it arrives."""
    before = drops(POLICY_DENIED)
    scene.at_pod.pending()
    scene.from_outside.send(_error(scene, name))
    router = ROUTERS[ERRORS[name][0]]
    assert scene.at_pod.receive(partial(_is_from, router)) is not None
    assert drops(POLICY_DENIED) == before


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("wrong", [{"sport": 1}, {"dport": 9001}, {"far": True}], ids=str)
def test_error_about_an_unknown_connection(
    scene: Scene, drops: Drops, name: str, wrong: dict[str, int]
) -> None:
    """One value of the quoted packet is another: policy decides, and denies."""
    before = drops(POLICY_DENIED)
    scene.at_pod.pending()
    scene.from_outside.send(_error(scene, name, **wrong))  # type: ignore[arg-type]
    assert drops(POLICY_DENIED) == before + 1
    router = ROUTERS[ERRORS[name][0]]
    assert not any(_is_from(router, frame) for frame in scene.at_pod.pending())


@pytest.mark.parametrize("name", ["fragmentation needed", "too big v6"])
def test_error_after_a_change_of_policy(lab: Lab, scene: Scene, drops: Drops, name: str) -> None:
    """The connection's own verdict counts, renewed: allowed still, then denied, then allowed."""
    family = ERRORS[name][0]
    router = ROUTERS[family]
    for step, (port, arrives) in enumerate(((9000, True), (9009, False), (9000, True))):
        # Of nobody here, but a change.
        nobody = {"podSelector": {"matchLabels": {"step": f"{family}-{step}"}}}
        lab.change("policies", [_outside_only(port), manifests.policy("two", "other", nobody)])
        before = drops(POLICY_DENIED)
        scene.at_pod.pending()
        scene.from_outside.send(_error(scene, name))
        got = [frame for frame in scene.at_pod.pending() if _is_from(router, frame)]
        assert (len(got), drops(POLICY_DENIED)) == (int(arrives), before + (not arrives))


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("liar_isolated", [True, False], ids=["isolated", "free"])
def test_pod_complains_only_of_its_own(
    lab: Lab, scene: Scene, pair: tuple[Pod, Pod], drops: Drops, liar_isolated: bool, family: int
) -> None:
    """A pod is no router: it cannot disturb another's connection to somebody else by an error.

    Its own egress sees no connection of its own in it and, if isolated, denies; if it may send,
    it is the receiver's ingress that denies.
    """
    liar = pair[1]
    quoted = _quote(
        family,
        scene.pod.address(family),
        (OUTSIDE4, OUTSIDE6)[family == 6],
        scene.ports[family],
        9000,
    )
    ip, error = (IP, ICMP(type=3, code=3)) if family == 4 else (IPv6, ICMPv6DestUnreach(code=4))
    forged = (
        Ether(src=pod_mac(liar), dst=host_mac(liar))
        / ip(src=liar.address(family), dst=scene.pod.address(family))
        / error
        / Raw(quoted)
    )
    with Wire(liar.namespace) as wire:
        if liar_isolated:
            spec = {"podSelector": {}, "policyTypes": ["Egress"]}
            lab.change("quiet", [manifests.policy("two", f"quiet-{family}", spec)])
        try:
            before = drops(POLICY_DENIED)
            scene.at_pod.pending()
            wire.send(bytes(forged))
            assert drops(POLICY_DENIED) == before + 1
        finally:
            if liar_isolated:
                lab.change("quiet", [])
    assert not any(_is_from(liar.address(family), frame) for frame in scene.at_pod.pending())
