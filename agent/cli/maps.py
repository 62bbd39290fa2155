# SPDX-License-Identifier: Apache-2.0
"""Rows of the pinned maps, for listings and bug reports; needs no agent.

Numbers are named where an agent answers; otherwise they stay numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.core.flow import RESERVED_IDENTITY_NAMES, RESERVED_RULE_NAMES, protocol_name

if TYPE_CHECKING:
    from agent.kernel.maps import PinnedMap
    from bpf.layouts import CtEntry, CtKey
    from bpf.maps import MapSpec

Row = dict[str, Any]
_MAPPED_BITS = 96


@dataclass(frozen=True, slots=True)
class MapNames:
    """Words for numbers; a number without one is shown as itself."""

    rules: Mapping[int, str] = field(default_factory=dict)
    tables: Mapping[int, str] = field(default_factory=dict)
    classes: Mapping[int, str] = field(default_factory=dict)
    endpoints: Mapping[int, str] = field(default_factory=dict)
    identities: Mapping[int, str] = field(default_factory=dict)

    def rule(self, number: int) -> str:
        """The policy, or the reserved decision."""
        return RESERVED_RULE_NAMES.get(number) or self.rules.get(number, f"rule {number}")

    def identity(self, number: int) -> str:
        """Labels, or the reserved name."""
        return RESERVED_IDENTITY_NAMES.get(number) or self.identities.get(number, "")


def ask_names(run_dir: Path) -> MapNames:
    """The agent's names, or none when no agent answers quickly."""
    from agent.cli.client import AgentRefused, NoAgent, connect

    try:
        with connect(run_dir) as agent:
            from api.agent_pb2 import NumbersRequest

            answer = agent.Numbers(NumbersRequest(), timeout=2.0)
    except (NoAgent, AgentRefused):
        return MapNames()
    return MapNames(
        *(
            {item.number: item.text for item in items}
            for items in (
                answer.rules,
                answer.tables,
                answer.classes,
                answer.endpoints,
                answer.identities,
            )
        )
    )


def open_map(spec: MapSpec[Any, Any], bpffs_dir: Path) -> PinnedMap[Any, Any]:
    """The pinned map, whatever size it was configured to. Raises click.ClickException."""
    from agent.kernel import bpf
    from agent.kernel.maps import MapError, PinnedMap
    from agent.kernel.syscall import BpfError

    folder = bpffs_dir / "maps"
    path = folder / spec.pin_name
    try:
        descriptor = bpf.object_get(path)
        try:
            size = bpf.map_info(descriptor).max_entries
        finally:
            os.close(descriptor)
        return PinnedMap.open(spec.resized(size), folder)
    except (BpfError, MapError, ValueError) as error:
        raise click.ClickException(
            f"cannot read map {path}: {error}; are you root, does bristle run here, "
            "and is --bpffs-dir right?"
        ) from None


def policy_rows(bpffs_dir: Path, names: MapNames) -> Iterator[Row]:
    """The verdicts, by table, peer class, protocol and port."""
    from bpf.layouts import PolicyAction, PolicyLevel
    from bpf.maps import POLICY

    with open_map(POLICY, bpffs_dir) as policy:
        items = sorted(
            policy.items(),
            key=lambda i: (i[0].table, i[0].peer_class, i[0].protocol, i[0].port, i[0].level),
        )
    for key, value in items:
        any_protocol = key.level == PolicyLevel.LEVEL_ANY_PROTOCOL
        bits = 0 if any_protocol else key.level
        yield {
            "table": key.table,
            "table_name": names.tables.get(key.table, ""),
            "peer_class": key.peer_class,
            "peer": names.classes.get(key.peer_class, ""),
            "protocol": "any" if any_protocol else protocol_name(key.protocol),
            "first_port": key.port,
            "last_port": key.port | (0xFFFF >> bits if bits < 16 else 0),
            "level": key.level,
            "action": "allow" if value.action == PolicyAction.ACTION_ALLOW else "deny",
            "rule": value.rule,
            "rule_name": names.rule(value.rule),
        }


def ipcache_rows(bpffs_dir: Path, names: MapNames) -> Iterator[Row]:
    """Which peer class and identity each address prefix has."""
    from bpf.maps import PEERS

    with open_map(PEERS, bpffs_dir) as peers:
        items = sorted(peers.items(), key=lambda i: (i[0].address, i[0].prefix_length))
    for key, value in items:
        yield {
            "prefix": prefix_text(key.address, key.prefix_length),
            "identity": value.identity,
            "identity_name": names.identity(value.identity),
            "peer_class": value.peer_class,
            "peer": names.classes.get(value.peer_class, ""),
        }


