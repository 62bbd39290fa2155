# SPDX-License-Identifier: Apache-2.0
"""A fake AgentView, and a way to run commands against it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from agent.cli.root import cli
from agent.core.flow import (
    Direction,
    Flow,
    FlowEvent,
    FlowFilter,
    FlowsLost,
    FlowSubscription,
    FlowType,
    Party,
    PolicyName,
    Verdict,
)
from agent.core.views import (
    AgentStatus,
    CheckDifference,
    CheckReport,
    DirectionVerdict,
    DumpFile,
    EndpointInfo,
    ExplainParty,
    ExplainQuery,
    Explanation,
    IdentityInfo,
    KernelVerdict,
    MapUsage,
    MetricLabel,
    MetricSample,
    NotFound,
    NumberName,
    NumberNames,
    ObjectState,
    PolicyInfo,
    PolicyList,
    PoolUsage,
    Problem,
    RejectedInfo,
    RuleMention,
    SelectorInfo,
    SourceStatus,
)

STATUS = AgentStatus(
    ready=True,
    version="0.1",
    node_name="node-a",
    pid=4711,
    uptime_seconds=3723.5,
    policy_revision=12,
    policy_epoch=2**40,
    attach_mode="tcx",
    sources=(SourceStatus("manifests /etc/manifests", True),),
    problems=(Problem("policy default/web", "table would overflow: raise the size of policy"),),
    maps=(MapUsage("policy", 512, 1024),),
    pools=(PoolUsage("ipv6", "fd00::/64", 2, 2.0**64 - 2),),
    devices=("eth1",),
    endpoints=2,
    identities=3,
    policies=1,
    rejected=1,
    events_lost=7,
)
ENDPOINT = EndpointInfo(
    id=7,
    namespace="default",
    pod="web",
    state="ready",
    status=ObjectState.DONE,
    identity=1234,
    labels=("k8s:app=web",),
    ipv4="10.0.0.5",
    ipv6="fd00::5",
    ingress_enforced=True,
    ingress_policies=("default/allow-web",),
)
KERNEL = KernelVerdict(available=True, allowed=False, decided_by="default deny")
EXPLANATION = Explanation(
    source=ExplainParty("default/client", "10.0.0.6", 1235),
    destination=ExplainParty("default/web", "10.0.0.5", 1234),
    protocol=6,
    port=80,
    allowed=False,
    egress=DirectionVerdict(
        Direction.EGRESS,
        True,
        True,
        "no policy",
        KernelVerdict(available=True, allowed=True, decided_by="no policy"),
    ),
    ingress=DirectionVerdict(
        Direction.INGRESS,
        True,
        False,
        "default deny",
        KERNEL,
        nearest=RuleMention("default/allow-web", 0, ("port 80/TCP is not among 443/TCP",)),
    ),
)


def flow(kind: FlowType, verdict: Verdict, **changes: Any) -> Flow:
    """A TCP SYN from default/client to default/web, port 80."""
    event = FlowEvent(
        time_ns=1,
        type=kind,
        verdict=verdict,
        reason=133 if kind is FlowType.DROP else 0,
        direction=Direction.INGRESS,
        observation=0,
        source=ip_address("10.0.0.6"),
        destination=ip_address("10.0.0.5"),
        protocol=6,
        source_port=40000,
        destination_port=80,
        tcp_flags=2,
        icmp_type=0,
        icmp_code=0,
        source_identity=1235,
        destination_identity=1234,
        rule=0,
        endpoint=7,
        ifindex=9,
        length=74,
        reply=False,
        fragment=False,
        source_mac=bytes(6),
        destination_mac=bytes(6),
    )
    denied = verdict is Verdict.DROPPED
    return Flow(
        event=replace(event, **changes),
        time_unix_ns=1_700_000_000_123_456_789,
        source=Party("default", "client", ("k8s:app=client",)),
        destination=Party("default", "web", ("k8s:app=web",)),
        decided_by="default deny" if denied else "default/allow-web",
        policy=None
        if denied
        else PolicyName("NetworkPolicy", "default", "allow-web", Direction.INGRESS, 0),
    )


@dataclass(slots=True)
class FakeSubscription:
    """Gives its batches, then ends."""

    batches: list[list[Flow | FlowsLost]]
    closed: bool = False

    def next(self, timeout: float) -> list[Flow | FlowsLost] | None:
        return self.batches.pop(0) if self.batches else None

    def close(self) -> None:
        self.closed = True


@dataclass(slots=True)
class FakeView:
    """An AgentView with fixed answers; `error` makes every call fail with it."""

    answer_status: AgentStatus = STATUS
    explanation: Explanation = EXPLANATION
    report: CheckReport = field(default_factory=lambda: CheckReport(2, 3, 400, 0))
    error: Exception | None = None
    queries: list[object] = field(default_factory=list)
    items: list[list[Flow | FlowsLost]] = field(default_factory=list)

    def status(self) -> AgentStatus:
        self._fail()
        return self.answer_status

    def endpoints(self) -> Sequence[EndpointInfo]:
        self._fail()
        return [ENDPOINT]

    def endpoint(self, key: str) -> EndpointInfo:
        self._fail()
        if key not in ("7", "default/web", "10.0.0.5"):
            raise NotFound(f"no endpoint {key!r} on this node; `bristle endpoint list` shows all")
        return ENDPOINT

    def identities(self) -> Sequence[IdentityInfo]:
        self._fail()
        return [
            IdentityInfo(1234, "cluster", ("k8s:app=web", "k8s:tier=front"), 2),
            IdentityInfo(1, "reserved", ("reserved:host",)),
        ]

    def policies(self) -> PolicyList:
        self._fail()
        return PolicyList(
            12,
            (
                PolicyInfo(
                    "NetworkPolicy",
                    "default",
                    "allow-web",
                    ObjectState.FAILED,
                    "map policy is full",
                    spec_json=json.dumps({"podSelector": {}}),
                ),
            ),
            (RejectedInfo("/m/bad.yaml", 2, "default/bad", "spec.ingress[0].ports[0]", "0", True),),
        )

    def selectors(self) -> Sequence[SelectorInfo]:
        self._fail()
        return [SelectorInfo("app=web", (1234,), ("default/allow-web",))]

    def explain(self, query: ExplainQuery) -> Explanation:
        self._fail()
        self.queries.append(query)
        return self.explanation

    def check(self, repair: bool) -> CheckReport:
        self._fail()
        self.queries.append(repair)
        return self.report

    def numbers(self) -> NumberNames:
        self._fail()
        return NumberNames(rules=(NumberName(256, "default/allow-web"),))

    def metrics(self) -> Sequence[MetricSample]:
        self._fail()
        return [MetricSample("bristle_policy", 1.0, (MetricLabel("a", "b"),))]

    def dump(self) -> Iterable[DumpFile]:
        self._fail()
        yield DumpFile("../state/store.json", b'{"apiToken": "hunter2hunter2"}')
        yield DumpFile("big.bin", b"x" * 3_000_000)

    def monitor(self, wanted: FlowFilter, last: int, follow: bool) -> FlowSubscription:
        self._fail()
        self.queries.append((wanted, last, follow))
        return FakeSubscription(list(self.items))

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


DIFFERENCE = CheckDifference(
    "table 5 (default/web)", Direction.INGRESS, "app=client", 6, 80, 81, "allow", "deny"
)


@dataclass(slots=True)
class Agent:
    """A running fake and a way to run commands against it."""

    view: FakeView
    run_dir: Path

    def run(self, *arguments: str) -> Result:
        """`bristle ARGUMENTS`, told where the agent is by the environment."""
        environment = {"BRISTLE_RUN_DIR": str(self.run_dir)}
        return CliRunner().invoke(cli, arguments, env=environment)

    def json(self, *arguments: str) -> Any:
        """What the command prints with `-o json`."""
        result = self.run(*arguments, "-o", "json")
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return json.loads(result.stdout)
