# SPDX-License-Identifier: Apache-2.0
"""Typed functions over bpf(2): maps, pins, programs, links, facts about them.

Each packs union bpf_attr for one command (include/uapi/linux/bpf.h). All lengths are bytes and all
descriptors are close-on-exec; who receives a descriptor closes it. Every failure is a BpfError.
"""

import ctypes
import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.kernel.syscall import AttachType, BpfError, Command, LinkType, ProgramType, call, pointer

__all__ = [
    "AttachType",
    "BpfError",
    "Command",
    "LinkInfo",
    "LinkType",
    "MapInfo",
    "ProgramInfo",
    "ProgramType",
    "link_create",
    "link_detach",
    "link_fd_by_id",
    "link_info",
    "link_update",
    "map_create",
    "map_delete",
    "map_fd_by_id",
    "map_info",
    "map_lookup",
    "map_next_key",
    "map_update",
    "object_get",
    "object_kind",
    "object_pin",
    "program_fd_by_id",
    "program_info",
    "program_load",
    "program_query",
]

# Flags of BPF_MAP_UPDATE_ELEM.
UPDATE_ANY: Final = 0
UPDATE_NOEXIST: Final = 1
UPDATE_EXIST: Final = 2

_LINK_REPLACE: Final = 4  # BPF_F_REPLACE: the old program must be the one named
_NAME_BYTES: Final = 15  # BPF_OBJ_NAME_LEN without the final zero


def kernel_name(name: str) -> bytes:
    """``name`` as the kernel accepts it for an object: 15 of [A-Za-z0-9_.], the rest cut off."""
    clean = "".join(c if c.isascii() and (c.isalnum() or c in "_.") else "_" for c in name)
    return clean.encode()[:_NAME_BYTES]


# ---- maps ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MapInfo:
    """struct bpf_map_info. Sizes in bytes; ``value_size`` is one CPU's where it is per CPU."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


def map_create(
    map_type: int,
    key_size: int,
    value_size: int,
    max_entries: int,
    flags: int,
    name: str,
    *,
    btf: "tuple[int, int, int] | None" = None,
) -> int:
    """Create a map and return its descriptor.

    ``btf``: descriptor of a type description, and the ids of key and value in it, where the kernel
    wants one (storage in sockets).
    """
    described = struct.pack("=IIII", 0, *btf) if btf else b""
    attributes = struct.pack(
        "=IIIIIII16s", map_type, key_size, value_size, max_entries, flags, 0, 0, kernel_name(name)
    )
    return call(Command.MAP_CREATE, attributes + described, f"map {name}")


def btf_load(blob: bytes, what: str) -> int:
    """Descriptor of a type description (Documentation/bpf/btf.rst)."""
    attributes = struct.pack("=QQIIII", pointer(blob), 0, len(blob), 0, 0, 0)
    return call(Command.BTF_LOAD, attributes, what)


def map_info(fd: int) -> MapInfo:
    """Type, sizes and flags that the kernel holds for this map."""
    raw = _info(fd, 88, "a map")
    kind, number, key_size, value_size, entries, flags = struct.unpack_from("=6I", raw)
    return MapInfo(kind, number, key_size, value_size, entries, flags, _text(raw[24:40]))


def map_lookup(fd: int, key: bytes, size: int, what: str) -> bytes | None:
    """Value of ``key`` (``size`` bytes: for per-CPU maps all CPUs), None where it is absent."""
    value = ctypes.create_string_buffer(size)
    attributes = struct.pack("=IxxxxQQQ", fd, pointer(key), pointer(value), 0)
    try:
        call(Command.MAP_LOOKUP_ELEM, attributes, what)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return value.raw


def map_update(fd: int, key: bytes, value: bytes, flags: int, what: str) -> None:
    """Write one entry."""
    attributes = struct.pack("=IxxxxQQQ", fd, pointer(key), pointer(value), flags)
    call(Command.MAP_UPDATE_ELEM, attributes, what)


def map_delete(fd: int, key: bytes, what: str) -> bool:
    """Delete one entry; False where it was absent, which is no error."""
    attributes = struct.pack("=IxxxxQQQ", fd, pointer(key), 0, 0)
    try:
        call(Command.MAP_DELETE_ELEM, attributes, what)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def map_next_key(fd: int, key: bytes | None, size: int, what: str) -> bytes | None:
    """The key after ``key`` (None: the first one), None at the end."""
    following = ctypes.create_string_buffer(size)
    start = pointer(key) if key is not None else 0
    attributes = struct.pack("=IxxxxQQQ", fd, start, pointer(following), 0)
    try:
        call(Command.MAP_GET_NEXT_KEY, attributes, what)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return following.raw


def map_fd_by_id(number: int) -> int:
    """Descriptor of the map with this id."""
    return call(Command.MAP_GET_FD_BY_ID, struct.pack("=III", number, 0, 0), f"map id {number}")


# ---- pins ---------------------------------------------------------------------------------------


def object_pin(fd: int, path: Path) -> None:
    """Pin an object at ``path`` on a bpffs; EEXIST where something is there already."""
    name = os.fsencode(path) + b"\0"
    call(Command.OBJ_PIN, struct.pack("=QII", pointer(name), fd, 0), f"pin {path}")


def object_get(path: Path) -> int:
    """Descriptor of the object pinned at ``path``."""
    name = os.fsencode(path) + b"\0"
    return call(Command.OBJ_GET, struct.pack("=QII", pointer(name), 0, 0), f"pin {path}")


def object_kind(fd: int) -> str:
    """What a descriptor is: ``map``, ``prog``, ``link``, or the kernel's own name of it."""
    target = os.readlink(f"/proc/self/fd/{fd}").removeprefix("anon_inode:")
    for kind in ("map", "prog", "link"):
        if target in (f"bpf-{kind}", f"bpf_{kind}"):
            return kind
    return target


