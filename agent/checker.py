# SPDX-License-Identifier: Apache-2.0
"""Is what is in the kernel what the policies say, and is all that the agent made still there?

Policy is compared by verdicts, interval by interval, where records differ. Called in the loop's
thread.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address
from socket import ntohs
from typing import Final

from agent.core.delta import differences, record_differences
from agent.core.flow import Direction
from agent.core.views import CheckDifference, CheckReport
from agent.loop import Loop
from agent.surroundings import Surroundings
from bpf.layouts import PolicyKey, PolicyVerdict
from policy.equivalence import NumberedEntry, Pair, compare
from policy.model import PROTOCOL_NAMES

MAX_DIFFERENCES: Final = 200


class Checker:
    """Compares for one agent. `rule_name` gives a rule's number in words."""

    def __init__(self, loop: Loop, rule_name: Callable[[int], str]) -> None:
        self._loop = loop
        self._rule_name = rule_name

    def check(self, repair: bool) -> CheckReport:
        """Compare everything; with `repair` also write what differs.

        What waits to be deleted is none: numbers that nothing refers to any more, and at first what
        a former agent used.
        """
        desired, datapath = self._loop.desired, self._loop.datapath
        settled = self._loop.settled
        found = self._policy_differences()
        for name, wanted in (
            ("peers", desired.peer_writes()),
            ("tunnels", desired.tunnel_writes()),
            ("service_peers", desired.services.writes()),
            ("endpoints", desired.endpoint_writes()),
            ("addresses", desired.address_writes()),
            ("devices", desired.device_writes()),
            ("places", desired.place_writes()),
            ("masquerade", desired.masquerade.source_writes()),
            ("masquerade_exclude", desired.masquerade.exclude_writes()),
        ):
            actual = datapath.raw(name)
            delta = differences(wanted, actual)
            if name in ("peers", "tunnels") and not settled:
                delta.deletes.clear()
            for key in [*delta.upserts, *delta.deletes]:
                found.append(
                    CheckDifference(
                        name,
                        Direction.UNKNOWN,
                        _key_text(name, key),
                        0,
                        0,
                        0,
                        _value_text(name, wanted.get(key)),
                        _value_text(name, actual.get(key)),
                    )
                )
        records = len(desired.policy_records().keys) // PolicyKey.SIZE
        tables, classes = len(desired.compiler.tables), len(desired.compiler.classes)
        if repair and found:
            self._loop.sync_whole(delete=settled)
        if self._loop.surroundings is not None:
            found += self._surroundings(self._loop.surroundings, repair)
        return CheckReport(
            tables=tables,
            classes=classes,
            intervals=records + tables * classes,
            difference_count=len(found),
            differences=tuple(found[:MAX_DIFFERENCES]),
        )

    def _surroundings(self, surroundings: Surroundings, repair: bool) -> list[CheckDifference]:
        deviations = surroundings.check()
        if repair and deviations:
            surroundings.mend(deviations)
        return [
            CheckDifference(one.where, Direction.UNKNOWN, one.name, 0, 0, 0, one.expected,
                            one.actual)
            for one in deviations
        ]  # fmt: skip

    def _policy_differences(self) -> list[CheckDifference]:
        """By packed records first: only columns that are not equal are compared by verdict."""
        desired = self._loop.desired
        whole = desired.policy_records()
        keys, values = self._loop.datapath.policy_records()
        delta = record_differences(bytes(whole.keys), bytes(whole.values), keys, values, 12, 8)
        suspect = {
            (one.table, one.peer_class)
            for blob in (delta.keys, delta.deletes)
            for one in _unpacked(bytes(blob))
            if not self._waits(one)
        }
        if not suspect:
            return []
        wanted = _entries(bytes(whole.keys), bytes(whole.values), suspect)
        actual = _entries(keys, values, suspect)
        found = []
        for difference in compare(wanted, actual):
            table = desired.compiler.tables.get(difference.table)
            peer = desired.compiler.classes.get(difference.peer_class)
            found.append(
                CheckDifference(
                    where=f"policy table {difference.table}",
                    direction=Direction(int(table.direction)) if table else Direction.UNKNOWN,
                    peer=peer.canonical() if peer else f"class {difference.peer_class}",
                    protocol=difference.protocol,
                    first_port=difference.first_port,
                    last_port=difference.last_port,
                    expected=self._verdict_text(difference.wanted, difference.entry),
                    actual=self._verdict_text(difference.found, difference.entry),
                )
            )
        return found

    def _waits(self, key: PolicyKey) -> bool:
        """Whether a record is to be deleted in a moment, so that nobody is judged by it."""
        desired = self._loop.desired
        if desired.is_retiring(key.table, key.peer_class):
            return True
        known = key.table in desired.compiler.tables and key.peer_class in desired.compiler.classes
        return not known and not self._loop.settled

    def _verdict_text(self, verdict: tuple[bool, int] | None, entry: object) -> str:
        if verdict is None:
            return "no entry" if entry is not None else "deny (default deny)"
        allow, number = verdict
        return f"{'allow' if allow else 'deny'} ({self._rule_name(number)})"


def _unpacked(keys: bytes) -> list[PolicyKey]:
    size = PolicyKey.SIZE
    return [PolicyKey.unpack(keys[at : at + size]) for at in range(0, len(keys), size)]


def _entries(keys: bytes, values: bytes, pairs: set[Pair]) -> dict[Pair, list[NumberedEntry]]:
    found: dict[Pair, list[NumberedEntry]] = {}
    for number, key in enumerate(_unpacked(keys)):
        pair = (key.table, key.peer_class)
        if pair in pairs:
            at = number * PolicyVerdict.SIZE
            verdict = PolicyVerdict.unpack(values[at : at + PolicyVerdict.SIZE])
            found.setdefault(pair, []).append(
                NumberedEntry(key.protocol, key.port, key.level, bool(verdict.action), verdict.rule)
            )
    return found


def _key_text(name: str, key: bytes) -> str:
    from bpf.layouts import MasqueradeKey, PeerKey, ServiceKey

    if name in ("peers", "tunnels", "masquerade_exclude"):
        peer = PeerKey.unpack(key)
        address = IPv6Address(peer.address)
        if address.ipv4_mapped and peer.prefix_length >= 96:
            return f"{address.ipv4_mapped}/{peer.prefix_length - 96}"
        return f"{address}/{peer.prefix_length}"
    if name == "addresses":
        address = IPv6Address(key)
        return str(address.ipv4_mapped or address)
    if name == "service_peers":
        service = ServiceKey.unpack(key)
        address = IPv6Address(service.address)
        protocol = PROTOCOL_NAMES.get(service.protocol, str(service.protocol))
        return f"{address.ipv4_mapped or address}, port {ntohs(service.port)}/{protocol}"
    if name == "masquerade":
        place = MasqueradeKey.unpack(key)
        return f"device {place.ifindex}, IPv{place.family}"
    return str(int.from_bytes(key, "little"))


def _value_text(name: str, value: bytes | None) -> str:
    from bpf import layouts

    if value is None:
        return "nothing"
    if name == "masquerade_exclude":
        return "excluded"
    kinds = {
        "peers": layouts.Peer,
        "tunnels": layouts.Tunnel,
        "endpoints": layouts.EndpointPolicy,
        "addresses": layouts.LocalAddress,
        "devices": layouts.Device,
        "places": layouts.Place,
        "masquerade": layouts.MasqueradeSource,
        "service_peers": layouts.ServicePeers,
    }
    return str(kinds[name].unpack(value))  # type: ignore[attr-defined]
