# SPDX-License-Identifier: Apache-2.0
"""How large packets may be: what the node's devices carry now, and pods that were made for more."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import Final

from agent.kernel.default_routes import default_route_mtu
from agent.kernel.endpoint_store import EndpointRecord
from agent.kernel.netlink import get_link
from agent.kernel.rtnl import RtnlError, RtnlSocket

DEFAULT_MTU: Final = 1500
_NAMED: Final = 10


def underlay_mtu(devices: Sequence[str]) -> int:
    """The least of the uplinks, without uplinks that of the default route's device; 0 where there
    is none just now. Raises RtnlError, DumpInterrupted."""
    if not devices:
        return default_route_mtu()
    mtus = []
    with RtnlSocket() as netlink:
        for device in devices:
            try:
                mtus.append(get_link(netlink, device).mtu)
            except RtnlError as error:
                if error.errno != errno.ENODEV:
                    raise
    return min(mtus, default=0)


def oversized(records: Iterable[EndpointRecord], mtu: int) -> dict[str, str]:
    """Pods that were made with a larger MTU than pods get now, as a problem for status.

    A pod's own device is never changed: its connections have agreed on segments of that size. One
    that is smaller than it could be harms nobody.
    """
    large = sorted((one for one in records if one.mtu > mtu), key=_name)
    if not large:
        return {}
    named = ", ".join(f"{_name(one)} ({one.mtu})" for one in large[:_NAMED])
    more = f" and {len(large) - _NAMED} more" if len(large) > _NAMED else ""
    return {
        "mtu of pods": f"{named}{more} were made with more than the {mtu} bytes that fit now, and"
        " their large packets may be lost: delete these pods, so that they are made anew, or raise"
        " the MTU of the network between the nodes again"
    }


def _name(record: EndpointRecord) -> str:
    return f"{record.namespace}/{record.pod}" if record.pod else record.owner
