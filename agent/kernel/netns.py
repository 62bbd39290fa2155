# SPDX-License-Identifier: Apache-2.0
"""Network namespaces by descriptor: enter one for the length of a call, compare, identify.

setns(2) moves the calling thread alone, so work in a pod's namespace is done by a thread made for
it, which ends there: no thread of the agent can ever be left behind in a pod's namespace.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

CLONE_NEWNET = 0x40000000
NS_GET_NSTYPE = 0xB703
SO_NETNS_COOKIE = 71
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


class InvalidNetns(ValueError):
    """The descriptor is no network namespace, or is the node's own."""


def verify(fd: int) -> None:
    """Raise InvalidNetns unless `fd` is a network namespace other than the caller's."""
    try:
        kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
    except OSError as error:
        raise InvalidNetns(
            f"CNI_NETNS is not a namespace ({error.strerror}); it must be a path such as "
            "/var/run/netns/NAME or /proc/PID/ns/net"
        ) from error
    if kind != CLONE_NEWNET:
        raise InvalidNetns("CNI_NETNS is a namespace, but not a network namespace")
    if identity(fd) == own_identity():
        raise InvalidNetns("CNI_NETNS is the node's own namespace; host-network pods need no CNI")


def identity(fd: int) -> tuple[int, int]:
    """Device and inode: equal for two descriptors of one namespace, as long as one is open."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def own_identity() -> tuple[int, int]:
    """`identity` of the calling thread's namespace."""
    status = os.stat("/proc/thread-self/ns/net")
    return status.st_dev, status.st_ino


def own_cookie() -> int:
    """The calling thread's namespace cookie (SO_NETNS_COOKIE): never reused until reboot."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        return int(struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0])


def make_own() -> None:
    """Puts the calling thread into a new namespace, with its loopback up; for good."""
    if _libc.unshare(CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot make a network namespace: {os.strerror(code)}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as one:
        # struct ifreq: name, flags (netdevice(7)).
        fcntl.ioctl(one, _SIOCSIFFLAGS, struct.pack("=16sH22x", b"lo", _IFF_UP))


class _Visit(threading.Thread, Generic[T]):
    def __init__(self, fd: int, work: Callable[[], T]) -> None:
        super().__init__(name="netns", daemon=True)
        self._fd = fd
        self._work = work
        self.result: T
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            if _libc.setns(self._fd, CLONE_NEWNET) != 0:
                code = ctypes.get_errno()
                raise OSError(code, f"cannot enter the pod's namespace: {os.strerror(code)}")
            self.result = self._work()
        except BaseException as error:
            self.error = error


def run_in(fd: int, work: Callable[[], T]) -> T:
    """Call `work` in the network namespace `fd`, on a thread of its own; its result or exception.

    Costs about 0.1 ms. Sockets that `work` opens stay in that namespace; /proc/sys/net is that
    namespace's while it runs.
    """
    visit = _Visit(fd, work)
    visit.start()
    visit.join()
    if visit.error is not None:
        raise visit.error
    return visit.result
