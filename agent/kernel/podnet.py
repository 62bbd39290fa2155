# SPDX-License-Identifier: Apache-2.0
"""Wiring of one pod interface: a veth pair with its addresses, routes and neighbours.

    pod's namespace                             node's namespace
    eth0  10.244.0.5/32  fd00::5/128   <=====>  bri0a1b2c3d   no addresses
      169.254.1.1 dev eth0 scope link             10.244.0.5 dev bri0a1b2c3d scope link
      default via 169.254.1.1 onlink              fd00::5    dev bri0a1b2c3d
      default via fe80::1     onlink              permanent neighbours: the pod's MAC
      permanent neighbours: the host end's MAC

No pool of prepared pairs, by measurement (6.18, two cores, 100 pods present): moving a device into
a namespace takes 20 ms, because the kernel waits for all pending RCU callbacks (rcu_barrier in
__dev_change_net_namespace). Making the pair with its pod end born in the pod's namespace takes
0.7 ms, so nothing is left to prepare. Programs are attached by the `attach` callback before the
pod end is up: no packet passes a device without them. What it costs is up to the callback; see
agent/kernel/clsact.py. The whole of `add` with it takes 2 to 3 ms. Calls from several threads
queue for the kernel's rtnl lock, so one thread is as fast as eight, and fairer.

Settings of the host end, all per device (our own, so nothing is recorded):
  ipv4 forwarding 1       what comes from the pod may be routed; ip_forward is not needed
  ipv4 rp_filter 0        the programs check sources exactly (address and MAC); the kernel's check
                          would cost a route lookup per packet. The effective value is the maximum
                          of this and conf.all: 1 there is harmless, the /32 route satisfies it
  ipv4 send_redirects 0   the gateway is the only way there is
  ipv6 forwarding 1, force_forwarding 1 (6.17 on)
  ipv6 no link-local address (addr_gen_mode none); accept_ra 0 where it was 2
Of the pod end: accept_ra 0 and accept_dad 0, and disable_ipv6 0 where the runtime made it 1.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from agent.kernel import netlink as nl
from agent.kernel import netns, sysctl
from agent.kernel.rtnl import Request, RtnlError, RtnlSocket

GATEWAY4 = IPv4Address("169.254.1.1")
GATEWAY6 = IPv6Address("fe80::1")
UNREACHABLE_METRIC = 4_000_000_000
PREFIX = "bri"

Attach = Callable[[int, str], None]
"""(ifindex, name) of a host end that is up while its pod end is not: attach the programs."""


class WiringError(RuntimeError):
    """A pod could not be wired. Nothing of it is left."""


class NameClash(WiringError):
    """The pod has a device of the wanted name already."""

    def __init__(self, ifname: str) -> None:
        super().__init__(f"the pod's namespace has a device {ifname} already (CNI_IFNAME)")
        self.ifname = ifname


class RouteClash(WiringError):
    """The pod has a default route already, or the node a route to the pod's address."""


@dataclass(frozen=True, slots=True)
class WiringRequest:
    """What to wire. `endpoint` names the device; `owner` goes into its alias (who it is for)."""

    endpoint: int
    owner: str
    ifname: str
    mtu: int
    ipv4: IPv4Address | None
    ipv6: IPv6Address | None

    @property
    def addresses(self) -> tuple[nl.IPAddress, ...]:
        """Those that are there, IPv4 first."""
        return tuple(address for address in (self.ipv4, self.ipv6) if address is not None)


@dataclass(frozen=True, slots=True)
class Wiring:
    """What was wired: for EndpointRecord. MACs in the usual notation."""

    host_name: str
    host_ifindex: int
    host_mac: str
    pod_mac: str
    netns_cookie: int


def device_name(endpoint: int) -> str:
    """Name of an endpoint's host end."""
    return f"{PREFIX}{endpoint:08x}"


def new_endpoint_id(taken: Collection[int]) -> int:
    """A random 32 bit number, not 0 and not in `taken`: ids of the dead do not come back."""
    while True:
        number = int.from_bytes(os.urandom(4), "big")
        if number and number not in taken:
            return number


