# SPDX-License-Identifier: Apache-2.0
"""What this node keeps in the API server, as the operations that the rest of the package wants.

Each makes sure of a state and may be repeated: it looks where it must, writes only what differs,
and meets others' writes by resourceVersion. All raise ApiError.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

import msgspec

from agent.core.events import Node, PublishedEndpoint, ResourceKey
from agent.kube import kinds
from agent.kube.access import Access
from agent.kube.errors import AlreadyExists, ApiError, Conflict, Malformed, NotFound
from agent.kube.fields import TranslateError
from agent.kube.node import NOT_READY_TAINT, remove_taint, set_network_available
from agent.kube.notices import Notices
from agent.kube.objects import (
    BristleEndpoint,
    BristleIdentity,
    BristleNode,
    BristleNodeSpec,
    BristleNodeStatus,
    EndpointAddress,
    EndpointNode,
    EndpointPort,
    EndpointSpec,
    EndpointStatus,
    Metadata,
    ObjectReference,
    OwnerReference,
)
from agent.kube.resources import Resources
from agent.kube.times import timestamp
from agent.kube.translate_node import UNUSED_SINCE
from agent.kube.translate_wire import translate_raw
from agent.kube.wire import Head
from identity.cluster import candidates
from identity.labels import NAMESPACE_KEY, LabelSet

log = logging.getLogger(__name__)

NAMESPACE_LABEL: Final = "io.kubernetes.pod.namespace"
_PROTOCOLS: Final = {6: "TCP", 17: "UDP", 132: "SCTP"}
_ATTEMPTS: Final = 5
_HEAD: Final = msgspec.json.Decoder(Head)


class ApiRegistry:
    """Of one node. Safe for several threads, but for `report_policy`."""

    def __init__(
        self, access: Access, node_name: str, clock: Callable[[], float] = time.time
    ) -> None:
        self.resources = Resources(access)
        self._access = access
        self._node_name = node_name
        self._clock = clock
        self._notices = Notices(self.resources.events, node_name, clock, time.monotonic)

    # ---- identities --------------------------------------------------------------------------

    def allocate(self, labels: LabelSet) -> int:
        """Make sure that a number with these labels is published; gives it. The name of the object
        is the number, so of several nodes that want one number one gets it, and the others see
        whose it is."""
        for number in candidates(labels):
            for _ in range(_ATTEMPTS):
                try:
                    self.resources.identities.create(_identity(number, labels))
                    return number
                except AlreadyExists:
                    found = self._identity(number)
                if found is None:
                    continue  # deleted just now
                if found.security_labels != dict(labels):
                    break
                self.keep(number, labels)
                return number
        raise ApiError("all numbers of identities are taken by other labels")

    def keep(self, number: int, labels: LabelSet) -> None:
        """Publish a number anew, or take its mark away. Raises Conflict if it means something else
        by now."""
        for _ in range(_ATTEMPTS):
            found = self._identity(number)
            try:
                if found is None:
                    self.resources.identities.create(_identity(number, labels))
                elif found.security_labels != dict(labels):
                    raise Conflict(f"identity {number} has other labels by now")
                elif UNUSED_SINCE in (found.metadata.annotations or {}):
                    self._annotate(found, None)
                return
            except (AlreadyExists, NotFound):
                continue
            except Conflict:
                if found is not None and found.security_labels != dict(labels):
                    raise
        raise Conflict(f"identity {number} changes all the time")

    def mark(self, number: int) -> None:
        """Say that nobody uses a number; one that is marked or gone is left alone."""
        found = self._identity(number)
        if found is not None and UNUSED_SINCE not in (found.metadata.annotations or {}):
            self._annotate(found, timestamp(self._clock()))

    def unmark(self, number: int) -> None:
        """Say that somebody uses a number."""
        found = self._identity(number)
        if found is not None and UNUSED_SINCE in (found.metadata.annotations or {}):
            self._annotate(found, None)

    def delete_identity(self, number: int) -> None:
        """Delete a number that is still marked; whoever takes the mark away keeps it."""
        found = self._identity(number)
        if found is not None and UNUSED_SINCE in (found.metadata.annotations or {}):
            self.resources.identities.delete(
                str(number), uid=found.metadata.uid, resource_version=found.metadata.resourceVersion
            )

    def _identity(self, number: int) -> BristleIdentity | None:
        try:
            return self.resources.identities.get(str(number))
        except NotFound:
            return None

    def _annotate(self, found: BristleIdentity, since: str | None) -> None:
        self.resources.identities.patch(
            found.metadata.name,
            {"metadata": {"annotations": {UNUSED_SINCE: since}}},
            resource_version=found.metadata.resourceVersion,
        )

    # ---- endpoints ---------------------------------------------------------------------------

    def put(self, wanted: PublishedEndpoint) -> None:
        """Create or replace what is published of a pod."""
        made = _endpoint(wanted)
        for _ in range(_ATTEMPTS):
            try:
                self.resources.endpoints.create(made)
                return
            except AlreadyExists:
                pass
            try:
                found = self.resources.endpoints.get(wanted.name, wanted.namespace)
                owners = found.metadata.ownerReferences
                if found.spec == made.spec and owners == made.metadata.ownerReferences:
                    return
                metadata = msgspec.structs.replace(
                    found.metadata, ownerReferences=made.metadata.ownerReferences
                )
                self.resources.endpoints.update(
                    msgspec.structs.replace(found, metadata=metadata, spec=made.spec)
                )
                return
            except (NotFound, Conflict):
                continue
        raise Conflict(f"BristleEndpoint {wanted.namespace}/{wanted.name} changes all the time")

    def put_status(self, wanted: PublishedEndpoint, ingress: bool, egress: bool) -> None:
        """Which directions of a pod policy decides, for listings."""
        status = EndpointStatus(state="ready", ingressEnforcement=ingress, egressEnforcement=egress)
        if self.resources.endpoints.get(wanted.name, wanted.namespace).status == status:
            return
        self.resources.endpoints.patch_status(wanted.name, status, wanted.namespace)

    def remove(self, observed: PublishedEndpoint) -> None:
        """Delete what this node published of a pod; what another did is left alone."""
        try:
            found = self.resources.endpoints.get(observed.name, observed.namespace)
        except NotFound:
            return
        if found.spec.node.name == self._node_name:
            self.resources.endpoints.delete(
                observed.name,
                observed.namespace,
                uid=found.metadata.uid,
                resource_version=found.metadata.resourceVersion,
            )

    # ---- the node ----------------------------------------------------------------------------

    def node(self) -> Node:
        """This node's object as a fact."""
        body = self._access.request("GET", kinds.NODE.path(self._node_name))
        try:
            found = translate_raw(kinds.NODE, body)
        except TranslateError as error:
            raise Malformed(f"Node {self._node_name}: {error}") from error
        assert isinstance(found, Node)
        return found

    def open_for_pods(self) -> None:
        """Let pods come: take the taint away, and say that there is a network."""
        if remove_taint(self._access, self._node_name):
            log.info("the taint %s is taken away", NOT_READY_TAINT)
        set_network_available(
            self._access, self._node_name, self._clock,
            reason="BristleIsUp", message="Bristle is running on this node",
        )  # fmt: skip

    def put_node(self, node: Node, spec: BristleNodeSpec, status: BristleNodeStatus) -> None:
        """What this node says of itself."""
        owner = OwnerReference(apiVersion="v1", kind="Node", name=node.name, uid=node.uid)
        metadata = Metadata(name=node.name, ownerReferences=(owner,))
        made = BristleNode(metadata=metadata, spec=spec)
        try:
            found = self.resources.nodes.create(made)
        except AlreadyExists:
            found = self.resources.nodes.get(node.name)
            if found.spec != spec or found.metadata.ownerReferences != (owner,):
                metadata = msgspec.structs.replace(found.metadata, ownerReferences=(owner,))
                found = self.resources.nodes.update(
                    msgspec.structs.replace(found, metadata=metadata, spec=spec)
                )
        if found.status != status:
            self.resources.nodes.patch_status(node.name, status)

    # ---- policies ----------------------------------------------------------------------------

    def report_policy(self, key: ResourceKey, reason: str) -> None:
        """An Event on a policy that is not in force as written. One that is gone needs none."""
        try:
            body = self._access.request("GET", kinds.NETWORK_POLICY.path(key.name, key.namespace))
        except NotFound:
            return
        try:
            head = _HEAD.decode(body)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise Malformed(f"{key}: {error}") from None
        regarding = ObjectReference(
            apiVersion=kinds.NETWORK_POLICY.api_version,
            kind=key.kind,
            name=key.name,
            namespace=key.namespace,
            uid=(head.metadata.uid or "") if head.metadata else "",
        )
        note = f"not in force on node {self._node_name}, where the former state stays: {reason}"
        self._notices.write(regarding, "PolicyNotInForce", note, action="Enforce")


