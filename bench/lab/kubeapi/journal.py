# SPDX-License-Identifier: Apache-2.0
"""The server's audit log, read as the journal of requests of the lab's own server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Object = dict[str, Any]

POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- level: None
  users: ["system:apiserver", "lab:loader", "lab:admin"]
- level: Request
"""
ENDED = "ResponseComplete"


class AuditLog:
    """Requests that the log at `path` tells of, oldest first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hidden = 0

    def _events(self) -> list[Object]:
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().splitlines()
        return [json.loads(line) for line in lines if line.endswith(b"}")]

    def entries(self) -> list[Object]:
        """One for each request, with the fields of the lab's journal.Entry that are known."""
        latest: dict[str, Object] = {}
        for event in self._events():
            latest[event["auditID"]] = {**latest.get(event["auditID"], {}), **event}
        found = [_entry(number, one) for number, one in enumerate(latest.values(), 1)]
        return found[self._hidden :]

    def clear(self) -> None:
        """Forgets what there is until now."""
        self._hidden += len(self.entries())


def _entry(number: int, event: Object) -> Object:
    about = event.get("objectRef", {})
    path = urlsplit(event["requestURI"])
    names = (about.get("resource", ""), about.get("subresource", ""))
    return {
        "number": number,
        "user": event["user"].get("username", ""),
        "agent": event.get("userAgent", ""),
        "verb": event["verb"],
        "path": path.path,
        "query": dict(parse_qsl(path.query, keep_blank_values=True)),
        "resource": "/".join(name for name in names if name),
        "namespace": about.get("namespace", ""),
        "name": about.get("name", ""),
        "code": event.get("responseStatus", {}).get("code", 0),
        "changed": None,
        "ended": event["stage"] == ENDED,
        "body": json.dumps(event.get("requestObject")) if "requestObject" in event else "",
    }
