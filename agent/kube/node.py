# SPDX-License-Identifier: Apache-2.0
"""What the agent changes of its own Node: a taint and a condition, and nothing beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from agent.kube.access import JSON_PATCH, STRATEGIC_MERGE_PATCH, Access
from agent.kube.errors import Conflict, Invalid, Malformed
from agent.kube.kinds import NODE
from agent.kube.objects import Metadata
from agent.kube.resources import STRICT
from agent.kube.times import timestamp

NOT_READY_TAINT: Final = "node.bristle.io/agent-not-ready"
NETWORK_UNAVAILABLE: Final = "NetworkUnavailable"
_ATTEMPTS: Final = 5


class NodeSpec(msgspec.Struct, frozen=True):
    """taints: as they are, with fields that are not known here, for a patch must name them so."""

    taints: list[dict[str, Any]] | None = None
    podCIDRs: list[str] | None = None


class NodeCondition(msgspec.Struct, frozen=True):
    type: str = ""
    status: str = ""
    reason: str | None = None
    message: str | None = None
    lastTransitionTime: str | None = None


class NodeStatus(msgspec.Struct, frozen=True):
    conditions: list[NodeCondition] | None = None


class NodeObject(msgspec.Struct, frozen=True):
    """core/v1 Node, as far as it is changed here."""

    metadata: Metadata
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


_NODE: Final = msgspec.json.Decoder(NodeObject)


def get_node(access: Access, name: str) -> NodeObject:
    """The node as it is now. Raises NotFound and other kinds of ApiError."""
    body = access.request("GET", NODE.path(name))
    try:
        return _NODE.decode(body)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise Malformed(f"Node {name}: {error}") from None


def remove_taint(access: Access, name: str, key: str = NOT_READY_TAINT) -> bool:
    """Takes every taint with this key off the node; whether there was one. Raises ApiError.

    Other taints are never lost: the patch removes one place of the list, after a test that this
    very taint is there. If somebody else changed the list in between, it is read again.
    """
    removed = False
    refused: Invalid | Conflict | None = None
    for _ in range(_ATTEMPTS):
        taints = get_node(access, name).spec.taints or []
        places = [i for i, taint in enumerate(taints) if taint.get("key") == key]
        if not places:
            return removed
        patch: list[dict[str, Any]] = []
        for place in reversed(places):  # from the end, so that the others keep their places
            path = f"/spec/taints/{place}"
            patch += [
                {"op": "test", "path": path, "value": taints[place]},
                {"op": "remove", "path": path},
            ]
        try:
            _patch(access, NODE.path(name), patch, JSON_PATCH)
        except (Invalid, Conflict) as error:
            refused = error
            continue
        removed = True
    if refused is not None:
        raise refused
    return removed


def set_network_available(
    access: Access, name: str, clock: Callable[[], float], *, reason: str, message: str
) -> bool:
    """Sets the condition NetworkUnavailable to False; whether it was anything else.

    clock: seconds since 1970. Raises ApiError. Conditions of others are merged by their type, so
    none is touched.
    """
    for one in get_node(access, name).status.conditions or []:
        if one.type == NETWORK_UNAVAILABLE and (one.status, one.reason) == ("False", reason):
            return False
    now = timestamp(clock())
    condition = {
        "type": NETWORK_UNAVAILABLE,
        "status": "False",
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
    _patch(
        access,
        NODE.path(name, subresource="status"),
        {"status": {"conditions": [condition]}},
        STRATEGIC_MERGE_PATCH,
    )
    return True


def _patch(access: Access, path: str, change: object, content_type: str) -> None:
    access.request(
        "PATCH", path, query=STRICT, body=msgspec.json.encode(change), content_type=content_type
    )
