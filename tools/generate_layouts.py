# SPDX-License-Identifier: Apache-2.0
"""Generates bpf/layouts.py from the BTF of bpf/lib/layout.h.

    python -m tools.generate_layouts            write bpf/layouts.py
    python -m tools.generate_layouts --check    exit 1 where the committed file is out of date

The header is compiled by clang for the BPF machine, so sizes and offsets are the compiler's own
and the same on every host. What Python and C could see differently is refused: bit-fields,
implicit padding, arrays of arrays, unions, pointers. Structures of one byte array (an address) are
``bytes`` where they are members. Members called ``pad`` are written as zeros and not shown.
"""

import argparse
import difflib
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.btf import Array, Btf, BtfError, Enumeration, Integer, Structure, Type, section

ROOT: Final = Path(__file__).resolve().parents[1]
HEADER: Final = ROOT / "bpf" / "lib" / "layout.h"
OUTPUT: Final = ROOT / "bpf" / "layouts.py"
WIDTH: Final = 100

_CODES: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}
_PAD: Final = re.compile(r"pad\d*")
_DEFINITION: Final = re.compile(r"^(struct|enum) (\w+) \{", re.MULTILINE)


class LayoutError(Exception):
    """The header has something that must not be shared; the message names type and member."""


@dataclass(frozen=True, slots=True)
class Field:
    """One member of a structure, as it appears in Python."""

    name: str
    annotation: str
    code: str  # of the struct module
    dtype: str  # a numpy format, as Python source
    offset: int
    values: int  # how many values the struct module packs for it
    length: int  # of a bytes field, else 0

    @property
    def hidden(self) -> bool:
        """Padding: always zero."""
        return bool(_PAD.fullmatch(self.name))


# ---- reading the header -------------------------------------------------------------------------


def read_types(header: Path, clang: str) -> Btf:
    """BTF of every structure and enumeration in ``header``. Raises LayoutError."""
    names = _DEFINITION.findall(header.read_text())
    anchor = f'#include "{header.resolve()}"\n'
    anchor += "".join(f"{kind} {name} anchor_{kind}_{name};\n" for kind, name in names)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "anchor.c"), Path(folder, "anchor.o")
        source.write_text(anchor)
        # The BPF target has no folder of system headers of its own: asm/types.h is the host's.
        system = f"-I/usr/include/{platform.machine()}-linux-gnu"
        command = [clang, "-target", "bpf", "-g", "-O2", system, "-c", str(source), "-o"]
        run = subprocess.run([*command, str(target)], capture_output=True, text=True, check=False)
        if run.returncode:
            raise LayoutError(f"{header} does not compile:\n{run.stderr}")
        try:
            return Btf(section(target.read_bytes(), ".BTF"))
        except BtfError as error:
            raise LayoutError(f"{header}: {error}") from error


@dataclass(frozen=True, slots=True)
class Comments:
    """First sentences of the header's comments: of types, and of (type, member)."""

    types: Mapping[str, str]
    members: Mapping[tuple[str, str], str]


def read_comments(text: str) -> Comments:
    """Comment right before a type; before a member or behind it in its line."""
    types: dict[str, str] = {}
    members: dict[tuple[str, str], str] = {}
    token = re.compile(
        r"/\*(?P<comment>.*?)\*/"
        r"|^(?:struct|enum) (?P<open>\w+) \{"
        r"|^(?P<close>\};)"
        r"|^\t(?:struct )?(?:\w+ )?(?P<member>\w+)(?:\[\d+\])?(?: = [^,;]+)?[,;]"
        r"|(?P<blank>\n[ \t]*\n)",
        re.DOTALL | re.MULTILINE,
    )
    inside, before, last, last_end = "", "", "", 0
    for match in token.finditer(text):
        if match["comment"] is not None:
            sentence = _first_sentence(match["comment"])
            if last and "\n" not in text[last_end : match.start()]:
                members[inside, last] = sentence
            else:
                before = sentence
        elif match["open"]:
            inside = match["open"]
            if before:
                types[inside] = before
            before = last = ""
        elif match["member"] and inside:
            last, last_end = match["member"], match.end()
            if before:
                members[inside, last] = before
            before = ""
        elif match["close"]:
            inside = last = before = ""
        elif match["blank"] and not inside:
            before = ""
    return Comments(types, members)


def _first_sentence(comment: str) -> str:
    lines = (line.strip().removeprefix("*").strip() for line in comment.splitlines())
    text = " ".join(line for line in lines if line)
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0].rstrip(".;:")


# ---- checking and translating -------------------------------------------------------------------


def fields_of(structure: Structure) -> list[Field]:
    """Members as Python sees them. Raises LayoutError for what must not be shared."""
    fields: list[Field] = []
    expected = 0
    for member in structure.members:
        where = f"struct {structure.name}: {member.name}"
        if member.bits or member.offset % 8:
            raise LayoutError(f"{where} is a bit-field: use a whole integer and an enum of bits")
        offset = member.offset // 8
        if offset != expected:
            raise LayoutError(
                f"{where} has {offset - expected} bytes of implicit padding before it:"
                " name them (pad)"
            )
        field, size = _field(where, member.name, member.type, offset)
        fields.append(field)
        expected += size
    if structure.size != expected:
        raise LayoutError(
            f"struct {structure.name} has {structure.size - expected} bytes of implicit padding"
            " at its end: name them (pad)"
        )
    return fields


