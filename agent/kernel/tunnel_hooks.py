# SPDX-License-Identifier: Apache-2.0
"""The programs at the tunnel's device: by TCX links where the kernel has them.

The device is made once and lives long, so a link's two grace periods do not matter here as they do
at pods (clsact.py), and every packet between nodes passes both hooks: without the way through a
qdisc's filter list a stream is one to two per cent faster.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agent.kernel import clsact
from agent.kernel.links import Attacher, ClsactAttacher, Hook, LinkError, attacher
from agent.kernel.rtnl import RtnlSocket
from agent.kernel.uplinks import uplink_name
from agent.kernel.vxlan import DEVICE

_NAMES: Final = {hook: uplink_name(DEVICE, hook) for hook in (Hook.INGRESS, Hook.EGRESS)}
"""As those of an uplink: an agent that knows of no links here takes them for one that is no longer
configured, once it has attached what it knows of."""


class TunnelHooks:
    """Both programs, with their pins in a folder on a bpffs that others use, too."""

    def __init__(self, folder: Path, means: Attacher | None = None) -> None:
        self._folder = folder
        self._means = means or attacher(folder)

    def attach(self, ifindex: int, ingress_fd: int, egress_fd: int) -> None:
        """Run these at the device, in place of others of ours (atomically each), however they were
        attached. Raises OSError."""
        if isinstance(self._means, ClsactAttacher):
            with RtnlSocket() as netlink:
                clsact.attach_anew(netlink, ifindex, ingress_fd, egress_fd)
            return
        for hook, fd in ((Hook.INGRESS, ingress_fd), (Hook.EGRESS, egress_fd)):
            self._link(fd, ifindex, hook)
        with RtnlSocket() as netlink:
            # Of a release that attached them so: what is before it decides already.
            clsact.detach(netlink, ifindex)

    def attached(self, ifindex: int) -> tuple[int, int]:
        """Program ids at ingress and egress, 0 where there is none of ours. Raises RtnlError."""
        if isinstance(self._means, ClsactAttacher):
            with RtnlSocket() as netlink:
                return clsact.attached(netlink, ifindex)
        try:
            ingress, egress = (
                self._means.program_id(ifindex, hook, name) for hook, name in _NAMES.items()
            )
        except LinkError:
            return 0, 0  # a pin is no link, or cannot be read
        return ingress or 0, egress or 0

    def _link(self, fd: int, ifindex: int, hook: Hook) -> None:
        name = _NAMES[hook]
        try:
            try:
                self._means.attach(fd, ifindex, hook, name)
            except LinkError:
                # What bears the pin's name and is no link goes.
                (self._folder / name).unlink(missing_ok=True)
                self._means.attach(fd, ifindex, hook, name)
        except LinkError as error:
            raise OSError(str(error)) from error
