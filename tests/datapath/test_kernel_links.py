# SPDX-License-Identifier: Apache-2.0
"""agent.kernel.links: attached, replaced without losing a packet, adopted, pruned."""

import os
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.kernel import bpf, features, tcfilter
from agent.kernel.links import (
    Attacher,
    ClsactAttacher,
    Hook,
    LinkError,
    Outcome,
    TcxAttacher,
    attacher,
    has_tcx,
)
from agent.kernel.loader import Loader, ProgramSpec
from agent.kernel.maps import PinnedMap
from bpf.maps import U32, U64, MapSpec, MapType, Writer
from tests.conftest import Netns

pytestmark = pytest.mark.kernel

ETHERTYPE = 0x88B5  # IEEE 802: for local experiments; nothing else sends it here
FRAME = b"\x02\0\0\0\0\2" + b"\x02\0\0\0\0\1" + struct.pack(">H", ETHERTYPE) + bytes(46)
SOURCE = f"""
int tally(struct __sk_buff *skb)
{{
	__u32 which = WHICH;
	__u64 *counter;

	if (skb->protocol != __builtin_bswap16({ETHERTYPE}))
		return 0;
	counter = bpf_map_lookup_elem((void *)bpf_pseudo_fd(1, TALLY_FD), &which);
	if (counter)
		__sync_fetch_and_add(counter, 1);
	return 0;
}}
"""
TALLY = MapSpec("tally", MapType.ARRAY, U32, U64, 2, Writer.PROGRAMS)
INDEX = 77


@pytest.fixture(scope="module")
def programs(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[PinnedMap[int, int], list[int]]]:
    """A map, and two programs of which each counts frames in an entry of its own."""
    sources = tmp_path_factory.mktemp("sources")
    (sources / "tally.c").write_text(SOURCE)
    loader = Loader(tmp_path_factory.mktemp("work"), sources=sources)
    with PinnedMap.create(TALLY) as table:
        loaded = [
            loader.load([ProgramSpec("tally")], {"WHICH": n}, {"tally": table.fd})["tally"]
            for n in range(2)
        ]
        yield table, loaded
    for fd in loaded:
        os.close(fd)


class Pair:
    """A veth pair in a namespace: frames sent at one end come in at device 77."""

    def __init__(self, netns: Netns, table: PinnedMap[int, int]) -> None:
        self.netns = netns
        self._table = table
        self.add()

    def add(self) -> None:
        index = ("index", str(INDEX))
        self.netns.ip("link", "add", "name", "in0", *index, "type", "veth", "peer", "name", "out0")
        for name in ("in0", "out0"):
            self.netns.ip("link", "set", name, "up")

    def attach(
        self, links: Attacher, fd: int, name: str = "ep1", hook: Hook = Hook.INGRESS
    ) -> Outcome:
        return self.netns.run(lambda: links.attach(fd, INDEX, hook, name))

    def programs_at(self, hook: Hook) -> list[int]:
        """Ids of the programs attached by TCX."""
        found = self.netns.run(lambda: bpf.program_query(INDEX, hook.attach_type))
        return [program for program, _ in found]

    def send(self, count: int) -> None:
        def work() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
                raw.bind(("out0", 0))
                for _ in range(count):
                    raw.send(FRAME)

        self.netns.run(work)

    def counted(self) -> list[int]:
        return [self._table.lookup(n) or 0 for n in range(2)]

    def arrivals(self, count: int) -> list[int]:
        """Counts since the last call, once ``count`` frames have come (or 10 s are over)."""
        deadline = time.monotonic() + 10
        while sum(self.counted()) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        found = self.counted()
        self._table.update_many((n, 0) for n in range(2))
        return found


@pytest.fixture
def pair(netns: Netns, programs: tuple[PinnedMap[int, int], list[int]]) -> Pair:
    """See Pair."""
    programs[0].update_many((n, 0) for n in range(2))
    return Pair(netns, programs[0])


def tcx(folder: Path) -> Attacher:
    if not has_tcx():
        pytest.skip("the kernel has no TCX (6.6)")
    return TcxAttacher(folder)


KINDS: dict[str, Callable[[Path], Attacher]] = {"tcx": tcx, "clsact": lambda _: ClsactAttacher()}