class PodNetwork:
    """Devices of one agent, in the network namespace of the calling threads.

    `tag` tells this agent's devices from those of another on the same node. Safe for several
    threads at once: every call opens its own sockets.
    """

    def __init__(self, tag: str, attach: Attach) -> None:
        self._alias = f"bristle:{tag}:"
        self._attach = attach
        self._deleting = threading.Lock()
        self._queueing = threading.Lock()
        self._to_delete: list[_Deletion] = []

    def add(self, netns_fd: int, request: WiringRequest) -> Wiring:
        """Wire one pod interface.

        Raises InvalidNetns, NameClash, RouteClash, WiringError, and what `attach` raises; in each
        case nothing is left behind, in the node's namespace or in the pod's.
        """
        netns.verify(netns_fd)
        name = device_name(request.endpoint)
        with RtnlSocket() as node:
            host, pod_mac = self._create(node, netns_fd, name, request)
            try:
                self._attach(host.index, name)
                node.run(_host_side(request, host.index, pod_mac))
                _set_host_ipv6(host)
                cookie = netns.run_in(netns_fd, lambda: _wire_pod(request, host.mac))
                _await_carrier(node, name)
            except BaseException as error:
                node.attempt([nl.delete_link(host.index)])
                if isinstance(error, RtnlError):
                    raise _typed(error) from error
                if isinstance(error, OSError):
                    raise WiringError(f"cannot wire {request.owner}: {error}") from error
                raise
        return Wiring(name, host.index, host.mac, pod_mac, cookie)

    def delete(self, name: str) -> bool:
        """Delete a pod's pair; False where it is gone already (its namespace took it along).

        Calls from several threads are joined: one grace period serves all that wait.
        Raises WiringError for a device that is not this agent's, RtnlError.
        """
        with RtnlSocket() as node:
            try:
                link = nl.get_link(node, name)
            except RtnlError as error:
                if error.errno == errno.ENODEV:
                    return False
                raise
        if not link.alias.startswith(self._alias):
            raise WiringError(f"device {name} is not this agent's (alias {link.alias!r})")
        entry = _Deletion(link.index)
        with self._queueing:
            self._to_delete.append(entry)
        with self._deleting:
            if not entry.done:
                with self._queueing:
                    batch, self._to_delete = self._to_delete, []
                _delete_together(batch)
        if entry.error is not None:
            raise entry.error
        return True

    def devices(self) -> tuple[nl.Link, ...]:
        """Host ends of this agent, recorded or not."""
        with RtnlSocket() as node:
            return tuple(
                link
                for link in nl.list_links(node)
                if link.alias.startswith(self._alias) and link.name.startswith(PREFIX)
            )

    def remove_devices(self, keep: Collection[str] = ()) -> tuple[str, ...]:
        """Delete all of this agent's pairs but those named; the names of those deleted.

        At start with the recorded ones to keep, so that what a killed ADD left goes; for cleanup
        without any.
        """
        doomed = [link for link in self.devices() if link.name not in keep]
        batch = [_Deletion(link.index) for link in doomed]
        with self._deleting:
            _delete_together(batch)
        for entry in batch:
            if entry.error is not None:
                raise entry.error
        return tuple(link.name for link in doomed)

    def _create(
        self, node: RtnlSocket, netns_fd: int, name: str, request: WiringRequest
    ) -> tuple[nl.Link, str]:
        host_mac, pod_mac = nl.random_mac(), nl.random_mac()
        # The messages after the first name the device, and the kernel carries them out even when
        # the first failed. So a device of that name must not be there to be changed.
        try:
            nl.get_link(node, name)
        except RtnlError as error:
            if error.errno != errno.ENODEV:
                raise WiringError(str(error)) from error
        else:
            raise WiringError(f"device {name} is there already; the endpoint id is in use")
        # One system call, so a kill cannot come between the device and its tag.
        outcome = node.attempt(
            [
                nl.create_pair(name, host_mac, netns_fd, request.ifname, pod_mac, request.mtu),
                nl.set_alias(name, self._alias + request.owner),
                nl.set_ipv4_conf(name, _HOST_IPV4),
                nl.no_address_generation(name),
                nl.set_up(name),
            ]
        )
        created, *others = outcome
        if created is not None:
            if created.errno == errno.EEXIST:
                raise NameClash(request.ifname) from created
            raise WiringError(f"{created} (in the pod: {request.ifname})") from created
        try:
            link = nl.get_link(node, name)
        except RtnlError as error:
            # Only the pod's namespace going away at this moment does that; it took the pair along.
            raise WiringError(f"{error}; was the pod's namespace deleted meanwhile?") from error
        has_ipv6 = bool(link.ipv6_conf)
        for number, error_or_none in enumerate(others):
            if error_or_none is not None and (has_ipv6 or number != _ADDRESS_GENERATION):
                node.attempt([nl.delete_link(link.index)])
                raise WiringError(str(error_or_none)) from error_or_none
        if request.ipv6 is not None and not has_ipv6:
            node.attempt([nl.delete_link(link.index)])
            raise WiringError("pod_cidrs has IPv6, this kernel has none (or the MTU is below 1280)")
        return link, pod_mac


_HOST_IPV4 = {
    nl.IPV4_DEVCONF_FORWARDING: 1,
    nl.IPV4_DEVCONF_RP_FILTER: 0,
    nl.IPV4_DEVCONF_SEND_REDIRECTS: 0,
}
_ADDRESS_GENERATION = 2  # place of no_address_generation behind create_pair


def protect_blocks(networks: Iterable[nl.IPNetwork], install: bool) -> None:
    """Install or remove `unreachable` routes for the pod CIDRs; both idempotent.

    Packets for an address no pod has get an ICMP error instead of following the default route,
    which may lead back here. The metric is the highest in use, and pods' routes are longer.
    """
    with RtnlSocket() as node:
        node.run([nl.unreachable_route(net, UNREACHABLE_METRIC, install) for net in networks])


