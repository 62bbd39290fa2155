# SPDX-License-Identifier: Apache-2.0
"""What can go wrong between the agent and an API server, as types; and their making from what the
server answers (metav1.Status). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from agent.kube.fields import cut

_MAX_TEXT: Final = 500


class ApiError(Exception):
    """A request has failed.

    status: HTTP status; 0 when there was no answer.
    reason: the API's word for it (`NotFound`, `Expired`), or one of ours when it gave none.
    message: for people; as the server worded it.
    retry_after: seconds that the server asks to wait, None when it asks nothing.
    """

    def __init__(
        self, message: str, *, status: int = 0, reason: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


class Unavailable(ApiError):
    """There is no answer, or none for now: no connection, a proxy without a server behind it, or a
    server that starts or stops (502, 503, 504)."""


class Unauthorized(ApiError):
    """The server does not know who asks (401), also after the credentials were read again."""


class Forbidden(ApiError):
    """The agent may not do this (403).

    verb, resource: what it must be allowed, as RBAC names them: `watch`, `pods`, `nodes/status`.
    """

    def __init__(
        self,
        message: str,
        *,
        verb: str,
        resource: str,
        status: int = 403,
        reason: str = "Forbidden",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, status=status, reason=reason, retry_after=retry_after)
        self.verb = verb
        self.resource = resource


class NotFound(ApiError):
    """There is no such object, or the kind itself is not installed (404)."""


class Conflict(ApiError):
    """The object has changed since it was read, or a precondition does not hold (409)."""


class AlreadyExists(ApiError):
    """An object of this name is there (409)."""


class Gone(ApiError):
    """The resource version or the continuation is too old: list again (410)."""


class Invalid(ApiError):
    """The server refuses the object's content (400, 422). Sending it again does not help."""


class TooManyRequests(ApiError):
    """The server is busy (429); `retry_after` says how long."""


class Malformed(ApiError):
    """The answer is not what the API promises: no JSON, or not of the expected shape."""


_BY_STATUS: Final[Mapping[int, type[ApiError]]] = {
    400: Invalid,
    401: Unauthorized,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


class _Details(msgspec.Struct):
    retryAfterSeconds: int | None = None


class Status(msgspec.Struct):
    """metav1.Status, as far as it is used."""

    kind: str | None = None
    message: str | None = None
    reason: str | None = None
    code: int | None = None
    details: _Details | None = None


_STATUS: Final = msgspec.json.Decoder(Status)


def error_from(
    status: int,
    body: bytes,
    *,
    verb: str = "",
    resource: str = "",
    retry_after: str | None = None,
) -> ApiError:
    """The error that an answer stands for. Never raises.

    status: HTTP status, or the code in an ERROR event of a watch; 0: take the one of the body.
    verb, resource: what was asked for. retry_after: the header of this name, in seconds.
    """
    said = _status(body)
    status = status or said.code or 500
    reason = said.reason or ""
    text = said.message or body[:_MAX_TEXT].decode("utf-8", "replace").strip() or "no explanation"
    asked = f"{verb} {resource}: " if verb else ""
    message = f"{asked}{_shortened(text)} ({status}{f' {reason}' if reason else ''})"
    wait = _seconds(retry_after)
    if wait is None and said.details is not None and said.details.retryAfterSeconds:
        wait = float(max(0, said.details.retryAfterSeconds))
    if status == 403:
        return Forbidden(
            message, verb=verb, resource=resource, reason=reason or "Forbidden", retry_after=wait
        )
    kind = _BY_STATUS.get(status, ApiError)
    if reason == "AlreadyExists":
        kind = AlreadyExists
    return kind(message, status=status, reason=reason, retry_after=wait)


def _shortened(text: str) -> str:
    """Begin and end of a long text: of a patch the server shows the whole object, then why not."""
    if len(text) > _MAX_TEXT:
        text = f"{text[: _MAX_TEXT // 2]} … {text[-_MAX_TEXT // 2 :]}"
    return cut(text, len(text))


def _status(body: bytes) -> Status:
    try:
        return _STATUS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Status()


def _seconds(header: str | None) -> float | None:
    """Of Retry-After the API uses the form in seconds alone (RFC 9110, section 10.2.3)."""
    if header is None or not header.strip().isascii() or not header.strip().isdigit():
        return None
    return float(header.strip()[:9])


# ---- what a request is about -----------------------------------------------------------------

_VERBS: Final[Mapping[str, tuple[str, str]]] = {
    # method -> verb for a collection, verb for one object
    "GET": ("list", "get"),
    "POST": ("create", "create"),
    "PUT": ("update", "update"),
    "PATCH": ("patch", "patch"),
    "DELETE": ("deletecollection", "delete"),
}


def verb_and_resource(method: str, path: str, *, watch: bool = False) -> tuple[str, str]:
    """What RBAC calls a request: `("patch", "nodes/status")`. Two empty texts if `path` is none of
    the API's resources."""
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:] if parts[0] == "apis" else []
    if len(parts) > 2 and parts[0] == "namespaces":
        parts = parts[2:]
    if not parts or method not in _VERBS:
        return "", ""
    verb = "watch" if watch else _VERBS[method][len(parts) > 1]
    return verb, "/".join((parts[0], *parts[2:]))
