# SPDX-License-Identifier: Apache-2.0
"""What CNI asks for, carried out: addresses, wiring, policy, record, in this order, or nothing.

Wiring happens in the thread of the request, so that many pods come up at once; everything that
concerns facts and maps happens in the loop. A pod's packets are dropped from the moment it has a
device until its policy is in force, and ADD answers only after that.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import Final

from agent.core.endpoint import MAX_ENDPOINT_ID, Endpoint
from agent.core.ipam import AddressConflict, AddressPool, PoolExhausted
from agent.kernel.endpoint_store import EndpointRecord, EndpointStore
from agent.kernel.links import LinkError
from agent.kernel.maps import MapError
from agent.kernel.podcheck import check_wiring
from agent.kernel.podnet import (
    GATEWAY4,
    GATEWAY6,
    NameClash,
    PodNetwork,
    Wiring,
    WiringError,
    WiringRequest,
    new_endpoint_id,
)
from agent.kernel.rtnl import RtnlError
from agent.loop import Loop, LoopStopped
from agent.state_file import StateFileError
from cni import results
from cni.config import Attachment, Command
from cni.errors import CniError, ErrorCode
from cni.protocol import Reply, Request, success

log = logging.getLogger(__name__)

SYNC_TIMEOUT: Final = 20.0
NETWORK: Final = "network"


@dataclass(frozen=True, slots=True)
class _Place:
    """What a pod that is being added has so far."""

    endpoint: int
    ipv4: IPv4Address | None
    ipv6: object | None


class EndpointManager:
    """The handler of the CNI server. Its methods run in many threads; the loop orders them."""

    def __init__(
        self,
        loop: Loop,
        pool: AddressPool,
        records: EndpointStore,
        network: PodNetwork,
        mtu: int,
    ) -> None:
        self._loop = loop
        self._pool = pool
        self._records = records
        self._network = network
        self._mtu = mtu
        self._reserved: dict[int, str] = {}

    # ---- start -----------------------------------------------------------------------------------

    def adopt(self) -> tuple[int, int]:
        """Take over what a former agent wired; call before the loop runs.

        Gives how many endpoints live on and how many are gone. What was wired without having been
        recorded (a killed ADD) is removed, and its address was never given out.
        """
        devices = {link.name: link for link in self._network.devices()}
        gone = 0
        self._pool.rest(self._records.released())
        for record in self._records:
            link = devices.get(record.host_name)
            if link is None or link.index != record.host_ifindex:
                self._records.remove(record.endpoint)
                gone += 1
                continue
            try:
                self._pool.adopt(record.owner, record.addresses)
            except AddressConflict as error:
                log.error("endpoint %s: %s", record.endpoint, error)
            self._loop.store.put_endpoint(_endpoint(record))
        kept = [record.host_name for record in self._records]
        for name in self._network.remove_devices(keep=kept):
            log.info("device %s of an unfinished ADD was removed", name)
        return len(kept), gone

    def reattach(self, records: Iterable[EndpointRecord] | None = None) -> None:
        """Attach this agent's programs to every endpoint, each replacement in one step."""
        for record in self._records if records is None else records:
            try:
                self._loop.datapath.attach_endpoint(record.endpoint, record.host_ifindex)
            except (LinkError, RtnlError) as error:
                log.error("endpoint %s keeps its old programs: %s", record.endpoint, error)

    # ---- requests --------------------------------------------------------------------------------

    def handle(self, request: Request, netns_fd: int | None) -> Reply:
        """Serve one request. Raises CniError."""
        try:
            match request.command:
                case Command.ADD:
                    assert netns_fd is not None
                    return self._add(request, netns_fd)
                case Command.DEL:
                    self._delete(request.container_id, request.ifname)
                    return success(request)
                case Command.CHECK:
                    assert netns_fd is not None
                    return self._check(request, netns_fd)
                case Command.GC:
                    self._collect(request)
                    return success(request)
                case _:
                    self._status()
                    return success(request)
        except (LoopStopped, TimeoutError) as error:
            raise CniError(
                ErrorCode.TRY_AGAIN_LATER, f"the agent is busy or ending: {error}"
            ) from error
        except StateFileError as error:
            raise CniError(ErrorCode.IO_FAILURE, str(error)) from error

    def _add(self, request: Request, netns_fd: int) -> Reply:
        owner = f"{request.container_id}/{request.ifname}"
        if not self._loop.synced.wait(SYNC_TIMEOUT):
            raise CniError(
                ErrorCode.TRY_AGAIN_LATER, "the agent does not know the cluster's state yet"
            )
        place = self._loop.call(lambda: self._reserve(request, owner))
        wiring: Wiring | None = None
        try:
            wiring = self._network.add(
                netns_fd,
                WiringRequest(
                    place.endpoint,
                    owner,
                    request.ifname,
                    self._mtu,
                    place.ipv4,
                    place.ipv6,  # type: ignore[arg-type]
                ),
            )
            record = self._record_of(request, place, wiring)
            self._loop.call(lambda: self._publish(record))
        except BaseException as error:
            self._roll_back(place, owner, wiring)
            raise _as_cni(error) from error
        log.info("added %s (%s/%s) as endpoint %s: %s", owner, record.namespace, record.pod,
                 record.endpoint, ", ".join(map(str, record.addresses)))  # fmt: skip
        return success(request, results.merge(request.config.prev_result, _result(request, record)))

    def _reserve(self, request: Request, owner: str) -> _Place:
        """In the loop: an endpoint id and addresses, held until recorded or rolled back."""
        if owner in self._reserved.values():
            raise CniError(ErrorCode.TRY_AGAIN_LATER, f"{owner} is being added already")
        present = self._records.find(request.container_id, request.ifname)
        if present is not None:
            if any(link.name == present.host_name for link in self._network.devices()):
                raise CniError(
                    ErrorCode.INTERFACE_EXISTS,
                    f"{owner} is attached already, with {', '.join(map(str, present.addresses))}:"
                    " delete it first",
                )
            self._forget(present)
        store = self._loop.store
        if len(store.endpoints) + len(self._reserved) >= self._loop.datapath.capacity("endpoints"):
            raise CniError(
                ErrorCode.CAPACITY_EXCEEDED,
                f"this node holds {len(store.endpoints)} pods, as many as bpf.endpoints_max allows",
            )
        endpoint = self._new_id()
        try:
            held = self._pool.allocate(owner)
        except PoolExhausted as error:
            raise CniError(ErrorCode.ADDRESSES_EXHAUSTED, str(error)) from error
        self._reserved[endpoint] = owner
        return _Place(endpoint, held.ipv4, held.ipv6)

    def _new_id(self) -> int:
        """An id that no endpoint has, and that is no reserved origin (enum origin)."""
        taken = self._loop.store.endpoints.keys() | self._reserved.keys()
        while (endpoint := new_endpoint_id(taken)) > MAX_ENDPOINT_ID:
            pass
        return endpoint

    def _publish(self, record: EndpointRecord) -> None:
        """In the loop: the endpoint exists; its policy is in force when the call returns."""
        self._records.put(record)
        self._reserved.pop(record.endpoint, None)
        self._loop.store.put_endpoint(_endpoint(record))

    def _roll_back(self, place: _Place, owner: str, wiring: Wiring | None) -> None:
        def undo() -> None:
            self._reserved.pop(place.endpoint, None)
            self._loop.store.drop_endpoint(place.endpoint)

        def release() -> None:
            self._records.remove(place.endpoint)
            self._pool.release(owner)

        try:
            self._loop.call(undo)
            if wiring is not None:
                self._network.delete(wiring.host_name)
            self._loop.call(release)
        except Exception:
            # The device keeps its tag without a record: the next start removes it.
            log.exception("ADD of %s could not be taken back completely", owner)

    def _delete(self, container_id: str, ifname: str) -> None:
        record = self._loop.call(lambda: self._withdraw(container_id, ifname))
        if record is None:
            return
        try:
            self._network.delete(record.host_name)
        except (WiringError, RtnlError) as error:
            raise CniError(
                ErrorCode.TRY_AGAIN_LATER, f"delete {record.host_name}: {error}"
            ) from error
        # Only now may the address be given to another: nothing answers for it any more.
        self._loop.call(lambda: self._forget(record))
        log.info("deleted %s, endpoint %s", record.owner, record.endpoint)

    def _withdraw(self, container_id: str, ifname: str) -> EndpointRecord | None:
        record = self._records.find(container_id, ifname)
        if record is not None:
            self._loop.store.drop_endpoint(record.endpoint)
        return record

    def _forget(self, record: EndpointRecord) -> None:
        self._loop.store.drop_endpoint(record.endpoint)
        self._records.remove(record.endpoint)
        self._pool.release(record.owner)

    def _check(self, request: Request, netns_fd: int) -> Reply:
        record = self._loop.call(lambda: self._records.find(request.container_id, request.ifname))
        if record is None:
            raise CniError(
                ErrorCode.UNKNOWN_CONTAINER,
                f"{request.container_id}/{request.ifname} is not attached here",
            )
        try:
            found = [str(one) for one in check_wiring(netns_fd, record)]
        except OSError as error:
            raise CniError(ErrorCode.CHECK_FAILED, f"{record.owner}: {error}") from error
        if not self._loop.datapath.attached(record.host_ifindex):
            found.append(f"device {record.host_name}: the programs are not attached")
        if found:
            raise CniError(
                ErrorCode.CHECK_FAILED,
                f"{record.owner} is not as ADD made it: {found[0]}",
                "; ".join(found),
            )
        return success(request)

    def _collect(self, request: Request) -> None:
        """Remove every attachment of the network that the runtime does not name."""
        valid = request.config.valid_attachments

        def stale() -> list[EndpointRecord]:
            return [
                record
                for record in self._records
                if record.attributes.get(NETWORK) == request.config.name
                and Attachment(record.container_id, record.ifname) not in valid
            ]

        failures = []
        threads = []
        for record in self._loop.call(stale):

            def remove(one: EndpointRecord = record) -> None:
                try:
                    self._delete(one.container_id, one.ifname)
                except Exception as error:
                    failures.append(f"{one.owner}: {error}")

            thread = threading.Thread(target=remove, daemon=True)
            thread.start()  # deletions that wait together share one grace period
            threads.append(thread)
        for thread in threads:
            thread.join()
        if failures:
            raise CniError(ErrorCode.TRY_AGAIN_LATER, "; ".join(failures))

    def _status(self) -> None:
        if not self._loop.synced.is_set():
            raise CniError(ErrorCode.UNAVAILABLE, "the agent does not know the cluster's state yet")
        problem = self._loop.problems.get("datapath")
        if problem is not None:
            raise CniError(ErrorCode.LIMITED, f"the datapath is not up to date: {problem}")
        for usage in self._loop.call(self._pool.usage):
            if usage.used >= usage.capacity:
                raise CniError(
                    ErrorCode.UNAVAILABLE, f"no address is left of {', '.join(usage.cidrs)}"
                )

    def _record_of(self, request: Request, place: _Place, wiring: Wiring) -> EndpointRecord:
        pod = request.pod
        return EndpointRecord(
            endpoint=place.endpoint,
            container_id=request.container_id,
            ifname=request.ifname,
            netns=request.netns,
            netns_cookie=wiring.netns_cookie,
            host_name=wiring.host_name,
            host_ifindex=wiring.host_ifindex,
            host_mac=wiring.host_mac,
            pod_mac=wiring.pod_mac,
            mtu=self._mtu,
            ipv4=place.ipv4,
            ipv6=place.ipv6,  # type: ignore[arg-type]
            namespace=pod.namespace if pod else "",
            pod=pod.name if pod else "",
            pod_uid=pod.uid if pod else "",
            attributes={NETWORK: request.config.name},
        )


