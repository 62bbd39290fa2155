# SPDX-License-Identifier: Apache-2.0
"""Which pods are wired on this node and what each was given: durable over kill and crash.

An endpoint is put down after its wiring and before ADD answers, and struck out after its device
is gone. A kill in between leaves a tagged device without a record; the agent removes such devices
at start, before any address is given out. So no address is leaked and none is given twice.

Devices and namespaces do not outlive a boot: records of another boot id are void.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from agent.state_file import Journal, Record, StateFileError

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
VERSION = 1
RELEASED_LIMIT = 4096
_SLACK = 512


class EndpointStoreError(RuntimeError):
    """The file is not one this agent can use; the message says why and the way out."""


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """One wired pod interface.

    `endpoint` is the id in the BPF maps and in the device's name, unique on the node.
    `netns_cookie` is the pod namespace's (0 unknown). MACs in the usual notation. `attributes`
    is free for what later versions add.
    """

    endpoint: int
    container_id: str
    ifname: str
    netns: str
    netns_cookie: int
    host_name: str
    host_ifindex: int
    host_mac: str
    pod_mac: str
    mtu: int
    ipv4: IPv4Address | None
    ipv6: IPv6Address | None
    namespace: str = ""
    pod: str = ""
    pod_uid: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        """Key of the CNI attachment, as the address pool uses it."""
        return f"{self.container_id}/{self.ifname}"

    @property
    def addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """Those that are there, IPv4 first."""
        return tuple(address for address in (self.ipv4, self.ipv6) if address is not None)


def read_boot_id(path: Path = BOOT_ID) -> str:
    """The kernel's random number of this boot."""
    return path.read_text().strip()


class EndpointStore:
    """The endpoints of this node, kept in one journal. Owned by one thread."""

    def __init__(self, path: Path, boot_id: str) -> None:
        self._journal = Journal(path)
        self._path = path
        self._boot_id = boot_id
        self._endpoints: dict[int, EndpointRecord] = {}
        self._released: OrderedDict[str, None] = OrderedDict()
        self.damaged = 0
        """Lines lost to something other than a crash: compare the records with the devices."""

    def open(self) -> None:
        """Read what is there, void it when the machine was booted since.

        Raises StateFileError, and EndpointStoreError for a file of a newer format.
        """
        opened = self._journal.open()
        self.damaged = opened.damaged
        stale = 0
        for record in opened.records:
            if record.get("v", 0) > VERSION:
                self._journal.close()
                raise EndpointStoreError(
                    f"{self._path} has format {record['v']}, this agent knows up to {VERSION}; "
                    "use the agent that wrote it, or drain the node and delete the file"
                )
            if record.get("boot") != self._boot_id:
                stale += 1
                continue
            try:
                self._replay(record)
            except (KeyError, TypeError, ValueError):
                self.damaged += 1
        if stale or self.damaged or self._journal.lines > 2 * len(self._endpoints) + _SLACK:
            self._compact()

    def put(self, endpoint: EndpointRecord) -> None:
        """Write or replace one; durable on return. Raises StateFileError, nothing changed."""
        self._journal.append([self._stamp(_encode(endpoint))])
        self._apply(endpoint)
        self._tidy()

    def remove(self, endpoint: int) -> EndpointRecord | None:
        """Strike one out; durable on return; None where there is none.

        Raises StateFileError, nothing changed.
        """
        if endpoint not in self._endpoints:
            return None
        self._journal.append([self._stamp({"op": "remove", "endpoint": endpoint})])
        removed = self._strike(endpoint)
        self._tidy()
        return removed

    def get(self, endpoint: int) -> EndpointRecord | None:
        """One by its id."""
        return self._endpoints.get(endpoint)

    def find(self, container_id: str, ifname: str) -> EndpointRecord | None:
        """One by its CNI attachment."""
        for endpoint in self._endpoints.values():
            if endpoint.container_id == container_id and endpoint.ifname == ifname:
                return endpoint
        return None

    def __iter__(self) -> Iterator[EndpointRecord]:
        return iter(tuple(self._endpoints.values()))

    def __len__(self) -> int:
        return len(self._endpoints)

    def released(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """Addresses freed in this boot and free since, longest ago first: for AddressPool.rest."""
        return tuple(ip_address(address) for address in self._released)

    def close(self) -> None:
        """Close the file; idempotent."""
        self._journal.close()

    def _stamp(self, record: Record) -> Record:
        """Every line says of which boot and format it is: none depends on another for that."""
        return {**record, "v": VERSION, "boot": self._boot_id}

    def _replay(self, record: Record) -> None:
        match record.get("op"):
            case "put":
                self._apply(_decode(record))
            case "remove":
                self._strike(record["endpoint"])
            case "released":
                self._rest(record["addresses"])

    def _apply(self, endpoint: EndpointRecord) -> None:
        self._strike(endpoint.endpoint)
        self._endpoints[endpoint.endpoint] = endpoint
        for address in endpoint.addresses:
            self._released.pop(str(address), None)

    def _strike(self, endpoint: int) -> EndpointRecord | None:
        removed = self._endpoints.pop(endpoint, None)
        if removed is not None:
            self._rest([str(address) for address in removed.addresses])
        return removed

    def _rest(self, addresses: list[str]) -> None:
        for address in addresses:
            self._released[address] = None
            self._released.move_to_end(address)
        while len(self._released) > RELEASED_LIMIT:
            self._released.popitem(last=False)

    def _tidy(self) -> None:
        if self._journal.lines > 4 * len(self._endpoints) + 4 * _SLACK:
            # The change itself is safe on disk already; a longer file is no reason to refuse it.
            with contextlib.suppress(StateFileError):
                self._compact()

    def _compact(self) -> None:
        records: list[Record] = [{"op": "released", "addresses": list(self._released)}]
        records += [_encode(endpoint) for endpoint in self._endpoints.values()]
        self._journal.rewrite(self._stamp(record) for record in records)


_FIELDS = frozenset(item.name for item in fields(EndpointRecord))


def _encode(endpoint: EndpointRecord) -> Record:
    values = {name: getattr(endpoint, name) for name in _FIELDS}
    for name in ("ipv4", "ipv6"):
        values[name] = str(values[name]) if values[name] is not None else None
    return {"op": "put", **values, "attributes": dict(endpoint.attributes)}


def _decode(record: Record) -> EndpointRecord:
    """Fields of a newer agent that this one does not know are left out."""
    values = {name: value for name, value in record.items() if name in _FIELDS}
    values["ipv4"] = IPv4Address(values["ipv4"]) if values["ipv4"] else None
    values["ipv6"] = IPv6Address(values["ipv6"]) if values["ipv6"] else None
    return EndpointRecord(**values)
