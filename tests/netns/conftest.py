# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a lab with a running agent for each file of tests, its pods, and its counters."""

from collections.abc import Callable, Iterator

import pytest

from agent.core.flow import drop_reason_name
from bench.lab.node import Lab
from bench.lab.station import Pod


@pytest.fixture(scope="module")
def lab(private_mounts: None) -> Iterator[Lab]:
    """A node with an agent, shared by the tests of one file. Each starts without policies."""
    with Lab() as made:
        yield made


@pytest.fixture
def clean_lab(lab: Lab) -> Iterator[Lab]:
    """The file's lab; policies that a test sets, and pods that it adds, go with it."""
    before = set(lab.pods)
    yield lab
    for name in set(lab.pods) - before:
        lab.delete_pod(lab.pods[name])
    lab.set_policies([])


@pytest.fixture(scope="module")
def pair(lab: Lab) -> tuple[Pod, Pod]:
    """Two pods, one/a and two/b, for the whole file."""
    return lab.add_pod("one", "a", {"app": "a"}), lab.add_pod("two", "b", {"app": "b"})


@pytest.fixture
def drops(lab: Lab) -> Callable[[int], int]:
    """Packets dropped so far for a reason, by the programs' own counters."""

    def count(reason: int) -> int:
        name = drop_reason_name(reason)
        return int(lab.agent.metric("bristle_drop_count_total", reason=name))

    return count
