# SPDX-License-Identifier: Apache-2.0
"""What the loop holds, as lists for people. Called in the loop's thread, so each is of one moment;
what would take long is only gathered there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from agent.core.endpoint import Endpoint
from agent.core.events import ResourceKey
from agent.core.views import (
    EndpointInfo,
    IdentityInfo,
    MapUsage,
    NumberName,
    NumberNames,
    ObjectState,
    PolicyInfo,
    PolicyList,
    RejectedInfo,
    SelectorInfo,
)
from agent.inspection import rule_text
from agent.loop import Loop
from bpf.layouts import EndpointFlag
from identity.index import LabelIndex
from identity.labels import K8S_SOURCE, LabelFilter, LabelSet
from identity.reserved import Reserved, is_local
from identity.selectors import Selector
from policy.model import Direction as PolicyDirection
from policy.model import NetworkPolicy, PodPeer, PolicyKey
from policy.render import render_network_policy
from policy.resolve import Table, peer_selector


class Listing:
    """Lists of one agent."""

    def __init__(self, loop: Loop, label_filter: LabelFilter) -> None:
        self._loop = loop
        self._filter = label_filter

    def maps(self) -> tuple[MapUsage, ...]:
        desired, datapath = self._loop.desired, self._loop.datapath
        entries = {
            "policy": desired.entries,
            "peers": len(desired.ipcache),
            "endpoints": len(self._loop.store.endpoints),
            "ct": self._loop.counters.connections,
        }
        if datapath.masquerades:
            entries["nat"] = self._loop.counters.mappings
            entries["masquerade_exclude"] = len(desired.masquerade.exclude_writes())
        return tuple(
            MapUsage(name, used, datapath.capacity(name)) for name, used in entries.items()
        )

    def endpoint(self, one: Endpoint) -> EndpointInfo:
        desired = self._loop.desired
        policy, tables = desired.endpoint_policy(one.id), desired.tables.get(one.id)
        known = self._loop.store.pod_of(one) is not None
        key = desired.addresses.key_of(one)
        state, status = "ready", ObjectState.DONE
        reason = ""
        if policy is None:
            state, status = "not-ready", ObjectState.PENDING
            reason = "the cluster's state is not known yet"
        elif not known:
            state = "waiting-for-identity"
            reason = "the pod's labels are not known: all is denied but the node"
        elif missing := desired.addresses.missing(key):
            state = "waiting-for-identity"
            reason = f"{missing}: all is denied but the node"
        surroundings = self._loop.surroundings
        if surroundings is not None and one.id in surroundings.gone:
            state, status = "disconnecting", ObjectState.PENDING
            reason = f"device {one.device} is gone, with the pod's namespace: waits for CNI DEL"
        return EndpointInfo(
            id=one.id,
            namespace=one.namespace,
            pod=one.pod,
            state=state,
            status=status,
            identity=desired.addresses.identity_of(key),
            reason=reason,
            labels=texts(desired.addresses.labels_of(key)),
            ipv4=one.ipv4,
            ipv6=one.ipv6,
            mac=one.mac,
            device=one.device,
            ifindex=one.ifindex,
            container_id=one.container_id,
            ingress_enforced=bool(policy and policy.flags & EndpointFlag.ENDPOINT_INGRESS_ENFORCED),
            egress_enforced=bool(policy and policy.flags & EndpointFlag.ENDPOINT_EGRESS_ENFORCED),
            ingress_policies=self._isolating(one, PolicyDirection.INGRESS),
            egress_policies=self._isolating(one, PolicyDirection.EGRESS),
            ingress_table=desired.table_number(tables.ingress) if tables else 0,
            egress_table=desired.table_number(tables.egress) if tables else 0,
        )

    def _isolating(self, one: Endpoint, direction: PolicyDirection) -> tuple[str, ...]:
        pod = self._loop.store.pod_of(one)
        if pod is None:
            return ()
        keys = self._loop.desired.repository.isolating(direction, pod.namespace, pod.labels)
        return tuple(f"{key.namespace}/{key.name}" for key in keys)

    def identities(self) -> list[IdentityInfo]:
        found = [IdentityInfo(int(one), "reserved", texts(one.labels)) for one in Reserved]
        identities = self._loop.desired.identities
        found += [
            IdentityInfo(
                number,
                "cidr" if is_local(number) else "cluster",
                texts(labels),
                identities.references(number),
            )
            for number, labels in identities.items().items()
        ]
        return found

    def policies(self) -> PolicyList:
        loop = self._loop
        users: Counter[PolicyKey] = Counter()
        for one in loop.store.endpoints.values():
            pod = loop.store.pod_of(one)
            if pod is not None:
                users.update(
                    {
                        key
                        for direction in PolicyDirection
                        for key in loop.desired.repository.isolating(
                            direction, pod.namespace, pod.labels
                        )
                    }
                )
        # One that is refused is shown as it is wanted, with the reason.
        shown = loop.store.policies | {key: one.policy for key, one in loop.refused.items()}
        return PolicyList(
            revision=loop.revision,
            policies=tuple(
                self._policy(key, policy, users[policy.key])
                for key, policy in sorted(shown.items())
            ),
            rejected=tuple(
                RejectedInfo(
                    one.origin.file,
                    one.origin.document,
                    str(one.resource or ""),
                    one.field,
                    one.message,
                    one.resource is not None and self._in_force(one.resource),
                )
                for _, one in sorted(loop.store.rejections.items(), key=lambda item: str(item[0]))
            ),
        )

    def _in_force(self, key: ResourceKey) -> bool:
        store = self._loop.store
        match key.kind:
            case "Pod":
                return (key.namespace, key.name) in store.pods
            case "Namespace":
                return key.name in store.namespaces
            case "Node":
                return key.name in store.nodes
        return key in store.policies

    def _policy(self, key: ResourceKey, policy: NetworkPolicy, endpoints: int) -> PolicyInfo:
        refused = self._loop.refused.get(key)
        done = ObjectState.DONE if self._loop.synced.is_set() else ObjectState.PENDING
        return PolicyInfo(
            kind=policy.kind,
            namespace=policy.namespace,
            name=policy.name,
            status=ObjectState.FAILED if refused else done,
            reason=refused.reason if refused else self._hidden(PolicyKey(*key)),
            ingress_rules=len(policy.rules(PolicyDirection.INGRESS)),
            egress_rules=len(policy.rules(PolicyDirection.EGRESS)),
            types=tuple(one.name.capitalize() for one in sorted(policy.policy_types)),
            endpoints=endpoints,
            spec_json=json.dumps(render_network_policy(policy)["spec"]),
        )

    def _hidden(self, key: PolicyKey) -> str:
        """What the label filter keeps a policy in force from seeing, in words."""
        keys = self._filter.hides(self._loop.desired.repository.peer_label_keys(key))
        if not keys:
            return ""
        names = ", ".join(one.removeprefix(K8S_SOURCE) for one in keys)
        return (
            f"the label filter leaves out {names}: In and Exists match no peer, NotIn and"
            " DoesNotExist match every one"
        )

    def selectors(self) -> Callable[[], list[SelectorInfo]]:
        """The peer selectors of all policies and what they select, gathered; the work, which grows
        with their product, is in the function that is returned, for another thread."""
        policies = self._loop.desired.repository.policies()
        identities = self._loop.desired.identities.items()
        return lambda: _selectors(policies, identities)

    def numbers(self) -> NumberNames:
        desired, store = self._loop.desired, self._loop.store
        return NumberNames(
            rules=tuple(
                NumberName(number, rule_text(ref))
                for number, ref in desired.packer.rule_names().items()
            ),
            tables=tuple(
                NumberName(number, _table_text(table))
                for number, table in desired.compiler.tables.items()
            ),
            classes=tuple(
                NumberName(number, one.canonical())
                for number, one in desired.compiler.classes.items()
            ),
            endpoints=tuple(
                NumberName(number, f"{one.namespace}/{one.pod}")
                for number, one in store.endpoints.items()
            ),
            identities=tuple(
                NumberName(number, ",".join(texts(labels)))
                for number, labels in desired.identities.items().items()
            ),
        )


def texts(labels: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{key}={value}" if value else key for key, value in labels.items())


def _table_text(table: Table) -> str:
    policies = sorted({f"{one.ref.namespace}/{one.ref.name}" for one in table.rules})
    return f"{table.direction.name.lower()}: {', '.join(policies) or 'no rules'}"


def _selectors(
    policies: Iterable[NetworkPolicy], identities: Mapping[int, LabelSet]
) -> list[SelectorInfo]:
    users: dict[Selector, set[str]] = {}
    for policy in policies:
        for direction in PolicyDirection:
            for rule in policy.rules(direction):
                for peer in rule.peers or ():
                    if isinstance(peer, PodPeer):
                        selector = peer_selector(peer, policy.namespace)
                        users.setdefault(selector, set()).add(f"{policy.namespace}/{policy.name}")
    index: LabelIndex[int] = LabelIndex()
    for number, labels in identities.items():
        index.add(number, labels)
    return [
        SelectorInfo(
            selector.canonical(), tuple(sorted(index.matching(selector))), tuple(sorted(names))
        )
        for selector, names in sorted(users.items(), key=lambda item: item[0].canonical())
    ]
