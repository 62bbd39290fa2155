# SPDX-License-Identifier: Apache-2.0
"""A pod whose labels are not known yet is denied everything but its node (identity init)."""

import pytest

from bench.lab import manifests
from bench.lab.node import Lab
from bench.lab.probe import Cell, Prober
from bench.lab.station import Pod

pytestmark = pytest.mark.kernel

INIT = 5


def _connected(cells: dict[Cell, bool]) -> set[tuple[str, str]]:
    """Pairs of which some cell was reached."""
    return {(cell.source, cell.destination) for cell, reached in cells.items() if reached}


def test_denied_until_the_manifest_is_there(clean_lab: Lab, pair: tuple[Pod, Pod]) -> None:
    """No policy selects it, and still it may talk to its node alone, in either direction."""
    fresh = clean_lab.add_pod("late", "pod", manifest=False)
    info = clean_lab.agent.endpoint(fresh.name)
    assert (info.identity, info.state) == (INIT, "waiting-for-identity")
    stations = [*pair, fresh, clean_lab.node, clean_lab.outside]
    others = [pair[0].name, pair[1].name, "outside"]
    with Prober(stations) as prober:
        cells = prober.cells([fresh.name], [*others, "node"])
        cells += prober.cells([*others, "node"], [fresh.name])
        assert _connected(prober.measure(cells)) == {(fresh.name, "node"), ("node", fresh.name)}
        to_node = [c for c in cells if "node" in (c.source, c.destination)]
        assert all(prober.measure(to_node).values())

        clean_lab.change("pod-late-pod", [manifests.pod("late", "pod", {"app": "late"})])
        info = clean_lab.agent.endpoint(fresh.name)
        assert info.identity != INIT
        assert "k8s:app=late" in info.labels
        measured = prober.measure(cells)
        assert [str(cell) for cell, reached in measured.items() if not reached] == []

        # And denied again when the manifest goes while the pod runs.
        clean_lab.change("pod-late-pod", [])
        assert _connected(prober.measure(cells)) == {(fresh.name, "node"), ("node", fresh.name)}


def test_labels_of_the_pod_before_are_not_the_next_ones(
    clean_lab: Lab, pair: tuple[Pod, Pod]
) -> None:
    """A pod of the same name has come before its object is known: it is not the one before."""
    before = manifests.pod("late", "again", {"app": "before"})
    before["metadata"]["uid"] = "u-1"
    clean_lab.change("again", [before])
    netns = clean_lab.scope.namespace("again")
    container = f"{clean_lab.scope.prefix}-again"
    result = clean_lab.cni("ADD", container, str(netns.path), "late", "again", uid="u-2")
    info = clean_lab.agent.endpoint("late/again")
    assert (info.identity, info.state) == (INIT, "waiting-for-identity")
    address = result["ips"][0]["address"].partition("/")[0]
    explained = clean_lab.agent.explain(address, pair[0].name, 6, 80)
    assert not explained.allowed and explained.egress.agrees and explained.ingress.agrees
    after = manifests.pod("late", "again", {"app": "after"})
    after["metadata"]["uid"] = "u-2"
    clean_lab.change("again", [after])
    assert "k8s:app=after" in clean_lab.agent.endpoint("late/again").labels
    assert clean_lab.agent.explain("late/again", pair[0].name, 6, 80).allowed
    clean_lab.cni("DEL", container, "")
    clean_lab.change("again", [])


def test_unknown_pod_matches_no_selector(clean_lab: Lab, pair: tuple[Pod, Pod]) -> None:
    """As a peer it is in no namespace: even the empty selectors leave it out; a block does not."""
    fresh = clean_lab.add_pod("late", "peer", manifest=False)
    everybody: manifests.Object = {"from": [{"namespaceSelector": {}}, {"podSelector": {}}]}
    spec = {"podSelector": {}, "ingress": [everybody]}
    clean_lab.set_policies([manifests.policy("two", "all-pods", spec)])
    with Prober([*pair, fresh]) as prober:
        cells = prober.cells([pair[0].name, fresh.name], [pair[1].name])
        assert _connected(prober.measure(cells)) == {(pair[0].name, pair[1].name)}


def test_policy_is_in_force_when_add_returns(clean_lab: Lab, pair: tuple[Pod, Pod]) -> None:
    """The first packet after ADD is judged by the pod's policies, in both directions."""
    spec = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    clean_lab.set_policies([manifests.policy("closed", "all", spec)])
    for number in range(5):
        name = f"pod{number}"
        # Its manifest is there first, as with a kubelet; the agent may know of it or not.
        clean_lab.manifests.put(f"pod-closed-{name}", [manifests.pod("closed", name, {"n": name})])
        pod = clean_lab.add_pod("closed", name, manifest=False)
        with Prober([pair[0], pod], minimum=0.1) as prober:
            cells = prober.cells([pod.name], [pair[0].name])
            cells += prober.cells([pair[0].name], [pod.name])
            assert _connected(prober.measure(cells)) == set()
        clean_lab.delete_pod(pod)


def test_address_of_a_deleted_pod_is_nobodys(clean_lab: Lab, pair: tuple[Pod, Pod]) -> None:
    """What was allowed for a pod is not for the next one with its address."""
    peers = [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "old"}}}]
    spec = {"podSelector": {}, "ingress": [{"from": peers}]}
    clean_lab.set_policies([manifests.policy("two", "from-old", spec)])
    old = clean_lab.add_pod("one", "old", {"app": "old"})
    with Prober([pair[1], old]) as prober:
        cells = prober.cells([old.name], [pair[1].name])
        assert all(prober.measure(cells).values())
    clean_lab.delete_pod(old)
    info = clean_lab.agent.endpoints()
    assert old.name not in {f"{e.namespace}/{e.pod}" for e in info}
    new = clean_lab.add_pod("one", "new", {"app": "new"})
    with Prober([pair[1], new]) as prober:
        cells = prober.cells([new.name], [pair[1].name])
        assert _connected(prober.measure(cells)) == set()
