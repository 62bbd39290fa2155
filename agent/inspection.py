# SPDX-License-Identifier: Apache-2.0
"""Who decides about a connection, asked of two sides that share no code: the naive evaluator on the
policies as written, and the loaded programs. Called in the loop's thread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from typing import Final

from agent.core.endpoint import Endpoint, mac_bytes
from agent.core.events import Pod
from agent.core.flow import RESERVED_RULE_NAMES, Direction, drop_reason_name
from agent.core.probe_packet import probe_packet
from agent.core.services import Behind
from agent.core.store import Store
from agent.core.views import (
    DirectionVerdict,
    ExplainParty,
    ExplainQuery,
    Explanation,
    InvalidQuery,
    KernelVerdict,
    NotFound,
    RuleMention,
)
from agent.kernel.datapath import FROM_POD, TO_POD
from agent.kernel.syscall import BpfError
from agent.loop import Loop
from bpf.layouts import ProbeAnswer, ProbeBit
from identity.labels import LabelFilter
from identity.peers import Network
from policy import explain as naive
from policy.model import Direction as PolicyDirection
from policy.model import RuleName, RuleRef

Address = IPv4Address | IPv6Address
_NAMED: Final = 5
_ELSEWHERE: Final = 1
"""An ingress ifindex that is no pod's: the loopback device."""


@dataclass(frozen=True, slots=True)
class _Party:
    text: str
    address: Address
    pod: Pod | None
    endpoint: Endpoint | None
    is_node: bool
    network: Network | None = None
    """What it stands for, where that is more than one address."""