def tunnel_rows(bpffs_dir: Path, names: MapNames) -> Iterator[Row]:
    """How other nodes and their pods are reached."""
    from bpf.layouts import TunnelFlag
    from bpf.maps import TUNNELS

    with open_map(TUNNELS, bpffs_dir) as tunnels:
        items = sorted(tunnels.items(), key=lambda i: (i[0].address, i[0].prefix_length))
    for key, value in items:
        through = any(value.remote)
        yield {
            "prefix": prefix_text(key.address, key.prefix_length),
            "remote": address_text(value.remote) if through else "",
            "local": address_text(value.local) if through else "",
            "ifindex": value.ifindex,
            "source_only": bool(value.flags & TunnelFlag.TUNNEL_SOURCE_ONLY),
        }


def ct_rows(bpffs_dir: Path, names: MapNames) -> Iterator[Row]:
    """Connections, with those in the overflow table. `idle_seconds` counts in whole seconds."""
    import time

    from bpf.maps import ADDRESSES, CT, CT_OVERFLOW

    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    with open_map(ADDRESSES, bpffs_dir) as table:
        holders = {address: where.endpoint for address, where in table.items()}
    local = {(number, _is_mapped(address)): address for address, number in holders.items()}
    with open_map(CT, bpffs_dir) as table, open_map(CT_OVERFLOW, bpffs_dir) as more:
        found = {key: (entry, False) for key, entry in table.items()}
        found = {key: (entry, True) for key, entry in more.items()} | found
    for key, (entry, overflow) in found.items():
        own = local.get((key.endpoint, _is_mapped(key.remote)), b"")
        far = _far_end(key, own, holders)
        if far in found:
            entry = _whole(entry, found[far][0])
        yield _ct_row(key, entry, names, now, overflow, address_text(own) if own else "")


