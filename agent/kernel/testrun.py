# SPDX-License-Identifier: Apache-2.0
"""Runs a loaded tc program on a packet without sending it: BPF_PROG_TEST_RUN.

Kernel: bpf_prog_test_run_skb in net/bpf/test_run.c. A redirect returns its code and is not carried
out. Packets have 14 to about 9,000 bytes, Ethernet header included.
"""

import ctypes
import struct
from dataclasses import dataclass
from typing import Final

from agent.kernel.syscall import Command, call, pointer

_CONTEXT_BYTES: Final = 192  # struct __sk_buff up to hwtstamp
# mark at 8; priority, ingress_ifindex, ifindex at 32; cb at 48.
_MARK_AT, _PRIORITY_AT, _CB_AT = 8, 32, 48
_ROOM: Final = 512  # that a program may add to a packet
_ATTRIBUTES: Final = struct.Struct("=IIIIQQIIIIQQIII")


@dataclass(frozen=True, slots=True)
class SkbContext:
    """The fields of struct __sk_buff that can be given, and read back.

    ``ifindex`` and ``ingress_ifindex`` must exist in the calling thread's namespace, or be 0.
    """

    mark: int = 0
    priority: int = 0
    ingress_ifindex: int = 0
    ifindex: int = 0
    cb: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)

    def pack(self) -> bytes:
        """As struct __sk_buff; all other fields must be zero."""
        raw = bytearray(_CONTEXT_BYTES)
        struct.pack_into("=I", raw, _MARK_AT, self.mark)
        struct.pack_into(
            "=III", raw, _PRIORITY_AT, self.priority, self.ingress_ifindex, self.ifindex
        )
        struct.pack_into("=5I", raw, _CB_AT, *self.cb)
        return bytes(raw)

    @classmethod
    def unpack(cls, raw: bytes) -> "SkbContext":
        """Reverse of ``pack``."""
        (mark,) = struct.unpack_from("=I", raw, _MARK_AT)
        priority, ingress_ifindex, ifindex = struct.unpack_from("=III", raw, _PRIORITY_AT)
        first, second, third, fourth, fifth = struct.unpack_from("=5I", raw, _CB_AT)
        cb = (first, second, third, fourth, fifth)
        return cls(mark, priority, ingress_ifindex, ifindex, cb)


@dataclass(frozen=True, slots=True)
class TestRun:
    """What came of it: the program's return value, packet and context as it left them.

    ``duration`` is the mean of one run in ns.
    """

    __test__ = False  # no test class, whatever pytest makes of the name

    retval: int
    packet: bytes
    context: SkbContext
    duration: int


def prog_test_run(
    program_fd: int, packet: bytes, context: SkbContext | None = None, repeat: int = 1
) -> TestRun:
    """Run a tc program ``repeat`` times on one packet, which keeps what each run did to it.

    Raises BpfError: EINVAL for a packet too short or too long, ENODEV for an unknown ifindex.
    """
    given = ctypes.create_string_buffer((context or SkbContext()).pack(), _CONTEXT_BYTES)
    returned = ctypes.create_string_buffer(_CONTEXT_BYTES)
    out = ctypes.create_string_buffer(len(packet) + _ROOM)
    attributes = ctypes.create_string_buffer(
        _ATTRIBUTES.pack(
            program_fd, 0, len(packet), len(out), pointer(packet), pointer(out), repeat, 0,
            _CONTEXT_BYTES, _CONTEXT_BYTES, pointer(given), pointer(returned), 0, 0, 0,
        ),
        _ATTRIBUTES.size,
    )  # fmt: skip
    call(Command.PROG_TEST_RUN, attributes, f"program with descriptor {program_fd}")
    _, retval, _, size, _, _, _, duration, *_ = _ATTRIBUTES.unpack(attributes.raw)
    return TestRun(retval, out.raw[:size], SkbContext.unpack(returned.raw), duration)
