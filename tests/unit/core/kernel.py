# SPDX-License-Identifier: Apache-2.0
"""The real Datapath over maps that are dicts, and the look-up of a packet as the programs do it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

from agent.core.conntrack import Lifetimes
from agent.core.desired import Desired
from agent.kernel.datapath import Datapath
from agent.kernel.maps import MapFull
from agent.kernel.places import Places
from bpf import layouts
from bpf.layouts import EndpointFlag, EndpointPolicy, Peer, PeerKey, PolicyKey, PolicyVerdict
from bpf.maps import SPECS
from policy.levels import ANY_PROTOCOL, mask
from policy.model import Direction

NAMES = ("numbers", "policy", "peers", "tunnels", "service_peers", "endpoints", "addresses",
         "devices", "places", "epoch", "masquerade", "masquerade_exclude", "socket_endpoints",
         "namespaces")  # fmt: skip


class FakeMap:
    """A hash map by bytes. `watch` is called after every single write or delete."""

    def __init__(self, name: str, capacity: int, watch: Callable[[], None]) -> None:
        self.name, self.capacity = name, capacity
        self.content: dict[bytes, bytes] = {}
        self.watch = watch
        self.rewrites: list[bytes] = []  # entries replaced by another value
        self.idle: list[bytes] = []  # entries written that were equal already
        self.writes = 0
        self.fail: BaseException | None = None
        self._key, self._value = SPECS[name].key, SPECS[name].value

    def update_packed(self, keys: bytes, values: bytes, flags: int = 0) -> int:
        width, size = self._key.SIZE, self._value.SIZE
        count = len(keys) // width
        assert len(keys) == count * width and len(values) == count * size
        for n in range(count):
            if self.fail is not None:
                raise self.fail
            key, value = keys[n * width : (n + 1) * width], values[n * size : (n + 1) * size]
            before = self.content.get(key)
            if before is None and len(self.content) >= self.capacity:
                raise MapFull(self.name, self.capacity, count, n)
            if before is not None:
                (self.idle if before == value else self.rewrites).append(key)
            self.content[key] = value
            self.writes += 1
            self.watch()
        return count

    def delete_packed(self, keys: bytes) -> int:
        gone = 0
        for at in range(0, len(keys), self._key.SIZE):
            if self.fail is not None:
                raise self.fail
            gone += self.content.pop(keys[at : at + self._key.SIZE], None) is not None
            self.watch()
        return gone

    def raw_items(self) -> dict[bytes, bytes]:
        return dict(self.content)

    def items(self) -> Iterator[tuple[Any, Any]]:
        for key, value in self.content.items():
            yield self._key.unpack(key), self._value.unpack(value)

    def chunks(self) -> Iterator[tuple[bytes, bytes]]:
        yield b"".join(self.content), b"".join(self.content.values())

    def lookup(self, key: int) -> int | None:
        value = self.content.get(self._key.pack(key))
        return None if value is None else self._value.unpack(value)

    def update(self, key: int, value: int) -> None:
        self.content[self._key.pack(key)] = self._value.pack(value)


class FakeDatapath(Datapath):
    """Nothing is loaded or attached."""

    def __init__(self, **sizes: int) -> None:
        self.watch: Callable[[], None] = lambda: None
        self.masquerades = False
        self._maps: dict[str, Any] = {
            name: FakeMap(name, sizes.get(name, 1 << 20), lambda: self.watch()) for name in NAMES
        }
        self._places = Places(self._maps["places"], wait=self.waited)
        self.waits = 0

    def waited(self) -> None:
        self.waits += 1

    def fake(self, name: str) -> FakeMap:
        found: FakeMap = self._maps[name]
        return found

    def content(self) -> dict[str, dict[bytes, bytes]]:
        return {name: self.raw(name) for name in NAMES if name != "epoch"}

    def collect_connections(
        self, endpoints: Collection[int], lifetimes: Lifetimes
    ) -> tuple[int, int]:
        return 0, 0

    def peer_class(self, address: bytes) -> int:
        """Longest-prefix match."""
        best, found = -1, 0
        for raw, value in self.fake("peers").content.items():
            key = PeerKey.unpack(raw)
            shift = 128 - key.prefix_length
            same = int.from_bytes(address, "big") >> shift == (
                int.from_bytes(key.address, "big") >> shift
            )
            if same and key.prefix_length > best:
                best, found = key.prefix_length, Peer.unpack(value).peer_class
        return found

    def allows(
        self, endpoint: int, direction: Direction, address: bytes, protocol: int, port: int
    ) -> bool:
        """The verdict of bpf/lib/policy.h on a new connection."""
        raw = self.fake("endpoints").content.get(endpoint.to_bytes(4, "little"))
        if raw is None:
            return False
        entry = EndpointPolicy.unpack(raw)
        ingress = direction is Direction.INGRESS
        flag = (
            EndpointFlag.ENDPOINT_INGRESS_ENFORCED
            if ingress
            else EndpointFlag.ENDPOINT_EGRESS_ENFORCED
        )
        if not entry.flags & flag:
            return True
        table = entry.ingress_table if ingress else entry.egress_table
        levels = entry.ingress_levels if ingress else entry.egress_levels
        return self.column_allows(table, levels, self.peer_class(address), protocol, port)

    def column_allows(
        self, table: int, levels: int, peer_class: int, protocol: int, port: int
    ) -> bool:
        policy = self.fake("policy").content
        for level in (*range(16, -1, -1), ANY_PROTOCOL):
            if not levels >> level & 1:
                continue
            place = (0, 0) if level == ANY_PROTOCOL else (protocol, port & mask(level))
            value = policy.get(PolicyKey(table, peer_class, place[1], place[0], level).pack())
            if value is not None:
                return PolicyVerdict.unpack(value).action == layouts.PolicyAction.ACTION_ALLOW
        return False


def wanted(desired: Desired) -> dict[str, dict[bytes, bytes]]:
    """What all maps must hold, but for `numbers`."""
    records = desired.policy_records()
    size = PolicyKey.SIZE, PolicyVerdict.SIZE
    count = len(records.keys) // size[0]
    return {
        "policy": {
            bytes(records.keys[n * size[0] : (n + 1) * size[0]]): bytes(
                records.values[n * size[1] : (n + 1) * size[1]]
            )
            for n in range(count)
        },
        "peers": desired.peer_writes(),
        "tunnels": desired.tunnel_writes(),
        "service_peers": desired.services.writes(),
        "endpoints": desired.endpoint_writes(),
        "addresses": desired.address_writes(),
        "devices": desired.device_writes(),
        "places": desired.place_writes(),
        "masquerade": desired.masquerade.source_writes(),
        "masquerade_exclude": desired.masquerade.exclude_writes(),
        "socket_endpoints": desired.sockets.endpoint_writes(),
        "namespaces": desired.sockets.namespace_writes(),
    }
