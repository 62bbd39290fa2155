# SPDX-License-Identifier: Apache-2.0
"""agent.kernel.loader: compiles in a child that may die, keeps what it compiled, loads here."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.kernel import bpf
from agent.kernel.loader import Loader, LoadError, ProgramSpec
from agent.kernel.maps import PinnedMap
from agent.kernel.testrun import SkbContext, prog_test_run
from bpf.maps import U32, U64, MapSpec, MapType, Writer

pytestmark = pytest.mark.kernel

PACKET = bytes(range(64))

COUNT = """
#include "lib/count.h"
int count(struct __sk_buff *skb)
{
	__u32 zero = 0;

	add(bpf_map_lookup_elem((void *)bpf_pseudo_fd(1, COUNTS_FD), &zero), STEP);
	add(bpf_map_lookup_elem((void *)bpf_pseudo_fd(1, OTHERS_FD), &zero), 1);
	skb->cb[0] = skb->mark + skb->ifindex;
	return ANSWER;
}
"""
COUNT_H = """
#pragma once
static __always_inline void add(__u64 *counter, int step)
{
	if (counter)
		__sync_fetch_and_add(counter, step);
}
"""
FAULTY = {
    "syntax": "int syntax(struct __sk_buff *skb) { return skb->no_such_field; }",
    "implicit": "int implicit(struct __sk_buff *skb) { return not_there(skb); }",
    # LLVM ends the whole process for these two.
    "stack": "int stack(struct __sk_buff *skb) { volatile char x[600];"
    " for (int i = 0; i < 600; i++) x[i] = i; return x[skb->len % 600]; }",
    "crash": "int crash(struct __sk_buff *skb) {"
    " return *__builtin_preserve_access_index(&skb->len); }",
    "verifier": "int verifier(struct __sk_buff *skb) { return *(u8 *)(long)skb->data; }",
    "call": "__attribute__((noinline)) int far(int x) { return x * x; }"
    " int call(struct __sk_buff *skb) { return far(skb->len); }",
}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder of programs."""
    folder = tmp_path / "sources"
    (folder / "lib").mkdir(parents=True)
    (folder / "count.c").write_text(COUNT)
    (folder / "lib" / "count.h").write_text(COUNT_H)
    for name, text in FAULTY.items():
        (folder / f"{name}.c").write_text(text)
    return folder


@pytest.fixture
def tables() -> Iterator[dict[str, PinnedMap[int, int]]]:
    """Two maps for the programs to count in."""
    made = {
        name: PinnedMap.create(MapSpec(name, MapType.ARRAY, U32, U64, 1, Writer.PROGRAMS))
        for name in ("counts", "others")
    }
    yield made
    for table in made.values():
        table.close()


def descriptors(tables: dict[str, PinnedMap[int, int]]) -> dict[str, int]:
    return {name: table.fd for name, table in tables.items()}


def run(fd: int) -> int:
    try:
        return prog_test_run(fd, PACKET).retval
    finally:
        os.close(fd)


def test_loads_runs_and_keeps(
    tmp_path: Path, sources: Path, tables: dict[str, PinnedMap[int, int]]
) -> None:
    fds = descriptors(tables)
    work = tmp_path / "work"
    loader = Loader(work, sources=sources)
    spec = ProgramSpec("count")
    program = loader.load([spec], {"STEP": 5, "ANSWER": 2}, fds)["count"]
    info = bpf.program_info(program)
    assert (info.name, info.type) == ("bristle_count", 3)
    assert run(program) == 2
    assert (tables["counts"].lookup(0), tables["others"].lookup(0)) == (5, 1)

    # Nothing changed: no compiler is needed, here one that only fails.
    blind = Loader(work, sources=sources, python="/bin/false")
    assert run(blind.load([spec], {"STEP": 5, "ANSWER": 2}, fds)["count"]) == 2
    # Other descriptors of the same maps' names do not matter, other macros do.
    swapped = {"counts": fds["others"], "others": fds["counts"]}
    assert run(blind.load([spec], {"STEP": 5, "ANSWER": 2}, swapped)["count"]) == 2
    assert (tables["counts"].lookup(0), tables["others"].lookup(0)) == (11, 7)
    with pytest.raises(LoadError, match="status 1"):
        blind.load([spec], {"STEP": 6, "ANSWER": 2}, fds)

    # A damaged file is compiled again, a changed header too.
    (kept,) = (work / "programs").iterdir()
    kept.write_bytes(kept.read_bytes()[:-20])
    with pytest.raises(LoadError):
        blind.load([spec], {"STEP": 5, "ANSWER": 2}, fds)
    assert run(loader.load([spec], {"STEP": 5, "ANSWER": 2}, fds)["count"]) == 2
    (sources / "lib" / "count.h").write_text(
        COUNT_H.replace("counter, step)", "counter, step * 100)")
    )
    assert run(loader.load([spec], {"STEP": 5, "ANSWER": 3}, fds)["count"]) == 3
    assert tables["counts"].lookup(0) == 11 + 5 + 500