@pytest.mark.parametrize("kind", KINDS)
def test_attach_replace_detach(
    kind: str, pair: Pair, programs: tuple[PinnedMap[int, int], list[int]], bpffs_dir: Path
) -> None:
    links = KINDS[kind](bpffs_dir / "links")
    _, (first, second) = programs
    run = pair.netns.run

    assert run(lambda: links.program_id(INDEX, Hook.INGRESS, "ep1")) is None
    for program, outcome in (
        (first, Outcome.CREATED),
        (first, Outcome.KEPT),
        (second, Outcome.REPLACED),
    ):
        assert pair.attach(links, program) is outcome
        number = bpf.program_info(program).id
        assert run(lambda: links.program_id(INDEX, Hook.INGRESS, "ep1")) == number
    assert run(lambda: links.program_id(INDEX, Hook.EGRESS, "ep1")) is None
    pair.send(5)
    assert pair.arrivals(5) == [0, 5]
    for _ in range(2):
        run(lambda: links.detach(INDEX, Hook.INGRESS, "ep1"))
    pair.send(5)
    pair.attach(links, first)
    pair.send(3)
    assert pair.arrivals(3) == [3, 0]
    with pytest.raises(LinkError, match="ingress of device 4242: no such device"):
        run(lambda: links.attach(first, 4242, Hook.INGRESS, "ep2"))


