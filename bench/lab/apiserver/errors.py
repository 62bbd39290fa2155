# SPDX-License-Identifier: Apache-2.0
"""Errors as an API server words them: a `Status` object with a code, a reason and details."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one field; several make one answer with code 422.

    field: path such as `spec.ports[0].port`. kind: the cause's reason, for example
    `FieldValueInvalid`. text: what stands behind the path in the message.
    """

    field: str
    kind: str
    text: str

    @property
    def message(self) -> str:
        """The whole complaint."""
        return f"{self.field}: {self.text}"

    def cause(self) -> Object:
        """As an entry of `details.causes`."""
        return {"reason": self.kind, "message": self.text, "field": self.field}


def invalid_value(field: str, value: object, detail: str) -> Problem:
    """The value is of the right type but not allowed."""
    return Problem(field, "FieldValueInvalid", f"Invalid value: {_shown(value)}: {detail}")


def type_invalid(field: str, value: object, detail: str) -> Problem:
    """The value is of another type."""
    return Problem(field, "FieldValueTypeInvalid", f"Invalid value: {_shown(value)}: {detail}")


def required(field: str, detail: str = "") -> Problem:
    """The value is missing."""
    return Problem(
        field, "FieldValueRequired", "Required value" + (f": {detail}" if detail else "")
    )


def unsupported(field: str, value: object, supported: Iterable[str]) -> Problem:
    """The value is none of the ones there are."""
    choice = ", ".join(json.dumps(item) for item in supported)
    text = f"Unsupported value: {_shown(value)}: supported values: {choice}"
    return Problem(field, "FieldValueNotSupported", text)


def duplicate(field: str, value: object) -> Problem:
    """The value is there a second time."""
    return Problem(field, "FieldValueDuplicate", f"Duplicate value: {_shown(value)}")


def forbidden_field(field: str, detail: str) -> Problem:
    """The field must not be set, or not be changed."""
    return Problem(field, "FieldValueForbidden", f"Forbidden: {detail}")


def too_long(field: str, limit: int) -> Problem:
    """More bytes than a text may have."""
    return Problem(field, "FieldValueTooLong", f"Too long: may not be more than {limit} bytes")


def too_many(field: str, count: int, limit: int) -> Problem:
    """More items than a list may have."""
    text = f"Too many: {count}: must have at most {limit} items"
    return Problem(field, "FieldValueTooMany", text)


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


class ApiError(Exception):
    """An answer that is no success.

    code: HTTP status. reason: machine-readable word, "" for none. details: group, kind, name,
    causes, retryAfterSeconds. headers: further HTTP headers. meta: `metadata` of the Status.
    """

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = dict(details or {})
        self.headers = dict(headers or {})
        self.meta = dict(meta or {})

    def status(self) -> Object:
        """The Status object (v1)."""
        made: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.meta,
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            made["reason"] = self.reason
        if self.details:
            made["details"] = self.details
        made["code"] = self.code
        return made


class RouteNotFound(Exception):
    """No such path: a real server answers with plain text, not with a Status."""


def qualified(group: str, resource: str) -> str:
    """A resource with its group, as in messages: `leases.coordination.k8s.io`."""
    return f"{resource}.{group}" if group else resource


def _named(group: str, kind: str, name: str) -> Object:
    parts = {"name": name, "group": group, "kind": kind}
    return {key: value for key, value in parts.items() if value}


def bad_request(message: str) -> ApiError:
    """400."""
    return ApiError(400, "BadRequest", message)


def unauthorized() -> ApiError:
    """401."""
    return ApiError(401, "Unauthorized", "Unauthorized")


def forbidden(group: str, resource: str, name: str, why: str) -> ApiError:
    """403 for a resource."""
    shown = qualified(group, resource) + (f' "{name}"' if name else "")
    details = _named(group, resource, name)
    return ApiError(403, "Forbidden", f"{shown} is forbidden: {why}", details)


