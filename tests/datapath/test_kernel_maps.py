# SPDX-License-Identifier: Apache-2.0
"""agent.kernel.maps and bpffs against the running kernel."""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.kernel import batch, bpf, bpffs
from agent.kernel.maps import MapFull, MapMismatch, MapMissing, PinnedMap, possible_cpus
from bpf import maps
from bpf.layouts import Peer, PeerKey, PolicyKey, PolicyVerdict, Traffic
from bpf.maps import U32, U64, MapFlag, MapSpec, MapType, Writer

pytestmark = pytest.mark.kernel

SMALL = MapSpec("small", MapType.HASH, U32, U64, 100, Writer.AGENT)
ACCEPT = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)


def test_every_map_of_the_table_can_be_made_and_adopted(bpffs_dir: Path) -> None:
    folder = bpffs_dir / "bristle" / "maps"
    for spec in maps.SPECS.values():
        with PinnedMap.open_or_create(spec, folder) as made:
            assert made.created
            number = made.info().id
        with PinnedMap.open_or_create(spec, folder) as adopted:
            assert (adopted.created, adopted.info().id) == (False, number)
    assert {path.name for path in folder.iterdir()} == {
        spec.pin_name for spec in maps.SPECS.values()
    }


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (MapSpec("small", MapType.LRU_HASH, U32, U64, 100, Writer.AGENT), "type 1 instead of 9"),
        (MapSpec("small", MapType.HASH, U64, U64, 100, Writer.AGENT), "key size 4 instead of 8"),
        (MapSpec("small", MapType.HASH, U32, U32, 100, Writer.AGENT), "value size 8 instead of 4"),
        (SMALL.resized(101), "entries 100 instead of 101"),
        (
            MapSpec("small", MapType.HASH, U32, U64, 100, Writer.AGENT, MapFlag.NO_PREALLOC),
            "flags 0 instead of 1",
        ),
    ],
)
def test_mismatched_pin_is_refused_and_left_alone(
    bpffs_dir: Path, other: MapSpec[Any, Any], difference: str
) -> None:
    with PinnedMap.open_or_create(SMALL, bpffs_dir) as made:
        made.update(1, 2)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(MapMismatch, match=f"small_v1 is not the map it should be: {difference}"):
        PinnedMap.open_or_create(other, bpffs_dir)
    assert sorted(os.listdir("/proc/self/fd")) == before
    with PinnedMap.open(SMALL, bpffs_dir) as again:
        assert again.lookup(1) == 2


def test_pin_of_another_kind_is_refused(bpffs_dir: Path) -> None:
    program = bpf.program_load(3, ACCEPT, "accept", licence="GPL")
    bpf.object_pin(program, bpffs_dir / SMALL.pin_name)
    os.close(program)
    for any_size in (False, True):
        with pytest.raises(MapMismatch, match="a prog and no map"):
            PinnedMap.open(SMALL, bpffs_dir, any_size=any_size)


def test_missing_pin_and_taking_over_another_size(bpffs_dir: Path) -> None:
    with pytest.raises(MapMissing, match=r"nothing is pinned at .*small_v1"):
        PinnedMap.open(SMALL, bpffs_dir)
    with PinnedMap.open_or_create(SMALL, bpffs_dir) as made:
        made.update_many((n, n * n) for n in range(50))
    with PinnedMap.open(SMALL.resized(7), bpffs_dir, any_size=True) as old:
        assert old.capacity == 100
        with PinnedMap.create(SMALL.resized(200)) as new:
            assert new.copy_from(old, lambda k, v: (k, v) if k != U32.pack(3) else None) == 49
            assert dict(new.items()) == {n: n * n for n in range(50) if n != 3}
        with PinnedMap.create(SMALL.resized(10)) as tight, pytest.raises(MapFull):
            tight.copy_from(old)


KEYS = st.integers(0, 40)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("update"), st.dictionaries(KEYS, st.integers(0, 2**64 - 1))),
        st.tuples(st.just("delete"), st.lists(KEYS, unique=True)),
    ),
    max_size=8,
)


@pytest.mark.parametrize("kind", [MapType.HASH, MapType.LPM_TRIE])
@given(steps=STEPS)
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_batches_equal_a_dictionary(kind: MapType, steps: list[tuple[str, Any]]) -> None:
    lpm = kind is MapType.LPM_TRIE
    # A key is a whole address behind its length in bits for the one, a number for the other.
    key = maps.Octets(8) if lpm else U32
    spec = MapSpec[Any, int]("model", kind, key, U64, 50, Writer.AGENT, MapFlag.NO_PREALLOC)

    def name(n: int) -> Any:
        return struct.pack("=I", 32) + struct.pack(">I", n << 7) if lpm else n

    model: dict[Any, int] = {}
    with PinnedMap.create(spec) as table:
        for step, content in steps:
            if step == "update":
                table.update_many((name(n), value) for n, value in content.items())
                model.update({name(n): value for n, value in content.items()})
            else:
                gone = [name(n) for n in content]
                present = sum(model.pop(k, None) is not None for k in gone)
                assert table.delete_many(gone) == present
            assert dict(table.items()) == model
            assert table.delete(name(99)) is False


