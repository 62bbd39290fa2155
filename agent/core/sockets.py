# SPDX-License-Identifier: Apache-2.0
"""Whose sockets are redirected (maps ``socket_endpoints``, ``namespaces``): what annotations and
the node's default ask for, as far as the kernel was found to be able to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from agent.core.delta import Delta, Writes
from agent.core.endpoint import Endpoint
from agent.core.events import REDIRECT_ANNOTATION
from agent.core.store import Store
from bpf.layouts import RedirectMode, SocketEndpoint
from bpf.maps import U32, U64

_Entries = tuple[tuple[bytes, bytes], tuple[bytes, bytes]]


class Mode(Enum):
    """Values of the annotation ``bristle.io/socket-redirect``, and of the node's default."""

    OFF = "off"
    ON = "on"
    """Sockets whose calls never block."""
    ALL = "all"
    """Those that block, too."""


_NUMBERS: Final[Mapping[Mode, int]] = {
    Mode.OFF: RedirectMode.REDIRECT_OFF,
    Mode.ON: RedirectMode.REDIRECT_ON,
    Mode.ALL: RedirectMode.REDIRECT_ALL,
}
# As people write it, whom YAML makes booleans of `on` and `off` for.
_WORDS: Final[Mapping[str, Mode]] = {
    **{one.value: one for one in Mode},
    "true": Mode.ON,
    "false": Mode.OFF,
    "enabled": Mode.ON,
    "disabled": Mode.OFF,
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What an endpoint has: its mode, and what was wrong about what it asked for."""

    mode: Mode
    problem: str = ""


class SocketBook:
    """Keeps both maps in step with endpoints and annotations.

    default: for pods that say nothing, nor does their namespace. ceiling: the most that is done,
    whatever is asked for: OFF where redirect is off on this node, ON where the kernel treats
    sockets that block wrongly.
    """

    def __init__(self, default: Mode = Mode.OFF, ceiling: Mode = Mode.OFF) -> None:
        self._default = default
        self._ceiling = ceiling
        self._asked: dict[int, Asked] = {}
        self._entries: dict[int, _Entries] = {}
        self._claims: dict[bytes, set[int]] = {}
        """Endpoints by their namespace: for a moment it may have a former one's record, too."""

    @property
    def problems(self) -> Mapping[int, str]:
        """What was wrong about what endpoints asked for, by endpoint."""
        return {number: one.problem for number, one in self._asked.items() if one.problem}

    def mode(self, number: int) -> Mode:
        """What an endpoint has."""
        found = self._asked.get(number)
        return found.mode if found else Mode.OFF

    @property
    def users(self) -> int:
        """How many endpoints take part."""
        return len(self._entries)

    def set_ceiling(self, ceiling: Mode, store: Store, delta: Delta) -> None:
        """The most that is done from now on."""
        self._ceiling = ceiling
        for number in list(self._asked):
            endpoint = store.endpoints.get(number)
            if endpoint is not None:
                self.put(endpoint, store, delta)

    def put(self, endpoint: Endpoint, store: Store, delta: Delta) -> None:
        """An endpoint is there, or what concerns it is another than before."""
        asked = self._ask(endpoint, store)
        self._asked[endpoint.id] = asked
        former, entries = self._entries.get(endpoint.id), _entries(endpoint, asked.mode)
        if former == entries:
            return
        if former is not None:
            self._withdraw(endpoint.id, delta)
        if entries is not None:
            self._entries[endpoint.id] = entries
            delta.socket_endpoints.put(*entries[0])
            namespace, _ = entries[1]
            self._claims.setdefault(namespace, set()).add(endpoint.id)
            delta.namespaces.put(namespace, self._owner(namespace))

    def drop(self, number: int, delta: Delta) -> None:
        """An endpoint is gone; an unknown one is no error."""
        self._asked.pop(number, None)
        if number in self._entries:
            self._withdraw(number, delta)

    def endpoint_writes(self) -> Writes:
        """The whole map ``socket_endpoints``."""
        return dict(endpoint for endpoint, _ in self._entries.values())

    def namespace_writes(self) -> Writes:
        """The whole map ``namespaces``."""
        return {namespace: self._owner(namespace) for namespace in self._claims}

    def _owner(self, namespace: bytes) -> bytes:
        """Of the endpoints that a namespace is recorded for, one; always the same."""
        return U32.pack(min(self._claims[namespace]))

    def _withdraw(self, number: int, delta: Delta) -> None:
        (endpoint, _), (namespace, _) = self._entries.pop(number)
        delta.socket_endpoints.drop(endpoint)
        claims = self._claims[namespace]
        claims.discard(number)
        if claims:
            delta.namespaces.put(namespace, self._owner(namespace))
        else:
            del self._claims[namespace]
            delta.namespaces.drop(namespace)

    def _ask(self, endpoint: Endpoint, store: Store) -> Asked:
        pod = store.pod_of(endpoint)
        namespace = store.namespaces.get(endpoint.namespace)
        if pod is not None and pod.redirect:
            asked = _read(pod.redirect, f"pod {endpoint.namespace}/{endpoint.pod}")
        elif namespace is not None and namespace.redirect:
            asked = _read(namespace.redirect, f"namespace {endpoint.namespace}")
        else:
            asked = Asked(self._default)
        return Asked(min(asked.mode, self._ceiling, key=_RANK.index), asked.problem)


_RANK: Final = [Mode.OFF, Mode.ON, Mode.ALL]


def _read(value: str, owner: str) -> Asked:
    mode = _WORDS.get(value.strip().lower())
    if mode is None:
        return Asked(
            Mode.OFF,
            f'{owner}: annotation {REDIRECT_ANNOTATION} is "{value[:40]}": must be on, off or all;'
            " its connections go by the stack",
        )
    return Asked(mode)


def _entries(endpoint: Endpoint, mode: Mode) -> _Entries | None:
    if mode is Mode.OFF or not endpoint.netns_cookie:
        return None
    number = U32.pack(endpoint.id)
    sockets = SocketEndpoint(netns=endpoint.netns_cookie, mode=_NUMBERS[mode])
    return (number, sockets.pack()), (U64.pack(endpoint.netns_cookie), number)
