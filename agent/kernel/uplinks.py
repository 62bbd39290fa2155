# SPDX-License-Identifier: Apache-2.0
"""The uplink programs at devices of the node: attached, looked for, attached anew, removed.

By TCX the pins say where it is attached. Without TCX there are none, and nothing in the kernel
tells whose agent attached a filter: so the caller writes down the devices, and gives them back as
``recorded`` (name -> ifindex at that time).
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Collection, Mapping
from pathlib import Path

from agent.kernel.links import Attacher, ClsactAttacher, Hook, LinkError, Outcome, attacher


class Uplinks:
    """Attachments with their pins in one folder on a bpffs."""

    def __init__(self, folder: Path, means: Attacher | None = None) -> None:
        self._folder = folder
        self._attacher = means or attacher(folder)

    @property
    def mode(self) -> str:
        """How programs are attached here: `tcx` or `clsact`."""
        return "clsact" if isinstance(self._attacher, ClsactAttacher) else "tcx"

    def attach(
        self, program_fd: int, device: str, ifindex: int, hook: Hook = Hook.INGRESS
    ) -> Outcome:
        """Make the program the one at a device's hook. Raises LinkError."""
        return self._attacher.attach(program_fd, ifindex, hook, uplink_name(device, hook))

    def attach_anew(
        self, program_fd: int, device: str, ifindex: int, hook: Hook = Hook.INGRESS
    ) -> Outcome:
        """As `attach`, after others had their hands in it: what bears the pin's name and is no
        link goes. Raises LinkError, OSError."""
        try:
            return self.attach(program_fd, device, ifindex, hook)
        except LinkError:
            (self._folder / uplink_name(device, hook)).unlink(missing_ok=True)
            return self.attach(program_fd, device, ifindex, hook)

    def program_id(self, device: str, ifindex: int, hook: Hook = Hook.INGRESS) -> int:
        """Id of the program attached there, 0 for none. Raises RtnlError."""
        try:
            found = self._attacher.program_id(ifindex, hook, uplink_name(device, hook))
        except LinkError:
            return 0  # the pin is no link, or cannot be read
        return found or 0

    def detach_others(
        self,
        devices: Collection[str],
        recorded: Mapping[str, int],
        hooks: Collection[Hook] = (Hook.INGRESS,),
    ) -> list[str]:
        """Detach the programs from all but these hooks of these devices; names of the attachments
        that there were. Raises LinkError."""
        wanted = {uplink_name(device, hook) for device in devices for hook in hooks}
        gone = []
        for pin in self._pins():
            if pin not in wanted:
                self._attacher.detach(0, Hook.INGRESS, pin)
                gone.append(pin)
        if self.mode == "clsact":
            for device, ifindex in recorded.items():
                for hook in Hook:
                    name = uplink_name(device, hook)
                    if name not in wanted and self._detach(device, ifindex, hook):
                        gone.append(name)
        return gone

    def prune(self) -> list[str]:
        """Forget attachments whose devices are gone; gives their names."""
        return self._attacher.prune()

    def remove(self, recorded: Mapping[str, int]) -> list[str]:
        """Detach all that there is; names of the attachments. What cannot be detached now ends with
        its pin."""
        gone = []
        for pin in self._pins():
            with contextlib.suppress(LinkError):
                self._attacher.detach(0, Hook.INGRESS, pin)
                gone.append(pin)
        if self.mode == "clsact":
            for device, ifindex in recorded.items():
                for hook in Hook:
                    with contextlib.suppress(LinkError):
                        if self._detach(device, ifindex, hook):
                            gone.append(uplink_name(device, hook))
        return gone

    def _detach(self, device: str, ifindex: int, hook: Hook) -> bool:
        """The filter has a handle of our own: where there is none, nothing happens. So the number
        is tried too, for a device that has another name now."""
        indexes = {ifindex}
        with contextlib.suppress(OSError):
            indexes.add(socket.if_nametoindex(device))
        found = False
        name = uplink_name(device, hook)
        for index in indexes:
            if self._attacher.program_id(index, hook, name) is not None:
                self._attacher.detach(index, hook, name)
                found = True
        return found

    def _pins(self) -> list[str]:
        if self.mode == "clsact" or not self._folder.is_dir():
            return []
        return sorted(p.name for p in self._folder.iterdir() if p.name.startswith("uplink-"))


def uplink_name(device: str, hook: Hook = Hook.INGRESS) -> str:
    """Name of an uplink's attachment; pins may not hold every character that devices may."""
    safe = "".join(c if c.isalnum() or c == "-" else f"_{ord(c):02x}" for c in device)
    return f"uplink-{safe}-{hook.value[0]}"