def _endpoint(record: EndpointRecord) -> Endpoint:
    return Endpoint(
        id=record.endpoint,
        container_id=record.container_id,
        ifname=record.ifname,
        namespace=record.namespace,
        pod=record.pod,
        pod_uid=record.pod_uid,
        ipv4=str(record.ipv4) if record.ipv4 else "",
        ipv6=str(record.ipv6) if record.ipv6 else "",
        mac=record.pod_mac,
        host_mac=record.host_mac,
        device=record.host_name,
        ifindex=record.host_ifindex,
    )


def _result(request: Request, record: EndpointRecord) -> results.Result:
    ips = []
    routes = []
    if record.ipv4 is not None:
        ips.append(results.IPConfig(IPv4Interface(f"{record.ipv4}/32"), GATEWAY4, 1))
        routes.append(results.Route(IPv4Network("0.0.0.0/0"), GATEWAY4))
    if record.ipv6 is not None:
        ips.append(results.IPConfig(IPv6Interface(f"{record.ipv6}/128"), GATEWAY6, 1))
        routes.append(results.Route(IPv6Network("::/0"), GATEWAY6))
    return results.Result(
        interfaces=(
            results.Interface(record.host_name, record.host_mac, "", record.mtu),
            results.Interface(record.ifname, record.pod_mac, request.netns, record.mtu),
        ),
        ips=tuple(ips),
        routes=tuple(routes),
        dns=request.config.dns,
    )


def _as_cni(error: BaseException) -> BaseException:
    match error:
        case CniError() | LoopStopped() | TimeoutError():
            return error
        case NameClash():
            return CniError(ErrorCode.INTERFACE_EXISTS, str(error))
        case MapError():
            return CniError(ErrorCode.CAPACITY_EXCEEDED, str(error))
        case WiringError() | LinkError() | OSError():
            return CniError(ErrorCode.IO_FAILURE, str(error))
        case _:
            return error