def _field(where: str, name: str, kind: Type, offset: int) -> tuple[Field, int]:
    match kind:
        case Integer(size=size, signed=signed) if size in _CODES:
            code = _CODES[size].lower() if signed else _CODES[size]
            dtype = f'"{"i" if signed else "u"}{size}"'
            return Field(name, "int", code, dtype, offset, 1, 0), size
        case Array(element=Array()):
            raise LayoutError(f"{where} is an array of arrays: flatten it")
        case Array(element=Integer(size=1, signed=False), count=count):
            dtype = f'("u1", {count})'
            return Field(name, "bytes", f"{count}s", dtype, offset, 1, count), count
        case Array(element=Integer(size=size) as element, count=count) if size in _CODES:
            inner, _ = _field(where, name, element, offset)
            annotation = f"tuple[{', '.join(['int'] * count)}]" if count <= 4 else "tuple[int, ...]"
            dtype = f"({inner.dtype}, {count})"
            return (
                Field(name, annotation, inner.code * count, dtype, offset, count, 0),
                size * count,
            )
        case Structure(members=(only,)) if only.offset == 0 and not only.bits:
            field, size = _field(f"{where}.{only.name}", name, only.type, offset)
            if field.annotation == "bytes" and size == kind.size:
                return field, size
            raise LayoutError(f"{where}: a structure inside must be one array of bytes")
        case Structure():
            raise LayoutError(f"{where}: a structure inside must be one array of bytes")
        case _:
            what = getattr(kind, "what", type(kind).__name__.lower())
            raise LayoutError(f"{where} is {what}: only integers and arrays can be shared")


# ---- writing ------------------------------------------------------------------------------------


_PREAMBLE: Final = '''\
# SPDX-License-Identifier: Apache-2.0
"""Structures and numbers that the programs share with user space.

Generated from bpf/lib/layout.h by tools/generate_layouts.py: do not edit.

Integers are in the host's byte order; where the header says "network order" it is the program that
stores them so. ``pack`` raises struct.error for a value out of range, the constructor ValueError
for bytes of a wrong length, ``unpack`` struct.error for data of a wrong length. ``DTYPE`` is the
numpy type for many records at once; it imports numpy when first used. Padding is not part of it:
start from ``numpy.zeros``, so that the kernel sees zeros there.
"""

import builtins
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy

'''

_SUPPORT: Final = '''
Data = bytes | bytearray | memoryview


class _Dtype:
    """Makes the numpy type on first use, so that importing this module stays cheap."""

    __slots__ = ("_dtype", "_fields", "_size")

    def __init__(self, size: int, **fields: tuple[Any, int]) -> None:
        self._size = size
        self._fields = fields
        self._dtype: numpy.dtype[numpy.void] | None = None

    def __get__(self, instance: object, owner: type) -> "numpy.dtype[numpy.void]":
        if self._dtype is None:
            import numpy

            self._dtype = numpy.dtype(
                {
                    "names": list(self._fields),
                    "formats": [form for form, _ in self._fields.values()],
                    "offsets": [offset for _, offset in self._fields.values()],
                    "itemsize": self._size,
                }
            )
        return self._dtype


def _need(name: str, value: bytes, length: int) -> None:
    # The struct module would cut a longer value and fill up a shorter one without a word.
    if len(value) != length:
        raise ValueError(f"{name} has {len(value)} bytes, not {length}")
'''


def generate(header: Path, clang: str) -> str:
    """The text of bpf/layouts.py. Raises LayoutError."""
    text = header.read_text()
    names = _DEFINITION.findall(text)
    btf = read_types(header, clang)
    comments = read_comments(text)
    structures, enumerations = btf.structures(), btf.enumerations()
    shown = [(kind, name) for kind, name in names if kind == "enum" or not _wraps(structures[name])]
    exported = sorted(f'    "{_camel(name)}",\n' for _, name in shown)
    parts = [_PREAMBLE, "__all__ = [\n", *exported, "]\n", _SUPPORT]
    for kind, name in shown:
        if kind == "enum":
            parts.extend(_enumeration(enumerations[name], comments))
        else:
            parts.extend(_structure(structures[name], comments))
    return "".join(parts)


def _wraps(structure: Structure) -> bool:
    """True for one array of bytes: in Python these are ``bytes``, with no class of their own."""
    return [field.annotation for field in fields_of(structure)] == ["bytes"]


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _doc(text: str, fallback: str) -> Iterator[str]:
    sentence = f"{fallback}: {text}" if text else fallback
    lines = textwrap.wrap(sentence, WIDTH - 11, break_on_hyphens=False)
    lines = [line.replace("\\", "\\\\").replace('"""', "'''") for line in lines]
    yield f'    """{lines[0]}'
    yield from (f"\n    {line}" for line in lines[1:])
    yield '."""\n\n' if len(lines) == 1 else '.\n    """\n\n'