def nat_rows(bpffs_dir: Path, names: MapNames) -> Iterator[Row]:
    """Masqueraded connections: the pod's end, what it is to the outside, and the other end."""
    import time

    from bpf.layouts import CtFlag, NatReverseKey
    from bpf.maps import NAT, NAT_REVERSE

    now = time.monotonic_ns()
    with open_map(NAT, bpffs_dir) as nat:
        entries = dict(nat.items())
    with open_map(NAT_REVERSE, bpffs_dir) as reverse:
        origins = dict(reverse.items())
    for key, entry in entries.items():
        back = NatReverseKey(key.remote, entry.address, key.remote_port, entry.port, key.protocol)
        origin = origins.get(back)
        flags = entry.flags | (origin.flags if origin else 0)
        seen = max(entry.seen, origin.seen if origin else 0)
        yield {
            "endpoint": key.endpoint,
            "endpoint_name": names.endpoints.get(key.endpoint, ""),
            "protocol": protocol_name(key.protocol),
            "local": address_text(origin.address) if origin else "",
            "local_port": _host_order(key.local_port),
            "node": address_text(entry.address),
            "node_port": _host_order(entry.port),
            "remote": address_text(key.remote),
            "remote_port": _host_order(key.remote_port),
            "flags": [f.name.removeprefix("CT_").lower() for f in CtFlag if flags & f],
            "idle_seconds": max(now // 1_000_000_000 - seen, 0),
        }


def _far_end(key: CtKey, own: bytes, holders: Mapping[bytes, int]) -> CtKey | None:
    """The same connection as a pod of this node at its other end sees it."""
    from bpf.layouts import CtKey

    if not own or key.remote not in holders:
        return None
    return CtKey(own, holders[key.remote], key.remote_port, key.local_port, key.protocol)


def _whole(entry: CtEntry, far: CtEntry) -> CtEntry:
    """An entry with what its far end counted and saw (CT_LOCAL in bpf/lib/layout.h)."""
    return replace(
        entry,
        packets=(max(entry.packets[0], far.packets[0]), max(entry.packets[1], far.packets[1])),
        bytes=(max(entry.bytes[0], far.bytes[0]), max(entry.bytes[1], far.bytes[1])),
        seen=max(entry.seen, far.seen),
    )


def _is_mapped(address: bytes) -> bool:
    """Whether 16 bytes hold an IPv4 address."""
    return address.startswith(bytes(10) + b"\xff\xff")


def _ct_row(
    key: CtKey, entry: CtEntry, names: MapNames, now: int, overflow: bool, local: str
) -> Row:
    from bpf.layouts import CtFlag, CtVerdictBit

    packets, size = list(entry.packets), list(entry.bytes)
    return {
        "endpoint": key.endpoint,
        "endpoint_name": names.endpoints.get(key.endpoint, ""),
        "direction": "ingress" if entry.flags & CtFlag.CT_INGRESS else "egress",
        "protocol": protocol_name(key.protocol),
        "local": local,
        "local_port": _host_order(key.local_port),
        "remote": address_text(key.remote),
        "remote_port": _host_order(key.remote_port),
        "flags": [
            *(f.name.removeprefix("CT_").lower() for f in CtFlag if entry.flags & f),
            *(["denied"] if entry.verdict >> CtVerdictBit.CT_DENIED_BIT else []),
        ],
        "packets": packets[0],
        "packets_reply": packets[1],
        "bytes": size[0],
        "bytes_reply": size[1],
        "rule": entry.rule,
        "rule_name": names.rule(entry.rule),
        "idle_seconds": max(now // 1_000_000_000 - entry.seen, 0),
        "overflow": overflow,
    }


def endpoint_rows(bpffs_dir: Path, names: MapNames) -> Iterator[Row]:
    """The policy in force per endpoint, and the addresses that lead to it."""
    from bpf.layouts import EndpointFlag
    from bpf.maps import ADDRESSES, ENDPOINTS

    addresses: dict[int, list[str]] = {}
    interfaces: dict[int, int] = {}
    with open_map(ADDRESSES, bpffs_dir) as table:
        for key, value in sorted(table.items(), key=lambda item: item[0]):
            addresses.setdefault(value.endpoint, []).append(address_text(key))
            interfaces[value.endpoint] = value.ifindex
    with open_map(ENDPOINTS, bpffs_dir) as endpoints:
        items = sorted(endpoints.items())
    for number, value in items:
        yield {
            "endpoint": number,
            "endpoint_name": names.endpoints.get(number, ""),
            "identity": value.identity,
            "identity_name": names.identity(value.identity),
            "addresses": addresses.get(number, []),
            "ifindex": interfaces.get(number, 0),
            "ingress_enforced": bool(value.flags & EndpointFlag.ENDPOINT_INGRESS_ENFORCED),
            "ingress_table": value.ingress_table,
            "egress_enforced": bool(value.flags & EndpointFlag.ENDPOINT_EGRESS_ENFORCED),
            "egress_table": value.egress_table,
        }


def socket_rows(bpffs_dir: Path, names: MapNames) -> Iterator[Row]:
    """Both ends of each connection that takes part in socket redirect."""
    from agent.kernel.socket_redirect import RedirectUnavailable, pinned_sockets
    from agent.kernel.syscall import BpfError
    from bpf.layouts import RedirectState, SocketFlag, SocketSide, StackReason

    try:
        found = pinned_sockets(bpffs_dir)
    except (BpfError, RedirectUnavailable) as error:
        raise click.ClickException(f"cannot list sockets: {error}") from None
    for one in sorted(found, key=lambda one: (one.state.client, one.state.server, one.state.side)):
        state = one.state
        opened = state.side == SocketSide.SIDE_OPENED
        yield {
            "endpoint": state.endpoint,
            "endpoint_name": names.endpoints.get(state.endpoint, ""),
            "side": "opened" if opened else "answered",
            "source": address_text(state.source),
            "source_port": _host_order(state.source_port),
            "destination": address_text(state.destination),
            "destination_port": _host_order(state.destination_port),
            "far_endpoint": state.far_endpoint,
            "far_endpoint_name": names.endpoints.get(state.far_endpoint, ""),
            "identity": state.identity,
            "far_identity": state.far_identity,
            "state": RedirectState(state.state).name.removeprefix("REDIRECT_").lower(),
            "reason": StackReason(state.reason).name.removeprefix("STACK_").lower()
            if state.reason
            else "",
            "messages": state.messages,
            "bytes": state.bytes,
            "stack_messages": state.stack_messages,
            "unread": one.unread,
            "flags": [
                f.name.removeprefix("SOCKET_").lower() for f in SocketFlag if state.flags & f
            ],
        }


def metrics_rows(bpffs_dir: Path, names: MapNames) -> Iterator[Row]:
    """Packets and bytes by direction and reason, then the datapath's own counters."""
    from agent.core.flow import Direction, drop_reason_name
    from bpf.layouts import Counter
    from bpf.maps import COUNTERS, METRICS

    with open_map(METRICS, bpffs_dir) as metrics:
        for index, values in sorted(metrics.items_cpus()):
            packets = sum(value.packets for value in values)
            if packets:
                direction, reason = divmod(index, 256)
                yield {
                    "direction": Direction(direction).name.lower(),
                    "reason": reason,
                    "reason_text": drop_reason_name(reason) if reason else "forwarded",
                    "packets": packets,
                    "bytes": sum(value.bytes for value in values),
                }
    with open_map(COUNTERS, bpffs_dir) as counters:
        for index, values in sorted(counters.items_cpus()):
            if index in set(Counter) - {Counter.COUNTERS}:
                name = Counter(index).name.removeprefix("COUNTER_").lower()
                yield {"counter": name, "value": sum(values)}


def address_text(raw: bytes) -> str:
    """IPv4-mapped addresses as IPv4."""
    address = IPv6Address(raw)
    return str(address.ipv4_mapped or address)


def prefix_text(raw: bytes, length: int) -> str:
    """`10.0.0.0/24` or `fd00::/64`; `length` counts in the 128 bits of the mapped form."""
    if length >= _MAPPED_BITS and IPv6Address(raw).ipv4_mapped is not None:
        return f"{address_text(raw)}/{length - _MAPPED_BITS}"
    return f"{IPv6Address(raw)}/{length}"


def _host_order(port: int) -> int:
    import socket

    return socket.ntohs(port)
