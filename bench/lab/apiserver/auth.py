# SPDX-License-Identifier: Apache-2.0
"""Who asks, and whether they may: bearer tokens, and rules as those of a ClusterRole."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.lab.apiserver.errors import ApiError, forbidden, unauthorized
from bench.lab.apiserver.routes import PUBLIC, Target

ANONYMOUS = "system:anonymous"
OPEN = "system:unsecured"  # whoever comes where there are no tokens


@dataclass(frozen=True, slots=True)
class Denial:
    """What a user may not do; "*" stands for all. resource: with subresource, `nodes/status`."""

    user: str
    verb: str = "*"
    resource: str = "*"
    namespace: str = "*"

    def hits(self, user: str, verb: str, resource: str, namespace: str) -> bool:
        """Whether it forbids this."""
        pairs = (
            (self.user, user),
            (self.verb, verb),
            (self.resource, resource),
            (self.namespace, namespace),
        )
        return all(own in ("*", asked) for own, asked in pairs)


class Auth:
    """Tokens and rules, which may change at any time; safe to use from several threads.

    tokens: {token: user}. Without any, everybody may do everything until one is set.
    """

    def __init__(self, tokens: Mapping[str, str]) -> None:
        self._tokens = dict(tokens)
        self._closed = bool(tokens)
        self._denials: list[Denial] = []
        self._rules: dict[str, list[Mapping[str, Sequence[str]]]] = {}
        self._lock = threading.Lock()

    # ---- set-up ------------------------------------------------------------------------------

    def set_tokens(self, tokens: Mapping[str, str]) -> None:
        """Makes these the only tokens; others are answered with 401 from now on."""
        with self._lock:
            self._tokens = dict(tokens)
            self._closed = True

    def deny(self, denial: Denial) -> None:
        """Forbids something."""
        with self._lock:
            self._denials.append(denial)

    def allow_all_again(self) -> None:
        """Takes back every denial."""
        with self._lock:
            self._denials.clear()

    def set_rules(self, user: str, rules: Iterable[Mapping[str, Sequence[str]]] | None) -> None:
        """Lets a user do only what these `rules` of a ClusterRole grant; None: everything.

        A rule may also have `namespaces`, for what a RoleBinding would grant.
        """
        with self._lock:
            if rules is None:
                self._rules.pop(user, None)
            else:
                self._rules[user] = list(rules)

    # ---- questions ---------------------------------------------------------------------------

    def user(self, headers: Mapping[str, str]) -> str:
        """Who sent a request with these headers. Raises ApiError 401 for an unknown token."""
        with self._lock:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            if not self._closed:
                return self._tokens.get(token.strip(), OPEN)
            if scheme.lower() != "bearer" or not token.strip():
                return ANONYMOUS
            known = self._tokens.get(token.strip())
        if known is None:
            raise unauthorized()
        return known

    def check_path(self, user: str, path: str) -> None:
        """Whether a user may see a page that is no resource. Raises ApiError 403."""
        public = path in PUBLIC or path.startswith(tuple(f"{page}/" for page in PUBLIC))
        if user == ANONYMOUS and not public:
            text = f'forbidden: User "{user}" cannot get path "{path}"'
            raise ApiError(403, "Forbidden", text)

    def check(self, user: str, target: Target, verb: str = "") -> None:
        """Whether a user may do this. verb: another than the target's. Raises ApiError 403."""
        verb = verb or target.verb
        resource, namespace = target.resource, target.namespace
        # A namespace is in itself, as authorization sees it.
        if target.kind.resource == ("", "namespaces"):
            namespace = target.name
        with self._lock:
            denied = any(d.hits(user, verb, resource, namespace) for d in self._denials)
            rules = self._rules.get(user)
        granted = rules is None or any(_grants(rule, target, verb, namespace) for rule in rules)
        if user != ANONYMOUS and granted and not denied:
            return
        group = target.kind.group
        where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
        text = f'User "{user}" cannot {verb} resource "{resource}" in API group "{group}" {where}'
        raise forbidden(group, target.kind.plural, target.name, text)


def _grants(rule: Mapping[str, Sequence[str]], target: Target, verb: str, namespace: str) -> bool:
    names = rule.get("resourceNames") or ()
    namespaces = rule.get("namespaces") or ()
    resources = rule.get("resources") or ()
    own = (target.resource, "*", f"*/{target.subresource}" if target.subresource else "*")
    return (
        _has(rule.get("verbs") or (), verb)
        and _has(rule.get("apiGroups") or (), target.kind.group)
        and any(name in resources for name in own)
        and (not names or (target.name or target.selected) in names)
        and (not namespaces or namespace in namespaces)
    )


def _has(listed: Sequence[str], wanted: str) -> bool:
    return "*" in listed or wanted in listed
