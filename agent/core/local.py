# SPDX-License-Identifier: Apache-2.0
"""What is on this node: pods' devices, and whose each local address is (maps ``devices``,
``addresses``, ``places``). Nothing here depends on policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.core.delta import Delta, Writes
from agent.core.endpoint import Endpoint, address_bytes, mac_bytes
from bpf.layouts import Device, LocalAddress, LocalKind, Place, PlaceSize
from bpf.maps import U32

_Entry = tuple[bytes, bytes]


def device_slot(ifindex: int) -> int:
    """Index of ``places`` where a pod is looked for by its device."""
    return ifindex % PlaceSize.PLACE_SLOTS


def id_slot(endpoint: int) -> int:
    """Index of ``places`` where a pod is looked for by its endpoint id."""
    return PlaceSize.PLACE_SLOTS + endpoint % PlaceSize.PLACE_SLOTS


def slots(endpoint: int, ifindex: int) -> tuple[int, int]:
    """Both indexes."""
    return device_slot(ifindex), id_slot(endpoint)


class LocalBook:
    """Keeps these maps in step with the endpoints and the node's own addresses.

    An address that several claim (which is an error elsewhere) is the endpoint's with the smallest
    id, and a pod's rather than the node's: the outcome never depends on the order of events. So is
    a slot of ``places`` that two fall into.
    """

    def __init__(self) -> None:
        self._endpoints: dict[int, Endpoint] = {}
        self._holders: dict[bytes, set[int]] = {}
        self._node: dict[bytes, str] = {}
        self._addresses: Writes = {}
        self._devices: Writes = {}
        self._claims: dict[int, set[int]] = {}
        self._places: Writes = {}

    @property
    def endpoints(self) -> Mapping[int, Endpoint]:
        """Those that are put down; not to be changed."""
        return self._endpoints

    def holders(self, address: bytes) -> Iterable[int]:
        """Endpoints that have an address."""
        return self._holders.get(address, ())

    def put(self, endpoint: Endpoint, delta: Delta) -> None:
        """An endpoint is there, or is another than before."""
        former = self._endpoints.get(endpoint.id)
        if former == endpoint:
            return
        self._replace(endpoint.id, former, endpoint, delta)

    def drop(self, number: int, delta: Delta) -> None:
        """An endpoint is gone; an unknown one is no error."""
        former = self._endpoints.get(number)
        if former is not None:
            self._replace(number, former, None, delta)

    def set_node(self, addresses: Iterable[str], delta: Delta) -> None:
        """All addresses of the node's own stack."""
        wanted = {address_bytes(address): address for address in addresses}
        changed = wanted.keys() ^ self._node.keys()
        self._node = wanted
        for address in sorted(changed):
            self._settle(address, delta)

    def device_writes(self) -> Writes:
        """The whole map ``devices``."""
        return dict(self._devices)

    def address_writes(self) -> Writes:
        """The whole map ``addresses``."""
        return dict(self._addresses)

    def place_writes(self) -> Writes:
        """The map ``places``, without slots that nobody has."""
        return dict(self._places)

    def _replace(
        self, number: int, former: Endpoint | None, endpoint: Endpoint | None, delta: Delta
    ) -> None:
        if former is not None:
            del self._endpoints[number]
            if endpoint is None or _device(endpoint) != _device(former):
                self._drop_device(former, delta)
            for address in map(address_bytes, former.addresses):
                self._holders[address].discard(number)
        if endpoint is not None:
            self._endpoints[number] = endpoint
            self._put_device(endpoint, delta)
            for address in map(address_bytes, endpoint.addresses):
                self._holders.setdefault(address, set()).add(number)
        both = {*(former.addresses if former else ()), *(endpoint.addresses if endpoint else ())}
        for address in map(address_bytes, sorted(both)):
            if not self._holders[address]:
                del self._holders[address]
            self._settle(address, delta)
        self._claim(number, former, endpoint, delta)

    def _claim(
        self, number: int, former: Endpoint | None, endpoint: Endpoint | None, delta: Delta
    ) -> None:
        before = slots(number, former.ifindex) if former else ()
        now = slots(number, endpoint.ifindex) if endpoint else ()
        for slot in before:
            self._claims[slot].discard(number)
        for slot in now:
            self._claims.setdefault(slot, set()).add(number)
        for slot in sorted({*before, *now}):
            key, claimants = U32.pack(slot), self._claims[slot]
            if not claimants:
                del self._claims[slot]
                if self._places.pop(key, None) is not None:
                    delta.places.drop(key)
                continue
            value = _place(self._endpoints[min(claimants)])
            if self._places.get(key) != value:
                self._places[key] = value
                delta.places.put(key, value)

    def _put_device(self, endpoint: Endpoint, delta: Delta) -> None:
        key, value = _device(endpoint)
        if self._devices.get(key) != value:
            self._devices[key] = value
            delta.devices.put(key, value)

    def _drop_device(self, endpoint: Endpoint, delta: Delta) -> None:
        key, value = _device(endpoint)
        if self._devices.get(key) == value:  # else another has the index by now
            del self._devices[key]
            delta.devices.drop(key)

    def _settle(self, address: bytes, delta: Delta) -> None:
        value = self._entry(address)
        if value == self._addresses.get(address):
            return
        if value is None:
            del self._addresses[address]
            delta.addresses.drop(address)
        else:
            self._addresses[address] = value
            delta.addresses.put(address, value)

    def _entry(self, address: bytes) -> bytes | None:
        holders = self._holders.get(address)
        if holders:
            return _local(self._endpoints[min(holders)])
        return _NODE if address in self._node else None


_NODE = LocalAddress(0, 0, bytes(6), bytes(6), LocalKind.LOCAL_NODE).pack()


def _device(endpoint: Endpoint) -> _Entry:
    device = Device(
        address4=address_bytes(endpoint.ipv4),
        address6=address_bytes(endpoint.ipv6),
        mac=mac_bytes(endpoint.mac),
        host_mac=mac_bytes(endpoint.host_mac),
        endpoint=endpoint.id,
    )
    return U32.pack(endpoint.ifindex), device.pack()


def _local(endpoint: Endpoint) -> bytes:
    return LocalAddress(
        endpoint=endpoint.id,
        ifindex=endpoint.ifindex,
        mac=mac_bytes(endpoint.mac),
        host_mac=mac_bytes(endpoint.host_mac),
        kind=LocalKind.LOCAL_POD,
    ).pack()


def _place(endpoint: Endpoint) -> bytes:
    return Place(
        endpoint=endpoint.id,
        ifindex=endpoint.ifindex,
        mac=mac_bytes(endpoint.mac),
        host_mac=mac_bytes(endpoint.host_mac),
        address4=U32.unpack(address_bytes(endpoint.ipv4)[12:]),
        address6=address_bytes(endpoint.ipv6),
    ).pack()
