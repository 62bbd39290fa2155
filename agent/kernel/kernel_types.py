# SPDX-License-Identifier: Apache-2.0
"""What the running kernel says of its own types: /sys/kernel/btf/vmlinux.

The compiler in use knows no CO-RE relocations, so offsets of kernel structures become macros of
the program that needs them, and ids of kernel functions become arguments of BPF_PROG_LOAD. The
blob is some megabytes and has well over 100,000 types: it is walked once, without making an object
of each. Format: Documentation/bpf/btf.rst.
"""

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")

_MAGIC: Final = 0xEB9F
_HEADER: Final = struct.Struct("<HBBIIIII")
_TYPE: Final = struct.Struct("<III")
_MEMBER: Final = struct.Struct("<III")
_ENUMERATOR: Final = struct.Struct("<Ii")
_STRUCT, _UNION, _TYPEDEF, _FUNC = 4, 5, 8, 12
_ENUM, _ARRAY, _FUNC_PROTO, _VAR, _DATASEC, _DECL_TAG, _ENUM64 = 6, 3, 13, 14, 15, 17, 19
_INT: Final = 1
_DEPTH: Final = 8  # anonymous members within each other


class KernelTypesError(Exception):
    """The kernel has no BTF, or not what is looked for; the message names it."""


@dataclass(frozen=True, slots=True)
class KernelTypes:
    """``functions``, ``typedefs``, ``structures``: name -> id. ``offsets``: "sock.sk_rcvbuf" ->
    bytes from the start of the structure, also through anonymous members and, with further dots,
    embedded ones. ``values``: "sock_flags.SOCK_ZEROCOPY" -> the number that it stands for.
    """

    functions: Mapping[str, int]
    typedefs: Mapping[str, int]
    structures: Mapping[str, int]
    offsets: Mapping[str, int]
    values: Mapping[str, int]


def read(
    *,
    functions: Iterable[str] = (),
    typedefs: Iterable[str] = (),
    structures: Iterable[str] = (),
    members: Iterable[str] = (),
    enumerators: Iterable[str] = (),
    path: Path = VMLINUX,
) -> KernelTypes:
    """Look these names up. What is missing is missing in the answer, but for a blob that cannot be
    read at all: KernelTypesError.
    """
    try:
        blob = path.read_bytes()
    except OSError as error:
        raise KernelTypesError(f"{path}: {error.strerror} (CONFIG_DEBUG_INFO_BTF)") from error
    try:
        return _Reader(blob).look_up(
            set(functions), set(typedefs), set(structures), set(members), set(enumerators)
        )
    except (struct.error, IndexError, ValueError) as error:
        raise KernelTypesError(f"{path}: not BTF as this program knows it: {error}") from error


