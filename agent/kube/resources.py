# SPDX-License-Identifier: Apache-2.0
"""Writing to the API server: typed operations on the kinds of which the agent owns objects.

All are synchronous, make one request each, and raise what `agent.kube.errors` has. Writes are
strict: a field that the server does not know is refused, not dropped. Whether and when to try again
is the caller's to decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec

from agent.kube.access import MERGE_PATCH, Access, Query
from agent.kube.errors import Malformed, NotFound
from agent.kube.kinds import BRISTLE_NODE, ENDPOINT, EVENT, IDENTITY, LEASE, Kind
from agent.kube.objects import (
    BristleEndpoint,
    BristleIdentity,
    BristleNode,
    Event,
    Lease,
    Metadata,
)
from agent.kube.wire import WireError, decode_page

FIELD_MANAGER: Final = "bristle"
STRICT: Final[Query] = {"fieldValidation": "Strict", "fieldManager": FIELD_MANAGER}
_PAGE: Final = 500


class _Object(Protocol):
    @property
    def metadata(self) -> Metadata: ...


T = TypeVar("T", bound=_Object)


class Collection(Generic[T]):
    """Objects of one kind. shape: the structure that they are decoded into.

    namespace: empty for kinds that live in none; for `list` also for all namespaces.
    Operations raise ApiError and its kinds, and Malformed if an answer is not of the shape.
    """

    def __init__(self, access: Access, kind: Kind, shape: type[T]) -> None:
        self._access = access
        self._kind = kind
        self._decoder = msgspec.json.Decoder(shape)

    def get(self, name: str, namespace: str = "") -> T:
        """The object as it is now. Raises NotFound."""
        return self._decode(self._access.request("GET", self._kind.path(name, namespace)))

    def list(self, namespace: str = "", *, labels: str = "", fields: str = "") -> list[T]:
        """All objects that fit the selectors, read in chunks. Raises Gone if the server forgets the
        version in the middle; then begin again."""
        in_one = namespace and self._kind.namespaced
        path = self._kind.path(namespace=namespace) if in_one else self._kind.collection
        query: dict[str, str | int] = {"limit": _PAGE}
        if labels:
            query["labelSelector"] = labels
        if fields:
            query["fieldSelector"] = fields
        found: list[T] = []
        while True:
            try:
                page = decode_page(self._access.request("GET", path, query=query))
            except WireError as error:
                raise Malformed(f"list {self._kind.plural}: {error}") from None
            found += [self._decode(bytes(raw)) for raw in page.items or ()]
            if page.metadata is None or not page.metadata.continue_:
                return found
            query["continue"] = page.metadata.continue_

    def create(self, obj: T) -> T:
        """Add the object. Raises AlreadyExists. A status is not taken: write it apart."""
        path = self._kind.path(namespace=obj.metadata.namespace)
        return self._decode(self._access.request("POST", path, query=STRICT, body=self._body(obj)))

    def update(self, obj: T) -> T:
        """Replace the object in the version that it was read in (`metadata.resourceVersion`).

        Raises Conflict if it has changed since. Fields of a newer version of this project are lost.
        """
        return self._put(obj, "")

    def update_status(self, obj: T) -> T:
        """Replace its status, likewise."""
        return self._put(obj, "status")

    def patch(
        self,
        name: str,
        change: Mapping[str, Any],
        namespace: str = "",
        *,
        resource_version: str = "",
        subresource: str = "",
        content_type: str = MERGE_PATCH,
    ) -> T:
        """Change what `change` names (RFC 7386: None removes a field, lists are replaced whole).

        resource_version: only if the object is still in this version; else raises Conflict.
        """
        if resource_version:
            metadata = {**change.get("metadata", {}), "resourceVersion": resource_version}
            change = {**change, "metadata": metadata}
        return self._decode(
            self._access.request(
                "PATCH",
                self._kind.path(name, namespace, subresource),
                query=STRICT,
                body=msgspec.json.encode(change),
                content_type=content_type,
            )
        )

    def patch_status(
        self,
        name: str,
        status: msgspec.Struct | Mapping[str, Any],
        namespace: str = "",
        *,
        resource_version: str = "",
    ) -> T:
        """Change the status. A structure's fields are all written; of maps in it, entries that it
        does not have stay."""
        change = {"status": msgspec.to_builtins(status)}
        return self.patch(
            name, change, namespace, resource_version=resource_version, subresource="status"
        )

    def delete(
        self, name: str, namespace: str = "", *, uid: str = "", resource_version: str = ""
    ) -> bool:
        """Remove the object; False if there is none.

        uid, resource_version: only this object, only in this version; else raises Conflict.
        """
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if wanted := {field: value for field, value in preconditions.items() if value}:
            options["preconditions"] = wanted
        try:
            self._access.request(
                "DELETE", self._kind.path(name, namespace), body=msgspec.json.encode(options)
            )
        except NotFound:
            return False
        return True

    def _put(self, obj: T, subresource: str) -> T:
        meta = obj.metadata
        if not meta.resourceVersion:
            raise ValueError(f"{self._kind.name} {meta.name}: update needs a resourceVersion")
        path = self._kind.path(meta.name, meta.namespace, subresource)
        return self._decode(self._access.request("PUT", path, query=STRICT, body=self._body(obj)))

    def _body(self, obj: T) -> bytes:
        head = {"apiVersion": self._kind.api_version, "kind": self._kind.name}
        return msgspec.json.encode({**head, **msgspec.to_builtins(obj)})

    def _decode(self, body: bytes) -> T:
        try:
            return self._decoder.decode(body)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise Malformed(f"{self._kind.name}: {error}") from None


class Resources:
    """The collections of one server, by what they hold."""

    def __init__(self, access: Access) -> None:
        self.endpoints = Collection(access, ENDPOINT, BristleEndpoint)
        self.identities = Collection(access, IDENTITY, BristleIdentity)
        self.nodes = Collection(access, BRISTLE_NODE, BristleNode)
        self.leases = Collection(access, LEASE, Lease)
        self.events = Collection(access, EVENT, Event)
