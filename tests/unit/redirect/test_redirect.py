# SPDX-License-Identifier: Apache-2.0
"""What agent.redirect decides from its configuration, the self-test and what it sees."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import agent.redirect
from agent.config_model import SocketRedirectConfig
from agent.core.sockets import Mode
from agent.kernel.socket_redirect import ListedSocket, RedirectUnavailable
from agent.redirect import STALLED_SECONDS, Redirect, cgroup2_folder, cgroup2_mount
from agent.selftest import Outcome, SelfTestError
from bpf.layouts import SocketCounter, SocketFlag, SocketOutcome, SocketState

GOOD = Outcome("a", False)
SERIOUS = Outcome("order", False, "bytes are lost")
BLOCKING = Outcome("signal", True, "EAGAIN")
EMPTY = SocketState.unpack(bytes(SocketState.SIZE))


class Kernel:
    """What SocketRedirect is to Redirect."""

    def __init__(self) -> None:
        self.listed: list[ListedSocket] = []
        self.listings = 0
        self.in_vain = 1
        self.configured: list[tuple[bool, int]] = []
        self.tags = "1 2 3 4"

    def sockets(self) -> Sequence[ListedSocket]:
        self.listings += 1
        return self.listed

    def counters(self) -> list[int]:
        found = [0] * SocketCounter.SOCKET_COUNTERS
        found[SocketCounter.SOCKETS_BY_OUTCOME + SocketOutcome.SOCKET_STUCK] = self.in_vain
        return found

    def configure(self, enabled: bool, unread_max: int) -> None:
        self.configured.append((enabled, unread_max))

    def tag(self) -> str:
        return self.tags


Make = Callable[..., Any]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Redirect over a kernel that can, unless it is off."""

    monkeypatch.setattr(agent.redirect, "_ended", lambda _: "the connection was ended")

    def one(enabled: bool = True, force: bool = False, boot_id: str = "boot") -> Any:
        config = SocketRedirectConfig(enabled, "off", force, 1024, 4096)
        datapath: Any = SimpleNamespace()
        made: Any = Redirect(
            config,
            datapath,
            tmp_path,
            bpffs_dir=tmp_path,
            work_dir=tmp_path,
            state_dir=tmp_path,
            boot_id=boot_id,
        )
        if enabled:
            made._kernel = Kernel()
        return made

    return one


def _tested(one: Any, *outcomes: Outcome) -> Any:
    one._outcomes, one._tested = outcomes, True
    one._judge()
    return one


def test_off_by_configuration(make: Make) -> None:
    one = make(enabled=False)
    assert one.ceiling is Mode.OFF
    assert one.problems() == {}
    assert one.status.detail == "socket_redirect.enabled is false"
    assert one.families() == []


@pytest.mark.parametrize("force, ceiling", [(False, Mode.OFF), (True, Mode.ALL)])
def test_before_the_self_test(make: Make, force: bool, ceiling: Mode) -> None:
    one = make(force=force)
    assert one.ceiling is ceiling
    assert one.problems() == {}
    assert one.status.detail == ("" if force else "the self-test is running")


@pytest.mark.parametrize(
    "outcomes, usual, forced",
    [
        ([GOOD], Mode.ALL, Mode.ALL),
        ([GOOD, BLOCKING], Mode.ON, Mode.ALL),
        ([GOOD, SERIOUS], Mode.OFF, Mode.ALL),
        ([BLOCKING, SERIOUS], Mode.OFF, Mode.ALL),
    ],
)
def test_the_self_test_decides(
    make: Make, outcomes: list[Outcome], usual: Mode, forced: Mode
) -> None:
    assert _tested(make(), *outcomes).ceiling is usual
    assert _tested(make(force=True), *outcomes).ceiling is forced


def test_what_fails_is_said(make: Make) -> None:
    one = _tested(make(), GOOD, BLOCKING, SERIOUS)
    assert one.status.failed_checks == ("signal: EAGAIN", "order: bytes are lost")
    assert "order: bytes are lost" in one.status.detail
    assert "order: bytes are lost" in one.problems()["socket redirect"]
    assert "signal: EAGAIN" in _tested(make(), BLOCKING).status.detail