class Inspector:
    """Answers for one agent."""

    def __init__(self, loop: Loop, label_filter: LabelFilter) -> None:
        self._loop = loop
        self._filter = label_filter

    # ---- explain ---------------------------------------------------------------------------------

    def explain(self, query: ExplainQuery) -> Explanation:
        """Both directions, each by model and kernel. Raises InvalidQuery, NotFound."""
        source, destination = self._parties(query)
        egress = self._direction(Direction.EGRESS, source, destination, query)
        ingress = self._direction(Direction.INGRESS, source, destination, query)
        return Explanation(
            source=self._shown(source),
            destination=self._shown(destination),
            protocol=query.protocol,
            port=query.port,
            allowed=egress.allowed and ingress.allowed,
            egress=egress,
            ingress=ingress,
        )

    def _parties(self, query: ExplainQuery) -> tuple[_Party, _Party]:
        sides = [
            (query.source, self._find(query.source, "from")),
            (query.destination, self._find(query.destination, "to")),
        ]
        for version in (4, 6):
            chosen = [
                next((one for one in found if one.address.version == version), None)
                for _, found in sides
            ]
            if chosen[0] is not None and chosen[1] is not None:
                return chosen[0], chosen[1]
        raise InvalidQuery(
            f"{query.source} and {query.destination} have no addresses of the same family"
        )

    def _find(self, text: str, field: str) -> list[_Party]:
        """The party that a text names, once for each of its addresses."""
        store = self._loop.store
        network = _network(text, field)
        if network is not None:
            return [self._at(text, network.network_address, network)]
        namespace, slash, name = text.partition("/")
        if not slash:
            namespace, name = "default", text
        key = (namespace, name)
        addresses = [ip_address(one) for e in store.endpoints_of(key) for one in e.addresses]
        pod = store.pods.get(key)
        if not addresses and pod is not None:
            addresses = [ip_address(one) for one in pod.ips]
        if not addresses:
            if pod is None:
                raise NotFound(f"{field}: there is no pod {namespace}/{name}")
            raise NotFound(f"{field}: pod {namespace}/{name} has no address yet")
        return [self._at(text, one) for one in addresses]

    def _at(self, text: str, address: Address, network: Network | None = None) -> _Party:
        store = self._loop.store
        owner = self._loop.desired.addresses.owner(str(address))
        pod = store.pods.get(owner) if owner else None
        endpoint = None
        if owner:
            endpoint = next(
                (e for e in store.endpoints_of(owner) if str(address) in e.addresses), None
            )
        if endpoint is not None:
            pod = store.pod_of(endpoint)
        is_node = str(address) in store.node_addresses
        return _Party(text, address, pod, endpoint, is_node, network)

    def _shown(self, party: _Party) -> ExplainParty:
        peer = self._loop.desired.ipcache.lookup(party.address)
        labels = tuple(f"{key}={value}" if value else key for key, value in peer.labels.items())
        return ExplainParty(party.text, str(party.address), peer.identity, labels)

    def _direction(
        self, direction: Direction, source: _Party, destination: _Party, query: ExplainQuery
    ) -> DirectionVerdict:
        subject, other = (
            (source, destination) if direction is Direction.EGRESS else (destination, source)
        )
        if subject.endpoint is None:
            return DirectionVerdict(
                direction, False, True, "", KernelVerdict(False),
                note=f"{subject.text} is no pod of this node: nothing here decides",
            )  # fmt: skip
        explained, note = self._model(direction, subject, other, query)
        kernel, number = self._kernel(direction, source, destination, query)
        rule = explained.decision.rule
        nearest = None
        if explained.nearest is not None:
            near = explained.nearest
            nearest = RuleMention(
                f"{near.rule.namespace}/{near.rule.name}",
                near.rule.index,
                (near.reason,),
                near.rule.kind,
            )
        agrees = not kernel.available or (
            kernel.allowed == explained.decision.allowed
            and number == self._loop.desired.packer.rule_number(rule)
        )
        return DirectionVerdict(
            direction=direction,
            evaluated=True,
            allowed=explained.decision.allowed,
            decided_by=rule_text(rule),
            kernel=kernel,
            agrees=agrees,
            note=note or self._parts(other),
            rule=_mention(rule),
            nearest=nearest,
        )

    def _model(
        self, direction: Direction, subject: _Party, other: _Party, query: ExplainQuery
    ) -> tuple[naive.Explanation, str]:
        """What the policies say. To a service: of all who are behind it, in the order in which the
        program asks; who is denied decides. With what there is to say of that."""
        port = 0 if query.protocol in (1, 58) else query.port
        behind: tuple[Behind, ...] = ()
        if direction is Direction.EGRESS:
            name, behind = self._loop.desired.services.behind(
                str(other.address), query.protocol, port
            )
        if not behind:
            return self._evaluate(
                direction, subject, _remote(other, self._loop.store), query, port
            ), ""
        for one in behind:
            peer = _remote(self._at(one.address, ip_address(one.address)), self._loop.store)
            if peer.pod is not None:
                # By a service a pod reaches itself as any other pod.
                peer = replace(peer, pod=replace(peer.pod, name=f"{peer.pod.name} by {name[1]}"))
            explained = self._evaluate(direction, subject, peer, query, one.port)
            if not explained.decision.allowed:
                break
        listed = ", ".join(f"{one.address} port {one.port}" for one in behind)
        return (
            explained,
            f"service {name[0]}/{name[1]}: decided is about who is behind it: {listed}",
        )

    def _evaluate(
        self, direction: Direction, subject: _Party, remote: naive.Remote, query: ExplainQuery,
        port: int,
    ) -> naive.Explanation:  # fmt: skip
        return naive.explain(
            self._loop.store.policies.values(),
            _facts(subject, self._loop.store),
            remote,
            naive.Packet(PolicyDirection(int(direction)), query.protocol, port),
            self._filter,
        )

    def _parts(self, party: _Party) -> str:
        """What the answer does not hold for, of a network: one address of it was asked about."""
        if party.network is None:
            return ""
        first = self._loop.desired.ipcache.lookup(party.address)
        parts = sorted(
            str(inner)
            for prefix, peer in self._loop.desired.ipcache.entries().items()
            if peer != first and _within(inner := prefix.network(), party.network)
        )
        if not parts:
            return ""
        some = ", ".join(parts[:_NAMED]) + (", …" if len(parts) > _NAMED else "")
        return (
            f"for {party.address}: of {party.text}, {len(parts)} networks or addresses are other"
            f" peers, so ask for them apart: {some}"
        )

    def _kernel(
        self, direction: Direction, source: _Party, destination: _Party, query: ExplainQuery
    ) -> tuple[KernelVerdict, int]:
        """What the loaded program says; the number of the deciding rule."""
        sender, receiver = source.endpoint, destination.endpoint
        if direction is Direction.EGRESS:
            assert sender is not None
            program, ifindex, came_by = FROM_POD, sender.ifindex, 0
            macs = mac_bytes(sender.mac), mac_bytes(sender.host_mac)
            allowed_bit, decided_bit = ProbeBit.PROBE_EGRESS_ALLOWED, ProbeBit.PROBE_EGRESS_DECIDED
            answer = ProbeAnswer.PROBE_EGRESS_RULE
        else:
            assert receiver is not None
            program, ifindex = TO_POD, receiver.ifindex
            # As if it came by the stack: the function is the one that local delivery runs.
            came_by = sender.ifindex if sender else 0 if source.is_node else _ELSEWHERE
            macs = mac_bytes(receiver.host_mac), mac_bytes(receiver.mac)
            allowed_bit, decided_bit = (
                ProbeBit.PROBE_INGRESS_ALLOWED,
                ProbeBit.PROBE_INGRESS_DECIDED,
            )
            answer = ProbeAnswer.PROBE_INGRESS_RULE
        packet = probe_packet(
            source.address, destination.address, query.protocol, query.port, *macs
        )
        try:
            run = self._loop.datapath.probe(program, packet, ifindex, came_by)
        except BpfError as error:
            return KernelVerdict(False, note=str(error)), 0
        decided = run.context.cb[ProbeAnswer.PROBE_DECIDED]
        if not decided & decided_bit:
            dropped = drop_reason_name(run.context.cb[ProbeAnswer.PROBE_REASON])
            return KernelVerdict(True, False, "", dropped, "dropped before policy"), 0
        number = run.context.cb[answer]
        reason = run.context.cb[ProbeAnswer.PROBE_REASON]
        allowed = bool(decided & allowed_bit)
        return KernelVerdict(
            True, allowed, self.rule_name(number), "" if allowed else drop_reason_name(reason)
        ), number

    def rule_name(self, number: int) -> str:
        """A rule number in words."""
        if number in RESERVED_RULE_NAMES:
            return RESERVED_RULE_NAMES[number]
        ref = self._loop.desired.packer.rule_ref(number)
        return rule_text(ref) if ref else f"rule {number}"


