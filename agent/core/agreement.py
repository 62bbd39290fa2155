# SPDX-License-Identifier: Apache-2.0
"""Whether nodes agree on how packets between their pods travel.

Each node's agent says in its BristleNode how packets reach it. Where two differ, each sends what
the other one does not take, and nothing else would tell: the packets are only lost.
"""

from __future__ import annotations

from collections.abc import Iterator

from agent.core.store import Store


def disagreements(store: Store, name: str, mode: str, port: int) -> Iterator[tuple[str, str]]:
    """Other nodes that announce something else than this one (`name`) has, and what.

    What a node does not say, because its agent is of an older version or has not begun yet, is no
    disagreement; nor is what an agent has left that says of a node which is gone.
    """
    for node, told in sorted(store.published_nodes.items()):
        if node == name or node not in store.nodes:
            continue
        if told.routing_mode and told.routing_mode != mode:
            yield node, _lost("routing mode", told.routing_mode, mode, "routing.mode")
        elif mode == "tunnel" and told.tunnel_port and told.tunnel_port != port:
            yield node, _lost("tunnel port", told.tunnel_port, port, "routing.tunnel_port")


def _lost(what: str, theirs: object, ours: object, key: str) -> str:
    return (
        f"it announces {what} {theirs} and this node has {ours}, so packets between their pods are"
        f" lost: set {key} alike on all nodes"
    )
