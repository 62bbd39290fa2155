# SPDX-License-Identifier: Apache-2.0
"""CNI ADD against the reference plugins ptp and host-local, which enforce no policy.

Both sides have a node namespace with 100 pods. A call is timed from the start of the plugin's
process to its end; the pod's namespace is made before, and DEL comes after. Bristle gives each pod
an IPv4 and an IPv6 address with policy in force; the reference that the bar is about gives it an
IPv4 address only, which is the harder comparison. With IPv6 it waits for duplicate detection, and
so is stated with that turned off.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench import report
from bench.areas.measure import median, percentile, ratio, summary
from bench.lab import manifests
from bench.lab.agent import RELAY
from bench.lab.netns import LabError, Namespace
from bench.lab.node import Lab
from bench.lab.scope import Scope
from bench.report import Claim
from cni.protocol import ANSWER_HEADER_SIZE, Frame, encode_frame

REFERENCE = Path("/usr/lib/cni/ptp")
PRESENT = 100
ROUNDS = 100
BURST = 110
BURSTS = 3
AT_ONCE = 8
NAMESPACE = "bench"


class Plugin:
    """A plugin, its configuration, and the node namespace that it works in."""

    def __init__(self, binary: Path, config: dict[str, object], node: Namespace) -> None:
        self.binary = binary
        self.node = node
        # Of memory, so that a call costs no file system.
        self._config = os.memfd_create("config", 0)
        os.write(self._config, json.dumps(config).encode())
        self.config = json.dumps(config).encode()

    def environment(self, command: str, container: str, netns: Namespace) -> dict[str, str]:
        """Variables of a call, as a container runtime sets them."""
        pod = f"K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME={container}"
        return {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": str(netns.path),
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": f"IgnoreUnknown=1;{pod}",
            "CNI_PATH": str(self.binary.parent),
            "PATH": os.environ["PATH"],
        }

    def call(self, command: str, container: str, netns: Namespace) -> float:
        """One call by the calling thread, which is in the node's namespace; its time in ms.

        Raises LabError if it fails.
        """
        environment = self.environment(command, container, netns)
        answer = os.memfd_create("answer", os.MFD_CLOEXEC)
        stdin = os.open(f"/proc/self/fd/{self._config}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            files = [
                (os.POSIX_SPAWN_DUP2, stdin, 0),
                (os.POSIX_SPAWN_DUP2, answer, 1),
                (os.POSIX_SPAWN_DUP2, answer, 2),
            ]
            began = time.perf_counter()
            pid = os.posix_spawn(self.binary, [str(self.binary)], environment, file_actions=files)
            _, status = os.waitpid(pid, 0)
            took = time.perf_counter() - began
            if status:
                said = os.pread(answer, 4096, 0).decode(errors="replace")
                raise LabError(f"{self.binary.name} {command} {container}: {said}")
            return took * 1000
        finally:
            os.close(answer)
            os.close(stdin)

    def close(self) -> None:
        """Gives its descriptor back."""
        os.close(self._config)


def run() -> list[Claim]:
    """All claims of the area. Takes about a minute and a half."""
    if not REFERENCE.exists():
        raise LabError(f"{REFERENCE} is missing: apt-get install containernetworking-plugins")
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(pod_cidrs=("10.244.0.0/22", "fd00:10:244:1::/112")))
        # Pods of the agent with labels and a policy, so that ADD has verdicts to put in force.
        names = [*_names("present", PRESENT), *_names("round", ROUNDS), *_names("burst", BURST),
                 *_names("frame", ROUNDS)]  # fmt: skip
        lab.manifests.put("world", [manifests.namespace(NAMESPACE), _policy(), *map(_pod, names)])
        lab.agent.wait(lambda: len(lab.agent.policies().policies) == 1, "the policy")
        scope = stack.enter_context(Scope())
        ours, reference, both = _plugins(lab, scope)
        for one in (ours, reference, both):
            stack.callback(one.close)
        report.say(f"{PRESENT} pods on each side")
        for name in _names("present", PRESENT):
            for plugin in (ours, reference):
                _call(plugin, "ADD", name, scope.namespace(f"{plugin.binary.name}-{name}"))
        report.say(f"{ROUNDS} rounds of ADD by turns")
        claims = _one_by_one(scope, ours, reference, both, lab.scope.run_dir / "cni.sock")
        report.say(f"{BURSTS} × {BURST} pods, {AT_ONCE} at a time")
        return claims + _bursts(scope, ours, reference)


def _plugins(lab: Lab, scope: Scope) -> tuple[Plugin, Plugin, Plugin]:
    ours: dict[str, object] = {
        "cniVersion": "1.0.0",
        "name": "bristle",
        "type": "bristle-cni",
        "runDir": str(lab.scope.run_dir),
        "stateDir": str(lab.scope.state_dir),
    }
    ranges = [[{"subnet": "10.99.0.0/16"}], [{"subnet": "fd00:99::/112"}]]
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]

    def reference(families: int) -> dict[str, object]:
        return {
            "cniVersion": "1.0.0",
            "name": f"reference{families}",
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "dataDir": str(scope.root / "addresses"),
                "ranges": ranges[:families],
                "routes": routes[:families],
            },
        }

    node = scope.namespace("reference")
    return (
        Plugin(RELAY, ours, lab.node_namespace),
        Plugin(REFERENCE, reference(1), node),
        Plugin(REFERENCE, reference(2), node),
    )


def _one_by_one(
    scope: Scope, ours: Plugin, reference: Plugin, both: Plugin, path: Path
) -> list[Claim]:
    times: dict[str, list[float]] = {"ours": [], "reference": [], "both": [], "agent": []}
    # Namespaces are made before, and again for each side: nothing is left in them by another.
    for turn in range(ROUNDS):
        spaces = {side: scope.namespace(f"{side}-{turn}") for side in times}
        spaces["both"].sysctl({"ipv6.conf.all.accept_dad": 0, "ipv6.conf.default.accept_dad": 0})
        calls = {
            "ours": (ours, f"round-{turn}"),
            "reference": (reference, f"round-{turn}"),
            "both": (both, f"both-{turn}"),
            "agent": (ours, f"frame-{turn}"),
        }
        order = list(calls)
        for step in range(len(order)):
            side = order[(turn + step) % len(order)]
            plugin, name = calls[side]
            if side == "agent":
                times[side].append(_ask(path, plugin, name, spaces[side]))
            else:
                times[side].append(_call(plugin, "ADD", name, spaces[side]))
        for side, (plugin, name) in calls.items():
            _call(plugin, "DEL", name, spaces[side])
        for space in spaces.values():
            scope.drop(space)
    against, raw = ratio(times["ours"], times["reference"])
    against_both, raw_both = ratio(times["ours"], times["both"])
    ms = {"unit": "ms"}
    return [
        Claim(f"CNI ADD over ptp + host-local (IPv4), {PRESENT} pods present", against, 1.0,
              "ratio", raw=ms | raw),
        Claim("  over ptp + host-local with IPv6, no duplicate detection", against_both, None,
              "ratio", raw=ms | raw_both),
        Claim("  ADD by bristle-cni, median", median(times["ours"]), None, "ms"),
        Claim("  ADD by ptp, median", median(times["reference"]), None, "ms"),
        Claim("agent's share of ADD, median", median(times["agent"]), 8, "ms",
              raw=summary(times["agent"]) | {"rounds": times["agent"]}),
    ]  # fmt: skip


def _bursts(scope: Scope, ours: Plugin, reference: Plugin) -> list[Claim]:
    times: dict[Plugin, list[list[float]]] = {ours: [], reference: []}
    errors = 0
    for turn in range(BURSTS):
        for plugin in (ours, reference):
            names = _names("burst", BURST)
            spaces = [
                scope.namespace(f"{plugin.binary.name}-burst-{turn}-{i}") for i in range(BURST)
            ]
            taken, failed = _parallel(plugin, "ADD", names, spaces)
            times[plugin].append(taken)
            errors += len(failed) if plugin is ours else 0
            for said in failed[:3]:
                report.say(said)
            _parallel(plugin, "DEL", names, spaces)
            for space in spaces:
                scope.drop(space)
    all_ours = [one for burst in times[ours] for one in burst]
    all_reference = [one for burst in times[reference] for one in burst]
    middle = median(all_ours)
    raw = {"unit": "ms", "ours": summary(all_ours), "theirs": summary(all_reference),
           "bursts": times[ours]}  # fmt: skip
    return [
        Claim(f"{BURST} pods, {AT_ONCE} at a time: errors", errors, 0, "", raw=raw),
        Claim("  99th percentile over median", percentile(all_ours, 99) / middle, 3, "ratio",
              raw=raw),
        Claim("  the same by ptp", percentile(all_reference, 99) / median(all_reference), None,
              "ratio"),
        Claim("  ADD by bristle-cni, median", middle, None, "ms"),
        Claim("  ADD by ptp, median", median(all_reference), None, "ms"),
    ]  # fmt: skip


def _parallel(
    plugin: Plugin, command: str, names: Sequence[str], spaces: Sequence[Namespace]
) -> tuple[list[float], list[str]]:
    """Calls by AT_ONCE threads; times in ms, and what failed."""
    work = list(zip(names, spaces, strict=True))[::-1]
    taken: list[float] = []
    failed: list[str] = []

    def worker() -> None:
        while True:
            try:
                name, space = work.pop()
            except IndexError:
                return
            try:
                taken.append(plugin.call(command, name, space))
            except LabError as error:
                failed.append(str(error))

    threads = [threading.Thread(target=plugin.node.run, args=(worker,)) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken, failed


def _call(plugin: Plugin, command: str, name: str, netns: Namespace) -> float:
    """A call from the plugin's node namespace; entering that is not part of its time in ms."""
    return plugin.node.run(lambda: plugin.call(command, name, netns))


