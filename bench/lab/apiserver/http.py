# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 on one connection: requests in, answers and streams out."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import cast
from urllib.parse import parse_qsl, unquote, urlsplit

from bench.lab.apiserver.errors import too_large

MAX_LINE = 65_536
MAX_HEADERS = 200
MAX_BODY = 3 << 20  # of a request, as kube-apiserver's limit
CHUNK = 1 << 16
LINGER_SECONDS = 0.5  # as Go's
CHUNKED_FROM = 2048  # bytes; Go's server does the same


class BadHttp(Exception):
    """What came is no HTTP; Go's server answers with plain text and closes."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Closed(Exception):
    """The connection ended, or shall end."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request; header names in lower case, of a repeated query parameter the first value."""

    method: str
    target: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    keep: bool
    version: str = "HTTP/1.1"

    @property
    def agent(self) -> str:
        """Its User-Agent."""
        return self.headers.get("user-agent", "")


@dataclass(frozen=True, slots=True)
class Response:
    """An answer as a whole. body: in pieces."""

    code: int
    body: Iterable[bytes] = ()
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class Connection:
    """Reads requests from a connected socket and writes answers to it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sent = 0
        self.aborted = False
        self._reset = False
        self._reader = cast(io.BufferedReader, sock.makefile("rb", buffering=1 << 16))

    # ---- in ----------------------------------------------------------------------------------

    def read(self) -> Request:
        """The next request. Raises Closed, BadHttp, ApiError 413, OSError."""
        line = self._line()
        while line == b"":  # some send an empty line between requests
            line = self._line()
        parts = line.decode("latin-1").split(" ")
        if len(parts) != 3 or not parts[2].startswith("HTTP/") or not parts[0].isalpha():
            raise BadHttp(400, "400 Bad Request: malformed HTTP request line")
        method, target, version = parts
        if version not in ("HTTP/1.1", "HTTP/1.0"):
            raise BadHttp(505, "505 HTTP Version Not Supported: unsupported protocol version")
        headers = self._headers()
        if version == "HTTP/1.1" and "host" not in headers:
            raise BadHttp(400, "400 Bad Request: missing required Host header")
        try:
            split = urlsplit(target)
            pairs = parse_qsl(split.query, keep_blank_values=True)
        except ValueError:
            raise BadHttp(400, "400 Bad Request: malformed request target") from None
        query: dict[str, str] = {}
        for key, value in pairs:
            query.setdefault(key, value)
        body = self._body(headers)
        token = headers.get("connection", "").lower()
        keep = "close" not in token and (version == "HTTP/1.1" or "keep-alive" in token)
        path = unquote(split.path)
        return Request(method, target, path, query, headers, body, keep, version)

    def _line(self) -> bytes:
        line = self._reader.readline(MAX_LINE)
        if not line:
            raise Closed
        if not line.endswith(b"\n"):
            if len(line) < MAX_LINE:
                raise Closed
            raise BadHttp(431, "431 Request Header Fields Too Large")
        return line.rstrip(b"\r\n")

    def _headers(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for _ in range(MAX_HEADERS):
            line = self._line()
            if not line:
                return found
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon or not name or name != name.strip():
                raise BadHttp(400, "400 Bad Request: malformed header")
            key = name.lower()
            text = value.strip()
            found[key] = f"{found[key]}, {text}" if key in found else text
        raise BadHttp(431, "431 Request Header Fields Too Large")

    def _body(self, headers: dict[str, str]) -> bytes:
        coding = headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length")
        if (coding or (length and length != "0")) and "100-continue" in headers.get("expect", ""):
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if coding:
            if coding != "chunked":
                raise BadHttp(501, "501 Not Implemented: unsupported transfer encoding")
            return self._chunks()
        if length is None:
            return b""
        if not length.isascii() or not length.isdigit():
            raise BadHttp(400, "400 Bad Request: bad Content-Length")
        if int(length) > MAX_BODY:
            raise too_large(MAX_BODY)
        body = self._reader.read(int(length))
        if len(body) < int(length):
            raise Closed
        return body

    def _chunks(self) -> bytes:
        body = bytearray()
        while True:
            size_text = self._line().partition(b";")[0].strip()
            try:
                size = int(size_text, 16)
            except ValueError:
                raise BadHttp(400, "400 Bad Request: malformed chunked encoding") from None
            if size < 0 or size_text[:1] in (b"+", b"-"):
                raise BadHttp(400, "400 Bad Request: malformed chunked encoding")
            if len(body) + size > MAX_BODY:
                raise too_large(MAX_BODY)
            if size == 0:
                while self._line():
                    pass
                return bytes(body)
            piece = self._reader.read(size)
            if len(piece) < size:
                raise Closed
            body += piece
            if self._line():
                raise BadHttp(400, "400 Bad Request: malformed chunked encoding")

    # ---- out ---------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Sends bytes as they are. Raises OSError."""
        self.sock.sendall(data)
        self.sent += len(data)

    def respond(self, request: Request | None, response: Response, *, keep: bool) -> None:
        """Sends an answer: as it is if small, else in chunks."""
        pieces = list(response.body)
        size = sum(map(len, pieces))
        headers = self._head(response, keep=keep)
        old = request is not None and request.version == "HTTP/1.0"
        bare = request is not None and request.method == "HEAD"
        if size <= CHUNKED_FROM or old or bare:
            headers.append(f"Content-Length: {size}")
            self.write(_head_bytes(headers) + (b"" if bare else b"".join(pieces)))
            return
        headers.append("Transfer-Encoding: chunked")
        self.write(_head_bytes(headers))
        for piece in pieces:
            for start in range(0, len(piece), CHUNK):
                self.chunk(piece[start : start + CHUNK])
        self.write(b"0\r\n\r\n")

    def begin_stream(self, response: Response) -> None:
        """Sends the head of an answer that comes in chunks."""
        headers = [*self._head(response, keep=False), "Transfer-Encoding: chunked"]
        self.write(_head_bytes(headers))

    def chunk(self, data: bytes) -> None:
        """Sends one chunk."""
        self.write(b"%x\r\n%s\r\n" % (len(data), data))

    def end_stream(self) -> None:
        """Sends the end of a stream."""
        self.write(b"0\r\n\r\n")

    def _head(self, response: Response, *, keep: bool) -> list[str]:
        try:
            phrase = HTTPStatus(response.code).phrase
        except ValueError:
            phrase = "status code"
        lines = [
            f"HTTP/1.1 {response.code} {phrase}",
            "Cache-Control: no-cache, private",
            f"Content-Type: {response.content_type}",
            f"Date: {formatdate(usegmt=True)}",
        ]
        lines += [f"{key}: {value}" for key, value in response.headers.items()]
        lines += [f"Warning: 299 - {_quoted(text)}" for text in response.warnings]
        if not keep:
            lines.append("Connection: close")
        return lines

    # ---- end ---------------------------------------------------------------------------------

    def linger(self) -> None:
        """Reads what still comes, for a moment: closing at once would destroy the answer."""
        with contextlib.suppress(OSError):
            self.sock.settimeout(LINGER_SECONDS)
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
            deadline = time.monotonic() + LINGER_SECONDS
            while self._reader.read1(CHUNK) and time.monotonic() < deadline:
                pass

    def abort(self, *, reset: bool = False) -> None:
        """Ends the connection from another thread: the one that serves it closes it soon."""
        self._reset = reset
        self.aborted = True
        # A reset must be the first that the client hears. The base class's method: TLS sockets
        # would say good-bye.
        how = socket.SHUT_RD if reset else socket.SHUT_RDWR
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, how)

    def close(self, *, reset: bool = False) -> None:
        """Ends the connection, with a TCP reset if wanted."""
        try:
            if reset or self._reset:
                linger = struct.pack("ii", 1, 0)
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            else:
                self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is gone already
        self._reader.close()
        self.sock.close()


def _quoted(text: str) -> str:
    safe = "".join(char if 32 <= ord(char) < 127 else " " for char in text)
    return '"' + safe.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _head_bytes(lines: list[str]) -> bytes:
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
