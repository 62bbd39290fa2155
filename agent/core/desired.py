# SPDX-License-Identifier: Apache-2.0
"""From facts to what the kernel's maps must hold.

    pods, namespaces --> identities --> address table --> classes --+
    policies ---------> repository --> tables ----------------------+--> columns
    endpoints ------------------------------------------------------+--> endpoints, devices

Only this module joins policy and map layouts. Numbers of classes and tables never change their
meaning, so columns are written once; an endpoint moves to another policy by one write, an address
to another class by one write. What nothing points to any more is kept for a moment, because a
packet may still be on its way through it, and then deleted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from agent.core.addresses import AddressBook
from agent.core.columns import ColumnPacker
from agent.core.delta import Delta, PolicyDelta, Writes
from agent.core.endpoint import Endpoint, address_bytes, mac_bytes
from agent.core.numbers import Numbers, fingerprint
from agent.core.store import Changes, Store
from bpf.layouts import (
    Device,
    EndpointFlag,
    EndpointPolicy,
    LocalAddress,
    LocalKind,
    NumberKind,
    Peer,
    PeerKey,
    ReservedClass,
)
from bpf.maps import U32
from identity.allocator import IdentityAllocator
from identity.ipcache import HOST_CLASS, IPCache, NamedPort, PeerClass, Prefix
from identity.labels import LabelFilter
from policy.model import Direction
from policy.resolve import PolicyCompiler, PolicyRepository, Table

RETIRE_SECONDS: Final = 2.0
"""How long an unused table or class stays: far longer than a packet takes through a program."""

_NO_TABLE: Final = 0


@dataclass(frozen=True, slots=True)
class EndpointTables:
    """The tables an endpoint has; None where no policy isolates it in that direction."""

    ingress: Table | None
    egress: Table | None


class Desired:
    """The wanted contents of all maps that the agent writes, kept up to date by changes."""

    def __init__(
        self, identities: IdentityAllocator, numbers: Numbers, label_filter: LabelFilter
    ) -> None:
        self.identities = identities
        self.numbers = numbers
        self.repository = PolicyRepository()
        self.compiler = PolicyCompiler()
        self.ipcache = IPCache(
            identities.acquire, lambda number: identities.release(number, self._now)
        )
        self.addresses = AddressBook(identities, self.ipcache, label_filter)
        self.packer = ColumnPacker(numbers)
        self.tables: dict[int, EndpointTables] = {}
        self.entries = 0
        """Records that the policy map holds or is about to hold."""
        self._now = 0.0
        self._class_numbers: dict[PeerClass, int] = {HOST_CLASS: int(ReservedClass.CLASS_HOST)}
        self._table_numbers: dict[Table, int] = {}
        self._table_users: Counter[Table] = Counter()
        self._retiring_classes: dict[PeerClass, float] = {}
        self._retiring_tables: dict[Table, float] = {}
        self._published: dict[int, tuple[Endpoint, bytes]] = {}
        self._node: frozenset[str] = frozenset()
        # The node's own stack, known by provenance; its addresses have classes beside it.
        self.compiler.add_class(int(ReservedClass.CLASS_HOST), HOST_CLASS)

    # ---- a change --------------------------------------------------------------------------------

    def update(self, store: Store, changes: Changes, now: float) -> Delta:
        """What has to be written after these changes. Raises IdentityExhausted for a block that
        finds no identity, before anything is changed."""
        self._now = now
        delta = Delta()
        self._change_policies(store, changes)
        touched = self._change_pods(store, changes, now)
        if changes.node_addresses:
            self._change_node(store.node_addresses, delta)
        self._change_classes(delta, now)
        for number in sorted(touched):
            self._change_endpoint(number, store, delta, now)
        delta.numbers.upserts.update(self.numbers.take_fresh())
        return delta

    def retire(self, now: float) -> Delta:
        """What can be deleted, because nothing has pointed to it for RETIRE_SECONDS."""
        self._now = now
        delta = Delta()
        for table, since in list(self._retiring_tables.items()):
            if since + RETIRE_SECONDS <= now:
                del self._retiring_tables[table]
                number = self._table_numbers.pop(table)
                for peer_class, column in self.compiler.columns(number).items():
                    self._unwrite(delta.policy, number, peer_class, column)
                self.compiler.remove_table(number)
                self.numbers.release(NumberKind.NUMBER_TABLE, number, now)
        for one, since in list(self._retiring_classes.items()):
            if since + RETIRE_SECONDS <= now:
                del self._retiring_classes[one]
                number = self._class_numbers.pop(one)
                for table_number, column in self.compiler.class_columns(number).items():
                    self._unwrite(delta.policy, table_number, number, column)
                self.compiler.remove_class(number)
                self.numbers.release(NumberKind.NUMBER_CLASS, number, now)
        delta.numbers.deletes.update(self.numbers.take_free(now))
        return delta

    @property
    def retiring(self) -> bool:
        """Whether something waits to be deleted."""
        return bool(self._retiring_tables or self._retiring_classes)

    # ---- the whole -------------------------------------------------------------------------------

    def endpoint_writes(self) -> Writes:
        """The whole map ``endpoints``."""
        return {U32.pack(number): value for number, (_, value) in self._published.items()}

    def device_writes(self) -> Writes:
        """The whole map ``devices``."""
        return dict(_device(endpoint) for endpoint, _ in self._published.values())

    def address_writes(self) -> Writes:
        """The whole map ``addresses``."""
        writes = dict(_node_address(address) for address in self._node)
        for endpoint, _ in self._published.values():
            writes.update(_local_addresses(endpoint))
        return writes

    def peer_writes(self) -> Writes:
        """The whole map ``peers``."""
        return dict(self._peer(prefix, one) for prefix, one in self.ipcache.entries().items())

    def policy_records(self) -> PolicyDelta:
        """The whole map ``policy``, as upserts."""
        whole = PolicyDelta()
        for number in self.compiler.tables:
            for peer_class, column in self.compiler.columns(number).items():
                self.packer.pack(whole, number, peer_class, column)
        return whole

    def class_number(self, one: PeerClass) -> int:
        """The number of a class in use. KeyError for another."""
        return self._class_numbers[one]

    def table_number(self, table: Table | None) -> int:
        """The number of a table in use, 0 for none."""
        return _NO_TABLE if table is None else self._table_numbers[table]

    def endpoint_policy(self, number: int) -> EndpointPolicy | None:
        """What the map ``endpoints`` must hold for an endpoint."""
        published = self._published.get(number)
        return EndpointPolicy.unpack(published[1]) if published else None

    # ---- parts -----------------------------------------------------------------------------------

    def _change_policies(self, store: Store, changes: Changes) -> None:
        if not changes.policies:
            return
        for key in changes.policies:
            policy = store.policies.get(key)
            if policy is None:
                self.repository.remove(key)  # type: ignore[arg-type]
            else:
                self.repository.upsert(policy)
        self.ipcache.set_blocks(self.repository.blocks())
        self.ipcache.set_port_names(self.repository.port_names())

    def _change_pods(self, store: Store, changes: Changes, now: float) -> set[int]:
        """Identities of changed pods; gives the endpoints whose policy may be another."""
        pods = set(changes.pods)
        for namespace in changes.namespaces:
            pods.update(store.pods_of(namespace))
        for key in sorted(pods):
            self.addresses.update_pod(key, store, now)
        touched = set(changes.endpoints)
        touched.update(one.id for key in pods for one in store.endpoints_of(key))
        if changes.policies:
            namespaces = {key.namespace for key in changes.policies}
            touched.update(
                number
                for number, endpoint in store.endpoints.items()
                if endpoint.namespace in namespaces
            )
        return touched

    def _change_node(self, addresses: frozenset[str], delta: Delta) -> None:
        self.addresses.update_node(addresses)
        for address in self._node - addresses:
            delta.addresses.drop(address_bytes(address))
        for address in addresses - self._node:
            delta.addresses.put(*_node_address(address))
        self._node = addresses

    def _change_classes(self, delta: Delta, now: float) -> None:
        changed = self.ipcache.resolve()
        for one in changed.classes_added:
            self._retiring_classes.pop(one, None)
            self._add_class(one, delta)
        for one in changed.classes_removed:
            self._retiring_classes[one] = now
        for prefix, one in changed.upserts.items():
            delta.peers.put(*self._peer(prefix, one))
        for prefix in changed.deletes:
            delta.peers.drop(_peer_key(prefix))
        if changed:
            # An endpoint's entry names the classes of its own addresses.
            for number, (endpoint, value) in list(self._published.items()):
                fresh = self._endpoint_value(endpoint, self.tables[number])
                if fresh != value:
                    self._published[number] = (endpoint, fresh)
                    delta.endpoints.put(U32.pack(number), fresh)

    def _add_class(self, one: PeerClass, delta: Delta) -> None:
        if one in self._class_numbers:
            return
        number = self.numbers.allocate(NumberKind.NUMBER_CLASS, fingerprint(one.canonical()))
        self._class_numbers[one] = number
        for table, column in self.compiler.add_class(number, one).items():
            self.entries += self.packer.pack(delta.policy, table, number, column)

    def _change_endpoint(self, number: int, store: Store, delta: Delta, now: float) -> None:
        endpoint = store.endpoints.get(number)
        former = self.tables.pop(number, None)
        if endpoint is None:
            published = self._published.pop(number, None)
            if published is not None:
                self._withdraw(published[0], delta)
        else:
            tables = self._tables_of(endpoint, store)
            self.tables[number] = tables
            for table in (tables.ingress, tables.egress):
                if table is not None:
                    self._use_table(table, delta)
            self._publish(endpoint, tables, delta)
        for table in (former.ingress, former.egress) if former else ():
            if table is not None:
                self._table_users[table] -= 1
                if not self._table_users[table]:
                    del self._table_users[table]
                    self._retiring_tables[table] = now

    def _tables_of(self, endpoint: Endpoint, store: Store) -> EndpointTables:
        pod = store.pods.get(endpoint.pod_key)
        if pod is None:
            return EndpointTables(Table.init(Direction.INGRESS), Table.init(Direction.EGRESS))

        def table(direction: Direction, ports: tuple[NamedPort, ...]) -> Table | None:
            return self.repository.table_for(direction, pod.namespace, pod.labels, ports)

        return EndpointTables(
            table(Direction.INGRESS, pod.ports), table(Direction.EGRESS, pod.ports)
        )

    def _use_table(self, table: Table, delta: Delta) -> None:
        self._table_users[table] += 1
        self._retiring_tables.pop(table, None)
        if table in self._table_numbers:
            return
        number = self.numbers.allocate(
            NumberKind.NUMBER_TABLE, fingerprint(bytes([table.direction]) + table.fingerprint)
        )
        self._table_numbers[table] = number
        for peer_class, column in self.compiler.add_table(number, table).items():
            self.entries += self.packer.pack(delta.policy, number, peer_class, column)

    def _publish(self, endpoint: Endpoint, tables: EndpointTables, delta: Delta) -> None:
        value = self._endpoint_value(endpoint, tables)
        before = self._published.get(endpoint.id)
        if before is not None and before[0] != endpoint:
            self._withdraw(before[0], delta)
            before = None
        if before is None or before[1] != value:
            delta.endpoints.put(U32.pack(endpoint.id), value)
        if before is None:
            delta.devices.put(*_device(endpoint))
            for key, local in _local_addresses(endpoint):
                delta.addresses.put(key, local)
        self._published[endpoint.id] = (endpoint, value)

    def _withdraw(self, endpoint: Endpoint, delta: Delta) -> None:
        delta.endpoints.drop(U32.pack(endpoint.id))
        delta.devices.drop(_device(endpoint)[0])
        for key, _ in _local_addresses(endpoint):
            delta.addresses.drop(key)

    def _endpoint_value(self, endpoint: Endpoint, tables: EndpointTables) -> bytes:
        flags = EndpointFlag.ENDPOINT_INGRESS_ENFORCED if tables.ingress is not None else 0
        flags |= EndpointFlag.ENDPOINT_EGRESS_ENFORCED if tables.egress is not None else 0
        return EndpointPolicy(
            endpoint=endpoint.id,
            identity=self.addresses.identity_of(endpoint.pod_key),
            ingress_table=self.table_number(tables.ingress),
            egress_table=self.table_number(tables.egress),
            ingress_levels=tables.ingress.levels if tables.ingress else 0,
            egress_levels=tables.egress.levels if tables.egress else 0,
            flags=int(flags),
            class4=self._own_class(endpoint.ipv4),
            class6=self._own_class(endpoint.ipv6),
        ).pack()

    def _own_class(self, address: str) -> int:
        if not address:
            return int(ReservedClass.CLASS_NONE)
        return self._class_numbers[self.ipcache.lookup(address)]

    def _peer(self, prefix: Prefix, one: PeerClass) -> tuple[bytes, bytes]:
        return _peer_key(prefix), Peer(self._class_numbers[one], one.identity).pack()

    def _unwrite(
        self, delta: PolicyDelta, table: int, peer_class: int, column: Iterable[object]
    ) -> None:
        self.entries -= self.packer.pack_deletes(delta, table, peer_class, column)  # type: ignore[arg-type]


def _peer_key(prefix: Prefix) -> bytes:
    return PeerKey(prefix.length, prefix.address).pack()


def _device(endpoint: Endpoint) -> tuple[bytes, bytes]:
    device = Device(
        address4=address_bytes(endpoint.ipv4),
        address6=address_bytes(endpoint.ipv6),
        mac=mac_bytes(endpoint.mac),
        host_mac=mac_bytes(endpoint.host_mac),
        endpoint=endpoint.id,
    )
    return U32.pack(endpoint.ifindex), device.pack()


def _local_addresses(endpoint: Endpoint) -> list[tuple[bytes, bytes]]:
    local = LocalAddress(
        endpoint=endpoint.id,
        ifindex=endpoint.ifindex,
        mac=mac_bytes(endpoint.mac),
        host_mac=mac_bytes(endpoint.host_mac),
        kind=LocalKind.LOCAL_POD,
    ).pack()
    return [(address_bytes(address), local) for address in endpoint.addresses]


def _node_address(address: str) -> tuple[bytes, bytes]:
    local = LocalAddress(0, 0, bytes(6), bytes(6), LocalKind.LOCAL_NODE)
    return address_bytes(address), local.pack()