@pytest.mark.parametrize("kind", KINDS)
def test_replacing_loses_no_packet(
    kind: str, pair: Pair, programs: tuple[PinnedMap[int, int], list[int]], bpffs_dir: Path
) -> None:
    links = KINDS[kind](bpffs_dir / "links")
    _, both = programs
    pair.attach(links, both[0])
    sender = subprocess.Popen(
        [sys.executable, "-c", FLOOD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[pair.netns.fd],
        env={"NETNS": str(pair.netns.fd), "FRAME": FRAME.hex()},
    )
    assert sender.stdin and sender.stdout
    with sender.stdin, sender.stdout:
        sender.stdout.readline()  # it sends from now on
        for n in range(1, 201):
            pair.attach(links, both[n % 2])
        sender.stdin.close()
        sent = int(sender.stdout.readline())
    sender.wait()
    counted = pair.arrivals(sent)
    assert sum(counted) == sent > 0
    assert min(counted) > 0  # both ran meanwhile


# Sends until its standard input ends, then says how many frames it sent.
FLOOD = textwrap.dedent("""
    import ctypes, os, select, socket, sys
    assert ctypes.CDLL(None).setns(int(os.environ["NETNS"]), 0x40000000) == 0
    frame = bytes.fromhex(os.environ["FRAME"])
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    raw.bind(("out0", 0))
    sent = 0
    print(flush=True)
    while not select.select([0], [], [], 0)[0]:
        for _ in range(20):
            raw.send(frame)
            sent += 1
    print(sent, flush=True)
""")

# Attaches a program that accepts, and ends.
ATTACH = textwrap.dedent("""
    import struct, sys
    from pathlib import Path
    from agent.kernel import bpf
    from agent.kernel.links import Hook, TcxAttacher
    code = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)
    program = bpf.program_load(3, code, "accept", licence="GPL")
    outcome = TcxAttacher(Path(sys.argv[1])).attach(program, 77, Hook.INGRESS, "ep1")
    print(outcome.value, bpf.program_info(program).id)
""")


def test_adopts_what_another_process_left(
    pair: Pair, programs: tuple[PinnedMap[int, int], list[int]], bpffs_dir: Path
) -> None:
    folder = bpffs_dir / "links"
    links = tcx(folder)
    outcome, number = pair.netns.command(sys.executable, "-c", ATTACH, str(folder)).split()
    assert outcome == "created"
    # That process is gone; its program is still the one that runs.
    assert pair.programs_at(Hook.INGRESS) == [int(number)]
    _, (first, _) = programs
    assert [pair.attach(links, first) for _ in range(2)] == [Outcome.REPLACED, Outcome.KEPT]
    assert pair.programs_at(Hook.INGRESS) == [bpf.program_info(first).id]
    pair.send(4)
    assert pair.arrivals(4) == [4, 0]


def test_device_gone_and_its_number_reused(
    pair: Pair, programs: tuple[PinnedMap[int, int], list[int]], bpffs_dir: Path
) -> None:
    folder = bpffs_dir / "links"
    links = TcxAttacher(folder)
    tcx(folder)
    _, (first, second) = programs
    pair.attach(links, first, "ep1", Hook.INGRESS)
    pair.attach(links, first, "ep2", Hook.EGRESS)
    assert links.prune() == []
    pair.netns.ip("link", "del", "in0")
    assert [(link.name, link.ifindex) for link in links.links()] == [("ep1", 0), ("ep2", 0)]
    # Another device with the same number: the old pin must not be taken for its link.
    pair.add()
    assert pair.attach(links, second) is Outcome.CREATED
    pair.send(2)
    assert pair.arrivals(2) == [0, 2]
    assert links.prune() == ["ep2"]
    assert sorted(path.name for path in folder.iterdir()) == ["ep1"]
    pair.netns.ip("link", "del", "in0")
    pair.netns.run(lambda: links.detach(INDEX, Hook.INGRESS, "ep1"))  # works without the device
    assert list(folder.iterdir()) == []


def test_name_moves_to_another_device_or_hook(
    pair: Pair, programs: tuple[PinnedMap[int, int], list[int]], bpffs_dir: Path
) -> None:
    links = tcx(bpffs_dir / "links")
    _, (first, _) = programs
    pair.attach(links, first, hook=Hook.EGRESS)
    assert pair.attach(links, first, hook=Hook.INGRESS) is Outcome.CREATED
    number = bpf.program_info(first).id
    assert (pair.programs_at(Hook.EGRESS), pair.programs_at(Hook.INGRESS)) == ([], [number])


def test_pin_that_is_no_link_is_left_alone(
    pair: Pair, programs: tuple[PinnedMap[int, int], list[int]], bpffs_dir: Path
) -> None:
    links = tcx(bpffs_dir)
    table, (first, _) = programs
    bpf.object_pin(table.fd, bpffs_dir / "ep1")
    with pytest.raises(LinkError, match="ep1 is a map and no link"):
        pair.attach(links, first)
    with pytest.raises(LinkError):
        pair.netns.run(lambda: links.detach(INDEX, Hook.INGRESS, "ep1"))
    assert (bpffs_dir / "ep1").exists()


def test_filters_of_others_stay(
    pair: Pair, programs: tuple[PinnedMap[int, int], list[int]], bpffs_dir: Path
) -> None:
    _, (first, second) = programs
    pin = bpffs_dir / "other"
    bpf.object_pin(second, pin)
    at = ("dev", "in0", "ingress")
    other = ("prio", "5", "handle", "1", "bpf", "object-pinned", str(pin))
    pair.netns.command("tc", "qdisc", "add", "dev", "in0", "clsact")
    # Without direct-action its 0 means: no match, go on to the next filter.
    pair.netns.command("tc", "filter", "add", *at, *other)
    links = ClsactAttacher()
    pair.attach(links, first)
    shown = pair.netns.command("tc", "filter", "show", *at)
    assert "pref 5 bpf chain 0 handle 0x1 other" in shown
    assert f"pref {tcfilter.PRIORITY} bpf" in shown
    assert "ep1 direct-action" in shown
    pair.send(3)
    assert pair.arrivals(6) == [3, 3]
    pair.netns.run(lambda: links.detach(INDEX, Hook.INGRESS, "ep1"))
    shown = pair.netns.command("tc", "filter", "show", *at)
    assert ("pref 5 bpf" in shown, "ep1" in shown) == (True, False)


# ---- features -----------------------------------------------------------------------------------


def test_probing_finds_what_these_tests_use_and_changes_nothing(bpffs_dir: Path) -> None:
    def host() -> tuple[str, list[tuple[int, int]]]:
        devices = subprocess.run(
            ["ip", "-o", "link"], capture_output=True, text=True, check=True
        ).stdout
        return devices, bpf.program_query(1, Hook.INGRESS.attach_type) if has_tcx() else []

    before, descriptors = host(), len(os.listdir("/proc/self/fd"))
    found = {feature.name: feature for feature in features.probe(bpffs_dir)}
    assert (host(), len(os.listdir("/proc/self/fd"))) == (before, descriptors)
    assert features.missing(found.values()) == []
    assert found["TCX"].available == has_tcx()
    assert isinstance(attacher(bpffs_dir), TcxAttacher if has_tcx() else ClsactAttacher)
    assert found["bpffs"].detail == str(bpffs_dir)
    for feature in found.values():
        assert feature.detail
        assert feature.used_for


def test_cgroup2_is_found_in_both_layouts(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"
        "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncgroup2 /a\\040b cgroup2 rw 0 0\n"
    )
    assert features.cgroup2_mounts(mounts) == [Path("/sys/fs/cgroup/unified"), Path("/a b")]
    assert features.cgroup2_mounts(tmp_path / "none") == []
