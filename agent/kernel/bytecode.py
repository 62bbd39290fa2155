# SPDX-License-Identifier: Apache-2.0
"""Compiled programs as bytes: where maps are named in them, and how they are kept on disk.

The compiler sees a made-up number in place of each map's descriptor (macro ``<NAME>_FD``).
``relocate`` puts the real descriptors in: an instruction BPF_LD_IMM64 with source register 1
(BPF_PSEUDO_MAP_FD: the map) or 2 (BPF_PSEUDO_MAP_VALUE: the address of its only value) has the
descriptor in its 32-bit immediate (Documentation/bpf/standardization/instruction-set.rst, "64-bit
immediate instructions"). So the same bytes serve every process.
"""

import base64
import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

FORMAT: Final = 1
"""Of the file on disk and of the placeholders; part of the name under which code is kept."""

_PLACEHOLDER: Final = 0x42520000  # far above any descriptor
_LD_IMM64: Final = 0x18
_CALL: Final = 0x85
_OF_MAP: Final = (1, 2)  # BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_VALUE
_KFUNC_CALL: Final = 2  # BPF_PSEUDO_KFUNC_CALL
_KFUNC: Final = 0x40000000  # in the number of a called function: bpf/lib/socket.h, KFUNC_CALL
_INSTRUCTION: Final = struct.Struct("=BBhi")


class BytecodeError(ValueError):
    """The instructions cannot be used: what is wrong with them and where."""


@dataclass(frozen=True, slots=True)
class Bytecode:
    """A program as compiled. ``maps`` are the names that the placeholders stand for, in order."""

    instructions: bytes
    maps: tuple[str, ...]

    def __post_init__(self) -> None:
        code = self.instructions
        if not code or len(code) % _INSTRUCTION.size:
            raise BytecodeError(f"{len(code)} bytes are no whole number of instructions")
        for _ in self._map_loads():
            pass

    @property
    def used(self) -> frozenset[str]:
        """Names of the maps that the program refers to."""
        return frozenset(name for _, name in self._map_loads())

    def relocate(self, descriptors: Mapping[str, int]) -> bytes:
        """Instructions with the descriptors of this process in place.

        Raises BytecodeError naming the maps that ``descriptors`` lacks.
        """
        missing = sorted(self.used - descriptors.keys())
        if missing:
            raise BytecodeError(f"no descriptor for map {', '.join(missing)}")
        code = bytearray(self.instructions)
        for offset, name in self._map_loads():
            struct.pack_into("=i", code, offset + 4, descriptors[name])
        for offset in range(0, len(code), 8):
            opcode, registers, _, number = _INSTRUCTION.unpack_from(code, offset)
            if opcode == _CALL and not registers and number & _KFUNC:
                _INSTRUCTION.pack_into(code, offset, _CALL, _KFUNC_CALL << 4, 0, number & ~_KFUNC)
        return bytes(code)

    def encode(self) -> bytes:
        """The form on disk: JSON with a checksum, since a file can be cut short by a crash."""
        body = base64.b64encode(self.instructions).decode()
        fields = {"format": FORMAT, "maps": list(self.maps), "instructions": body}
        return json.dumps(fields | {"checksum": _checksum(self)}).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Bytecode":
        """Reverse of ``encode``. Raises BytecodeError for anything else."""
        try:
            fields = json.loads(data)
            if fields["format"] != FORMAT:
                raise BytecodeError(f"format {fields['format']!r}, not {FORMAT}")
            maps = tuple(str(name) for name in fields["maps"])
            code = cls(base64.b64decode(fields["instructions"], validate=True), maps)
            stored = fields["checksum"]
        except (KeyError, TypeError, ValueError) as error:
            raise BytecodeError(f"no stored program: {error}") from error
        if stored != _checksum(code):
            raise BytecodeError("checksum does not match")
        return code

    def _map_loads(self) -> Iterator[tuple[int, str]]:
        code = self.instructions
        offset = 0
        while offset < len(code):
            opcode, registers, _, immediate = _INSTRUCTION.unpack_from(code, offset)
            source = registers >> 4
            where = f"instruction {offset // 8}"
            if opcode == _LD_IMM64:
                if source in _OF_MAP:
                    index = immediate - _PLACEHOLDER
                    if not 0 <= index < len(self.maps):
                        raise BytecodeError(f"{where} loads map {immediate:#x}, which none has")
                    yield offset, self.maps[index]
                elif source:
                    raise BytecodeError(f"{where} loads an address of kind {source}: a global?")
                offset += 8
            elif opcode == _CALL and source:
                raise BytecodeError(
                    f"{where} calls a function that was not inlined: make it __always_inline"
                )
            offset += 8


def placeholder_defines(maps: Iterable[str]) -> dict[str, str]:
    """The macros under which the programs find their maps: ``ct`` is ``CT_FD``."""
    return {f"{name.upper()}_FD": hex(_PLACEHOLDER + n) for n, name in enumerate(maps)}


def _checksum(code: Bytecode) -> str:
    return hashlib.sha256("\0".join(code.maps).encode() + b"\0" + code.instructions).hexdigest()