def test_pinned_programs_are_adopted(
    tmp_path: Path, sources: Path, tables: dict[str, PinnedMap[int, int]], bpffs_dir: Path
) -> None:
    loader = Loader(tmp_path / "work", sources=sources)
    pins = bpffs_dir / "programs"
    fds = descriptors(tables)

    def load(answer: int, maps: dict[str, int] = fds) -> int:
        spec, defines = ProgramSpec("count"), {"STEP": 1, "ANSWER": answer}
        fd = loader.load([spec], defines, maps, pins)["count"]
        try:
            assert prog_test_run(fd, PACKET).retval == answer
            return bpf.program_info(fd).id
        finally:
            os.close(fd)

    first = load(1)
    assert load(1) == first
    # Other code, and the same code with other maps, are other programs.
    second = load(2)
    swapped = load(2, {"counts": fds["others"], "others": fds["counts"]})
    assert len({first, second, swapped}) == 3
    assert len(list(pins.iterdir())) == 1
    (pin,) = pins.iterdir()
    pin.unlink()
    bpf.object_pin(fds["counts"], pin)
    with pytest.raises(LoadError, match="is a map and no program"):
        load(2, {"counts": fds["others"], "others": fds["counts"]})


@pytest.mark.parametrize(
    ("name", "stage", "log"),
    [
        ("syntax", "compile", "no member named 'no_such_field'"),
        ("implicit", "compile", "not_there"),
        ("stack", "compile", "stack limit of 512 bytes"),
        ("crash", "compile", "killed by signal"),
        ("verifier", "verify", "invalid access to packet"),
        ("call", "compile", "was not inlined|call"),
        ("nowhere", "compile", "No such file"),
    ],
)
def test_faulty_programs_leave_the_caller_alive(
    tmp_path: Path,
    sources: Path,
    tables: dict[str, PinnedMap[int, int]],
    name: str,
    stage: str,
    log: str,
) -> None:
    loader = Loader(tmp_path / "work", sources=sources)
    before = sorted(os.listdir("/proc/self/fd"))
    good, bad = ProgramSpec("count"), ProgramSpec(name)
    with pytest.raises(LoadError, match=log) as info:
        loader.load([good, bad], {"STEP": 1, "ANSWER": 0}, descriptors(tables))
    assert (info.value.program, info.value.stage) == (name, stage)
    # All or none: the good one did not stay loaded.
    assert sorted(os.listdir("/proc/self/fd")) == before
    # What was compiled before the failure is not lost on the caller.
    assert loader.load([good], {"STEP": 1, "ANSWER": 0}, descriptors(tables)).keys() == {"count"}


def test_compiler_that_never_ends(
    tmp_path: Path, sources: Path, tables: dict[str, PinnedMap[int, int]]
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 1000\n")
    python.chmod(0o700)
    loader = Loader(tmp_path / "work", sources=sources, python=str(python), timeout=0.2)
    with pytest.raises(LoadError, match=r"not done after 0\.2 s"):
        loader.compile(["count"], {"STEP": 1, "ANSWER": 0}, ["counts", "others"])


# ---- test runs ----------------------------------------------------------------------------------


def test_test_run_passes_the_context_both_ways(
    tmp_path: Path, sources: Path, tables: dict[str, PinnedMap[int, int]]
) -> None:
    loader = Loader(tmp_path / "work", sources=sources)
    fd = loader.load([ProgramSpec("count")], {"STEP": 1, "ANSWER": -1}, descriptors(tables))[
        "count"
    ]
    try:
        given = SkbContext(mark=40, priority=7, ingress_ifindex=0, ifindex=1, cb=(9, 8, 7, 6, 5))
        result = prog_test_run(fd, PACKET, given, repeat=10)
        assert result.retval == 0xFFFFFFFF
        assert result.packet == PACKET
        assert result.context == SkbContext(40, 7, 0, 1, (41, 8, 7, 6, 5))
        assert tables["counts"].lookup(0) == 10
        with pytest.raises(bpf.BpfError, match="PROG_TEST_RUN"):
            prog_test_run(fd, PACKET[:13])
        with pytest.raises(bpf.BpfError):
            prog_test_run(fd, PACKET, SkbContext(ifindex=987654))
    finally:
        os.close(fd)
