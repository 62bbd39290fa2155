# SPDX-License-Identifier: Apache-2.0
"""From facts to what the kernel's maps must hold.

    pods, namespaces --> identities --> address table --> classes --+--> services
    policies ---------> repository --> tables ----------------------+--> columns
    endpoints ------------------------------------------------------+--> endpoints, devices

Only this module joins policy and map layouts. Numbers of classes and tables never change their
meaning, so columns are written once; an endpoint moves to another policy by one write, an address
to another class by one write. What nothing points to any more is kept for a moment, because a
packet may still be on its way through it, and then deleted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from agent.core.addresses import AddressBook
from agent.core.columns import ColumnPacker
from agent.core.delta import Delta, PolicyDelta, Writes
from agent.core.endpoint import Endpoint
from agent.core.local import LocalBook
from agent.core.masquerade import MasqueradeBook
from agent.core.nodes import NodeBook
from agent.core.numbers import Numbers, fingerprint
from agent.core.services import ServiceBook
from agent.core.sockets import SocketBook
from agent.core.store import Changes, PodKey, Store
from bpf.layouts import (
    EndpointFlag,
    EndpointPolicy,
    NumberKey,
    NumberKind,
    Peer,
    PeerKey,
    ReservedClass,
)
from bpf.maps import U32
from identity.allocator import IdentityAllocator, IdentityExhausted
from identity.cluster import ClusterIdentities
from identity.ipcache import HOST_CLASS, IPCache, IPCacheDelta, NamedPort, PeerClass, Prefix
from identity.labels import LabelFilter
from policy.model import Direction, NetworkPolicy, PolicyKey
from policy.resolve import PolicyCompiler, PolicyRepository, Table

RETIRE_SECONDS: Final = 2.0
"""How long an unused table or class stays: far longer than a packet takes through a program."""

_NO_TABLE: Final = 0
_FULL_LENGTH: Final = 128


@dataclass(frozen=True, slots=True)
class EndpointTables:
    """The tables an endpoint has; None where no policy isolates it in that direction."""

    ingress: Table | None
    egress: Table | None


class Desired:
    """The wanted contents of all maps that the agent writes, kept up to date by changes."""

    def __init__(
        self,
        identities: IdentityAllocator,
        numbers: Numbers,
        label_filter: LabelFilter,
        nodes: NodeBook | None = None,
        masquerade: MasqueradeBook | None = None,
        sockets: SocketBook | None = None,
    ) -> None:
        self.identities = identities
        self.numbers = numbers
        self.repository = PolicyRepository()
        self.compiler = PolicyCompiler()
        self.ipcache = IPCache(
            identities.acquire, lambda number: identities.release(number, self._now)
        )
        self.local = LocalBook()
        self.nodes = nodes or NodeBook("")
        self.masquerade = masquerade or MasqueradeBook()
        self.sockets = sockets or SocketBook()
        self.addresses = AddressBook(identities, self.ipcache, label_filter, self.nodes.name)
        self.packer = ColumnPacker(numbers)
        self.services = ServiceBook(self.ipcache, self.class_number)
        self.tables: dict[int, EndpointTables] = {}
        self.to_publish: set[PodKey] = set()
        """Pods of this node of which the cluster may have to be told something else."""
        self.entries = 0
        """Records that the policy map holds or is about to hold."""
        self._now = 0.0
        self._class_numbers: dict[PeerClass, int] = {HOST_CLASS: int(ReservedClass.CLASS_HOST)}
        self._table_numbers: dict[Table, int] = {}
        self._table_users: Counter[Table] = Counter()
        self._retiring_classes: dict[PeerClass, float] = {}
        self._retiring_tables: dict[Table, float] = {}
        # Tables and classes whose columns have not been written yet.
        self._unwritten: set[Table | PeerClass] = set()
        self._published: dict[int, bytes] = {}
        # The node's own stack, known by provenance; its addresses have classes beside it.
        self.compiler.add_class(int(ReservedClass.CLASS_HOST), HOST_CLASS)

    # ---- a change --------------------------------------------------------------------------------

    def update(self, store: Store, changes: Changes, now: float) -> Delta:
        """What has to be written after these changes.

        Raises IdentityExhausted where a policy's block finds no identity, before anything is
        changed: the caller takes a policy back, and gives all these changes again.
        """
        self._now = now
        delta = Delta()
        self._change_policies(store, changes)
        touched = self._change_pods(store, changes, now)
        self._note_policies(touched, store, changes)
        if changes.node_addresses:
            self.addresses.update_node(store.node_addresses)
            self.local.set_node(store.node_addresses, delta)
        self._change_nodes(store, changes, delta)
        if changes.node_addresses or changes.nodes:
            self.masquerade.update(store, delta)
        classes = self._change_classes(touched, delta, now)
        self.services.update(store, changes.services, classes, delta)
        # Those that are gone first: another may have their address, or their device's index, now.
        for number in sorted(touched - store.endpoints.keys()):
            self._drop_endpoint(number, delta, now)
        for number in sorted(touched & store.endpoints.keys()):
            self._change_endpoint(store.endpoints[number], store, delta, now)
        delta.numbers.upserts.update(self.numbers.take_fresh())
        return delta

    def retire(self, now: float) -> Delta:
        """What can be deleted, because nothing has pointed to it for RETIRE_SECONDS."""
        self._now = now
        delta = Delta()
        for table, since in list(self._retiring_tables.items()):
            if since + RETIRE_SECONDS <= now:
                self._forget_table(table, delta.policy, now)
        for one, since in list(self._retiring_classes.items()):
            if since + RETIRE_SECONDS <= now:
                self._forget_class(one, delta.policy, now)
        for key in self.numbers.take_free(now):
            delta.numbers.deletes.add(key)
            freed = NumberKey.unpack(key)
            if freed.kind == NumberKind.NUMBER_RULE:
                self.packer.forget(freed.number)
        return delta

    def written(self) -> None:
        """All that was to be written up to now is in the kernel."""
        self._unwritten.clear()

    def abandon(self, now: float) -> bool:
        """Forget tables and classes that nothing uses and that never reached the kernel.

        Gives whether there were any: a delta that was not written yet may then hold their columns.
        """
        before = len(self._unwritten)
        nothing = PolicyDelta()
        for table in [one for one in self._retiring_tables if one in self._unwritten]:
            self._forget_table(table, nothing, now)
        for one in [one for one in self._retiring_classes if one in self._unwritten]:
            self._forget_class(one, nothing, now)
        return len(self._unwritten) != before

    def release_unused(self, now: float) -> None:
        """Let the numbers rest that a former agent used and this one does not: what it had written
        under them is deleted."""
        for kind, used in (
            (NumberKind.NUMBER_CLASS, self._class_numbers.values()),
            (NumberKind.NUMBER_TABLE, self._table_numbers.values()),
            (NumberKind.NUMBER_RULE, self.packer.used_numbers),
        ):
            self.numbers.release_unused(kind, frozenset(used), now)

    @property
    def retiring(self) -> bool:
        """Whether something waits to be deleted."""
        return bool(self._retiring_tables or self._retiring_classes)

    def is_retiring(self, table: int, peer_class: int) -> bool:
        """Whether nothing refers to a table, or to a class, any more, by their numbers."""
        return any(self._table_numbers[one] == table for one in self._retiring_tables) or any(
            self._class_numbers[one] == peer_class for one in self._retiring_classes
        )

    # ---- the whole -------------------------------------------------------------------------------

    def endpoint_writes(self) -> Writes:
        """The whole map ``endpoints``."""
        return {U32.pack(number): value for number, value in self._published.items()}

    def device_writes(self) -> Writes:
        """The whole map ``devices``."""
        return self.local.device_writes()

    def address_writes(self) -> Writes:
        """The whole map ``addresses``."""
        return self.local.address_writes()

    def place_writes(self) -> Writes:
        """The map ``places``, without slots that nobody has."""
        return self.local.place_writes()

    def tunnel_writes(self) -> Writes:
        """The whole map ``tunnels``."""
        return self.nodes.writes()

    def peer_writes(self) -> Writes:
        """The whole map ``peers``."""
        return dict(self._peer(prefix, one) for prefix, one in self.ipcache.entries().items())

    def policy_records(self) -> PolicyDelta:
        """The whole map ``policy``, as upserts."""
        whole = PolicyDelta()
        for number in self.compiler.tables:
            self.packer.pack_table(whole, number, self.compiler.columns(number))
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
        return EndpointPolicy.unpack(published) if published else None

    # ---- parts -----------------------------------------------------------------------------------

    def _change_policies(self, store: Store, changes: Changes) -> None:
        if not changes.policies:
            return
        former = {}
        for key in changes.policies:
            name, policy = PolicyKey(*key), store.policies.get(key)
            former[name] = self.repository.get(name)
            self._put_policy(name, policy)
        try:
            self.ipcache.set_blocks(self.repository.blocks())
        except IdentityExhausted:
            for name, before in former.items():
                self._put_policy(name, before)
            raise
        self.ipcache.set_port_names(self.repository.port_names())

    def _put_policy(self, key: PolicyKey, policy: NetworkPolicy | None) -> None:
        if policy is None:
            self.repository.remove(key)
        else:
            self.repository.upsert(policy)

    def _change_pods(self, store: Store, changes: Changes, now: float) -> set[int]:
        """Identities of changed pods; gives the endpoints whose policy may be another."""
        pods, settled = set(changes.pods), set[int]()
        for number in sorted(changes.identities):
            pods.update(self._change_identity(number, store))
            settled.update(self._superseded(number, store))
        for number in settled:
            pods.update(one for one in self.addresses.having(number) if store.endpoints_of(one))
        for namespace in changes.namespaces:
            pods.update(store.pods_of(namespace))
        for key in sorted(pods):
            self.addresses.update_pod(key, store, now)
        # Only now it may be clear what such a number means of other nodes' pods.
        others = {key for number in settled for key in self.addresses.waiting(number, None)}
        for key in sorted(others):
            self.addresses.update_pod(key, store, now)
        pods |= others
        self._note_publications(pods, store, changes)
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

    def _note_policies(self, touched: set[int], store: Store, changes: Changes) -> None:
        if changes.policies and isinstance(self.identities, ClusterIdentities):
            self.to_publish.update(
                store.endpoints[one].pod_key for one in touched if one in store.endpoints
            )

    def _note_publications(self, pods: set[PodKey], store: Store, changes: Changes) -> None:
        if not isinstance(self.identities, ClusterIdentities):
            return
        for key in pods:
            published = store.published.get(key)
            mine = published is not None and published.node_name == self.nodes.name
            if mine or store.endpoints_of(key):
                self.to_publish.add(key)
        if self.nodes.name in changes.nodes:  # its address is told with every pod
            self.to_publish.update(one.pod_key for one in store.endpoints.values())
        if changes.identities:
            here = {one.pod_key for one in store.endpoints.values()}
            self.to_publish.update(
                key for key in here if self.addresses.identity_of(key) in changes.identities
            )

    def _change_identity(self, number: int, store: Store) -> list[PodKey]:
        """Take what the cluster says of a number; gives the pods that it concerns."""
        if not isinstance(self.identities, ClusterIdentities):
            return []
        fact = store.identities.get(number)
        if fact is None:
            self.identities.withdraw(number)
            return []
        self.identities.publish(number, fact.labels, bool(fact.unused_since))
        return self.addresses.waiting(number, fact.labels)

    def _superseded(self, number: int, store: Store) -> list[int]:
        """Numbers that pods here hold while they mean something else elsewhere, and need not hold
        any more: their labels have another one."""
        fact = store.identities.get(number)
        if fact is None or not isinstance(self.identities, ClusterIdentities):
            return []
        concerned = {fact.labels, self.identities.labels(number) or fact.labels}
        return [
            one
            for labels in concerned
            if self.identities.lookup(labels) is not None
            for one in self.identities.superseded(labels)
        ]

    def _change_nodes(self, store: Store, changes: Changes, delta: Delta) -> None:
        for name in sorted(changes.nodes - {self.nodes.name}):
            node = store.nodes.get(name)
            self.addresses.update_remote_node(name, node.addresses if node else ())
        if changes.nodes or changes.node_addresses or changes.tunnel_device:
            self.nodes.update(store, delta)

    def _change_classes(self, touched: set[int], delta: Delta, now: float) -> IPCacheDelta:
        changed = self.ipcache.resolve()
        for one in changed.classes_added:
            self._retiring_classes.pop(one, None)
            self._add_class(one, delta)
        # A node's address may have the host's class; the host has it with or without an address.
        for one in changed.classes_removed - {HOST_CLASS}:
            self._retiring_classes[one] = now
        for prefix, one in changed.upserts.items():
            delta.peers.put(*self._peer(prefix, one))
        for prefix in changed.deletes:
            delta.peers.drop(_peer_key(prefix))
        self._change_own_classes(changed, touched, delta)
        return changed

    def _change_own_classes(self, changed: IPCacheDelta, touched: set[int], delta: Delta) -> None:
        """An endpoint's entry names the classes of its own addresses, which are always known ones
        and so have entries of full length. Those in `touched` are looked at later anyway."""
        numbers = {
            number
            for prefixes in (changed.upserts, changed.deletes)
            for prefix in prefixes
            if prefix.length == _FULL_LENGTH
            for number in self.local.holders(prefix.address)
        }
        for number in sorted(numbers - touched):
            self._publish(self.local.endpoints[number], self.tables[number], delta)

    def _add_class(self, one: PeerClass, delta: Delta) -> None:
        if one in self._class_numbers:
            return
        number = self.numbers.allocate(NumberKind.NUMBER_CLASS, fingerprint(one.canonical()))
        self._class_numbers[one] = number
        self._unwritten.add(one)
        for table, column in self.compiler.add_class(number, one).items():
            self.entries += self.packer.pack(delta.policy, table, number, column)

    def _drop_endpoint(self, number: int, delta: Delta, now: float) -> None:
        if self._published.pop(number, None) is not None:
            delta.endpoints.drop(U32.pack(number))
        self.local.drop(number, delta)
        self.sockets.drop(number, delta)
        self._unuse_tables(self.tables.pop(number, None), now)

    def _change_endpoint(self, endpoint: Endpoint, store: Store, delta: Delta, now: float) -> None:
        former = self.tables.get(endpoint.id)
        tables = self._tables_of(endpoint, store)
        self.tables[endpoint.id] = tables
        for table in (tables.ingress, tables.egress):
            if table is not None:
                self._use_table(table, delta)
        self._publish(endpoint, tables, delta)
        self.local.put(endpoint, delta)
        self.sockets.put(endpoint, store, delta)
        self._unuse_tables(former, now)

    def _unuse_tables(self, former: EndpointTables | None, now: float) -> None:
        for table in (former.ingress, former.egress) if former else ():
            if table is not None:
                self._table_users[table] -= 1
                if not self._table_users[table]:
                    del self._table_users[table]
                    self._retiring_tables[table] = now

    def _tables_of(self, endpoint: Endpoint, store: Store) -> EndpointTables:
        pod = store.pod_of(endpoint)
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
        self._unwritten.add(table)
        self.packer.use(rule.ref for rule in table.rules)
        for peer_class, column in self.compiler.add_table(number, table).items():
            self.entries += self.packer.pack(delta.policy, number, peer_class, column)

    def _publish(self, endpoint: Endpoint, tables: EndpointTables, delta: Delta) -> None:
        value = self._endpoint_value(endpoint, tables)
        if self._published.get(endpoint.id) != value:
            self._published[endpoint.id] = value
            delta.endpoints.put(U32.pack(endpoint.id), value)

    def _endpoint_value(self, endpoint: Endpoint, tables: EndpointTables) -> bytes:
        flags = EndpointFlag.ENDPOINT_INGRESS_ENFORCED if tables.ingress is not None else 0
        flags |= EndpointFlag.ENDPOINT_EGRESS_ENFORCED if tables.egress is not None else 0
        return EndpointPolicy(
            endpoint=endpoint.id,
            identity=self.addresses.identity_of(self.addresses.key_of(endpoint)),
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

    def _forget_table(self, table: Table, deletes: PolicyDelta, now: float) -> None:
        del self._retiring_tables[table]
        self._unwritten.discard(table)
        number = self._table_numbers.pop(table)
        for peer_class, column in self.compiler.columns(number).items():
            self.entries -= self.packer.pack_deletes(deletes, number, peer_class, column)
        self.compiler.remove_table(number)
        self.packer.unuse((rule.ref for rule in table.rules), now)
        self.numbers.release(NumberKind.NUMBER_TABLE, number, now)

    def _forget_class(self, one: PeerClass, deletes: PolicyDelta, now: float) -> None:
        del self._retiring_classes[one]
        self._unwritten.discard(one)
        number = self._class_numbers.pop(one)
        for table, column in self.compiler.class_columns(number).items():
            self.entries -= self.packer.pack_deletes(deletes, table, number, column)
        self.compiler.remove_class(number)
        self.numbers.release(NumberKind.NUMBER_CLASS, number, now)


def _peer_key(prefix: Prefix) -> bytes:
    return PeerKey(prefix.length, prefix.address).pack()
