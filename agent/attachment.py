# SPDX-License-Identifier: Apache-2.0
"""One attachment of a pod in its different forms: the durable record, the fact in the store, the
result and the error that CNI is given.
"""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

from agent.core.endpoint import Endpoint
from agent.kernel.endpoint_store import EndpointRecord
from agent.kernel.links import LinkError
from agent.kernel.maps import MapError
from agent.kernel.podnet import GATEWAY4, GATEWAY6, NameClash, WiringError
from agent.loop import LoopStopped
from cni import results
from cni.errors import CniError, ErrorCode
from cni.protocol import Request
from identity.allocator import AllocatorError


def endpoint_of(record: EndpointRecord) -> Endpoint:
    """The fact that the store holds of a recorded attachment."""
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
        netns_cookie=record.netns_cookie,
    )


def result_of(request: Request, record: EndpointRecord) -> results.Result:
    """What ADD answers."""
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


def as_cni(error: BaseException) -> BaseException:
    """A failure of ADD as the error that the runtime gets; what is not foreseen stays itself."""
    match error:
        case CniError() | LoopStopped() | TimeoutError():
            return error
        case NameClash():
            return CniError(ErrorCode.INTERFACE_EXISTS, str(error))
        case MapError() | AllocatorError():
            return CniError(ErrorCode.CAPACITY_EXCEEDED, str(error))
        case WiringError() | LinkError() | OSError():
            return CniError(ErrorCode.IO_FAILURE, str(error))
        case _:
            return error
