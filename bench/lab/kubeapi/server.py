# SPDX-License-Identifier: Apache-2.0
"""The operations of the lab's API server, done by Kubernetes' own API libraries."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bench.lab.apiserver.errors import ApiError
from bench.lab.apiserver.operations import Operations
from bench.lab.kubeapi.journal import AuditLog
from bench.lab.kubeapi.processes import ADMIN, LOADER, Processes

Object = dict[str, Any]
OWNED = ("bristle.io/v1alpha1/BristleEndpoint", "bristle.io/v1alpha1/BristleNode")
JSON_PATCH = "application/json-patch+json"
MERGE = "application/merge-patch+json"


class NotOffered(Exception):
    """An operation of the lab's own server that real machinery does not have."""


class KubeApi(Processes, Operations):
    """A context manager: a cluster's API of Kubernetes' own libraries.

    Methods on objects raise ApiError like requests do.
    """

    # ---- objects -----------------------------------------------------------------------------

    def create(self, item: Mapping[str, Any]) -> Object:
        kind = f"{item['apiVersion']}/{item['kind']}"
        namespace = item["metadata"].get("namespace") or "default"
        client = self._client(ADMIN)
        made: Object = client.ask("POST", client.path(kind, "", namespace), dict(item))
        if item["kind"] == "CustomResourceDefinition":
            self._wait_served(item)
        return made

    def create_strictly(self, item: Mapping[str, Any]) -> None:
        """Creates an object that has no unknown field. Raises ApiError, also for a warning."""
        client = self._client(ADMIN)
        kind, namespace = (
            f"{item['apiVersion']}/{item['kind']}",
            item["metadata"].get("namespace", ""),
        )
        client.ask("POST", client.path(kind, "", namespace), dict(item), fieldValidation="Strict")
        if client.warnings:
            raise ApiError(0, "Warning", "; ".join(client.warnings))

    def patch_json(self, kind: str, name: str, change: Sequence[Mapping[str, Any]]) -> None:
        """Patches an object that is in no namespace by a JSON patch."""
        client = self._client(ADMIN)
        client.ask("PATCH", client.path(kind, name), list(change), JSON_PATCH)

    def _wait_served(self, item: Mapping[str, Any]) -> None:
        spec = item["spec"]
        path = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(ApiError):
                self._client(ADMIN).ask("GET", path)
                return
            time.sleep(0.02)

    def load(self, items: Sequence[Mapping[str, Any]]) -> int:
        for item in items:
            self._load(dict(item))
        return len(items)

    def _load(self, item: Object) -> None:
        kind = f"{item['apiVersion']}/{item['kind']}"
        item["metadata"] = meta = dict(item["metadata"])
        namespace = meta.get("namespace") or "default"
        for own in ("uid", "resourceVersion", "creationTimestamp", "managedFields", "generation"):
            meta.pop(own, None)
        client = self._client(LOADER)
        path = client.path(kind, meta["name"], namespace)
        try:
            old = client.ask("GET", path)
        except ApiError as error:
            if error.code != 404:
                raise
            made = client.ask("POST", path.rpartition("/")[0], item, fieldValidation="Ignore")
        else:
            meta["resourceVersion"] = old["metadata"]["resourceVersion"]
            made = client.ask("PUT", path, item, fieldValidation="Ignore")
        if "status" in item and "bristle.io/" in kind:  # where a main resource takes none along
            item["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"]
            client.ask("PUT", f"{path}/status", item, fieldValidation="Ignore")

    def get(self, kind: str, name: str, namespace: str = "") -> Object:
        client = self._client(ADMIN)
        found: Object = client.ask("GET", client.path(kind, name, namespace or "default"))
        return found

    def objects(self, kind: str, namespace: str = "", selector: str = "") -> list[Object]:
        client = self._client(ADMIN)
        query = {"labelSelector": selector} if selector else {}
        listed = client.ask("GET", client.path(kind, "", namespace), **query)
        short = kind.rpartition("/")[2]
        return [
            {"apiVersion": listed["apiVersion"], "kind": short, **one} for one in listed["items"]
        ]

    def patch(
        self,
        kind: str,
        name: str,
        change: Mapping[str, Any],
        namespace: str = "",
        status: bool = False,
    ) -> Object:
        client = self._client(ADMIN)
        path = client.path(kind, name, namespace or "default", "status" if status else "")
        found: Object = client.ask("PATCH", path, dict(change), MERGE)
        return found

    def delete(self, kind: str, name: str, namespace: str = "", grace: int | None = None) -> None:
        client = self._client(ADMIN)
        path = client.path(kind, name, namespace or "default")
        options = {} if grace is None else {"gracePeriodSeconds": grace}
        owner = client.ask("GET", path)["metadata"]["uid"]
        client.ask("DELETE", path, options)
        self._collect(owner)

    def _collect(self, owner: str) -> None:
        """Deletes what an object owned, as the garbage collector of a cluster does."""
        client = self._client(ADMIN)
        for kind in OWNED:
            with contextlib.suppress(ApiError):  # not installed, or gone already
                for one in client.ask("GET", client.path(kind))["items"]:
                    meta = one["metadata"]
                    if any(ref["uid"] == owner for ref in meta.get("ownerReferences", ())):
                        options = {"preconditions": {"uid": meta["uid"]}}
                        place = client.path(kind, meta["name"], meta.get("namespace", ""))
                        client.ask("DELETE", place, options)

    # ---- versions ----------------------------------------------------------------------------

    def revision(self) -> int:
        return int(self._keeper.ask("POST", "/v3/kv/range", {"key": "AA=="})["header"]["revision"])

    def compact(self, revision: int | None = None) -> int:
        """Forgets changes in etcd; what the server's watch cache has stays there."""
        upto = revision or self.revision()
        body = {"revision": str(upto), "physical": True}
        try:
            self._keeper.ask("POST", "/v3/kv/compaction", body)
        except ApiError as error:
            if "has been compacted" not in error.message:
                raise
        return upto

    # ---- permissions -------------------------------------------------------------------------

    def set_tokens(self, tokens: Mapping[str, str]) -> None:
        self._access["tokens"] = dict(tokens)
        self._save_access()

    def deny(self, user: str, verb: str = "*", resource: str = "*", namespace: str = "*") -> None:
        one = {"user": user, "verb": verb, "resource": resource, "namespace": namespace}
        self._access["denied"].append(one)
        self._save_access()

    def allow_all_again(self) -> None:
        self._access["denied"] = []
        self._save_access()

    def set_rules(self, user: str, rules: Sequence[Mapping[str, Sequence[str]]] | None) -> None:
        self._access["rules"].pop(user, None)
        if rules is not None:
            self._access["rules"][user] = [dict(rule) for rule in rules]
        self._save_access()

    # ---- requests ----------------------------------------------------------------------------

    def requests(
        self, agent: str = "", verb: str = "", resource: str = "", after: int = 0
    ) -> list[Object]:
        return [
            one
            for one in self._log.entries()
            if one["number"] > after
            and agent in one["agent"]
            and verb in ("", one["verb"])
            and resource in ("", one["resource"])
        ]

    def count(self, agent: str = "", verb: str = "", resource: str = "") -> int:
        return len(self.requests(agent, verb, resource))

    def watches(self, resource: str = "", agent: str = "") -> int:
        found = self.requests(agent, "watch", resource)
        return sum(not one["ended"] and one["code"] == 200 for one in found)

    def clear_journal(self) -> None:
        self._log.clear()

    def clear_faults(self) -> None:
        """There are none."""

    @property
    def _log(self) -> AuditLog:
        if self._audit is None:
            self._audit = AuditLog(self.folder / "audit.log")
        return self._audit

    _audit: AuditLog | None = None


def _not_offered(name: str) -> Callable[..., Any]:
    def refuse(*_: object, **__: object) -> Any:
        raise NotOffered(f"{name}: only the lab's own API server does it")

    return refuse


def _missing() -> Iterable[str]:
    own = ("counts", "unchanged_writes", "useless_writes")
    faults = ("fail_next", "drop_next", "delay", "send_raw", "slow_watches", "shorten_watches")
    streams = ("break_watches", "end_watches", "expire_watches", "stall_watches", "send_bookmarks")
    return (*own, *faults, *streams, "set_bookmarks", "set_expired", "set_watch_list")


for _name in _missing():
    setattr(KubeApi, _name, _not_offered(_name))
