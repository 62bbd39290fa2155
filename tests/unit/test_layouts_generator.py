# SPDX-License-Identifier: Apache-2.0
"""tools.generate_layouts: what it refuses, what it makes, that its output is committed."""

import os
import struct
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools import generate_layouts
from tools.btf import Btf, BtfError, section
from tools.generate_layouts import LayoutError, find_clang, generate


@pytest.fixture(scope="module")
def clang() -> str:
    """A compiler, or a skip that says which package has it."""
    try:
        return find_clang()
    except LayoutError as error:
        if os.environ.get("BRISTLE_REQUIRE_KERNEL") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


def made(folder: Path, clang: str, body: str) -> ModuleType:
    """The module generated from a header with this body."""
    header = folder / "layout.h"
    header.write_text(f"#include <linux/types.h>\n{body}")
    module = ModuleType("made_layouts")
    exec(compile(generate(header, clang), "made_layouts", "exec"), module.__dict__)
    return module


REFUSED = {
    "bit-field": ("__u32 a : 3; __u32 b : 29;", r"struct s: a is a bit-field"),
    "hole": ("__u8 a; __u32 b;", r"struct s: b has 3 bytes of implicit padding before it"),
    "tail": ("__u64 a; __u8 b;", r"struct s has 7 bytes of implicit padding at its end"),
    "array of arrays": ("__u8 a[2][3];", r"struct s: a is an array of arrays"),
    "pointer": ("void *a;", r"struct s: a is a pointer"),
    "union": ("union { __u32 x; __u16 y; } a;", r"struct s: a is a union"),
    "bool": ("_Bool a;", r"struct s: a is a bool"),
    "structure": ("struct { __u32 x; __u32 y; } a;", r"struct s: a: a structure inside must be"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str, tmp_path: Path, clang: str) -> None:
    body, message = REFUSED[case]
    with pytest.raises(LayoutError, match=message):
        made(tmp_path, clang, f"struct s {{\n\t{body}\n}};\n")


def test_header_that_does_not_compile(tmp_path: Path, clang: str) -> None:
    with pytest.raises(LayoutError, match=r"does not compile(.|\n)*unknown type name 'nonsense'"):
        made(tmp_path, clang, "struct s {\n\tnonsense a;\n};\n")


EVERYTHING = """
struct address {
	__u8 bytes[16];
};
/* What it is. And more that
nobody needs.
*/
struct whole_thing {
	struct address source; /* in network order; always */
	__s16 small;
	__be16 port;
	/* Bits of
	the flags.
	*/
	__u32 flags;
	__u64 pair[2];
	__u8 mac[6];
	__u8 pad[2];
};
enum some_flag {
	SOME_ONE = 1, /* the first */
	SOME_MINUS = -2,
};
"""


def test_everything_that_is_allowed(tmp_path: Path, clang: str) -> None:
    module = made(tmp_path, clang, EVERYTHING)
    assert module.__all__ == ["SomeFlag", "WholeThing"]
    thing = module.WholeThing(b"s" * 16, -2, 3, 4, (5, 6), b"m" * 6)
    assert thing.pack() == struct.pack("=16shHIQQ6s2x", b"s" * 16, -2, 3, 4, 5, 6, b"m" * 6)
    assert module.WholeThing.unpack(thing.pack()) == thing
    assert module.WholeThing.__doc__ == "struct whole_thing: What it is."
    assert (module.SomeFlag.SOME_ONE, module.SomeFlag.SOME_MINUS) == (1, -2)
    source = generate(tmp_path / "layout.h", clang)
    assert "source: bytes  # in network order; always" in source
    assert "flags: int  # Bits of the flags" in source
    assert "SOME_ONE = 1  # the first" in source


def test_committed_file_is_up_to_date(clang: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert generate_layouts.main(["--check"]) == 0, capfd.readouterr().err


def test_check_shows_what_differs(
    tmp_path: Path, clang: str, capfd: pytest.CaptureFixture[str]
) -> None:
    header, output = tmp_path / "layout.h", tmp_path / "layouts.py"
    header.write_text("enum e {\n\tE_ONE = 1,\n};\n")
    arguments = ["--header", str(header), "--output", str(output)]
    assert generate_layouts.main(arguments) == 0
    assert generate_layouts.main([*arguments, "--check"]) == 0
    header.write_text("enum e {\n\tE_ONE = 2,\n};\n")
    assert generate_layouts.main([*arguments, "--check"]) == 1
    assert "+    E_ONE = 2" in capfd.readouterr().err
    assert "E_ONE = 1" in output.read_text()


def test_objects_without_types() -> None:
    with pytest.raises(BtfError, match="not a little-endian ELF64 object"):
        section(b"\x7fELF\x01\x01" + b"\0" * 64, ".BTF")
    with pytest.raises(BtfError, match="BTF magic"):
        Btf(b"\0" * 32)


@given(st.text(alphabet="/*abc .;{}\n\tstruct", max_size=80))
def test_comments_of_any_text(text: str) -> None:
    # Comments are a convenience: no header may stop the generator because of them.
    generate_layouts.read_comments(text)