class _Reader:
    def __init__(self, blob: bytes) -> None:
        magic, version, _, header, types, type_bytes, strings, string_bytes = _HEADER.unpack_from(
            blob
        )
        if magic != _MAGIC or version != 1:
            raise ValueError(f"magic {magic:#x}, version {version}")
        self._blob = blob
        self._types = header + types
        self._end = self._types + type_bytes
        self._strings = header + strings
        self._text = blob[self._strings : self._strings + string_bytes]
        self._where: list[int] = [0]  # byte offset of each type, by id

    def look_up(
        self, functions: set[str], typedefs: set[str], wanted: set[str], members: set[str],
        enumerators: set[str],
    ) -> KernelTypes:  # fmt: skip
        structures = wanted | {path.partition(".")[0] for path in members}
        enumerations = {path.partition(".")[0] for path in enumerators}
        names = {
            offset: name
            for name in functions | typedefs | structures | enumerations
            for offset in self._offsets_of(name)
        }
        found: dict[int, dict[str, int]] = {_FUNC: {}, _TYPEDEF: {}, _STRUCT: {}, _ENUM: {}}
        for number, kind, name in self._walk(names):
            ids = found.get(kind)
            if ids is not None:
                ids.setdefault(name, number)
        offsets = {}
        for path in members:
            first, _, rest = path.partition(".")
            start = found[_STRUCT].get(first)
            at = None if start is None else self._offset(start, rest.split("."))
            if at is not None:
                offsets[path] = at
        values = {}
        for path in enumerators:
            first, _, name = path.partition(".")
            enumeration = found[_ENUM].get(first)
            value = None if enumeration is None else self._value(enumeration, name)
            if value is not None:
                values[path] = value
        return KernelTypes(
            {name: found[_FUNC][name] for name in functions & found[_FUNC].keys()},
            {name: found[_TYPEDEF][name] for name in typedefs & found[_TYPEDEF].keys()},
            {name: found[_STRUCT][name] for name in wanted & found[_STRUCT].keys()},
            offsets,
            values,
        )

    def _offsets_of(self, name: str) -> Iterable[int]:
        """Where a name stands among the strings, none of which is there twice."""
        wanted = b"\0" + name.encode() + b"\0"
        at = self._text.find(wanted)
        if at >= 0:
            yield at + 1

    def _walk(self, names: Mapping[int, str]) -> Iterable[tuple[int, int, str]]:
        """(id, kind, name) of every type with one of these names; notes where each type is."""
        blob, at, end, where = self._blob, self._types, self._end, self._where
        unpack = _TYPE.unpack_from
        number = 0
        while at < end:
            number += 1
            where.append(at)
            name, info, _ = unpack(blob, at)
            kind, count = info >> 24 & 31, info & 0xFFFF
            if name in names:
                yield number, kind, names[name]
            at += 12
            if kind in (_STRUCT, _UNION, _DATASEC, _ENUM64):
                at += 12 * count
            elif kind in (_FUNC_PROTO, _ENUM):
                at += 8 * count
            elif kind == _ARRAY:
                at += 12
            elif kind in (_INT, _VAR, _DECL_TAG):
                at += 4

    def _offset(self, number: int, path: list[str], depth: int = 0) -> int | None:
        """Bytes from the start of structure ``number`` to the member at the end of ``path``."""
        number = self._plain(number)
        at = self._where[number]
        _, info, _ = _TYPE.unpack_from(self._blob, at)
        if info >> 24 & 31 not in (_STRUCT, _UNION) or depth > _DEPTH:
            return None
        bit_fields = info >> 31
        for n in range(info & 0xFFFF):
            name, kind, bits = self._three(at + 12 + 12 * n)
            if bit_fields:
                if bits >> 24:
                    continue
                bits &= 0xFFFFFF
            if not name:
                inner = self._offset(kind, path, depth + 1)
                if inner is not None:
                    return bits // 8 + inner
            elif self._name(name) == path[0]:
                if len(path) == 1:
                    return bits // 8
                inner = self._offset(kind, path[1:], depth + 1)
                return None if inner is None else bits // 8 + inner
        return None

    def _value(self, number: int, wanted: str) -> int | None:
        """What the enumeration ``number`` gives this name."""
        at = self._where[number]
        _, info, _ = _TYPE.unpack_from(self._blob, at)
        for n in range(info & 0xFFFF):
            name, value = _ENUMERATOR.unpack_from(self._blob, at + 12 + 8 * n)
            if self._name(name) == wanted:
                return int(value)
        return None

    def _three(self, at: int) -> tuple[int, int, int]:
        name, kind, bits = _MEMBER.unpack_from(self._blob, at)
        return name, kind, bits

    def _plain(self, number: int) -> int:
        """Without typedef (8), volatile (9), const (10), restrict (11)."""
        for _ in range(_DEPTH):
            _, info, target = _TYPE.unpack_from(self._blob, self._where[number])
            if info >> 24 & 31 not in (8, 9, 10, 11):
                break
            number = target
        return number

    def _name(self, offset: int) -> str:
        return self._text[offset : self._text.index(b"\0", offset)].decode()
