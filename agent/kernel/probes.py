# SPDX-License-Identifier: Apache-2.0
"""Tries out single abilities of the running kernel, without touching anything that is in use.

Each returns nothing on success and raises OSError with the kernel's reason. Devices are made and
attached to only in a network namespace that exists for the length of one probe.
"""

import ctypes
import os
import struct
import threading
from collections.abc import Callable
from typing import Final

from agent.kernel import batch, bpf, tcfilter
from agent.kernel.links import Hook
from agent.kernel.rtnl import NLM_F_CREATE, NLM_F_EXCL, Request, RtnlSocket, nested, text
from agent.kernel.syscall import AttachType, BpfError, Command, ProgramType
from agent.kernel.testrun import prog_test_run
from bpf.maps import MapType

_LOOPBACK: Final = 1  # its ifindex in every network namespace
_CLONE_NEWNET: Final = 0x40000000
_RTM_NEWLINK, _IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND = 16, 3, 18, 1
_SKB_LENGTH: Final = 14

# A program that accepts: r0 = 0 (TC_ACT_OK), exit.
_ACCEPT: Final = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
_ALLOW: Final = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0)

_libc = ctypes.CDLL(None, use_errno=True)


def in_private_namespace(work: Callable[[], None]) -> None:
    """Call ``work`` on a thread of its own in a new, empty network namespace."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            if _libc.unshare(_CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, f"new network namespace: {os.strerror(number)}")
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="probe", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def map_type(kind: MapType, key: int, value: int, entries: int, flags: int = 0) -> None:
    """A map of this type can be made. Sizes in bytes."""
    os.close(bpf.map_create(kind, key, value, entries, flags, "probe"))


def batches(kind: MapType, key: int, flags: int) -> None:
    """Entries of such a map can be written many at a time."""
    fd = bpf.map_create(kind, key, 4, 4, flags, "probe")
    try:
        # Prefix length 8 at the start of the key where it is an LPM trie.
        keys = struct.pack("=I", 8).ljust(key, b"\0")
        if not batch.supported(fd, keys, b"\0" * 4):
            raise BpfError(95, Command.MAP_UPDATE_BATCH, f"a map of type {kind.name}")
    finally:
        os.close(fd)


def program(kind: ProgramType, attach: AttachType = AttachType.NONE) -> None:
    """A program of this type can be loaded."""
    os.close(_load(kind, _ALLOW, attach))


def helper(number: int) -> None:
    """A tc program may call this helper (enum bpf_func_id) of two integer arguments."""
    code = struct.pack(
        "=BBhiBBhiBBhiBBhi", 0xB7, 1, 0, 1, 0xB7, 2, 0, 0, 0x85, 0, 0, number, 0x95, 0, 0, 0
    )
    os.close(_load(ProgramType.SCHED_CLS, code))


def test_run() -> None:
    """A tc program can be run on a packet."""
    with _Loaded() as fd:
        prog_test_run(fd, b"\0" * _SKB_LENGTH)


def just_in_time() -> bool:
    """Whether programs are translated to machine code."""
    with _Loaded() as fd:
        return bpf.program_info(fd).jited_bytes > 0


def tcx() -> None:
    """A program can be attached by a TCX link."""

    def work() -> None:
        with _Loaded() as fd:
            os.close(bpf.link_create(fd, _LOOPBACK, AttachType.TCX_INGRESS))

    in_private_namespace(work)


def clsact_filter() -> None:
    """A program can be attached as a filter of a clsact qdisc."""

    def work() -> None:
        with _Loaded() as fd:
            tcfilter.attach(_LOOPBACK, Hook.INGRESS.minor, fd, "probe")

    in_private_namespace(work)


def device(kind: str) -> None:
    """A device of this kind (``veth``, ``netkit``, ...) can be made."""
    message = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + text(_IFLA_IFNAME, "probe0")
    message += nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, kind))
    request = Request(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, message, f"device of kind {kind}")

    def work() -> None:
        with RtnlSocket() as netlink:
            netlink.run([request])

    in_private_namespace(work)


def _load(kind: ProgramType, code: bytes, attach: AttachType = AttachType.NONE) -> int:
    return bpf.program_load(
        kind, code, "probe", licence="Dual BSD/GPL", expected_attach_type=attach
    )


class _Loaded:
    """A tc program that accepts, for the length of a ``with`` statement."""

    def __enter__(self) -> int:
        self._fd = _load(ProgramType.SCHED_CLS, _ACCEPT)
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
