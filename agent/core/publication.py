# SPDX-License-Identifier: Apache-2.0
"""What this node has to tell the cluster: of each of its pods, the number and the addresses.

Computed from present facts like everything else: what is published already is a fact, too, so a
lost write, a restart or a stranger's edit are all seen as a difference. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from agent.core.desired import Desired
from agent.core.events import PublishedEndpoint
from agent.core.store import PodKey, Store
from identity.labels import LabelSet
from identity.reserved import CLUSTER_FIRST, Reserved


@dataclass(frozen=True, slots=True)
class PodPublication:
    """One pod of this node.

    wanted: what is to be published; None: nothing.
    observed: what is published, by this node or, for a pod that was elsewhere before, by another.
    allocate: its labels, which have no number yet, or none that the cluster knows as theirs. What
        is published stays until they have.
    revive: its number and labels, where the number was withdrawn or is marked for deletion.
    enforced: whether policy decides ingress and egress; for listings.
    """

    key: PodKey
    wanted: PublishedEndpoint | None
    observed: PublishedEndpoint | None
    allocate: LabelSet | None = None
    revive: tuple[int, LabelSet] | None = None
    enforced: tuple[bool, bool] = (False, False)

    @property
    def settled(self) -> bool:
        """Nothing is to be done."""
        return self.wanted == self.observed and self.allocate is None and self.revive is None


def publications(
    keys: Iterable[PodKey], store: Store, desired: Desired, node_name: str
) -> list[PodPublication]:
    """What these pods need, sorted by name; pods of other nodes are left out."""
    found = (publication(key, store, desired, node_name) for key in sorted(set(keys)))
    return [one for one in found if one is not None]


def publication(
    key: PodKey, store: Store, desired: Desired, node_name: str
) -> PodPublication | None:
    """What one pod needs; None: it is none of this node's."""
    observed, pod = store.published.get(key), store.pods.get(key)
    endpoints = [one for one in store.endpoints_of(key) if pod is None or store.pod_of(one)]
    mine = observed is not None and observed.node_name == node_name
    if not endpoints:
        return PodPublication(key, None, observed) if mine else None
    if pod is None or pod.node_name not in ("", node_name):
        # Its object is gone, and what hangs on it goes with it; or another node has the name now.
        return PodPublication(key, None, observed) if mine else None
    number, labels = desired.addresses.identity_of(key), desired.addresses.labels_of(key)
    allocate = desired.addresses.wanted.get(key)
    if allocate is not None:
        return PodPublication(key, observed, observed, allocate)
    fact = store.identities.get(number)
    if number >= CLUSTER_FIRST and fact is not None and fact.labels != labels:
        # Collected while this node was cut off, and given to others: to them it means those.
        return PodPublication(key, observed, observed, labels)
    if number == Reserved.INIT:  # its namespace is not known yet
        return PodPublication(key, observed, observed)
    first, node = endpoints[0], store.nodes.get(node_name)
    node_ip = observed.node_ip if observed is not None else ""
    if node is not None and node.addresses:
        node_ip = node.addresses[0]
    wanted = PublishedEndpoint(
        namespace=key[0],
        name=key[1],
        identity=number,
        endpoint=first.id,
        ips=tuple(address for one in endpoints for address in one.addresses),
        ports=pod.ports,
        node_name=node_name,
        pod_uid=pod.uid,
        node_ip=node_ip,
    )
    if observed is not None and not (observed.pod_uid and pod.uid):
        wanted = replace(wanted, pod_uid=observed.pod_uid)
    lost = number >= CLUSTER_FIRST and (fact is None or bool(fact.unused_since))
    tables = desired.tables.get(first.id)
    enforced = (
        tables is not None and tables.ingress is not None,
        tables is not None and tables.egress is not None,
    )
    revive = (number, labels) if lost else None
    return PodPublication(key, wanted, observed, None, revive, enforced)
