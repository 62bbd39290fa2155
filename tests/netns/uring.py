# SPDX-License-Identifier: Apache-2.0
"""A small io_uring (io_uring_setup(2), io_uring_enter(2)): what the tests of sockets need of it."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import struct
import time
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final, Self

_SETUP, _ENTER = 425, 426  # on every architecture
_GETEVENTS: Final = 1
_SQES_AT: Final = 0x10000000
_PARAMETERS: Final = struct.Struct("=10I" + "10I" + "10I")
_SQE: Final = struct.Struct("=BBHiQQIIQHHiQQ")
_CQE: Final = struct.Struct("=QiI")
_ENTRIES: Final = 8
_SINGLE_MMAP: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)


class Op(IntEnum):
    """enum io_uring_op, the ones in use."""

    POLL_ADD = 6
    ASYNC_CANCEL = 14
    SEND = 26
    RECV = 27
    PROVIDE_BUFFERS = 31
    SHUTDOWN = 34
    SEND_ZC = 47


class SqeFlag(IntFlag):
    """IOSQE_*."""

    NONE = 0
    BUFFER_SELECT = 32


RECV_MULTISHOT: Final = 2
"""Of the field ioprio."""
POLL_MULTISHOT: Final = 1
"""Of the field len."""


class CqeFlag(IntFlag):
    """IORING_CQE_F_*; the number of the buffer is left out."""

    NONE = 0
    BUFFER = 1
    MORE = 2
    NOTIF = 8


@dataclass(frozen=True, slots=True)
class Completion:
    """What came of a request: its result, or a negative errno."""

    what: int
    result: int
    flags: CqeFlag
    buffer: int


class Unavailable(OSError):
    """This kernel, or its settings, give no io_uring."""


class Ring:
    """A context manager. Not for several threads."""

    def __init__(self) -> None:
        parameters = ctypes.create_string_buffer(_PARAMETERS.size)
        self._fd = _libc.syscall(_SETUP, _ENTRIES, parameters)
        if self._fd < 0:
            raise Unavailable(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        fields = _PARAMETERS.unpack(parameters)
        if not fields[5] & _SINGLE_MMAP:
            os.close(self._fd)
            raise Unavailable(0, "io_uring of a kernel before 5.4")
        # struct io_sqring_offsets and io_cqring_offsets (include/uapi/linux/io_uring.h).
        _, self._sq_tail, self._sq_mask, _, _, _, self._sq_array = fields[10:17]
        self._cq_head, self._cq_tail, self._cq_mask, _, _, self._cqes = fields[20:26]
        size = max(self._sq_array + 4 * fields[0], self._cqes + _CQE.size * fields[1])
        self._ring = mmap.mmap(self._fd, size, mmap.MAP_SHARED, offset=0)
        self._sqes = mmap.mmap(self._fd, 64 * fields[0], mmap.MAP_SHARED, offset=_SQES_AT)
        self._kept: list[object] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Cancels what is under way."""
        self._ring.close()
        self._sqes.close()
        os.close(self._fd)

    def ask(
        self,
        op: Op,
        fd: int,
        what: int,
        buffer: ctypes.Array[ctypes.c_char] | bytes | int = 0,
        length: int | None = None,
        *,
        ioprio: int = 0,
        offset: int = 0,
        op_flags: int = 0,
        flags: SqeFlag = SqeFlag.NONE,
        group: int = 0,
    ) -> None:
        """Submits one request; `what` comes back with its completions. Raises OSError."""
        self._kept.append(buffer)
        if isinstance(buffer, bytes):
            address = ctypes.cast(ctypes.c_char_p(buffer), ctypes.c_void_p).value or 0
        elif isinstance(buffer, int):
            address = buffer
        else:
            address = ctypes.addressof(buffer)
        if length is None:
            length = 0 if isinstance(buffer, int) else len(buffer)
        mask = self._word(self._sq_mask)
        tail = self._word(self._sq_tail)
        _SQE.pack_into(
            self._sqes, 64 * (tail & mask), op, flags, ioprio, fd, offset, address, length,
            op_flags, what, group, 0, 0, 0, 0,
        )  # fmt: skip
        struct.pack_into("=I", self._ring, self._sq_array + 4 * (tail & mask), tail & mask)
        struct.pack_into("=I", self._ring, self._sq_tail, (tail + 1) & 0xFFFFFFFF)
        if _libc.syscall(_ENTER, self._fd, 1, 0, 0, None, 0) != 1:
            raise OSError(ctypes.get_errno(), f"io_uring_enter: {op.name}")

    def told(self, seconds: float) -> Completion | None:
        """The next completion; None: there is none in that time."""
        until = time.monotonic() + seconds
        while True:
            head = self._word(self._cq_head)
            if head != self._word(self._cq_tail):
                at = self._cqes + _CQE.size * (head & self._word(self._cq_mask))
                what, result, flags = _CQE.unpack_from(self._ring, at)
                struct.pack_into("=I", self._ring, self._cq_head, (head + 1) & 0xFFFFFFFF)
                known = CqeFlag.BUFFER | CqeFlag.MORE | CqeFlag.NOTIF
                return Completion(what, result, CqeFlag(flags) & known, flags >> 16)
            left = until - time.monotonic()
            if left < 0:
                return None
            select.select([self._fd], [], [], min(left, 0.01))
            _libc.syscall(_ENTER, self._fd, 0, 0, _GETEVENTS, None, 0)

    def _word(self, at: int) -> int:
        (value,) = struct.unpack_from("=I", self._ring, at)
        return int(value)
