# SPDX-License-Identifier: Apache-2.0
"""The built-in kinds that are served (pure)."""

from __future__ import annotations

from bench.lab.apiserver.agentrules import EventStrategy, LeaseStrategy, NewEventStrategy
from bench.lab.apiserver.builtin import schema
from bench.lab.apiserver.customrules import GROUP, DefinitionStrategy
from bench.lab.apiserver.errors import Object
from bench.lab.apiserver.kinds import Kind, Registry
from bench.lab.apiserver.netrules import (
    EndpointSliceStrategy,
    NetworkPolicyStrategy,
    ServiceStrategy,
)
from bench.lab.apiserver.podrules import NamespaceStrategy, NodeStrategy, PodStrategy
from bench.lab.apiserver.validation import dns1035_label, dns_label, path_segment

# Bookmarks are empty objects of Go: what is not `omitempty` is there.
_POD_BOOKMARK: Object = {"spec": {"containers": None}, "status": {}}
_SPEC_AND_STATUS: Object = {"spec": {}, "status": {}}


def registry() -> Registry:
    """A registry of all built-in kinds."""
    return Registry(
        [
            Kind(
                "",
                "v1",
                "Pod",
                "pods",
                True,
                schema("V1Pod"),
                PodStrategy(),
                singular="pod",
                short_names=("po",),
                categories=("all",),
                status=True,
                bookmark=_POD_BOOKMARK,
            ),
            Kind(
                "",
                "v1",
                "Namespace",
                "namespaces",
                False,
                schema("V1Namespace"),
                NamespaceStrategy(),
                singular="namespace",
                short_names=("ns",),
                status=True,
                name_rule=dns_label,
                bookmark=_SPEC_AND_STATUS,
            ),
            Kind(
                "",
                "v1",
                "Node",
                "nodes",
                False,
                schema("V1Node"),
                NodeStrategy(),
                singular="node",
                short_names=("no",),
                status=True,
                bookmark=_SPEC_AND_STATUS,
            ),
            Kind(
                "",
                "v1",
                "Service",
                "services",
                True,
                schema("V1Service"),
                ServiceStrategy(),
                singular="service",
                short_names=("svc",),
                categories=("all",),
                status=True,
                name_rule=dns1035_label,
                bookmark={"spec": {}, "status": {"loadBalancer": {}}},
            ),
            Kind(
                "",
                "v1",
                "Event",
                "events",
                True,
                schema("CoreV1Event"),
                EventStrategy(),
                singular="event",
                short_names=("ev",),
                name_rule=path_segment,
            ),
            Kind(
                "events.k8s.io",
                "v1",
                "Event",
                "events",
                True,
                schema("EventsV1Event"),
                NewEventStrategy(),
                singular="event",
                short_names=("ev",),
                storage=("", "events"),
                converted=True,
                name_rule=path_segment,
            ),
            Kind(
                "discovery.k8s.io",
                "v1",
                "EndpointSlice",
                "endpointslices",
                True,
                schema("V1EndpointSlice"),
                EndpointSliceStrategy(),
                singular="endpointslice",
                bookmark={"addressType": "", "endpoints": None, "ports": None},
            ),
            Kind(
                "networking.k8s.io",
                "v1",
                "NetworkPolicy",
                "networkpolicies",
                True,
                schema("V1NetworkPolicy"),
                NetworkPolicyStrategy(),
                singular="networkpolicy",
                short_names=("netpol",),
                bookmark={"spec": {"podSelector": {}, "policyTypes": None}},
            ),
            Kind(
                "coordination.k8s.io",
                "v1",
                "Lease",
                "leases",
                True,
                schema("V1Lease"),
                LeaseStrategy(),
                singular="lease",
                bookmark={"spec": {}},
            ),
            Kind(
                GROUP,
                "v1",
                "CustomResourceDefinition",
                "customresourcedefinitions",
                False,
                schema("V1CustomResourceDefinition"),
                DefinitionStrategy(),
                singular="customresourcedefinition",
                short_names=("crd", "crds"),
                categories=("api-extensions",),
                status=True,
                bookmark={"spec": {"group": "", "names": {"plural": "", "kind": ""}}},
            ),
        ]
    )
