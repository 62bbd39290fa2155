# SPDX-License-Identifier: Apache-2.0
"""Kinds of the API, and where the server has them. Pure."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of the API. api_version: group and version as objects name them."""

    name: str
    api_version: str
    plural: str
    namespaced: bool = True

    @property
    def collection(self) -> str:
        """Path of all objects of the kind."""
        root = "api" if "/" not in self.api_version else "apis"
        return f"/{root}/{self.api_version}/{self.plural}"

    def path(self, name: str = "", namespace: str = "", subresource: str = "") -> str:
        """Path of one object, or without a name of the collection in its namespace."""
        root = "api" if "/" not in self.api_version else "apis"
        place = f"/namespaces/{namespace}" if self.namespaced else ""
        parts = [part for part in (name, subresource) if part]
        return "/".join((f"/{root}/{self.api_version}{place}/{self.plural}", *parts))


POD: Final = Kind("Pod", "v1", "pods")
NAMESPACE: Final = Kind("Namespace", "v1", "namespaces", namespaced=False)
NODE: Final = Kind("Node", "v1", "nodes", namespaced=False)
SERVICE: Final = Kind("Service", "v1", "services")
ENDPOINT_SLICE: Final = Kind("EndpointSlice", "discovery.k8s.io/v1", "endpointslices")
NETWORK_POLICY: Final = Kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies")
ENDPOINT: Final = Kind("BristleEndpoint", "bristle.io/v1alpha1", "bristleendpoints")
IDENTITY: Final = Kind(
    "BristleIdentity", "bristle.io/v1alpha1", "bristleidentities", namespaced=False
)
BRISTLE_NODE: Final = Kind("BristleNode", "bristle.io/v1alpha1", "bristlenodes", namespaced=False)
EVENT: Final = Kind("Event", "events.k8s.io/v1", "events")
LEASE: Final = Kind("Lease", "coordination.k8s.io/v1", "leases")

WATCHED: Final = (
    NODE,
    BRISTLE_NODE,
    NAMESPACE,
    NETWORK_POLICY,
    SERVICE,
    ENDPOINT_SLICE,
    IDENTITY,
    ENDPOINT,
    POD,
)
"""Kinds that are facts."""
