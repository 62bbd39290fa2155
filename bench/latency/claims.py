# SPDX-License-Identifier: Apache-2.0
"""What is claimed, as data: which row is held against which, and the bar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.lab.agent import Agent
from bench.latency.matrix import Cores, How, headline
from bench.latency.results import Outcome, Verdict, verdict_of
from bench.latency.statistics import Figure


@dataclass(frozen=True, slots=True)
class Bar:
    """`ours` over `theirs` at a percentile, 64 bytes on one connection; at most `most`."""

    text: str
    ours: str
    theirs: str
    percentile: int
    cores: Cores
    most: float | None
    by_upper: bool = False


_UNIX, _SAME, _TWO = "redirected over the UNIX socket", Cores.SAME, Cores.TWO
_SIDECARS = "two Envoy sidecars, legs redirected over not"
_BESIDE = "redirect on over off, pods without it"

BARS = (
    Bar(_UNIX, "redirected", "unix", 50, _SAME, 1.00),
    Bar(_UNIX, "redirected", "unix", 99, _SAME, 1.10),
    Bar("redirected over one direct pair", "redirected", "direct", 50, _SAME, 0.65),
    Bar(_UNIX, "redirected", "unix", 50, _TWO, 1.20),
    Bar(_UNIX, "redirected", "unix", 99, _TWO, 1.30),
    Bar("redirected over routed", "redirected", "routed", 50, _TWO, 0.90),
    Bar(_SIDECARS, "envoy-2-redirected", "envoy-2", 50, _SAME, 0.80),
    Bar(_SIDECARS, "envoy-2-redirected", "envoy-2", 50, _TWO, 0.80),
    Bar(_BESIDE, "beside", "bristle", 50, _SAME, 1.03, by_upper=True),
    Bar(_BESIDE, "beside", "bristle", 50, _TWO, 1.03, by_upper=True),
    # Where waking up the other core is most of a round trip, as on a machine left to itself.
    Bar(_UNIX, "redirected", "unix", 50, Cores.ASLEEP, None),
    Bar("redirected over routed", "redirected", "routed", 50, Cores.ASLEEP, None),
    # Without a bar here (bench/areas/datapath.py has them), so that nothing hides behind redirect.
    Bar("bristle with policy over routed", "bristle", "routed", 50, _SAME, None),
    Bar("bristle with policy over the UNIX socket", "bristle", "unix", 50, _SAME, None),
    Bar("one Envoy over bristle without proxy", "envoy-1", "bristle", 50, _SAME, None),
)

FIRST_BYTE = "connections redirected from their first byte"
FIRST_BYTE_BAR = 0.999
FIRST_METRIC = "bristle_socket_first_messages_total"
"""Counter of directions by what took their first byte: label way, redirected or stack."""


def pairs(outcome_ways: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Which ratios of a group are worth an interval: those of the bars, at their percentile."""
    seen = set()
    for bar in BARS:
        key = bar.ours, bar.theirs, bar.percentile
        if {bar.ours, bar.theirs} <= set(outcome_ways) and key not in seen:
            seen.add(key)
            yield key


def judge(outcomes: Sequence[Outcome], first: Verdict) -> list[Verdict]:
    """Every claim, whether it could be measured or not. first: about first bytes."""
    by_load = {outcome.group.load: outcome for outcome in outcomes}
    verdicts = []
    for how in (How.EPOLL, How.BLOCKING):
        for bar in BARS:
            outcome = by_load.get(headline(how, bar.cores))
            if outcome is not None:
                verdicts.append(_judge(bar, how, outcome))
    return [*verdicts, first]


def _judge(bar: Bar, how: How, outcome: Outcome) -> Verdict:
    statistic = "median" if bar.percentile == 50 else f"p{bar.percentile}"
    claim = f"{bar.text}, {statistic}, {bar.cores}, {how}"
    figure = outcome.ratios.get((bar.ours, bar.theirs, bar.percentile))
    reason = "" if figure else why_missing(outcome, bar.ours, bar.theirs)
    failed = bool({bar.ours, bar.theirs} & outcome.failed)
    return verdict_of(claim, bar.most, figure, by_upper=bar.by_upper, reason=reason, failed=failed)


def why_missing(outcome: Outcome, *ways: str) -> str:
    """The reasons of those that are missing, each once."""
    reasons = dict.fromkeys(outcome.missing[way] for way in ways if way in outcome.missing)
    return "; ".join(reasons) or "not in this run"


def first_byte(agent: Agent | None) -> Verdict:
    """Of all directions that could be redirected, those that were from the first byte on."""
    if agent is None:
        reason = "no agent redirects sockets in this run"
        return verdict_of(FIRST_BYTE, FIRST_BYTE_BAR, None, at_least=True, reason=reason)
    direct, stack = (agent.metric(FIRST_METRIC, way=way) for way in ("redirected", "stack"))
    if not direct + stack:
        reason = f"the agent does not count them: no metric {FIRST_METRIC}"
        return verdict_of(FIRST_BYTE, FIRST_BYTE_BAR, None, at_least=True, reason=reason)
    share = direct / (direct + stack)
    figure = Figure(share, share, share)
    return verdict_of(FIRST_BYTE, FIRST_BYTE_BAR, figure, at_least=True)
