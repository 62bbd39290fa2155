# SPDX-License-Identifier: Apache-2.0
"""Durable files: what a crash, a full disk, a bad sector, a reboot or another version leaves."""

import json
import resource
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.kernel.endpoint_store import EndpointRecord, EndpointStore, EndpointStoreError
from agent.kernel.sysctl import SysctlJournal, enable_forwarding
from agent.state_file import Journal, StateFileError, write_durably


def endpoint(number: int) -> EndpointRecord:
    return EndpointRecord(
        number, f"c{number}", "eth0", "", 0, f"bri{number:08x}", number,
        "02:00:00:00:00:01", "02:00:00:00:00:02", 1500, IPv4Address(number), None,
    )  # fmt: skip


def opened(path: Path, boot: str = "b1") -> EndpointStore:
    store = EndpointStore(path, boot)
    store.open()
    return store


def ids(store: EndpointStore) -> list[int]:
    return sorted(entry.endpoint for entry in store)


@contextmanager
def disk_full_at(size: int) -> Iterator[None]:
    """Writes beyond this offset stop half way with EFBIG, as on a full disk with ENOSPC."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@settings(deadline=None)
@given(data=st.data())
def test_one_damaged_byte_costs_one_record(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("bristle-t") / "endpoints"
    store = opened(path)
    for number in range(1, 5):
        store.put(endpoint(number))
    store.close()
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda value: value != content[position]))
    content[position] = value
    path.write_bytes(content)
    again = opened(path)
    lost = set(range(1, 5)) - set(ids(again))
    # A newline that is gone joins two lines; any other byte spoils its own line alone.
    line = content[:position].count(b"\n") + 1
    assert lost <= {line, line + 1} and lost
    # The last line may as well be torn by a crash; those before it cannot.
    assert bool(again.damaged) == (min(lost) < 4 and max(lost) < 4)
    again.close()
    assert ids(opened(path)) == ids(again)


def test_a_full_disk_refuses_the_change_and_keeps_the_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "endpoints"
    store = opened(path)
    store.put(endpoint(1))
    size = path.stat().st_size
    with disk_full_at(size + 20):
        with pytest.raises(StateFileError, match="endpoints"):
            store.put(endpoint(2))
        with pytest.raises(StateFileError, match="state_dir"):
            store.remove(1)
    assert path.stat().st_size == size
    assert ids(store) == [1]
    store.put(endpoint(3))
    store.close()
    again = opened(path)
    assert (ids(again), again.damaged) == ([1, 3], 0)


def test_a_failed_replacement_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_durably(path, b"old")
    with disk_full_at(100), pytest.raises(StateFileError, match="state_dir"):
        write_durably(path, bytes(200))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
    with pytest.raises(StateFileError):
        write_durably(tmp_path / "absent" / "state", b"")


def test_the_journal_stays_short(tmp_path: Path) -> None:
    path = tmp_path / "endpoints"
    store = opened(path)
    store.put(endpoint(1))
    for _ in range(1500):
        store.put(endpoint(7))
        store.remove(7)
    assert len(path.read_bytes().splitlines()) < 2500
    store.close()
    again = opened(path)
    assert ids(again) == [1]
    assert again.released() == (IPv4Address(7),)
    # A compaction that fails is no failure of the change.
    with disk_full_at(path.stat().st_size + 500):
        again.put(endpoint(8))
    assert again.get(8) == endpoint(8)
    assert again.find("c8", "eth0") == endpoint(8)


def test_another_boot_voids_everything(tmp_path: Path) -> None:
    path = tmp_path / "endpoints"
    store = opened(path, "b1")
    store.put(endpoint(1))
    store.put(endpoint(2))
    store.remove(2)
    store.close()
    rebooted = opened(path, "b2")
    assert (ids(rebooted), rebooted.released()) == ([], ())
    rebooted.put(endpoint(3))
    rebooted.close()
    assert ids(opened(path, "b2")) == [3]


def line(record: dict[str, object]) -> bytes:
    body = json.dumps(record).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def test_files_of_other_versions(tmp_path: Path) -> None:
    path = tmp_path / "endpoints"
    store = opened(path)
    store.put(endpoint(1))
    store.close()
    (record,) = Journal(path).open().records
    # Something a later agent adds without a new format is ignored, and what it does not know too.
    path.write_bytes(line({**record, "colour": 1}) + line({"op": "dance", "v": 1, "boot": "b1"}))
    assert ids(opened(path)) == [1]
    # A record without a field that this agent needs is damage, not a crash.
    del record["mtu"]  # type: ignore[attr-defined]
    path.write_bytes(line(dict(record)))
    assert opened(path).damaged == 1
    path.write_bytes(line({"op": "put", "v": 2, "boot": "b1"}))
    with pytest.raises(EndpointStoreError, match="format 2"):
        opened(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A /proc/sys as of a kernel before 6.17."""
    values = {
        "net/ipv4/conf/eth0/forwarding": "0",
        "net/ipv6/conf/all/forwarding": "0",
        "net/ipv6/conf/all/accept_ra": "1",
        "net/ipv6/conf/eth0/forwarding": "0",
        "net/ipv6/conf/eth0/accept_ra": "1",
        "net/ipv6/conf/eth1/forwarding": "1",
        "net/ipv6/conf/eth1/accept_ra": "0",
    }
    for name, value in values.items():
        file = tmp_path / "sys" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value)
    return tmp_path / "sys"


