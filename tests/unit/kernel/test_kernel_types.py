# SPDX-License-Identifier: Apache-2.0
"""What a kernel says of its types, read: small descriptions made by hand, and broken ones, which
are an error of one kind."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kernel import kernel_types
from agent.kernel.kernel_types import KernelTypes, KernelTypesError
from agent.kernel.small_btf import KEY_TYPE, VALUE_TYPE, octets_btf

INT, PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, CONST, FUNC, PROTO = 1, 2, 3, 4, 5, 6, 8, 10, 12, 13


class Made:
    """A description under construction: types are numbered from 1 in the order they are added."""

    def __init__(self) -> None:
        self._types = b""
        self._strings = b"\0"
        self.count = 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        at = len(self._strings)
        self._strings += text.encode() + b"\0"
        return at

    def add(
        self, kind: int, name: str, third: int, *more: int, count: int = 0, flag: int = 0
    ) -> int:
        info = flag << 31 | kind << 24 | count
        self._types += struct.pack(f"<III{len(more)}I", self.name(name), info, third, *more)
        self.count += 1
        return self.count

    def structure(
        self, kind: int, name: str, *members: tuple[str, int, int], bit_fields: bool = False
    ) -> int:
        flat = [n for text, one, bits in members for n in (self.name(text), one, bits)]
        return self.add(kind, name, 64, *flat, count=len(members), flag=bit_fields)

    def blob(self) -> bytes:
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self._types),
                             len(self._types), len(self._strings))  # fmt: skip
        return header + self._types + self._strings


def sample() -> bytes:
    made = Made()
    number = made.add(INT, "int", 4, 1 << 24 | 32)
    inner = made.structure(STRUCT, "inner", ("first", number, 0), ("second", number, 32))
    renamed = made.add(TYPEDEF, "inner_t", inner)
    constant = made.add(CONST, "", renamed)
    nameless = made.structure(UNION, "", ("left", number, 0), ("right", inner, 0))
    made.structure(
        STRUCT, "outer",
        ("plain", number, 0), ("embedded", constant, 64), ("", nameless, 128),
    )  # fmt: skip
    made.structure(
        STRUCT, "packed",
        ("bits", number, 3 << 24 | 5), ("whole", number, 64),
        bit_fields=True,
    )  # fmt: skip
    proto = made.add(PROTO, "", 0, 0, number, count=1)
    made.add(FUNC, "do_it", proto)
    made.add(ARRAY, "", 0, number, number, 7)
    made.add(ENUM, "colour", 4, made.name("RED"), 0, made.name("BLUE"), 18, count=2)
    made.add(TYPEDEF, "last_t", number)
    return made.blob()


def read(blob: bytes, folder: Path, **wanted: list[str]) -> KernelTypes:
    path = folder / "vmlinux"
    path.write_bytes(blob)
    return kernel_types.read(path=path, **wanted)


def test_small_description(tmp_path: Path) -> None:
    members = {
        "outer.plain": 0, "outer.embedded": 8, "outer.embedded.second": 12,
        "outer.left": 16, "outer.right.second": 20, "packed.whole": 8,
    }  # fmt: skip
    missing = ["outer.absent", "outer.plain.deeper", "absent.x", "packed.bits", "inner"]
    found = read(
        sample(), tmp_path,
        functions=["do_it", "undone", "inner"], typedefs=["inner_t", "last_t", "int"],
        members=[*members, *missing],
        enumerators=["colour.BLUE", "colour.GREEN", "inner.first", "absent.RED"],
    )  # fmt: skip
    assert found.offsets == members
    assert found.values == {"colour.BLUE": 18}
    assert found.functions.keys() == {"do_it"}
    assert found.typedefs.keys() == {"inner_t", "last_t"}
    assert found.typedefs["inner_t"] == 3
    assert found.typedefs["last_t"] == found.functions["do_it"] + 3


WANTED = {
    "functions": ["do_it"],
    "typedefs": ["inner_t", "last_t"],
    "enumerators": ["colour.BLUE"],
    "members": ["outer.plain", "outer.embedded.second", "outer.right.second", "packed.whole"],
}


@pytest.mark.parametrize("cut", range(0, len(sample()), 3))
def test_truncated(tmp_path: Path, cut: int) -> None:
    """Either an error of the one kind, or an answer in which things are missing."""
    try:
        found = read(sample()[:cut], tmp_path, **WANTED)
    except KernelTypesError as error:
        assert str(tmp_path) in str(error)
    else:
        assert isinstance(found, KernelTypes)


@given(st.lists(st.tuples(st.integers(0, len(sample()) - 1), st.integers(0, 255)), max_size=12))
def test_altered(tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]) -> None:
    blob = bytearray(sample())
    for at, value in changes:
        blob[at] = value
    try:
        read(bytes(blob), tmp_path_factory.getbasetemp(), **WANTED)
    except KernelTypesError:
        return


@given(st.binary(max_size=300))
def test_garbage(tmp_path_factory: pytest.TempPathFactory, rest: bytes) -> None:
    for start in (b"", struct.pack("<HBB", 0xEB9F, 1, 0), sample()[:24]):
        try:
            read(start + rest, tmp_path_factory.getbasetemp(), **WANTED)
        except KernelTypesError:
            continue


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(KernelTypesError, match="No such file"):
        kernel_types.read(path=tmp_path / "nowhere", functions=["x"])


def test_endless(tmp_path: Path) -> None:
    """A structure within itself, and a typedef of itself."""
    made = Made()
    made.structure(STRUCT, "loop", ("", 1, 0))
    made.add(TYPEDEF, "again", 2)
    made.structure(STRUCT, "other", ("within", 2, 0))
    found = read(made.blob(), tmp_path, members=["loop.x", "other.within.x"])
    assert found.offsets == {}


def test_octets(tmp_path: Path) -> None:
    """The least description: an int, and so many bytes."""
    blob = octets_btf(264)
    read(blob, tmp_path)
    header = struct.unpack_from("<HBBIIIII", blob)
    assert header[0] == 0xEB9F and header[3] == 24
    types = blob[24 : 24 + header[5]]
    assert (KEY_TYPE, VALUE_TYPE) == (1, 3)
    assert struct.unpack_from("<III", types) == (1, INT << 24, 4)
    assert struct.unpack_from("<IIIIII", types, 32)[3:] == (2, 1, 264)
    assert blob[24 + header[6] :].split(b"\0")[1:3] == [b"int", b"u8"]
    assert len(blob) == 24 + header[6] + header[7]
