# SPDX-License-Identifier: Apache-2.0
"""agent.kernel.bytecode: placeholders become descriptors; damaged files are never used."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kernel.bytecode import Bytecode, BytecodeError, placeholder_defines

EXIT = struct.pack("=BBhi", 0x95, 0, 0, 0)
NAMES = ("ct", "peers", "policy")
PLACES = [int(value, 16) for value in placeholder_defines(NAMES).values()]


def load(source: int, low: int, high: int = 0) -> bytes:
    """BPF_LD_IMM64 into register 1."""
    return struct.pack("=BBhi", 0x18, source << 4 | 1, 0, low) + struct.pack("=BBhi", 0, 0, 0, high)


def test_macros() -> None:
    defines = placeholder_defines(["ct_overflow", "ct"])
    assert list(defines) == ["CT_OVERFLOW_FD", "CT_FD"]
    assert len(set(defines.values())) == 2


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(NAMES), st.sampled_from([1, 2])),
            # A plain 64-bit constant, also one that looks like a placeholder, is no map.
            st.tuples(st.sampled_from([0, *PLACES]), st.sampled_from([0, 0x18, PLACES[0]])),
        )
    )
)
def test_only_map_loads_change(loads: list[tuple[str | int, int]]) -> None:
    fds = {"ct": 11, "peers": 12, "policy": 13}
    before = after = b""
    used = set()
    for what, number in loads:
        if isinstance(what, str):
            before += load(number, PLACES[NAMES.index(what)])
            after += load(number, fds[what])
            used.add(what)
        else:
            before += load(0, what, number)
            after += load(0, what, number)
    code = Bytecode(before + EXIT, NAMES)
    assert code.used == used
    assert code.relocate(fds) == after + EXIT
    assert Bytecode.decode(code.encode()) == code


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        (b"", "no whole number"),
        (EXIT[:-1], "no whole number"),
        (load(1, 7) + EXIT, "instruction 0 loads map 0x7, which none has"),
        (load(1, PLACES[-1] + 1) + EXIT, "which none has"),
        (EXIT + load(6, 0), "instruction 1 loads an address of kind 6"),
        (struct.pack("=BBhi", 0x85, 0x10, 0, -1) + EXIT, "instruction 0 calls a function"),
    ],
)
def test_refuses_what_cannot_be_relocated(instructions: bytes, message: str) -> None:
    with pytest.raises(BytecodeError, match=message):
        Bytecode(instructions, NAMES)


def test_missing_descriptors_are_named() -> None:
    code = Bytecode(load(1, PLACES[0]) + load(1, PLACES[2]) + EXIT, NAMES)
    with pytest.raises(BytecodeError, match="no descriptor for map ct, policy"):
        code.relocate({"peers": 3})


@given(st.data())
def test_damaged_files_are_refused(data: st.DataObject) -> None:
    stored = Bytecode(load(1, PLACES[0]) + EXIT, NAMES).encode()
    place = data.draw(st.integers(0, len(stored) - 1))
    kind = data.draw(st.sampled_from(["cut", "flip"]))
    bit = 1 << data.draw(st.integers(0, 7))
    damaged = bytes([stored[place] ^ bit])
    broken = stored[:place] + (b"" if kind == "cut" else damaged + stored[place + 1 :])
    try:
        code = Bytecode.decode(broken)
    except BytecodeError:
        return
    # Whitespace between the fields may change; the program may not.
    assert code == Bytecode.decode(stored)


@given(st.one_of(st.binary(max_size=60), st.from_type(int).map(lambda n: json.dumps(n).encode())))
def test_any_file_is_refused(data: bytes) -> None:
    with pytest.raises(BytecodeError):
        Bytecode.decode(data)