def _ask(path: Path, plugin: Plugin, container: str, netns: Namespace) -> float:
    """ADD without the relay: a frame to the agent's socket; ms until the whole answer is there."""
    variables = plugin.environment("ADD", container, netns)
    environment = {n: v.encode() for n, v in variables.items() if n.startswith("CNI_")}
    frame = encode_frame(Frame(environment, plugin.config, with_netns=True))
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [netns.fd]))]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(60)
        began = time.perf_counter()
        client.connect(str(path))
        client.sendmsg([frame], rights)
        answer = b""
        while part := client.recv(65536):
            answer += part
        took = time.perf_counter() - began
    if len(answer) < ANSWER_HEADER_SIZE or answer[4:8] != bytes(4):
        raise LabError(f"the agent refused ADD of {container}: {answer!r}")
    return took * 1000


def _names(kind: str, count: int) -> list[str]:
    return [f"{kind}-{number}" for number in range(count)]


def _pod(name: str) -> manifests.Object:
    return manifests.pod(NAMESPACE, name, {"app": f"app-{sum(map(ord, name)) % 10}"})


def _policy() -> manifests.Object:
    peer = {"podSelector": {"matchLabels": {"app": "app-1"}}}
    rule = {"ports": [{"protocol": "TCP", "port": 80}]}
    return manifests.policy(
        NAMESPACE,
        "everybody",
        {
            "podSelector": {},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [peer], **rule}],
            "egress": [{"to": [peer], **rule}],
        },
    )
