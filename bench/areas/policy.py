# SPDX-License-Identifier: Apache-2.0
"""Compiling policy and putting a label change in force, by the loop alone, in this process.

The node has a pod of each of the 1,000 identities, so that every policy has a table and every
class a column in it: nine times what the agent of the area `scale` holds. Nothing is attached and
no packet flows; the maps are real ones of the kernel.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from agent.core.desired import Desired
from agent.core.endpoint import Endpoint
from agent.core.events import Namespace, Pod, PodUpserted, PolicyUpserted, SourceSynced
from agent.core.numbers import Numbers
from agent.core.store import Store
from agent.kernel.datapath import Datapath
from agent.loop import Loop
from bench import report
from bench.areas.measure import median, percentile, summary
from bench.areas.world import PodSpec, World
from bench.lab.scope import Scope
from bench.report import Claim
from identity.allocator import IdentityAllocator
from identity.labels import DEFAULT
from policy.parse import parse_network_policy

LOCAL = 1000
CHANGES = 200
_SOURCE = "bench"
_NAMESPACE_LABEL = "kubernetes.io/metadata.name"


def run() -> list[Claim]:
    """All claims of the area. Takes about half a minute."""
    world = World.make(LOCAL)
    claims = [_parse(world)]
    with Scope() as scope:
        datapath = Datapath(scope.bpffs / "policy", scope.run_dir, {})
        datapath.open()
        try:
            loop = _loop(datapath)
            report.say(f"{LOCAL} tables from cold")
            claims += _cold(loop, world)
            with _running(loop):
                report.say(f"{CHANGES} label changes")
                claims += _changes(loop, world)
                claims += _policy_changes(loop, world)
            claims += _comparison(loop)
        finally:
            datapath.close()
    return claims


def _loop(datapath: Datapath) -> Loop:
    desired = Desired(IdentityAllocator(300.0, 3600.0), Numbers(60.0), DEFAULT)
    return Loop(
        Store([_SOURCE]),
        desired,
        datapath,
        identity_gc=60.0,
        save_identities=lambda: None,
        on_first_sync=lambda: None,
    )


@contextmanager
def _running(loop: Loop) -> Iterator[None]:
    thread = threading.Thread(target=loop.run, name="loop")
    thread.start()
    try:
        loop.call(lambda: None)
        yield
    finally:
        loop.stop()
        thread.join()


def _parse(world: World) -> Claim:
    began = time.perf_counter()
    for one in world.policies:
        parse_network_policy(one)
    took = (time.perf_counter() - began) * 1000
    return Claim(f"parsing and checking {len(world.policies):,} policies", took, None, "ms")


def _cold(loop: Loop, world: World) -> list[Claim]:
    """All facts at once, as a source delivers them; then one turn of the loop."""
    for name in world.namespaces:
        loop.store.namespaces[name] = Namespace(name, {_NAMESPACE_LABEL: name})
    for spec in world.pods:
        loop.store.apply(PodUpserted(_SOURCE, _pod(spec)))
    for number, spec in enumerate(world.local):
        loop.store.put_endpoint(_endpoint(number + 1, spec))
    for one in world.policies:
        loop.store.apply(PolicyUpserted(_SOURCE, parse_network_policy(one)))
    loop.store.apply(SourceSynced(_SOURCE))
    began = time.perf_counter()
    delta = loop.desired.update(loop.store, loop.store.take_changes(), time.monotonic())
    computed = time.perf_counter()
    loop.datapath.apply(delta)
    written = time.perf_counter()
    entries = len(loop.datapath.policy_records()[0]) // 12
    raw = {"policy_entries": entries, "wanted": loop.desired.entries,
           "peers": len(loop.datapath.raw("peers"))}  # fmt: skip
    return [
        Claim(f"{LOCAL:,} tables, {len(world.pods):,} pods: from facts to map contents",
              computed - began, 10, "s", raw=raw),
        Claim(f"  writing {entries:,} policy entries and the rest", written - computed, None, "s"),
        Claim("  from facts to kernel", written - began, 10, "s", raw=raw),
    ]  # fmt: skip


def _changes(loop: Loop, world: World) -> list[Claim]:
    """Each makes an identity that was not there, with a column in a twentieth of all tables."""
    remote = world.pods[5]
    times = []
    for turn in range(CHANGES):
        labels = {**remote.labels, "a": f"a-{turn % 20}", "version": f"v{turn}"}
        pod = _pod(PodSpec(remote.namespace, remote.name, labels, remote.address))
        began = time.perf_counter()
        loop.post(PodUpserted(_SOURCE, pod))
        loop.call(lambda: None)
        times.append((time.perf_counter() - began) * 1000)
        time.sleep(0.02)
    raw = {**summary(times), "rounds": times}
    return [
        Claim("label change of one pod, by the loop alone, p99", percentile(times, 99), 50, "ms",
              raw=raw),
        Claim("  median", median(times), None, "ms"),
        Claim("  slowest of " + str(CHANGES), max(times), None, "ms"),
    ]  # fmt: skip


def _policy_changes(loop: Loop, world: World) -> list[Claim]:
    times = []
    for turn in range(20):
        manifest = world.policies[turn]
        rule = manifest["spec"]["ingress"][0]
        changed = {**manifest, "spec": {**manifest["spec"], "ingress": [
            {**rule, "ports": [{"protocol": "TCP", "port": 8080}]}]}}  # fmt: skip
        began = time.perf_counter()
        loop.post(PolicyUpserted(_SOURCE, parse_network_policy(changed)))
        loop.call(lambda: None)
        times.append((time.perf_counter() - began) * 1000)
    return [Claim("edit of one policy, by the loop alone, median", median(times), None, "ms",
                  raw={**summary(times), "rounds": times})]  # fmt: skip


def _comparison(loop: Loop) -> list[Claim]:
    """The periodic comparison with the kernel, during which no change comes into force."""
    times = []
    for _ in range(3):
        gc.collect()
        began = time.perf_counter()
        loop.sync_whole(delete=True)
        times.append((time.perf_counter() - began) * 1000)
    entries = loop.desired.entries
    return [Claim(f"comparing {entries:,} entries with the kernel (blocks the loop)",
                  median(times), None, "ms", raw=summary(times))]  # fmt: skip


def _pod(spec: PodSpec) -> Pod:
    return Pod(spec.namespace, spec.name, labels=spec.labels, ips=(spec.address,))


def _endpoint(number: int, spec: PodSpec) -> Endpoint:
    mac = f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}"
    return Endpoint(
        id=number,
        container_id=f"c{number}",
        ifname="eth0",
        namespace=spec.namespace,
        pod=spec.name,
        pod_uid="",
        ipv4=spec.address,
        ipv6="",
        mac=mac,
        host_mac=mac,
        device=f"bri{number}",
        ifindex=number + 100,
    )