def _identity(number: int, labels: LabelSet) -> BristleIdentity:
    namespace = labels.get(NAMESPACE_KEY)
    metadata = Metadata(
        name=str(number), labels={NAMESPACE_LABEL: namespace} if namespace else None
    )
    return BristleIdentity(metadata=metadata, security_labels=dict(labels))


def _endpoint(wanted: PublishedEndpoint) -> BristleEndpoint:
    owners = None
    if wanted.pod_uid:
        owners = (
            OwnerReference(apiVersion="v1", kind="Pod", name=wanted.name, uid=wanted.pod_uid),
        )
    return BristleEndpoint(
        metadata=Metadata(name=wanted.name, namespace=wanted.namespace, ownerReferences=owners),
        spec=EndpointSpec(
            identity=wanted.identity,
            addresses=tuple(EndpointAddress(one) for one in wanted.ips),
            node=EndpointNode(wanted.node_name, wanted.node_ip),
            endpointID=wanted.endpoint,
            ipv4=next((one for one in wanted.ips if ":" not in one), ""),
            ipv6=next((one for one in wanted.ips if ":" in one), ""),
            namedPorts=tuple(
                EndpointPort(one.name, one.number, _PROTOCOLS[one.protocol]) for one in wanted.ports
            ),
        ),
    )
