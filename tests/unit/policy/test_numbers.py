# SPDX-License-Identifier: Apache-2.0
"""Numbers that policy and the datapath share are the same in both."""

from __future__ import annotations

import re
from pathlib import Path

from policy.levels import ANY_PORT, ANY_PROTOCOL, EXACT_PORT
from policy.model import Direction, ReservedRule

HEADER = (Path(__file__).parents[3] / "bpf" / "lib" / "layout.h").read_text()


def enum(prefix: str) -> dict[str, int]:
    return {k: int(v) for k, v in re.findall(rf"\t{prefix}_(\w+) = (\d+)", HEADER)}


def test_shared_numbers() -> None:
    assert enum("RULE") == {one.name: one.value for one in ReservedRule}
    assert enum("DIRECTION") == {"UNKNOWN": 0} | {one.name: one.value for one in Direction}
    levels = {"PORT": EXACT_PORT, "ANY_PORT": ANY_PORT, "ANY_PROTOCOL": ANY_PROTOCOL}
    assert enum("LEVEL") == levels
