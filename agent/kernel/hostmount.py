# SPDX-License-Identifier: Apache-2.0
"""Mounting a BPF file system on the host from inside a container.

A mount made in a container's own mount namespace ends with the container, and one that spreads to
the host needs a privileged container. Entering the host's mount namespace needs SYS_ADMIN,
SYS_CHROOT and SYS_PTRACE (to open it at <proc>/1/ns/mnt) and nothing else.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from agent.kernel import bpffs

_CLONE_NEWNS = 0x00020000
_libc = ctypes.CDLL(None, use_errno=True)


class HostMountError(Exception):
    """The host's mount namespace cannot be entered; says which right is missing."""


def enter_host(proc: Path) -> None:
    """Move this process into the mount namespace of process 1 of `proc`, the host's procfs.

    For a process that does its work there and ends: from here on paths are the host's, and
    importing a module would read the host's files. It must have a single thread.
    Raises HostMountError.
    """
    place = proc / "1/ns/mnt"
    try:
        namespace = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise HostMountError(
            f"open {place}: {error.strerror}; it takes the host's /proc and SYS_PTRACE"
        ) from error
    try:
        if _libc.setns(namespace, _CLONE_NEWNS) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise HostMountError(
                f"enter the host's mount namespace: {reason}; it takes SYS_ADMIN and SYS_CHROOT,"
                " and a security profile that allows it"
            )
    finally:
        os.close(namespace)


def ensure_on_host(proc: Path, folder: Path) -> Path | None:
    """Make `folder` a folder on a BPF file system of the host; the mount point if one was made.

    See `enter_host`, also for what the caller may do afterwards: nothing but end.
    Raises HostMountError, BpffsError.
    """
    enter_host(proc)
    return bpffs.ensure(folder).mounted