def test_a_self_test_that_cannot_be_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Sequence[Outcome]:
        raise SelfTestError("no memory")

    monkeypatch.setattr(agent.redirect, "run_self_test", fail)
    usual, forced = make(), make(force=True)
    usual._test()
    forced._test()
    assert usual.ceiling is Mode.OFF
    assert "no memory" in usual.problems()["socket redirect"]
    assert forced.ceiling is Mode.ALL


def test_its_result_is_kept_for_the_boot_and_the_programs(make: Make) -> None:
    _tested(make(), GOOD, BLOCKING)._keep_outcomes()
    assert make()._known_outcomes() == [GOOD, BLOCKING]
    assert make(boot_id="another")._known_outcomes() == []
    other = make()
    other._kernel.tags = "1 2 3 5"
    assert other._known_outcomes() == []


@pytest.mark.parametrize("kept", ["", "{", "[]", "7", '{"of": 1}', '{"outcomes": []}', "\x00"])
def test_a_result_that_is_rubbish_counts_as_none(make: Make, tmp_path: Path, kept: str) -> None:
    (tmp_path / agent.redirect.RESULT).write_text(kept)
    assert make()._known_outcomes() == []


def _waiting(client: int, unread: int, flags: int = SocketFlag.SOCKET_IN_VAIN) -> ListedSocket:
    return ListedSocket(replace(EMPTY, client=client, flags=flags), unread)


def test_a_receiver_that_stands_still_counts_once(make: Make) -> None:
    one = _tested(make(), GOOD)
    one._kernel.listed = [_waiting(1, 100)]
    for now in (1.0, 1.0 + STALLED_SECONDS, 20.0, 30.0):
        one._watch(now)
    assert one.stalls == 1
    assert one.ceiling is Mode.ALL


def test_a_receiver_that_reads_does_not_stand_still(make: Make) -> None:
    one = _tested(make(), GOOD)
    for now, unread in ((1.0, 100), (3.0, 90), (5.0, 80), (7.0, 0), (9.0, 80)):
        one._kernel.listed = [_waiting(1, unread), _waiting(2, 50, flags=0)]
        one._watch(now)
    assert one.stalls == 0


@pytest.mark.parametrize("force", [False, True])
def test_it_is_given_up_after_some_stalls_unless_forced(make: Make, force: bool) -> None:
    one = _tested(make(force=force), GOOD)
    one._loop = SimpleNamespace(call=lambda *_, **__: None)
    one._kernel.listed = [_waiting(n, 100) for n in range(agent.redirect.STALLS)]
    one._watch(1.0)
    one._watch(1.0 + STALLED_SECONDS)
    assert one.stalls == agent.redirect.STALLS
    assert one.ceiling is (Mode.ALL if force else Mode.OFF)
    assert one._kernel.configured == ([] if force else [(False, 4096)])
    assert ("stalled" in one.status.detail) is not force


def test_sockets_are_listed_only_while_one_was_read_in_vain(make: Make) -> None:
    one = _tested(make(), GOOD)
    one._kernel.in_vain = 0
    for now in range(5):
        one._watch(float(now))
    assert one._kernel.listings == 0
    one._kernel.in_vain, one._kernel.listed = 1, [_waiting(1, 100)]
    for now in range(5, 9):
        one._watch(float(now))
    assert one.stalls == 1
    one._kernel.listed = []
    for now in range(9, 15):
        one._watch(float(now))
    assert one._kernel.listings == 5


def test_where_cgroup2_is(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [Path("/mnt/one"), Path("/other")]
    monkeypatch.setattr(agent.redirect, "cgroup2_mounts", lambda: mounts)
    assert cgroup2_mount() == Path("/mnt/one")
    mounts.clear()
    with pytest.raises(RedirectUnavailable, match="no cgroup2"):
        cgroup2_mount()


def test_a_folder_of_cgroup2(tmp_path: Path) -> None:
    with pytest.raises(RedirectUnavailable, match="cgroup_root"):
        cgroup2_folder(tmp_path)
    unified = tmp_path / "unified"
    unified.mkdir()
    (unified / "cgroup.controllers").touch()
    assert cgroup2_folder(tmp_path) == unified
    (tmp_path / "cgroup.controllers").touch()
    assert cgroup2_folder(tmp_path) == tmp_path