# ---- programs -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """struct bpf_prog_info, in part. ``run_*`` stay 0 unless BPF_ENABLE_STATS is on."""

    type: int
    id: int
    tag: str
    name: str
    jited_bytes: int
    instructions: int
    verified_instructions: int
    run_nanoseconds: int
    run_count: int


def program_load(
    program_type: int,
    instructions: bytes,
    name: str,
    *,
    licence: str,
    expected_attach_type: int = 0,
    attach_btf_id: int = 0,
    log: "ctypes.Array[ctypes.c_char] | None" = None,
    log_level: int = 0,
) -> int:
    """Verify and load a program, 8 bytes per instruction; the verifier writes into ``log``.

    ``attach_btf_id``: the kernel function or tracepoint that a tracing program is for.
    """
    text = licence.encode() + b"\0"
    attributes = struct.pack(
        "=IIQQIIQII16sII36xI",
        program_type,
        len(instructions) // 8,
        pointer(instructions),
        pointer(text),
        log_level if log is not None else 0,
        len(log) if log is not None else 0,
        pointer(log) if log is not None else 0,
        0,
        0,
        kernel_name(name),
        0,
        expected_attach_type,
        attach_btf_id,
    )
    return call(Command.PROG_LOAD, attributes, f"program {name}")


def program_info(fd: int) -> ProgramInfo:
    """Facts about a loaded program."""
    raw = _info(fd, 232, "a program")
    kind, number, tag, jited, translated = struct.unpack_from("=II8sII", raw)
    nanoseconds, runs = struct.unpack_from("=QQ", raw, 192)
    verified = struct.unpack_from("=I", raw, 216)[0]
    return ProgramInfo(
        kind, number, tag.hex(), _text(raw[64:80]), jited, translated // 8, verified,
        nanoseconds, runs,
    )  # fmt: skip


def program_fd_by_id(number: int) -> int:
    """Descriptor of the program with this id."""
    return call(Command.PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0), f"program {number}")


def program_query(target: int, attach_type: AttachType) -> list[tuple[int, int]]:
    """(program id, link id or 0) attached at a hook, in the order in which they run.

    ``target`` is an ifindex in the calling thread's network namespace, or a cgroup descriptor.
    """
    count = 64  # BPF_MPROG_MAX
    programs = (ctypes.c_uint32 * count)()
    links = (ctypes.c_uint32 * count)()
    # cgroup hooks know no links here and refuse a non-zero address.
    address = ctypes.addressof(links) if attach_type >= AttachType.TCX_INGRESS else 0
    attributes = ctypes.create_string_buffer(
        struct.pack(
            "=IIIIQIIQQQQ", target, attach_type, 0, 0, ctypes.addressof(programs), count, 0, 0,
            address, 0, 0,
        ),
        64,
    )  # fmt: skip
    call(Command.PROG_QUERY, attributes, f"{attach_type.name} of {target}")
    found = struct.unpack_from("=I", attributes, 24)[0]
    return [(int(programs[n]), int(links[n])) for n in range(found)]


