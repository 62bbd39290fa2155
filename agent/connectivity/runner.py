# SPDX-License-Identifier: Apache-2.0
"""Carries out the plan against a cluster that it is given; knows no API of one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from agent.connectivity import world
from agent.connectivity.judge import Attempt, Outcome, Result, outcome
from agent.connectivity.plan import Phase, Probe, phases
from agent.connectivity.world import Object, Setting

SETTLE_SECONDS: Final = 20.0
"""How long a policy may take until it holds everywhere."""
_PAUSE: Final = 0.5


class ClusterError(Exception):
    """The cluster cannot be checked; says what is missing."""


class Cluster(Protocol):
    """What the check asks of a cluster. All raise ClusterError."""

    def nodes(self) -> list[str]:
        """Names of the nodes that are Ready and take pods, those without a taint first."""

    def create(self, item: Object) -> None:
        """Make an object."""

    def delete(self, item: Object) -> None:
        """Remove it; absent is success."""

    def wait_pods(self, namespaces: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
        """Until all are Ready; the addresses of each."""

    def service_addresses(self, namespace: str, name: str) -> list[str]:
        """Its cluster addresses."""

    def run(self, namespace: str, pod: str, command: Sequence[str]) -> Attempt:
        """A command in a pod."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was tried. skipped: why there are fewer probes than could be."""

    results: tuple[Result, ...]
    skipped: tuple[str, ...]


class Runner:
    """One check. `close` removes what it made, however far it came."""

    def __init__(
        self,
        cluster: Cluster,
        suffix: str,
        image: str,
        *,
        domain: str = "cluster.local",
        say: Callable[[str], None] = lambda _text: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cluster = cluster
        self._names = (f"bristle-test-{suffix}", f"bristle-test-{suffix}-other")
        self._image = image
        self._domain = domain
        self._say, self._clock, self._sleep = say, clock, sleep
        self._made: list[Object] = []

    def run(self) -> Report:
        """Everything. Raises ClusterError."""
        nodes = self._cluster.nodes()
        if not nodes:
            raise ClusterError(
                "no node of this cluster is Ready and takes pods: the API server answers, but no"
                " kubelet does, or the network plugin is not ready (kubectl get nodes)"
            )
        setting = Setting(self._names, (nodes[0], nodes[1] if len(nodes) > 1 else ""), self._image)
        skipped = [] if setting.nodes[1] else ["a second node: nothing was tried between nodes"]
        self._say(f"nodes: {', '.join(filter(None, setting.nodes))}")
        addresses, service = self._prepare(setting)
        results: list[Result] = []
        for phase in phases(setting, addresses, service, self._domain):
            results += self._phase(setting, phase)
        return Report(tuple(results), tuple(skipped))

    def close(self) -> None:
        """Remove what was made. Raises ClusterError."""
        for item in [one for one in self._made if one["kind"] == "Namespace"]:
            self._cluster.delete(item)

    def _prepare(self, setting: Setting) -> tuple[Mapping[str, Sequence[str]], Sequence[str]]:
        for item in [
            *world.namespaces(setting),
            world.service(setting),
            *(world.pod(setting, one) for one in setting.pods),
        ]:
            self._made.append(item)
            self._cluster.create(item)
        self._say("waiting for the pods")
        names = [one.name for one in setting.pods]
        addresses = self._cluster.wait_pods(setting.namespaces, names)
        return addresses, self._cluster.service_addresses(setting.namespaces[0], world.SERVICE)

    def _phase(self, setting: Setting, phase: Phase) -> list[Result]:
        for item in phase.policies:
            self._cluster.create(item)
        try:
            deadline = self._clock() + SETTLE_SECONDS
            results = [self._probe(setting, phase.name, one, deadline) for one in phase.probes]
        finally:
            for item in phase.policies:
                self._cluster.delete(item)
        passed = sum(one.passed for one in results)
        self._say(f"{phase.name}: {passed} of {len(results)} as expected")
        return results

    def _probe(self, setting: Setting, phase: str, probe: Probe, deadline: float) -> Result:
        """Until it is as it must be, or the policies have had their time."""
        (placement,) = [one for one in setting.pods if one.name == probe.source]
        namespace = setting.namespace(placement)
        while True:
            attempt = self._cluster.run(namespace, probe.source, probe.command)
            result = Result(phase, probe, outcome(attempt), attempt.output)
            if result.passed or self._clock() >= deadline:
                return result
            if result.outcome is Outcome.ERROR and attempt.code is None:
                return result
            self._sleep(_PAUSE)