def test_only_what_is_still_ours_is_restored(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "sysctl.json"
    journal = SysctlJournal(path, "b1", root)
    assert journal.set("net/ipv4/conf/eth0/forwarding", "1")
    assert journal.set("net/ipv4/conf/eth0/forwarding", "1")
    assert not journal.set("net/ipv4/conf/gone/forwarding", "1")
    assert journal.set("net/ipv6/conf/eth1/accept_ra", "0")
    assert journal.changes == {"net/ipv4/conf/eth0/forwarding": ("0", "1")}
    journal.set("net/ipv6/conf/eth0/accept_ra", "2")
    (root / "net/ipv6/conf/eth0/accept_ra").write_text("0")  # an administrator
    again = SysctlJournal(path, "b1", root)
    again.open()
    assert again.restore() == ("net/ipv4/conf/eth0/forwarding",)
    assert (root / "net/ipv6/conf/eth0/accept_ra").read_text() == "0"
    assert again.restore() == ()
    rebooted = SysctlJournal(path, "b2", root)
    journal.set("net/ipv4/conf/eth0/forwarding", "1")
    rebooted.open()
    assert rebooted.restore() == ()


def test_without_uplinks_nothing_is_changed(root: Path, tmp_path: Path) -> None:
    before = {file: file.read_text() for file in root.rglob("*") if file.is_file()}
    journal = SysctlJournal(tmp_path / "sysctl.json", "b1", root)
    enable_forwarding(journal, [])
    assert {file: file.read_text() for file in root.rglob("*") if file.is_file()} == before
    assert journal.changes == {}


def test_an_older_kernel_keeps_listening_to_router_advertisements(
    root: Path, tmp_path: Path
) -> None:
    journal = SysctlJournal(tmp_path / "sysctl.json", "b1", root)
    enable_forwarding(journal, ["eth0"])
    changed = journal.changes
    assert changed["net/ipv6/conf/eth0/accept_ra"] == ("1", "2")
    assert "net/ipv6/conf/eth1/accept_ra" not in changed
    # All that the change of `all` cascades to is recorded, with what it was.
    assert changed["net/ipv6/conf/all/forwarding"] == ("0", "1")
    assert changed["net/ipv6/conf/eth1/forwarding"] == ("1", "1")
    assert list(changed).index("net/ipv6/conf/all/forwarding") < list(changed).index(
        "net/ipv6/conf/eth1/forwarding"
    )
    assert (root / "net/ipv6/conf/all/forwarding").read_text() == "1"
