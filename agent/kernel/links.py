# SPDX-License-Identifier: Apache-2.0
"""Programs at the hooks of devices: attached, adopted, replaced without a gap, removed.

TCX links are pinned, so they outlive the agent. Their pins bear a name that the caller builds from
the endpoint id and never from the ifindex, which is reused; what the link is really attached to
is read from the kernel each time. A link whose device is gone stays pinned and does nothing:
``prune`` removes it. Kernels without TCX get a clsact filter, which lives and dies with its device.

An ifindex means the device in the calling thread's network namespace.
"""

import errno
import os
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from agent.kernel import bpf, tcfilter
from agent.kernel.rtnl import RtnlError
from agent.kernel.syscall import AttachType, BpfError, LinkType


class Hook(Enum):
    """Where at a device: (name, TCX attach type, minor number of the clsact parent)."""

    INGRESS = ("ingress", AttachType.TCX_INGRESS, 0xFFF2)
    EGRESS = ("egress", AttachType.TCX_EGRESS, 0xFFF3)

    @property
    def attach_type(self) -> AttachType:
        """The attach type of a TCX link."""
        return self.value[1]

    @property
    def minor(self) -> int:
        """TC_H_MIN_INGRESS or TC_H_MIN_EGRESS."""
        return self.value[2]


class Outcome(Enum):
    """What ``attach`` had to do."""

    CREATED = "created"
    REPLACED = "replaced"
    KEPT = "kept"


class LinkError(Exception):
    """A program could not be attached or a pin is not what it should be; both are named."""


@dataclass(frozen=True, slots=True)
class PinnedLink:
    """A link found in the folder. ``ifindex`` 0: its device is gone."""

    name: str
    ifindex: int
    attach_type: int
    program_id: int


class Attacher(Protocol):
    """Attaches programs to devices, by whichever means the kernel has."""

    def attach(self, program_fd: int, ifindex: int, hook: Hook, name: str) -> Outcome:
        """Make this program the one at this hook; idempotent.

        ``name`` identifies the attachment over restarts ([A-Za-z0-9_-], no dots). Raises LinkError.
        """
        ...

    def detach(self, ifindex: int, hook: Hook, name: str) -> None:
        """Remove the attachment ``name``; an absent one is fine. Raises LinkError."""
        ...

    def program_id(self, ifindex: int, hook: Hook, name: str) -> int | None:
        """Id of the program attached as ``name`` at this very hook, None where there is none."""
        ...

    def prune(self) -> list[str]:
        """Forget attachments whose device is gone; returns their names."""
        ...


