# SPDX-License-Identifier: Apache-2.0
"""Reads the structures and enumerations out of an object file's .BTF section.

Format: Documentation/bpf/btf.rst of the kernel. Only what shared layouts need is kept: integers,
arrays, structures, enumerations, and the typedefs and qualifiers in between.
"""

import struct
from dataclasses import dataclass
from typing import Final

_MAGIC: Final = 0xEB9F
_INT, _ARRAY, _STRUCT, _UNION, _ENUM, _FUNC_PROTO = 1, 3, 4, 5, 6, 13
_VAR, _DATASEC, _DECL_TAG, _ENUM64 = 14, 15, 17, 19
_THROUGH: Final = frozenset({8, 9, 10, 11, 18})  # typedef, volatile, const, restrict, type tag
_NAMES: Final = {2: "a pointer", 5: "a union", 7: "a forward declaration", 16: "a float"}
# Bytes after the common header: (fixed, per element).
_TAIL: Final = {
    _INT: (4, 0), _ARRAY: (12, 0), _STRUCT: (0, 12), _UNION: (0, 12), _ENUM: (0, 8),
    _FUNC_PROTO: (0, 8), _VAR: (4, 0), _DATASEC: (0, 12), _DECL_TAG: (4, 0), _ENUM64: (0, 12),
}  # fmt: skip


class BtfError(Exception):
    """The object has no usable BTF, or a type that a shared layout must not have."""


@dataclass(frozen=True, slots=True)
class Integer:
    """An integer type; ``size`` in bytes."""

    size: int
    signed: bool


@dataclass(frozen=True, slots=True)
class Array:
    """``count`` elements in a row."""

    element: "Type"
    count: int


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a structure: ``offset`` in bits, ``bits`` non-zero for a bit-field."""

    name: str
    type: "Type"
    offset: int
    bits: int


@dataclass(frozen=True, slots=True)
class Structure:
    """A structure; ``size`` in bytes."""

    name: str
    size: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Enumeration:
    """An enumeration and its members in the order of the source."""

    name: str
    size: int
    members: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Other:
    """A type that no layout may use; ``what`` says what it is."""

    what: str


Type = Integer | Array | Structure | Enumeration | Other


def section(elf: bytes, wanted: str) -> bytes:
    """Contents of a section of a little-endian ELF64 object."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise BtfError("not a little-endian ELF64 object")
    start = struct.unpack_from("<Q", elf, 40)[0]
    width, count, names = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, start + n * width) for n in range(count)]
    strings = headers[names][4]
    for name, _, _, _, offset, size in headers:
        if _string(elf, strings + name) == wanted:
            return elf[offset : offset + size]
    raise BtfError(f"no section {wanted}: compile with -g")


class Btf:
    """The types of one object file."""

    def __init__(self, data: bytes) -> None:
        magic, _, _, length, types, types_size, strings, _ = struct.unpack_from("<HBBIIIII", data)
        if magic != _MAGIC:
            raise BtfError(f"BTF magic is {magic:#x}")
        self._data = data
        self._strings = length + strings
        self._at: list[int] = [0]
        position = length + types
        while position < length + types + types_size:
            self._at.append(position)
            _, info, _ = struct.unpack_from("<III", data, position)
            fixed, each = _TAIL.get(info >> 24 & 31, (0, 0))
            position += 12 + fixed + each * (info & 0xFFFF)

    def structures(self) -> dict[str, Structure]:
        """All named structures."""
        found = (self._type(n) for n in range(1, len(self._at)) if self._kind(n) == _STRUCT)
        return {s.name: s for s in found if isinstance(s, Structure) and s.name}

    def enumerations(self) -> dict[str, Enumeration]:
        """All named enumerations."""
        found = (self._type(n) for n in range(1, len(self._at)) if self._kind(n) == _ENUM)
        return {e.name: e for e in found if isinstance(e, Enumeration) and e.name}

    def _kind(self, number: int) -> int:
        return int(struct.unpack_from("<I", self._data, self._at[number] + 4)[0]) >> 24 & 31

    def _type(self, number: int) -> Type:
        if number == 0:
            return Other("void")
        at = self._at[number]
        name_at, info, size = struct.unpack_from("<III", self._data, at)
        name = self._name(name_at)
        kind, length, flag = info >> 24 & 31, info & 0xFFFF, bool(info >> 31)
        at += 12
        if kind in _THROUGH:
            return self._type(size)
        if kind == _INT:
            encoding = struct.unpack_from("<I", self._data, at)[0] >> 24 & 15
            if encoding & 4:
                return Other("a bool")
            return Integer(size, bool(encoding & 1))
        if kind == _ARRAY:
            element, _, count = struct.unpack_from("<III", self._data, at)
            return Array(self._type(element), count)
        if kind == _STRUCT:
            return Structure(name, size, self._members(at, length, flag))
        if kind == _ENUM:
            pairs = (struct.unpack_from("<Ii", self._data, at + 8 * n) for n in range(length))
            return Enumeration(name, size, tuple((self._name(n), value) for n, value in pairs))
        return Other(_NAMES.get(kind, f"of BTF kind {kind}"))

    def _members(self, at: int, count: int, flag: bool) -> tuple[Member, ...]:
        members = []
        for n in range(count):
            name, number, offset = struct.unpack_from("<III", self._data, at + 12 * n)
            # With the flag the upper byte is the width of a bit-field.
            bits = offset >> 24 if flag else 0
            place = offset & 0xFFFFFF if flag else offset
            members.append(Member(self._name(name), self._type(number), place, bits))
        return tuple(members)

    def _name(self, offset: int) -> str:
        return _string(self._data, self._strings + offset)


def _string(data: bytes, at: int) -> str:
    return data[at : data.index(b"\0", at)].decode()