# ---- links --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """struct bpf_link_info. ``ifindex`` is 0 when a TCX link's device is gone; ``cgroup`` is the
    inode number of the cgroup's folder, 0 for others and when it is gone.
    """

    type: int
    id: int
    program_id: int
    ifindex: int
    attach_type: int
    cgroup: int = 0


def program_attach(program_fd: int, target: int, attach_type: AttachType) -> None:
    """Attach without a link: to a socket map, which holds the program from then on."""
    attributes = struct.pack("=IIII", target, program_fd, attach_type, 0)
    call(Command.PROG_ATTACH, attributes, f"{attach_type.name} of {target}")


def tracepoint_attach(program_fd: int) -> int:
    """Attach a tracing program to the tracepoint that it was loaded for; gives the link."""
    attributes = struct.pack("=QII", 0, program_fd, 0)
    return call(Command.RAW_TRACEPOINT_OPEN, attributes, "a tracepoint")


def iterator_create(link_fd: int) -> int:
    """Descriptor to read an iterator's output from, once from the start to the end."""
    return call(Command.ITER_CREATE, struct.pack("=II", link_fd, 0), "an iterator")


def link_create_iterator(program_fd: int, map_fd: int) -> int:
    """Link of an iterator over the elements of a map."""
    info = struct.pack("=I", map_fd)
    attributes = struct.pack(
        "=IIIIQI", program_fd, 0, AttachType.TRACE_ITER, 0, pointer(info), len(info)
    )
    return call(Command.LINK_CREATE, attributes + bytes(20), "an iterator over a map")


def link_create(program_fd: int, target: int, attach_type: AttachType) -> int:
    """Attach by a link: to a device (ifindex in the calling thread's namespace) or a cgroup."""
    attributes = struct.pack("=IIIIIIQQ", program_fd, target, attach_type, 0, 0, 0, 0, 0)
    return call(Command.LINK_CREATE, attributes, f"link at {attach_type.name} of {target}")


def link_update(link_fd: int, program_fd: int, old_program_fd: int | None = None) -> None:
    """Replace a link's program, atomically for the packets that pass.

    With ``old_program_fd`` the kernel refuses (EPERM) where another program is attached.
    """
    flags = 0 if old_program_fd is None else _LINK_REPLACE
    attributes = struct.pack("=IIII", link_fd, program_fd, flags, old_program_fd or 0)
    call(Command.LINK_UPDATE, attributes, "a link's program")


def link_detach(link_fd: int) -> None:
    """Detach now, whoever else holds the link or its pin."""
    call(Command.LINK_DETACH, struct.pack("=I", link_fd), "a link")


def link_info(fd: int) -> LinkInfo:
    """Where a link is attached and which program it runs."""
    raw = _info(fd, 64, "a link")
    kind, number, program = struct.unpack_from("=III", raw)
    ifindex, attach, cgroup = 0, 0, 0
    if kind in (LinkType.TCX, LinkType.NETKIT):
        ifindex, attach = struct.unpack_from("=II", raw, 16)
    elif kind == LinkType.XDP:
        ifindex = struct.unpack_from("=I", raw, 16)[0]
    elif kind == LinkType.CGROUP:
        cgroup, attach = struct.unpack_from("=QI", raw, 16)
    return LinkInfo(kind, number, program, ifindex, attach, cgroup)


def link_fd_by_id(number: int) -> int:
    """Descriptor of the link with this id."""
    return call(Command.LINK_GET_FD_BY_ID, struct.pack("=III", number, 0, 0), f"link {number}")


# ---- shared -------------------------------------------------------------------------------------


def _info(fd: int, size: int, what: str) -> bytes:
    # An older kernel fills a shorter structure; what it does not know stays zero.
    info = ctypes.create_string_buffer(size)
    attributes = ctypes.create_string_buffer(struct.pack("=IIQ", fd, size, pointer(info)), 16)
    call(Command.OBJ_GET_INFO_BY_FD, attributes, f"facts about {what} (descriptor {fd})")
    return info.raw


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("ascii", "replace")
