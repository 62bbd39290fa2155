# SPDX-License-Identifier: Apache-2.0
"""Requests to an API server: raw bytes there and back, errors as types.

Certificates, tokens and connections are the official client's (`agent.kube.credentials`). Its
models are not used: answers stay bytes for msgspec, because they are read fifty times as fast and
most of each object is not wanted.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final
from urllib.parse import urlencode

import urllib3

from agent.kube.credentials import Credentials, CredentialsError
from agent.kube.errors import ApiError, Unauthorized, Unavailable, error_from, verb_and_resource

MERGE_PATCH: Final = "application/merge-patch+json"
JSON_PATCH: Final = "application/json-patch+json"
STRATEGIC_MERGE_PATCH: Final = "application/strategic-merge-patch+json"

_JSON: Final = "application/json"
_MAX_LINE: Final = 16 << 20  # bytes of one watch event; objects have at most 1.5 MiB
_READ: Final = 64 << 10

Query = Mapping[str, str | int | bool]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """All in seconds. connect: until a connection stands, TLS included. read: longest silence in
    the middle of an answer, and until it begins."""

    connect: float = 5.0
    read: float = 30.0


class Answer:
    """An answer that is being read: the body of a list, or the lines of a watch. To be closed.

    `cut_off` may be called by any thread, the rest by the one that reads.
    """

    def __init__(self, response: Any, asked: str) -> None:
        self._response = response
        self._asked = asked
        self._cut_off = False

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def body(self) -> bytes:
        """All of it, after which the connection can be used again. Raises Unavailable."""
        with self._translated():
            data: bytes = self._response.read()
            self._response.release_conn()
            return data

    def lines(self) -> Iterator[bytes]:
        """Each line as soon as it is complete, without its end. Ends when the server does; an
        unfinished line is dropped. Raises Unavailable when the connection breaks."""
        rest = bytearray()
        while True:
            with self._translated():
                data: bytes = self._response.read1(_READ)
            if not data:
                return
            begin = len(rest)
            rest += data
            if (end := rest.rfind(b"\n", begin)) >= 0:
                complete = bytes(rest[:end])
                del rest[: end + 1]
                yield from (line for line in complete.split(b"\n") if line.strip())
            elif len(rest) > _MAX_LINE:
                raise Unavailable(f"{self._asked}: a line of more than {_MAX_LINE} bytes")

    def cut_off(self) -> None:
        """Ends what another thread is reading; it sees the end or Unavailable."""
        self._cut_off = True
        with contextlib.suppress(Exception):  # read to its end already, or not begun
            self._response.shutdown()

    def close(self) -> None:
        """Lets the connection go."""
        with contextlib.suppress(Exception):  # whatever state it is in, it is of no use any more
            self._response.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
            # urllib3 reads with ValueError or AttributeError from what another thread has closed.
            if isinstance(error, ValueError | AttributeError) and not self._cut_off:
                raise
            raise Unavailable(f"{self._asked}: {describe(error)}") from error


class Access:
    """The way to one API server. Safe for any number of threads.

    agent: name and version for the header User-Agent, such as "bristle/0.1 (node-1)".
    """

    def __init__(
        self, credentials: Credentials, agent: str, timeouts: Timeouts | None = None
    ) -> None:
        self._credentials = credentials
        self._agent = agent
        self._timeouts = timeouts or Timeouts()
        self._lock = threading.Lock()
        self._pool: Any = None
        self._transport: object = None
        self._generation = 0  # of the credentials; a 401 counts against those it was got with
        self._closed = False

    @property
    def host(self) -> str:
        """Address of the server, for messages. Raises Unauthorized without a configuration."""
        with self._lock, _configured():
            return self._credentials.configuration.host

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: bytes | None = None,
        content_type: str = _JSON,
    ) -> bytes:
        """One request and its whole answer. Raises ApiError and its kinds, nothing else."""
        with self.open(method, path, query=query, body=body, content_type=content_type) as answer:
            return answer.body()

    def open(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: bytes | None = None,
        content_type: str = _JSON,
        read_timeout: float | None = None,
    ) -> Answer:
        """One request whose answer is read by the caller. Raises ApiError and its kinds.

        path: as in `/api/v1/pods`. read_timeout: longest silence in seconds, instead of the usual.
        Credentials that the server refuses are read again, once.
        """
        asked = f"{method} {path}"
        timeout = urllib3.Timeout(
            connect=self._timeouts.connect, read=read_timeout or self._timeouts.read
        )
        url = f"{path}?{urlencode(_plain(query))}" if query else path
        watch = bool(query and query.get("watch"))
        verb, resource = verb_and_resource(method, path, watch=watch)
        for attempt in (1, 2):
            pool, host, headers, generation = self._prepare()
            if body is not None:
                headers["Content-Type"] = content_type
            try:
                response = pool.request(
                    method,
                    host + url,
                    body=body,
                    headers=headers,
                    timeout=timeout,
                    preload_content=False,
                    redirect=False,
                )
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise Unavailable(f"{host}: {describe(error)}", reason="Unreachable") from error
            answer = Answer(response, asked)
            if response.status < HTTPStatus.MULTIPLE_CHOICES:
                return answer
            with answer:
                refusal = error_from(
                    response.status,
                    answer.body(),
                    verb=verb,
                    resource=resource,
                    retry_after=response.headers.get("Retry-After"),
                )
            if isinstance(refusal, Unauthorized) and attempt == 1:
                self._renew(generation)
                continue
            raise refusal
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close idle connections. Those in use end with their answers."""
        with self._lock:
            self._closed = True
            if self._pool is not None:
                self._pool.clear()

    # ---- credentials -------------------------------------------------------------------------

    def _prepare(self) -> tuple[Any, str, dict[str, str], int]:
        """Connections, address, headers, and the generation of credentials they are of."""
        with self._lock, _configured():
            if self._closed:
                raise Unavailable("the access to the API server was closed", reason="Closed")
            authorization = self._credentials.authorization()
            transport = self._credentials.transport()
            if self._pool is None or transport != self._transport:
                if self._pool is not None:
                    self._pool.clear()
                self._pool, self._transport = self._credentials.pool(), transport
            headers = {"Accept": _JSON, "User-Agent": self._agent}
            if authorization:
                headers["Authorization"] = authorization
            host = self._credentials.configuration.host.rstrip("/")
            return self._pool, host, headers, self._generation

    def _renew(self, generation: int) -> None:
        """Reads the credentials again, unless another thread has since `generation`."""
        with self._lock, _configured():
            if self._generation == generation:
                self._credentials.reload()
                self._generation += 1


