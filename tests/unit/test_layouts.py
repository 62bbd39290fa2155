# SPDX-License-Identifier: Apache-2.0
"""bpf.layouts: every class packs to the bytes that the compiler laid out, and back."""

import dataclasses
import inspect
import struct
import subprocess
import sys
from enum import IntEnum
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpf import layouts, maps

CLASSES: list[Any] = [
    value
    for name in layouts.__all__
    if inspect.isclass(value := getattr(layouts, name)) and dataclasses.is_dataclass(value)
]


def records(cls: Any) -> st.SearchStrategy[Any]:
    """Any value of a layout class, by the widths that its numpy type states."""
    columns: dict[str, st.SearchStrategy[Any]] = {}
    for field in dataclasses.fields(cls):
        dtype = cls.DTYPE[field.name]
        base, count = dtype.base, dtype.shape[0] if dtype.shape else 0
        low, high = int(numpy.iinfo(base).min), int(numpy.iinfo(base).max)
        integer = st.integers(low, high)
        if not count:
            columns[field.name] = integer
        elif base.itemsize == 1:
            columns[field.name] = st.binary(min_size=count, max_size=count)
        else:
            columns[field.name] = st.tuples(*[integer] * count)
    return st.builds(cls, **columns)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_pack_unpack_and_numpy_agree(cls: Any, data: st.DataObject) -> None:
    record = data.draw(records(cls))
    packed = record.pack()
    assert len(packed) == cls.SIZE == cls.DTYPE.itemsize
    assert cls.unpack(packed) == record
    row = numpy.frombuffer(packed, cls.DTYPE)[0]
    for field in dataclasses.fields(cls):
        value = getattr(record, field.name)
        seen = row[field.name]
        if isinstance(value, bytes):
            assert seen.tobytes() == value
        elif isinstance(value, tuple):
            assert tuple(seen.tolist()) == value
        else:
            assert int(seen) == value


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_padding_is_written_as_zeros_and_ignored(cls: Any) -> None:
    shown = sum(cls.DTYPE[field.name].itemsize for field in dataclasses.fields(cls))
    ones = cls.unpack(b"\xff" * cls.SIZE)
    packed = ones.pack()
    assert packed.count(0) == cls.SIZE - shown
    assert cls.unpack(packed) == ones


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ValueError, match="address has 4 bytes, not 16"):
        layouts.PeerKey(32, b"\x0a\0\0\1")
    with pytest.raises(struct.error):
        layouts.PolicyKey(1 << 32, 0, 0, 0, 0).pack()
    with pytest.raises(struct.error):
        layouts.PolicyKey.unpack(b"\0" * 11)


def test_enumerations_have_distinct_values() -> None:
    enums = [
        value for name in layouts.__all__ if issubclass(value := getattr(layouts, name), IntEnum)
    ]
    assert len(enums) > 10
    for enum in enums:
        # An alias would make two names one and print the wrong of them.
        assert len(list(enum)) == len(enum.__members__), enum


def test_import_is_cheap() -> None:
    code = "import sys, bpf.maps; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_map_table() -> None:
    assert len({spec.pin_name for spec in maps.SPECS.values()}) == len(maps.SPECS)
    sized = maps.specs({"ct": 1000, "events": 1 << 16})
    assert (sized["ct"].max_entries, sized["peers"].max_entries) == (1000, 524288)
    with pytest.raises(maps.UnknownMap, match="no map is called 'ctt'; there are addresses"):
        maps.specs({"ctt": 1})
    with pytest.raises(ValueError, match=r"map events: .*power of two"):
        maps.specs({"events": 5000})
    with pytest.raises(ValueError, match="'ct'"):
        maps.specs({"ct": 0})
