# SPDX-License-Identifier: Apache-2.0
"""Kernels that lack something, a table that is full, cgroups that are none: it is said clearly, the
agent serves its pods, and connections go by the stack.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.lab.node import Lab
from tests.netns.redirect_pods import (
    Link,
    Port,
    agent_of,
    altered,
    outcomes,
    pins,
    pods,
    start,
    taught,
)

pytestmark = pytest.mark.kernel

PORT = 8000
FEW = 24


@pytest.fixture
def lab(private_mounts: None) -> Iterator[Lab]:
    """Nothing runs yet."""
    with altered() as made:
        yield made


def test_full_table(private_mounts: None) -> None:
    """More connections than there is room for: the others go by the stack, and are counted."""
    config = {"socket_redirect": {"enabled": True, "max_sockets": FEW}}
    with altered(config) as lab:
        start(lab)
        a, b = pods(lab)
        with Port(b.namespace, PORT) as served, contextlib.ExitStack() as stack:
            taught(lab, a.namespace, served, b.ipv4)
            links = [
                stack.enter_context(Link(lab, a.namespace, served, b.ipv4)) for _ in range(FEW)
            ]
            for link in links:
                link.exchange()
            ways = [link.direct() for link in links]
            assert ways.count((True, True)) == FEW // 2
            assert outcomes(lab)["table_full"] > 0
            for link in links[:4]:
                link.__exit__()
            with Link(lab, a.namespace, served, b.ipv4) as link:
                link.exchange_until_direct()


NO_TYPES = """
from agent.kernel import kernel_types
def read(**_):
    raise kernel_types.KernelTypesError("/sys/kernel/btf/vmlinux: No such file or directory")
kernel_types.read = read
"""
OUTCOMES = """
import agent.redirect
from agent.selftest import Outcome
agent.redirect.run_self_test = lambda *_: [
    Outcome("order", {blocking}, "bytes come out of order"), Outcome("other", False)]
"""
NO_TEST = """
import agent.redirect
from agent.selftest import SelfTestError
def fails(*_):
    raise SelfTestError("not done after 60 s")
agent.redirect.run_self_test = fails
"""


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (NO_TYPES, "/sys/kernel/btf/vmlinux: No such file"),
        (OUTCOMES.format(blocking=False), "order: bytes come out of order"),
        (NO_TEST, "not done after 60 s"),
    ],
    ids=["no types", "fails", "untested"],
)
def test_kernel_that_cannot(lab: Lab, before: str, said: str) -> None:
    """Status says why it is off, the agent serves its pods, connections go by the stack; `force`
    has it all the same where it can be had at all."""
    agent = agent_of(lab)
    agent.before = before
    agent.start()
    agent.wait(lambda: said in agent.status().socket_redirect.detail, f"status to say {said}")
    status = agent.status()
    assert status.socket_redirect.mode == "off" and status.socket_redirect.enabled
    assert any(said in str(one) for one in status.problems)
    a, b = pods(lab)
    with Port(b.namespace, PORT) as served:
        taught(lab, a.namespace, served, b.ipv4)
        if before == NO_TYPES:
            assert pins(lab) == set()
            return
        with Link(lab, a.namespace, served, b.ipv4) as link:
            link.exchange()
            assert link.direct() == (False, False)
        agent.kill()
        agent.config["socket_redirect"] = {"enabled": True, "force": True}
        start(lab)
        taught(lab, a.namespace, served, b.ipv4)
        with Link(lab, a.namespace, served, b.ipv4) as link:
            link.exchange_until_direct()


def test_blocking_sockets_fail(lab: Lab) -> None:
    """Then those that block are left alone, and `status` says so."""
    agent_of(lab).before = OUTCOMES.format(blocking=True)
    found = start(lab, "on")
    assert "order: bytes come out of order" in found.detail
    assert not lab.agent.status().problems


def test_no_cgroup2(lab: Lab, tmp_path: Path) -> None:
    """A plain folder instead."""
    lab.agent.config["cgroup_root"] = str(tmp_path)
    lab.agent.start()
    status = lab.agent.status()
    assert str(tmp_path) in status.socket_redirect.detail
    assert status.socket_redirect.mode == "off"
    a, b = pods(lab)
    with Port(b.namespace, PORT) as served:
        taught(lab, a.namespace, served, b.ipv4)