@contextlib.contextmanager
def _configured() -> Iterator[None]:
    try:
        yield
    except CredentialsError as error:
        raise Unauthorized(f"no usable credentials: {error}", reason="NoCredentials") from error
    except (OSError, ValueError) as error:
        # Certificates that cannot be read are found when connections are prepared.
        raise Unauthorized(f"no usable credentials: {error}", reason="NoCredentials") from error


def _plain(query: Query | None) -> dict[str, str]:
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in (query or {}).items()
    }


def describe(error: BaseException) -> str:
    """The same words for the same trouble: urllib3's texts hold addresses of objects, and texts
    that differ each time would be reported each time."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, urllib3.exceptions.NameResolutionError):
            return "the name of the server cannot be resolved"
        refused = isinstance(found, urllib3.exceptions.NewConnectionError)  # a kind of the next
        if isinstance(found, urllib3.exceptions.ConnectTimeoutError) and not refused:
            return "no connection in time"
        if isinstance(found, urllib3.exceptions.ReadTimeoutError | TimeoutError):
            return "no answer in time"
        if isinstance(found, urllib3.exceptions.SSLError):
            return f"TLS: {found}"
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        if isinstance(found, urllib3.exceptions.IncompleteRead):
            return "the connection broke in the middle of an answer"
        found = _cause(found)
    return f"the connection broke ({type(error).__name__})"


def _cause(error: BaseException) -> BaseException | None:
    reason = getattr(error, "reason", None)  # of MaxRetryError
    if isinstance(reason, BaseException):
        return reason
    if inner := next((arg for arg in error.args if isinstance(arg, BaseException)), None):
        return inner  # of ProtocolError
    return error.__cause__ or error.__context__


__all__ = [
    "JSON_PATCH",
    "MERGE_PATCH",
    "STRATEGIC_MERGE_PATCH",
    "Access",
    "Answer",
    "ApiError",
    "Query",
    "Timeouts",
    "describe",
]
