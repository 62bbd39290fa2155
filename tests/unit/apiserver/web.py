# SPDX-License-Identifier: Apache-2.0
"""A bare HTTP client for tests of the API server: sees every byte that matters."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

from bench.lab.kubeapi.choice import Server

Object = dict[str, Any]
JSON = "application/json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY = "application/apply-patch+yaml"
CORE = "/api/v1"
PODS = "/api/v1/namespaces/default/pods"
NODES = "/api/v1/nodes"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
EVENTS = "/apis/events.k8s.io/v1/namespaces/default/events"
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
THINGS = "/apis/example.io/v1/things"


@dataclass(frozen=True)
class Answer:
    """What came back. body: decoded JSON, or text where it is none."""

    code: int
    body: Any
    headers: Mapping[str, str]
    raw: bytes

    @property
    def message(self) -> str:
        """Of a Status."""
        assert self.body["kind"] == "Status", self.body
        return str(self.body["message"])

    @property
    def reason(self) -> str:
        """Of a Status."""
        assert self.body["kind"] == "Status" and self.body["code"] == self.code, self.body
        return str(self.body.get("reason", ""))

    @property
    def fields(self) -> set[str]:
        """Fields that a Status complains about."""
        return {cause["field"] for cause in self.body["details"]["causes"]}

    @property
    def version(self) -> str:
        """resourceVersion of an object or a list."""
        return str(self.body["metadata"]["resourceVersion"])


class Web:
    """Requests to one server, each on a connection of its own."""

    def __init__(
        self,
        url: str,
        token: str = "",
        agent: str = "web/1",
        context: ssl.SSLContext | None = None,
        timeout: float = 20,
    ) -> None:
        self.url, self.token, self.agent, self.timeout = url, token, agent, timeout
        self.context = context

    def connection(self) -> http.client.HTTPConnection:
        """Not yet opened."""
        split = urlsplit(self.url)
        host, port = str(split.hostname), split.port
        if split.scheme == "https":
            return http.client.HTTPSConnection(
                host, port, timeout=self.timeout, context=self.context
            )
        return http.client.HTTPConnection(host, port, timeout=self.timeout)

    def headers(self, extra: Mapping[str, str]) -> dict[str, str]:
        """What every request bears."""
        found = {"User-Agent": self.agent, **extra}
        if self.token:
            found["Authorization"] = f"Bearer {self.token}"
        return found

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        media: str = JSON,
        headers: Mapping[str, str] | None = None,
        **query: Any,
    ) -> Answer:
        """One request. body: an object to be sent as JSON, or bytes."""
        if query:
            path += "?" + urlencode({key.rstrip("_"): value for key, value in query.items()})
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        extra = dict(headers or {})
        if data is not None:
            extra.setdefault("Content-Type", media)
        connection = self.connection()
        try:
            connection.request(method, path, data, self.headers(extra))
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        try:
            decoded: Any = json.loads(raw)
        except ValueError:
            decoded = raw.decode(errors="replace")
        names = set(response.headers.keys())
        found = {name: ", ".join(response.headers.get_all(name, [])) for name in names}
        return Answer(response.status, decoded, found, raw)

    def get(self, path: str, **query: Any) -> Answer:
        """GET."""
        return self.ask("GET", path, **query)

    def post(self, path: str, body: Any, **query: Any) -> Answer:
        """POST. Where definitions take their time, waits until what they define is served."""
        answer = self.ask("POST", path, body, **query)
        if path == CRDS and answer.code == 201 and self.context is not None:
            self._served(body)
        return answer

    def _served(self, item: Object) -> None:
        spec, deadline = item["spec"], time.monotonic() + 10
        paths = [
            f"/apis/{spec['group']}/{version['name']}/{spec['names']['plural']}"
            for version in spec["versions"]
            if version["served"]
        ]
        while any(self.get(path).code == 404 for path in paths) and time.monotonic() < deadline:
            time.sleep(0.05)

    def put(self, path: str, body: Any, **query: Any) -> Answer:
        """PUT."""
        return self.ask("PUT", path, body, **query)

    def patch(self, path: str, body: Any, media: str = MERGE, **query: Any) -> Answer:
        """PATCH."""
        return self.ask("PATCH", path, body, media, **query)

    def apply(self, path: str, body: Any, manager: str = "me", **query: Any) -> Answer:
        """PATCH with server-side apply."""
        return self.ask("PATCH", path, body, APPLY, fieldManager=manager, **query)

    def delete(self, path: str, body: Any = None, **query: Any) -> Answer:
        """DELETE."""
        return self.ask("DELETE", path, body, **query)

    def watch(self, path: str, **query: Any) -> Watching:
        """Begins a watch."""
        return Watching(self, path, {"watch": "1", **query})


def context_of(server: Server) -> ssl.SSLContext | None:
    """What a client needs to trust the server."""
    return ssl.create_default_context(cafile=str(server.ca)) if server.ca else None


class Watching:
    """A watch that is read line by line; a context manager."""

    def __init__(self, web: Web, path: str, query: Mapping[str, Any]) -> None:
        self._connection = web.connection()
        self._connection.request("GET", f"{path}?{urlencode(query)}", headers=web.headers({}))
        self.response = self._connection.getresponse()
        assert self.response.status == 200, self.response.read()
        self.coding = self.response.headers.get("Transfer-Encoding")
        self._buffer = b""

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()
        self._connection.close()

    def line(self) -> bytes:
        """The next line, empty at the end, or what there was of it.

        Raises http.client.IncompleteRead, OSError where the answer does not end properly.
        """
        # Not readline(), which takes a broken answer for a complete one.
        while b"\n" not in self._buffer and (part := self.response.read1(1 << 16)):
            self._buffer += part
        line, newline, self._buffer = self._buffer.partition(b"\n")
        return line + newline

    def next(self) -> tuple[str, Object]:
        """Type and object of the next event."""
        event = json.loads(self.line())
        assert set(event) == {"type", "object"}
        return event["type"], event["object"]

    def named(self) -> tuple[str, str]:
        """Type and name of the next event."""
        kind, item = self.next()
        return kind, item["metadata"].get("name", "")

    def rest(self) -> Iterator[tuple[str, Object]]:
        """Events until the end."""
        while line := self.line():
            event = json.loads(line)
            yield event["type"], event["object"]


def raw(port: int, data: bytes, timeout: float = 10) -> bytes:
    """Sends bytes and returns whatever comes until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        found = b""
        while part := sock.recv(65536):
            found += part
        return found


