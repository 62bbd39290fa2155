# SPDX-License-Identifier: Apache-2.0
"""The bpf(2) system call and its numbers (include/uapi/linux/bpf.h), by ctypes.

``call`` is the only place that enters the kernel by bpf(2); ``agent.kernel.bpf`` gives each
command a typed function. No BPF library is used: the numbers are a stable kernel ABI.
"""

import ctypes
import errno
import os
import platform
from enum import IntEnum
from typing import Final

# bpf(2) has no wrapper in the C library; the number differs per architecture.
SYSTEM_CALL: Final = {"x86_64": 321, "aarch64": 280}
_MEMBARRIER: Final = {"x86_64": 324, "aarch64": 283}
_MEMBARRIER_CMD_GLOBAL: Final = 1

_RETRIES: Final = 5  # of a call that a signal broke off, as libbpf does


class Command(IntEnum):
    """enum bpf_cmd."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_ATTACH = 8
    PROG_DETACH = 9
    PROG_TEST_RUN = 10
    PROG_GET_NEXT_ID = 11
    MAP_GET_NEXT_ID = 12
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    RAW_TRACEPOINT_OPEN = 17
    BTF_LOAD = 18
    MAP_LOOKUP_AND_DELETE_ELEM = 21
    MAP_FREEZE = 22
    MAP_LOOKUP_BATCH = 24
    MAP_LOOKUP_AND_DELETE_BATCH = 25
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_GET_FD_BY_ID = 30
    LINK_GET_NEXT_ID = 31
    ENABLE_STATS = 32
    ITER_CREATE = 33
    LINK_DETACH = 34


class ProgramType(IntEnum):
    """enum bpf_prog_type, the ones that bristle uses or probes."""

    SOCKET_FILTER = 1
    SCHED_CLS = 3
    XDP = 6
    SOCK_OPS = 13
    SK_MSG = 16
    RAW_TRACEPOINT = 17
    CGROUP_SOCK_ADDR = 18
    TRACING = 26


class AttachType(IntEnum):
    """enum bpf_attach_type, the ones that bristle uses or probes."""

    NONE = 0
    CGROUP_SOCK_OPS = 3
    SK_MSG_VERDICT = 7
    CGROUP_INET4_CONNECT = 10
    CGROUP_INET6_CONNECT = 11
    TRACE_RAW_TP = 23
    TRACE_ITER = 28
    TCX_INGRESS = 46
    TCX_EGRESS = 47
    NETKIT_PRIMARY = 54


class LinkType(IntEnum):
    """enum bpf_link_type."""

    CGROUP = 3
    XDP = 6
    TCX = 11
    NETKIT = 13


class BpfError(OSError):
    """A bpf(2) command failed: ``errno``, the ``command``, and ``what`` it was about."""

    def __init__(self, number: int, command: Command, what: str) -> None:
        self.command = command
        self.what = what
        name = errno.errorcode.get(number, str(number))
        super().__init__(number, f"bpf({command.name}) of {what}: {os.strerror(number)} ({name})")

    def __str__(self) -> str:
        return str(self.strerror)


class UnsupportedArchitecture(OSError):
    """The system call number of bpf(2) is not known for this machine."""


_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong]


_NUMBER: Final = SYSTEM_CALL.get(platform.machine())


def call(command: Command, attributes: "bytes | ctypes.Array[ctypes.c_char]", what: str) -> int:
    """One bpf(2) call; returns its result, usually a descriptor or 0.

    ``attributes`` is union bpf_attr. Pass ``bytes`` where the kernel only reads it and a ctypes
    buffer where it writes an answer into it. A call that a signal broke off (EAGAIN) is repeated.

    Raises BpfError naming ``what``; UnsupportedArchitecture.
    """
    if _NUMBER is None:
        known = ", ".join(sorted(SYSTEM_CALL))
        raise UnsupportedArchitecture(f"bpf(2): machine {platform.machine()!r} is none of {known}")
    for attempt in range(_RETRIES + 1):
        result = int(_syscall(_NUMBER, command, attributes, len(attributes)))
        if result >= 0:
            return result
        number = ctypes.get_errno()
        if number != errno.EAGAIN or attempt == _RETRIES:
            break
    raise BpfError(number, command, what)


def wait_for_programs() -> bool:
    """Return when every BPF program that runs now has ended: a grace period, by membarrier(2),
    which takes some ms to tens of them. False where the kernel offers none (nohz_full, seccomp)."""
    number = _MEMBARRIER.get(platform.machine())
    return number is not None and _syscall(number, _MEMBARRIER_CMD_GLOBAL, None, 0) == 0


def pointer(buffer: "bytes | ctypes.Array[ctypes.c_char]") -> int:
    """Address of a buffer's bytes. The caller keeps the buffer alive until the call is over."""
    if isinstance(buffer, bytes):
        return ctypes.cast(ctypes.c_char_p(buffer), ctypes.c_void_p).value or 0
    return ctypes.addressof(buffer)