def test_many_entries_from_numpy() -> None:
    count = 3 * batch.CHUNK + 17
    keys = numpy.zeros(count, PolicyKey.DTYPE)
    keys["table"] = numpy.arange(count)
    values = numpy.zeros(count, PolicyVerdict.DTYPE)
    values["rule"] = numpy.arange(count) + 1000
    with PinnedMap.create(maps.POLICY) as policy:
        assert policy.update_packed(keys, values) == count
        assert policy.lookup(PolicyKey(5, 0, 0, 0, 0)) == PolicyVerdict(1005, 0)
        read = {
            int(k["table"]): int(v["rule"])
            for raw_keys, raw_values in policy.chunks()
            for k, v in zip(
                numpy.frombuffer(raw_keys, PolicyKey.DTYPE),
                numpy.frombuffer(raw_values, PolicyVerdict.DTYPE),
                strict=True,
            )
        }
        assert read == {n: n + 1000 for n in range(count)}
        # Every third is absent already, so that batches stop and go on.
        policy.delete_packed(keys[::3].copy())
        assert policy.delete_packed(keys) == count - len(keys[::3])
        assert dict(policy.items()) == {}
        with pytest.raises(ValueError, match="no whole number of keys"):
            policy.delete_packed(b"\0" * 13)
        with pytest.raises(ValueError, match="2 keys, 8 bytes of values"):
            policy.update_packed(b"\0" * 24, b"\0" * 8)


@pytest.mark.parametrize("spec", [maps.POLICY.resized(10), maps.PEERS.resized(10)])
def test_full_map_names_itself(spec: MapSpec[Any, Any]) -> None:
    def entry(n: int) -> tuple[Any, Any]:
        if spec.name == "policy":
            return PolicyKey(n, 0, 0, 0, 0), PolicyVerdict(n, 0)
        return PeerKey(128, n.to_bytes(16, "big")), Peer(n, 0)

    with PinnedMap.create(spec) as table:
        with pytest.raises(MapFull, match=f"map {spec.name} is full: it holds 10 entries") as info:
            table.update_many(entry(n) for n in range(15))
        assert (info.value.wanted, info.value.written, info.value.capacity) == (15, 10, 10)
        assert len(dict(table.items())) == 10
        table.update_many(entry(n) for n in range(10))  # what is there can still be replaced
        with pytest.raises(MapFull):
            table.update(*entry(12))


def test_wrong_entry_among_many_is_an_error() -> None:
    good = PeerKey(128, b"\0" * 16)
    with PinnedMap.create(maps.PEERS) as peers:
        with pytest.raises(bpf.BpfError, match="map peers"):
            peers.update_many([(good, Peer(1, 1)), (PeerKey(129, b"\0" * 16), Peer(2, 2))])
        assert dict(peers.items()) == {good: Peer(1, 1)}


def test_map_type_without_batches() -> None:
    # A table of tail calls takes no batches: entries are written and read one by one.
    spec = MapSpec("calls", MapType.HASH, U32, U32, 4, Writer.AGENT)
    program = bpf.program_load(3, ACCEPT, "accept", licence="GPL")
    fd = bpf.map_create(3, 4, 4, 4, 0, "calls")
    try:
        assert not batch.supported(fd, b"\0" * 4, U32.pack(program))
        table = PinnedMap(spec, fd, None, True)
        assert table.update_many([(0, program), (2, program)]) == 2
        number = bpf.program_info(program).id
        assert dict(table.items()) == {0: number, 2: number}
        assert table.delete_many([2, 1]) == 1
    finally:
        os.close(program)
        os.close(fd)


def test_values_of_every_cpu() -> None:
    with PinnedMap.create(maps.METRICS) as metrics:
        cpus = possible_cpus()
        each = [Traffic(10 + n, 20 + n) for n in range(cpus)]
        metrics.update_packed(U32.pack(7), b"".join(value.pack() for value in each))
        assert metrics.lookup_cpus(7) == each
        content = dict(metrics.items_cpus())
        assert len(content) == metrics.capacity
        assert content.pop(7) == each
        assert all(value == [Traffic(0, 0)] * cpus for value in content.values())


@pytest.mark.parametrize(("text", "count"), [("0\n", 1), ("0-3\n", 4), ("0-1,4,6-7\n", 5)])
def test_possible_cpus(tmp_path: Path, text: str, count: int) -> None:
    (tmp_path / "possible").write_text(text)
    assert possible_cpus(tmp_path / "possible") == count


# ---- bpffs --------------------------------------------------------------------------------------


@pytest.fixture
def mounts(private_mounts: None) -> Callable[[Path], None]:
    """Takes a mount away again at the end of a test."""
    return bpffs.unmount


def test_bpffs_is_mounted_where_there_is_none(
    mounts: Callable[[Path], None], tmp_path: Path
) -> None:
    standard = tmp_path / "standard"
    below = standard / "bristle" / "a"
    first = bpffs.ensure(below, standard=standard)
    assert first == bpffs.Bpffs(below, standard)
    assert bpffs.ensure(below, standard=standard) == bpffs.Bpffs(below, None)
    with PinnedMap.open_or_create(SMALL, below):
        pass
    elsewhere = tmp_path / "elsewhere"
    assert bpffs.ensure(elsewhere, standard=standard).mounted == elsewhere
    for point in (elsewhere, standard):
        mounts(point)
        mounts(point)
        assert not bpffs.is_bpffs(point)


def test_bpffs_never_hides_files(private_mounts: None, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(bpffs.BpffsError, match="is not empty: mount one yourself: mount -t bpf"):
        bpffs.ensure(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    os.chown(empty, 12345, 12345)
    with pytest.raises(bpffs.BpffsError, match="belongs to another user"):
        bpffs.ensure(empty)
    with pytest.raises(bpffs.BpffsError, match="file"):
        bpffs.ensure(tmp_path / "file" / "folder")
