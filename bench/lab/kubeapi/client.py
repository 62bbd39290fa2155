# SPDX-License-Identifier: Apache-2.0
"""Plain requests to the server and to etcd, from inside the namespace where they listen."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from bench.lab.apiserver.errors import ApiError

Object = dict[str, Any]
Connect = Callable[[str, int], socket.socket]
BUSY_SECONDS = 20.0
DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


class Client:
    """Requests of one user, one at a time.

    connect: opens a TCP connection. warnings: what the server warned of. Raises ApiError for
    answers from 400 up, OSError without one.
    """

    def __init__(
        self, connect: Connect, host: str, port: int, context: ssl.SSLContext | None, token: str
    ) -> None:
        self._connect = connect
        self._host, self._port = host, port
        self._context, self._token = context, token
        self.warnings: list[str] = []
        self._lock = threading.Lock()
        self._connection: http.client.HTTPConnection | None = None
        self._paths: dict[tuple[str, str], tuple[str, bool]] = {}

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        media: str = "application/json",
        **query: str,
    ) -> Any:
        """The decoded answer, or its text where it is no JSON."""
        if query:
            path += "?" + urlencode(query)
        headers = {"Content-Type": media, "User-Agent": "lab"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if path in ("/api", "/apis"):
            headers["Accept"] = DISCOVERY
        data = None if body is None else json.dumps(body).encode()
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            with self._lock:
                code, text = self._exchange(method, path, data, headers)
            if code != 429 or time.monotonic() > deadline:
                break
            time.sleep(0.1)  # a server that has just begun, or a definition that has changed
        try:
            decoded = json.loads(text)
        except ValueError:
            decoded = text
        if code >= 400:
            status: Mapping[str, Any] = decoded if isinstance(decoded, dict) else {}
            raise ApiError(
                code,
                status.get("reason", ""),
                status.get("message", text),
                status.get("details"),
            )
        return decoded

    def _exchange(
        self, method: str, path: str, data: bytes | None, headers: dict[str, str]
    ) -> tuple[int, str]:
        """Code and text of an answer, by the connection that there is, or by a new one."""
        for fresh in (self._connection is None, True):
            if self._connection is None:
                self._connection = self._open()
            try:
                self._connection.request(method, path, data, headers)
                response = self._connection.getresponse()
                self.warnings += response.headers.get_all("Warning", [])
                return response.status, response.read().decode()
            except (http.client.HTTPException, OSError) as error:
                self._connection.close()
                self._connection = None
                if fresh:
                    raise OSError(str(error)) from None
        raise AssertionError

    def _open(self) -> http.client.HTTPConnection:
        raw = self._connect(self._host, self._port)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made = http.client.HTTPConnection(self._host, self._port, timeout=60)
        wrap = self._context
        made.sock = wrap.wrap_socket(raw, server_hostname=self._host) if wrap else raw
        return made

    def place(self, kind: str) -> tuple[str, str, bool]:
        """Of `Pod` or `events.k8s.io/v1/Event`: path of the collection, version, namespaced."""
        version, _, name = kind.rpartition("/")
        for fresh in (False, True):
            if fresh:
                self._discover()
            for (known_version, known_name), (path, namespaced) in self._paths.items():
                if known_name == name and version in ("", known_version):
                    return path, known_version, namespaced
        raise ApiError(400, "BadRequest", f'no matches for kind "{name}" in version "{version}"')

    def _discover(self) -> None:
        found: dict[tuple[str, str], tuple[str, bool]] = {}
        for root in ("/api", "/apis"):
            for group in self.ask("GET", root)["items"]:
                for version in group["versions"]:
                    name = group.get("metadata", {}).get("name", "")
                    whole = f"{name}/{version['version']}" if name else version["version"]
                    for one in version["resources"]:
                        if kind := one.get("responseKind", {}).get("kind"):
                            place = (f"{root}/{whole}", one["scope"] == "Namespaced")
                            found[whole, kind] = (f"{place[0]}|{one['resource']}", place[1])
        self._paths = found

    def path(self, kind: str, name: str = "", namespace: str = "", part: str = "") -> str:
        """Path of an object, or of a collection; of all namespaces where none is given."""
        place, _, namespaced = self.place(kind)
        root, _, plural = place.partition("|")
        within = f"/namespaces/{namespace}" if namespaced and namespace else ""
        return "/".join(one for one in (f"{root}{within}/{plural}", name, part) if one)