# ---- objects ---------------------------------------------------------------------------------


def pod(name: str = "a", labels: Mapping[str, str] | None = None, **spec: Any) -> Object:
    """A Pod in the namespace default."""
    meta: Object = {"name": name, "namespace": "default"}
    if labels:
        meta["labels"] = dict(labels)
    containers = [{"name": "main", "image": "example.org/main:1"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": meta,
        "spec": {"containers": containers, **spec},
    }


def node(name: str = "n1", **spec: Any) -> Object:
    """A Node."""
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "spec": spec}


def lease(name: str = "l", **spec: Any) -> Object:
    """A Lease in the namespace default."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


def event(**changes: Any) -> Object:
    """An Event of events.k8s.io/v1 that has all it needs."""
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": "e", "namespace": "default"},
        "eventTime": "2024-05-01T10:00:00.000000Z",
        "reportingController": "example.io/agent",
        "reportingInstance": "agent-1",
        "action": "Apply",
        "reason": "Refused",
        "type": "Warning",
        "note": "table is full",
        "regarding": {"kind": "Pod", "namespace": "default", "name": "a"},
        **changes,
    }


SPEC_SCHEMA: Object = {
    "type": "object",
    "required": ["size"],
    "properties": {
        "size": {"type": "integer", "minimum": 1, "maximum": 9},
        "mode": {"type": "string", "enum": ["on", "off"], "default": "on"},
        "target": {"x-kubernetes-int-or-string": True},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "fixed": {
            "type": "string",
            "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "is fixed"}],
        },
        "ports": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["number"],
            "items": {
                "type": "object",
                "required": ["number"],
                "properties": {"number": {"type": "integer"}, "name": {"type": "string"}},
            },
        },
        "names": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
    },
}
STATUS_SCHEMA: Object = {"type": "object", "properties": {"ready": {"type": "boolean"}}}


def definition(
    spec: Object | None = None, *, status: bool = True, scope: str = "Cluster", **changes: Any
) -> Object:
    """A CustomResourceDefinition of Things."""
    schema = {
        "type": "object",
        "properties": {"spec": spec or SPEC_SCHEMA, "status": STATUS_SCHEMA},
    }
    version: Object = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
    }
    if status:
        version["subresources"] = {"status": {}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.io"},
        "spec": {
            "group": "example.io",
            "scope": scope,
            "names": {"plural": "things", "kind": "Thing", "shortNames": ["th"]},
            "versions": [version],
            **changes,
        },
    }


def thing(name: str = "t", version: str = "", **spec: Any) -> Object:
    """A Thing."""
    meta = {"name": name} | ({"resourceVersion": version} if version else {})
    return {
        "apiVersion": "example.io/v1",
        "kind": "Thing",
        "metadata": meta,
        "spec": {"size": 1, **spec},
    }
