# SPDX-License-Identifier: Apache-2.0
"""What cannot be put back is a problem until it can, and says what it is about; and only one agent
works with a folder."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, cast

import pytest

from agent.cleanup import StartError, only_agent
from agent.core.store import Store
from agent.kernel.datapath import Datapath
from agent.kernel.links import Hook, LinkError
from agent.surroundings import Surroundings


class FakeUplinks:
    def __init__(self) -> None:
        self.program = 0

    def program_id(self, device: str, ifindex: int, hook: Hook) -> int:
        return self.program


class FakeDatapath:
    """One uplink, no pods."""

    def __init__(self) -> None:
        self.uplinks = FakeUplinks()
        self.failure: Exception | None = None
        self.epochs = 0

    def program_ids(self) -> tuple[int, int]:
        return 1, 2

    def uplink_programs(self) -> dict[Hook, tuple[str, int]]:
        return {Hook.INGRESS: ("from_uplink", 3)}

    def endpoint_programs(self, devices: list[int]) -> dict[int, Any]:
        return {}

    def pins(self) -> list[Any]:
        return []

    def attach_uplink_anew(self, device: str, ifindex: int) -> None:
        if self.failure is not None:
            raise self.failure
        self.uplinks.program = 3

    def bump_epoch(self) -> None:
        self.epochs += 1


@pytest.mark.parametrize("failure", [LinkError("refused"), OSError(1, "refused")])
def test_a_failed_repair_stays_a_problem(failure: Exception) -> None:
    datapath, present = FakeDatapath(), [True]

    def index_of(device: str) -> int:
        if not present[0]:
            raise OSError(19, "no such device")
        return 7

    one = Surroundings(cast(Datapath, datapath), Store([]), [], ("up0",), index_of)
    datapath.failure = failure
    one.attend()
    assert "up0 ingress" in one.problems["programs"] and "refused" in one.problems["programs"]
    assert one.mended.total() == 0
    present[0], datapath.failure = False, None
    one.attend()
    assert "no such device" in one.problems["programs"]
    present[0] = True
    one.attend()
    assert not one.problems and one.mended["programs"] == 1 and not one.check()
    one.attend()
    assert datapath.epochs == 3  # nothing was wrong the last time


@pytest.mark.parametrize("shared", ["run", "state"])
def test_one_agent_for_a_folder(tmp_path: Path, shared: str) -> None:
    def agent(name: str) -> contextlib.AbstractContextManager[None]:
        run, state = (tmp_path / (one if one == shared else one + name) for one in ("run", "state"))
        return only_agent(run, state)

    with agent("a"):
        with pytest.raises(StartError, match=rf"{shared}_dir {tmp_path / shared}\b"), agent("b"):
            pass
        with only_agent(tmp_path / "other", tmp_path / "other"):  # one folder for both
            pass
    with agent("b"):
        pass
