# SPDX-License-Identifier: Apache-2.0
"""What a path and method mean: a verb on a resource, or a page about the server (pure)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench.lab.apiserver.errors import Object, RouteNotFound, method_not_allowed, no_resource
from bench.lab.apiserver.kinds import Kind, Registry
from bench.lab.apiserver.listing import flag

SELECTED = re.compile(r"metadata\.name==?([-a-z0-9.]+)\Z")
HEALTH = ("/healthz", "/livez", "/readyz")
PUBLIC = (*HEALTH, "/version")
VERSION: Object = {
    "major": "1",
    "minor": "30",
    "gitVersion": "v1.30.0",
    "gitCommit": "0000000000000000000000000000000000000000",
    "gitTreeState": "clean",
    "buildDate": "2024-04-17T00:00:00Z",
    "goVersion": "go1.22.2",
    "compiler": "gc",
    "platform": "linux/amd64",
}


@dataclass(frozen=True, slots=True)
class Target:
    """A verb on a resource. name, namespace, subresource: "" for none.

    selected: the one name that the field selector of a list or watch allows.
    """

    kind: Kind
    verb: str
    namespace: str
    name: str
    subresource: str
    selected: str = ""

    @property
    def resource(self) -> str:
        """Plural with the subresource, as authorization names it."""
        return self.kind.plural + (f"/{self.subresource}" if self.subresource else "")


def route(registry: Registry, method: str, path: str, query: dict[str, str]) -> Target | None:
    """The verb that a request means; None for a page that is no resource.

    Raises RouteNotFound, ApiError 404 or 405.
    """
    parts = path.split("/")[1:]
    if parts[:1] == ["api"] and len(parts) >= 3 and parts[2]:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[:1] == ["apis"] and len(parts) >= 4 and parts[3]:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    if rest[-1] == "" and len(rest) > 1:
        rest = rest[:-1]
    if "" in rest:
        raise RouteNotFound(path)
    own = any(not k.custom and (k.group, k.version) == (group, version) for k in registry)
    missing = no_resource() if own else RouteNotFound(path)
    namespace = ""
    if rest[0] == "namespaces" and len(rest) >= 3 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    kind = registry.find(group, version, rest[0])
    if kind is None or len(rest) > 3 or (namespace and not kind.namespaced):
        raise missing
    name = rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    if subresource and not (subresource == "status" and kind.status):
        raise missing
    if name and kind.namespaced and not namespace:
        raise missing
    verb = _verb(method, name, subresource, query)
    if not name and kind.namespaced and not namespace and verb not in ("list", "watch"):
        raise RouteNotFound(path) if kind.custom else method_not_allowed()
    selected = SELECTED.match(query.get("fieldSelector", "")) if not name else None
    chosen = selected[1] if selected else ""
    return Target(kind, verb, namespace, name, subresource, chosen)


def _verb(method: str, name: str, subresource: str, query: dict[str, str]) -> str:
    if method in ("GET", "HEAD"):
        if name:
            return "get"
        return "watch" if flag(query, "watch") else "list"
    verbs = {"PUT": "update", "PATCH": "patch"} if name else {"POST": "create"}
    if not subresource:
        verbs["DELETE"] = "delete" if name else "deletecollection"
    if method not in verbs:
        raise method_not_allowed()
    return verbs[method]


# ---- discovery -------------------------------------------------------------------------------


def page(registry: Registry, path: str) -> Object | str:
    """A discovery document, or the text of a health check. Raises RouteNotFound."""
    if path.split("?")[0] in HEALTH or path.startswith(tuple(f"{p}/" for p in HEALTH)):
        return "ok"
    if path == "/version":
        return VERSION
    parts = [part for part in path.split("/") if part]
    groups = registry.groups()
    match parts:
        case []:
            return {"paths": ["/api", "/api/v1", "/apis", *HEALTH, "/version"]}
        case ["api"]:
            client = {"clientCIDR": "0.0.0.0/0", "serverAddress": "127.0.0.1:6443"}
            return {
                "kind": "APIVersions",
                "versions": groups.get("", []),
                "serverAddressByClientCIDRs": [client],
            }
        case ["apis"]:
            listed = [_group(name, versions) for name, versions in groups.items() if name]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
        case ["api", version] if version in groups.get("", []):
            return _resources(registry, "", version)
        case ["apis", group] if group in groups and group:
            return {"kind": "APIGroup", "apiVersion": "v1", **_group(group, groups[group])}
        case ["apis", group, version] if version in groups.get(group, []):
            return _resources(registry, group, version)
    raise RouteNotFound(path)


def _group(name: str, versions: list[str]) -> Object:
    listed = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": listed, "preferredVersion": listed[0]}


def _resources(registry: Registry, group: str, version: str) -> Object:
    listed: list[Object] = []
    for kind in registry:
        if (kind.group, kind.version) != (group, version):
            continue
        entry: Object = {
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.name,
            "verbs": [
                "create",
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "update",
                "watch",
            ],
        }
        if kind.short_names:
            entry["shortNames"] = list(kind.short_names)
        if kind.categories:
            entry["categories"] = list(kind.categories)
        listed.append(entry)
        if kind.status:
            listed.append(
                {
                    "name": f"{kind.plural}/status",
                    "singularName": "",
                    "namespaced": kind.namespaced,
                    "kind": kind.name,
                    "verbs": ["get", "patch", "update"],
                }
            )
    version_name = f"{group}/{version}" if group else version
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": version_name,
        "resources": listed,
    }