# ---- parts of ADD ----------------------------------------------------------------------------


def _host_side(request: WiringRequest, index: int, pod_mac: str) -> list[Request]:
    requests: list[Request] = []
    for address in request.addresses:
        requests.append(nl.add_host_route(address, index))
        requests.append(nl.add_neighbour(address, pod_mac, index))
    return requests


def _set_host_ipv6(host: nl.Link) -> None:
    wanted = {
        "disable_ipv6": (nl.DEVCONF_DISABLE_IPV6, 0),
        "forwarding": (nl.DEVCONF_FORWARDING, 1),
    }
    if _conf(host, nl.DEVCONF_ACCEPT_RA) == 2:  # 1 means "not while forwarding"
        wanted["accept_ra"] = (nl.DEVCONF_ACCEPT_RA, 0)
    _set_ipv6(host, wanted)
    # Not among the values that come with the link (6.18); absent before 6.17.
    sysctl.write(f"net/ipv6/conf/{host.name}/force_forwarding", "1")


def _set_ipv6(link: nl.Link, wanted: dict[str, tuple[int, int]]) -> None:
    """Write the settings that differ: a write costs 75 us, their values came with the link."""
    for setting, (position, value) in wanted.items():
        if _conf(link, position) not in (None, value):
            sysctl.write(f"net/ipv6/conf/{link.name}/{setting}", str(value))


def _conf(link: nl.Link, position: int) -> int | None:
    return link.ipv6_conf[position] if position < len(link.ipv6_conf) else None


def _wire_pod(request: WiringRequest, host_mac: str) -> int:
    """Runs in the pod's namespace; returns its cookie."""
    with RtnlSocket() as pod:
        link = nl.get_link(pod, request.ifname)
        gateways: list[nl.IPAddress] = []
        requests = [nl.set_up(index=_LOOPBACK), nl.set_up(index=link.index)]
        requests += [nl.add_address(link.index, address) for address in request.addresses]
        if request.ipv4 is not None:
            gateways.append(GATEWAY4)
            requests.append(nl.add_host_route(GATEWAY4, link.index))
        if request.ipv6 is not None:
            gateways.append(GATEWAY6)
            wanted = {
                "disable_ipv6": (nl.DEVCONF_DISABLE_IPV6, 0),
                "accept_ra": (nl.DEVCONF_ACCEPT_RA, 0),
                "accept_dad": (nl.DEVCONF_ACCEPT_DAD, 0),
            }
            _set_ipv6(link, wanted)
        for gateway in gateways:
            requests.append(nl.add_default_route(gateway, link.index))
            requests.append(nl.add_neighbour(gateway, host_mac, link.index))
        pod.run(requests)
        ipv6 = request.ipv6
        if ipv6 is not None:
            _await(lambda: nl.is_local(pod, ipv6), f"address {ipv6} did not become local")
    return netns.own_cookie()


_LOOPBACK = 1


def _await_carrier(node: RtnlSocket, name: str) -> None:
    """Return when the host end carries packets.

    It was up before its peer, so the kernel activates its queue by a work queue, and until then
    drops what is sent there. Since 6.8 asking for the device makes the kernel do it first.
    """
    _await(lambda: nl.get_link(node, name).operational, f"device {name} got no carrier")


def _await(ready: Callable[[], bool], failure: str) -> None:
    """Ask until the kernel's work queues have caught up; they take a fraction of a millisecond."""
    for _ in range(_ATTEMPTS):
        if ready():
            return
        time.sleep(_PAUSE)
    raise WiringError(f"{failure} within {_ATTEMPTS * _PAUSE:.0f} s")


_ATTEMPTS, _PAUSE = 10_000, 0.0002


def _typed(error: RtnlError) -> WiringError:
    if error.errno == errno.EEXIST and "route" in error.what:
        return RouteClash(f"{error}; remove the other one, or the plugin that made it")
    return WiringError(str(error))


# ---- deletion --------------------------------------------------------------------------------


class _Deletion:
    __slots__ = ("done", "error", "index")

    def __init__(self, index: int) -> None:
        self.index = index
        self.done = False
        self.error: RtnlError | None = None


def _delete_together(batch: Collection[_Deletion]) -> None:
    """Delete many devices in one go: 110 one by one take 2.6 s, as a device group 63 ms."""
    if not batch:
        return
    with RtnlSocket() as node:
        if len(batch) > 1:
            group = int.from_bytes(os.urandom(4), "big") & 0x7FFFFFFF | 0x40000000
            requests = [nl.set_group(entry.index, group) for entry in batch]
            outcomes = node.attempt([*requests, nl.delete_group(group)])
        else:
            outcomes = node.attempt([nl.delete_link(entry.index) for entry in batch])
    failed = next((outcome for outcome in outcomes if outcome is not None), None)
    for entry in batch:
        entry.error = failed
        entry.done = True