def _line(code: str, comment: str) -> Iterator[str]:
    if comment and len(code) + len(comment) + 8 <= WIDTH:
        yield f"    {code}  # {comment}\n"
        return
    if comment:
        yield from (f"    # {line}\n" for line in textwrap.wrap(comment, WIDTH - 6))
    yield f"    {code}\n"


def _enumeration(enumeration: Enumeration, comments: Comments) -> Iterator[str]:
    name = enumeration.name
    yield f"\n\nclass {_camel(name)}(IntEnum):\n"
    yield from _doc(comments.types.get(name, ""), f"enum {name}")
    for member, value in enumeration.members:
        yield from _line(f"{member} = {value}", comments.members.get((name, member), ""))


def _structure(structure: Structure, comments: Comments) -> Iterator[str]:
    name = structure.name
    fields = fields_of(structure)
    shown = [field for field in fields if not field.hidden]
    # A member called bytes hides the type of that name in the class.
    builtin = "builtins.bytes" if any(f.name == "bytes" for f in fields) else "bytes"
    code = "".join(_pad_code(f.code) if f.hidden else f.code for f in fields)
    yield f"\n\n@dataclass(frozen=True, slots=True)\nclass {_camel(name)}:\n"
    yield from _doc(comments.types.get(name, ""), f"struct {name}")
    yield f"    SIZE: ClassVar[int] = {structure.size}\n"
    yield f'    FORMAT: ClassVar[struct.Struct] = struct.Struct("={code}")\n'
    columns = [f"{f.name}=({f.dtype}, {f.offset})" for f in shown]
    # Without an annotation: dataclass would read it, and so import numpy.
    yield from _call("    DTYPE = _Dtype(", [str(structure.size), *columns])
    yield "\n"
    for field in shown:
        comment = comments.members.get((name, field.name), "")
        annotation = builtin if field.annotation == "bytes" else field.annotation
        yield from _line(f"{field.name}: {annotation}", comment)
    checked = [field for field in shown if field.length]
    if checked:
        yield "\n    def __post_init__(self) -> None:\n"
        for f in checked:
            yield f'        _need("{f.name}", self.{f.name}, {f.length})\n'
    yield f"\n    def pack(self) -> {builtin}:\n"
    yield '        """The bytes that the kernel sees."""\n'
    values = [f"{'*' if f.values > 1 else ''}self.{f.name}" for f in shown]
    yield from _call("        return self.FORMAT.pack(", values)
    yield "\n    @classmethod\n"
    yield f'    def unpack(cls, data: Data) -> "{_camel(name)}":\n'
    yield '        """Reverse of ``pack``."""\n'
    if all(field.values == 1 for field in shown):
        yield "        return cls(*cls.FORMAT.unpack(data))\n"
        return
    yield "        values = cls.FORMAT.unpack(data)\n"
    yield from _call("        return cls(", list(_slices(shown)))


def _slices(fields: Sequence[Field]) -> Iterator[str]:
    at = 0
    for field in fields:
        if field.values == 1:
            yield f"values[{at}]"
        elif field.values <= 4:
            yield f"({', '.join(f'values[{at + n}]' for n in range(field.values))})"
        else:
            yield f"values[{at}:{at + field.values}]"
        at += field.values


def _call(head: str, arguments: Sequence[str]) -> Iterator[str]:
    """A call as the formatter would lay it out."""
    short = f"{head}{', '.join(arguments)})\n"
    if len(short) <= WIDTH + 1:
        yield short
        return
    yield f"{head}\n"
    indent = " " * (len(head) - len(head.lstrip()))
    flat = ", ".join(arguments)
    if len(indent) + 4 + len(flat) <= WIDTH:
        yield f"{indent}    {flat}\n"
    else:
        yield from (f"{indent}    {argument},\n" for argument in arguments)
    yield f"{indent})\n"


def _pad_code(code: str) -> str:
    return f"{struct.calcsize(f'={code}')}x"


# ---- command ------------------------------------------------------------------------------------


def find_clang(which: Callable[[str], str | None] = shutil.which) -> str:
    """Path of a clang that knows the BPF machine. Raises LayoutError with the package's name."""
    for name in ("clang-14", "clang"):
        path = which(name)
        if path:
            return path
    raise LayoutError("no clang in PATH: install the package clang-14")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, or compare; returns the exit status."""
    parser = argparse.ArgumentParser(prog="generate_layouts", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare and do not write")
    parser.add_argument("--header", type=Path, default=HEADER)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    try:
        text = generate(options.header, find_clang())
    except LayoutError as error:
        print(f"generate_layouts: {error}", file=sys.stderr)
        return 2
    if not options.check:
        options.output.write_text(text)
        return 0
    committed = options.output.read_text() if options.output.exists() else ""
    if committed == text:
        return 0
    name = str(options.output)
    lines = difflib.unified_diff(
        committed.splitlines(True), text.splitlines(True), name, "generated"
    )
    sys.stderr.writelines(lines)
    print(f"{name} is out of date: run python -m tools.generate_layouts", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