def not_found(group: str, resource: str, name: str) -> ApiError:
    """404 for an object."""
    message = f'{qualified(group, resource)} "{name}" not found'
    return ApiError(404, "NotFound", message, _named(group, resource, name))


def no_resource() -> ApiError:
    """404 for a resource that a group of the server's own has not."""
    return ApiError(404, "NotFound", "the server could not find the requested resource", {})


def method_not_allowed() -> ApiError:
    """405."""
    return ApiError(
        405, "MethodNotAllowed", "the server does not allow this method on the requested resource"
    )


def not_acceptable(accepted: Sequence[str]) -> ApiError:
    """406."""
    message = f"only the following media types are accepted: {', '.join(accepted)}"
    return ApiError(406, "NotAcceptable", message)


def already_exists(group: str, resource: str, name: str) -> ApiError:
    """409 for a name that is taken."""
    message = f'{qualified(group, resource)} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, _named(group, resource, name))


def conflict(group: str, resource: str, name: str, why: str) -> ApiError:
    """409 for a version or precondition that does not hold."""
    message = f'Operation cannot be fulfilled on {qualified(group, resource)} "{name}": {why}'
    return ApiError(409, "Conflict", message, _named(group, resource, name))


def modified(group: str, resource: str, name: str) -> ApiError:
    """409 for an update of an older version."""
    why = (
        "the object has been modified; please apply your changes to the latest version and try "
        "again"
    )
    return conflict(group, resource, name, why)


def expired(message: str, token: str = "") -> ApiError:
    """410. token: where an inconsistent list could go on."""
    return ApiError(410, "Expired", message, meta={"continue": token} if token else None)


def too_large(limit: int) -> ApiError:
    """413."""
    return ApiError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {limit}")


def unsupported_media_type(accepted: Sequence[str]) -> ApiError:
    """415."""
    message = (
        "the body of the request was in an unknown format - accepted media types include: "
        + ", ".join(accepted)
    )
    return ApiError(415, "UnsupportedMediaType", message)


def invalid(group: str, kind: str, name: str, problems: Sequence[Problem]) -> ApiError:
    """422 with every problem as a cause."""
    messages = list(dict.fromkeys(problem.message for problem in problems))
    said = messages[0] if len(messages) == 1 else f"[{', '.join(messages)}]"
    details = _named(group, kind, name)
    details["causes"] = [problem.cause() for problem in problems]
    shown = qualified(group, kind)
    message = f'{shown} "{name}" is invalid: {said}' if shown else f' "" is invalid: {said}'
    return ApiError(422, "Invalid", message, details)


def timed_out(message: str, retry_seconds: int, causes: Sequence[Object] = ()) -> ApiError:
    """504 with reason Timeout."""
    details: Object = {"retryAfterSeconds": retry_seconds}
    if causes:
        details["causes"] = list(causes)
    headers = {"Retry-After": str(retry_seconds)}
    return ApiError(504, "Timeout", f"Timeout: {message}", details, headers)


def too_large_version(wanted: int, current: int) -> ApiError:
    """504 for a list that shall be newer than anything there is."""
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    message = f"Too large resource version: {wanted}, current: {current}"
    return timed_out(message, 1, [cause])


FAULTS = {
    429: ("TooManyRequests", "the server has received too many requests and has asked us to wait"),
    500: ("InternalError", "Internal error occurred: injected"),
    502: ("", "bad gateway"),
    503: ("ServiceUnavailable", "the server is currently unable to handle the request"),
    504: ("Timeout", "the server was unable to return a response in the time allotted"),
}


def overloaded(code: int, retry_seconds: int | None) -> ApiError:
    """429 or 5xx without any fault of the request. retry_seconds: None for no Retry-After."""
    reason, message = FAULTS.get(code, ("", f"injected answer {code}"))
    details: Object = {}
    headers: dict[str, str] = {}
    if retry_seconds is not None:
        details["retryAfterSeconds"] = retry_seconds
        headers["Retry-After"] = str(retry_seconds)
    return ApiError(code, reason, message, details, headers)