def _network(text: str, field: str) -> Network | None:
    """The network that a text names, None if it names none."""
    try:
        network = ip_network(text, strict=False)
        address = ip_interface(text).ip
    except ValueError:
        return None
    if "%" in text:
        raise InvalidQuery(f"{field}: {text} has a zone, which no packet carries")
    if address != network.network_address:
        raise InvalidQuery(f"{field}: {text} has host bits set: write {network}, or {address}")
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        raise InvalidQuery(f"{field}: {text} is IPv4 mapped into IPv6: write it as IPv4")
    return network


def _within(inner: Network, outer: Network) -> bool:
    return (
        inner.version == outer.version
        and inner.prefixlen >= outer.prefixlen
        and inner.network_address in outer
    )


def rule_text(rule: RuleName) -> str:
    """A rule in words, as everything that the agent prints names it."""
    if isinstance(rule, RuleRef):
        return str(rule)
    return RESERVED_RULE_NAMES[int(rule)]


def _mention(rule: RuleName) -> RuleMention | None:
    if not isinstance(rule, RuleRef):
        return None
    return RuleMention(f"{rule.namespace}/{rule.name}", rule.index, (), rule.kind)


def _remote(party: _Party, store: Store) -> naive.Remote:
    known = party.pod is not None or party.endpoint is not None
    return naive.Remote(party.address, _facts(party, store) if known else None, party.is_node)


def _facts(party: _Party, store: Store) -> naive.PodFacts:
    pod = party.pod
    if pod is None:
        assert party.endpoint is not None
        return naive.PodFacts(party.endpoint.namespace, party.endpoint.pod, None)
    return naive.PodFacts(
        pod.namespace, pod.name, pod.labels, store.namespace_labels(pod.namespace), pod.ports
    )
