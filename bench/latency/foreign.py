# SPDX-License-Identifier: Apache-2.0
"""What the tracepoint of socket redirect costs a TCP socket that is nobody's here.

Everybody's reads pass it. The kernel's own statistics give the time in the program, of which most
is what keeping them costs; an empty program at the same tracepoint, run for the same reads, shows
how much that is.
"""

from __future__ import annotations

import os
from contextlib import ExitStack

import numpy as np

from agent.kernel import bpf, kernel_types
from agent.kernel.socket_redirect import RCV_SPACE_ADJUST, TRACEPOINT
from agent.kernel.syscall import AttachType, BpfError, ProgramType
from bench import report
from bench.areas.measure import returning, run_statistics
from bench.lab.netns import LabError
from bench.latency.generator import Client, Server
from bench.latency.matrix import Cores, How, Place, Side, Turn, headline
from bench.latency.results import Verdict, verdict_of
from bench.latency.runner import Cpus
from bench.latency.sites import FIRST_PORT, Sites
from bench.latency.statistics import draws, quotient_difference

CLAIM = "tracepoint's program, each read from a foreign TCP socket, over an empty program"
_ROUNDS = 40
_TURN = Turn(1000, 20)


def tracepoint(sites: Sites, cpus: Cpus) -> Verdict:
    """In ns for each read, over the empty program. Stated only: it has no bar of its own."""
    if sites.redirecting is None:
        return verdict_of(CLAIM, None, None, unit="ns", reason="nothing is redirected in this run")
    report.say("what the tracepoint costs foreign sockets")
    pins = sites.redirecting.scope.bpffs / "programs"
    try:
        with ExitStack() as stack:
            pin = next(pins.glob(f"{RCV_SPACE_ADJUST}-*"), None)
            if pin is None:
                raise LabError("redirect was given up in this run")
            ours = bpf.object_get(pin)
            stack.callback(os.close, ours)
            empty = _attach_empty(stack)
            stack.enter_context(run_statistics())
            return _measure(stack, sites, cpus, ours, empty)
    except (LabError, BpfError, kernel_types.KernelTypesError) as error:
        # The rest of the run is worth as much without it.
        return verdict_of(CLAIM, None, None, unit="ns", reason=str(error))


def _attach_empty(stack: ExitStack) -> int:
    at = kernel_types.read(typedefs=[TRACEPOINT]).typedefs[TRACEPOINT]
    program = bpf.program_load(
        ProgramType.TRACING, returning(0), "empty", licence="GPL",
        expected_attach_type=AttachType.TRACE_RAW_TP, attach_btf_id=at,
    )  # fmt: skip
    stack.callback(os.close, program)
    stack.callback(os.close, bpf.tracepoint_attach(program))
    return program


def _measure(stack: ExitStack, sites: Sites, cpus: Cpus, ours: int, empty: int) -> Verdict:
    site = sites.site(Place.LOOPBACK, How.EPOLL)
    load = headline(How.EPOLL, Cores.SAME)
    at = f"tcp:{site.host(load.family)}:{FIRST_PORT}"
    cpu = cpus.of(Side.CLIENT, Cores.SAME)
    stack.enter_context(Server(site.server, at, load, cpu))
    client = stack.enter_context(Client(site.client, at, load, cpu))
    client.run(_TURN)
    spent: list[tuple[int, int, int, int]] = []
    for _ in range(_ROUNDS):
        before = _readings(ours, empty)
        client.run(_TURN)
        spent.append(tuple(np.subtract(_readings(ours, empty), before)))
    figure = quotient_difference(np.array(spent, dtype=float), draws(_ROUNDS))
    return verdict_of(CLAIM, None, figure, unit="ns")


def _readings(ours: int, empty: int) -> tuple[int, int, int, int]:
    """ns and runs of both programs so far."""
    first, second = bpf.program_info(ours), bpf.program_info(empty)
    return first.run_nanoseconds, first.run_count, second.run_nanoseconds, second.run_count