class TcxAttacher:
    """Links pinned in ``folder``, which is on a bpffs and is made if missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def attach(self, program_fd: int, ifindex: int, hook: Hook, name: str) -> Outcome:
        """See ``Attacher``. A replacement is one atomic step for the packets that pass."""
        pin = self._folder / name
        link = self._open(pin)
        if link is not None:
            try:
                info = bpf.link_info(link)
                if (info.type, info.ifindex, info.attach_type) == (
                    LinkType.TCX, ifindex, hook.attach_type,
                ):  # fmt: skip
                    return _replace(link, info.program_id, program_fd, name)
            finally:
                os.close(link)
            # The device it was for is gone, or was renumbered: the pin says nothing any more.
            self._remove(pin)
        self._create(program_fd, ifindex, hook, pin)
        return Outcome.CREATED

    def detach(self, ifindex: int, hook: Hook, name: str) -> None:
        """See ``Attacher``; the pin alone decides, so it works after the device is gone."""
        self._remove(self._folder / name)

    def program_id(self, ifindex: int, hook: Hook, name: str) -> int | None:
        """See ``Attacher``."""
        for link in self.links():
            at = (link.name, link.ifindex, link.attach_type)
            if at == (name, ifindex, hook.attach_type):
                return link.program_id
        return None

    def links(self) -> list[PinnedLink]:
        """All links pinned in the folder, by name. Raises LinkError for a pin that is no link."""
        found = []
        for pin in sorted(self._folder.iterdir()) if self._folder.is_dir() else []:
            link = self._open(pin)
            if link is None:
                continue  # removed meanwhile
            try:
                info = bpf.link_info(link)
            finally:
                os.close(link)
            found.append(PinnedLink(pin.name, info.ifindex, info.attach_type, info.program_id))
        return found

    def prune(self) -> list[str]:
        """See ``Attacher``."""
        dead = [link.name for link in self.links() if link.ifindex == 0]
        for name in dead:
            (self._folder / name).unlink(missing_ok=True)
        return dead

    def _open(self, pin: Path) -> int | None:
        try:
            link = bpf.object_get(pin)
        except BpfError as error:
            if error.errno == errno.ENOENT:
                return None
            raise LinkError(f"{pin}: {error}") from error
        kind = bpf.object_kind(link)
        if kind != "link":
            os.close(link)
            raise LinkError(f"{pin} is a {kind} and no link: something else put it there")
        return link

    def _create(self, program_fd: int, ifindex: int, hook: Hook, pin: Path) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            link = _linked(program_fd, ifindex, hook)
        except BpfError as error:
            raise _failed(pin.name, ifindex, hook, error) from error
        try:
            # Without a pin the link ends with this descriptor: never half attached.
            bpf.object_pin(link, pin)
        except BpfError as error:
            raise LinkError(str(error)) from error
        finally:
            os.close(link)

    def _remove(self, pin: Path) -> None:
        link = self._open(pin)
        if link is None:
            return
        try:
            bpf.link_detach(link)
        except BpfError as error:
            # ENOLINK: the device is gone, or somebody detached it before.
            if error.errno != errno.ENOLINK:
                raise LinkError(f"{pin}: {error}") from error
        finally:
            os.close(link)
        pin.unlink(missing_ok=True)


class ClsactAttacher:
    """Filters of a clsact qdisc. They need no pins: a filter holds its program."""

    def attach(self, program_fd: int, ifindex: int, hook: Hook, name: str) -> Outcome:
        """See ``Attacher``."""
        present = tcfilter.attached(ifindex, hook.minor)
        if present is not None and present == bpf.program_info(program_fd).id:
            return Outcome.KEPT
        try:
            tcfilter.attach(ifindex, hook.minor, program_fd, name)
        except RtnlError as error:
            raise _failed(name, ifindex, hook, error) from error
        return Outcome.CREATED if present is None else Outcome.REPLACED

    def detach(self, ifindex: int, hook: Hook, name: str) -> None:
        """See ``Attacher``."""
        try:
            tcfilter.detach(ifindex, hook.minor)
        except RtnlError as error:
            raise _failed(name, ifindex, hook, error) from error

    def program_id(self, ifindex: int, hook: Hook, name: str) -> int | None:
        """See ``Attacher``."""
        return tcfilter.attached(ifindex, hook.minor)

    def prune(self) -> list[str]:
        """See ``Attacher``: a filter goes with its device, so there is never anything to do."""
        return []


def has_tcx() -> bool:
    """Whether the kernel has TCX (6.6): asks what is attached to device 1, and changes nothing."""
    try:
        bpf.program_query(1, AttachType.TCX_INGRESS)
    except BpfError as error:
        return error.errno != errno.EINVAL
    return True


def attacher(folder: Path) -> Attacher:
    """The best way that this kernel has; ``folder`` for the pins is on a bpffs."""
    return TcxAttacher(folder) if has_tcx() else ClsactAttacher()


def _linked(program_fd: int, ifindex: int, hook: Hook) -> int:
    """A new link. A program is at a hook once only, and a link that lost its pin ends by itself a
    moment later: so it is waited for."""
    for pause in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4):
        try:
            return bpf.link_create(program_fd, ifindex, hook.attach_type)
        except BpfError as error:
            if error.errno != errno.EEXIST:
                raise
        time.sleep(pause)
    return bpf.link_create(program_fd, ifindex, hook.attach_type)


def _replace(link: int, old_id: int, program_fd: int, name: str) -> Outcome:
    if old_id == bpf.program_info(program_fd).id:
        return Outcome.KEPT
    try:
        bpf.link_update(link, program_fd)
    except BpfError as error:
        raise LinkError(f"replace the program of {name}: {error}") from error
    return Outcome.REPLACED


def _failed(name: str, ifindex: int, hook: Hook, error: OSError) -> LinkError:
    place = f"{hook.value[0]} of device {ifindex}"
    if error.errno == errno.ENODEV:
        return LinkError(f"attach {name} to {place}: no such device in this network namespace")
    return LinkError(f"attach {name} to {place}: {error}")
