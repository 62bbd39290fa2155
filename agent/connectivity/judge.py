# SPDX-License-Identifier: Apache-2.0
"""What came of the probes, and what is likely to be wrong. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from agent.connectivity.plan import Probe, Way


class Outcome(StrEnum):
    """What a probe met with."""

    REACHED = "reached"
    REFUSED = "refused"
    TIMEOUT = "no answer"
    UNRESOLVED = "name unknown"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a probe's command. code: exit status; None: it could not be run at all."""

    code: int | None
    output: str


@dataclass(frozen=True, slots=True)
class Result:
    """A probe, the phase it was in, and its last attempt."""

    phase: str
    probe: Probe
    outcome: Outcome
    output: str = ""

    @property
    def passed(self) -> bool:
        """A refusal is no proof of policy: nobody who is denied gets an answer. So where nothing
        may be reached only silence will do, and for what could not be run neither will."""
        if self.probe.reaches:
            return self.outcome is Outcome.REACHED
        return self.outcome is Outcome.TIMEOUT


@dataclass(frozen=True, slots=True)
class Finding:
    """A failed probe and its likely reason."""

    result: Result
    reason: str


_SAYINGS = (
    (
        Outcome.UNRESOLVED,
        r"bad address|can't resolve|NXDOMAIN|SERVFAIL|could not resolve|no servers",
    ),
    (Outcome.REFUSED, r"connection refused"),
    (Outcome.TIMEOUT, r"timed out|timeout|no route to host|unreachable"),
)


def outcome(attempt: Attempt) -> Outcome:
    """From exit status and words, of busybox's tools, wget and curl alike."""
    if attempt.code is None:
        return Outcome.ERROR
    if attempt.code == 0:
        return Outcome.REACHED
    for found, pattern in _SAYINGS:
        if re.search(pattern, attempt.output, re.I):
            return found
    return Outcome.ERROR


def findings(results: Iterable[Result]) -> list[Finding]:
    """A reason for each failure, from the pattern that they make together."""
    everything = list(results)
    return [Finding(one, _reason(one, everything)) for one in everything if not one.passed]


def _reason(failed: Result, everything: list[Result]) -> str:
    probe = failed.probe
    if failed.outcome is Outcome.ERROR:
        return f"the command could not be run or said: {_short(failed.output)}"
    if not probe.reaches:
        return _let_through(failed, everything)
    if probe.way is Way.LOOKUP:
        if _works(everything, Way.SERVICE, failed.phase):
            return "services work: the cluster's DNS does not answer; look at its pods and service"
        return "the cluster's DNS does not answer, nor does a service: kube-proxy, or policy"
    if probe.way is Way.NAME:
        if failed.outcome is Outcome.UNRESOLVED:
            return "the cluster's DNS does not know the service; look at its pods and service"
        return "the name is known, but the service's address does not answer: kube-proxy"
    if probe.way is Way.SERVICE:
        if _works(everything, Way.ADDRESS, failed.phase):
            return "the pods themselves are reached: kube-proxy does not translate on this node"
        return "nor are the pods themselves reached: see those lines"
    return _unreached(failed, everything)


def _unreached(failed: Result, everything: list[Result]) -> str:
    """A pod's address that should answer and does not."""
    probe = failed.probe
    if failed.outcome is Outcome.REFUSED:
        return "the pod is reached, and its server does not listen: look at the pod's log"
    alike = [
        one
        for one in everything
        if one.phase == failed.phase and one.probe.reaches and one.probe.way is Way.ADDRESS
    ]
    others = [
        one
        for one in alike
        if one.passed
        and one.probe.family != probe.family
        and (one.probe.source, one.probe.target) == (probe.source, probe.target)
    ]
    if others:
        return f"IPv{probe.family} alone: routes or masquerading of that family, on both nodes"
    near = [one for one in alike if not one.probe.far and one.passed]
    if probe.far and near:
        return (
            "within a node it works: what is between the nodes drops it; with tunnels, is UDP port"
            " 8472 open between all nodes? With native routing, are there routes to pod networks?"
        )
    if failed.phase != "without policy":
        return "the policy allows it: `bristle policy explain` on the target's node says more"
    return "not even within a node: is the agent ready there? `bristle status` on that node"


def _let_through(failed: Result, everything: list[Result]) -> str:
    """What should have been denied and was not, or was answered with a refusal."""
    if failed.outcome is Outcome.REFUSED:
        return "it came as far as the pod, or something answered in its name"
    denials = [one for one in everything if not one.probe.reaches and one.probe.way is Way.ADDRESS]
    if denials and not any(one.passed for one in denials):
        return "no policy is enforced at all: were these pods wired by another network plugin?"
    if failed.probe.way is Way.SERVICE:
        return "by the service's address alone: its NAT hides the sender from policy"
    return "enforced elsewhere: `bristle policy explain` on the target's node says more"


def _works(everything: list[Result], way: Way, phase: str) -> bool:
    return any(
        one.passed and one.probe.reaches and one.probe.way is way and one.phase == phase
        for one in everything
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else line[:159] + "…"
