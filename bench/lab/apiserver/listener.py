# SPDX-License-Identifier: Apache-2.0
"""The listening socket and a thread for each connection."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable

from bench.lab.apiserver.http import Closed, Connection

_log = logging.getLogger(__name__)
HANDSHAKE_SECONDS = 10.0
BIND_SECONDS = 5.0


class Listener:
    """Accepts connections on one address, closes it, and comes back on the same one.

    serve: called with each connection in a thread of its own. wake: makes those threads look
    whether their connections have been aborted. port: 0 for any; once it has been
    opened, `port` is the real one and stays.
    """

    def __init__(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext | None,
        serve: Callable[[Connection], None],
        wake: Callable[[], None],
    ) -> None:
        self.host = host
        self.port = port
        self._context = context
        self._serve = serve
        self._wake = wake
        self._socket: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self._open: dict[Connection | socket.socket, threading.Thread] = {}
        self._lock = threading.Lock()

    @property
    def listening(self) -> bool:
        """Whether connections are accepted."""
        return self._socket is not None

    def open(self) -> None:
        """Listens, if it does not yet."""
        if self._socket is not None:
            return
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._bind(made)
            made.listen(256)
        except OSError:
            made.close()
            raise
        self.port = made.getsockname()[1]
        self._socket = made
        self._accepting = threading.Thread(target=self._accept, args=(made,), daemon=True)
        self._accepting.start()

    def _bind(self, made: socket.socket) -> None:
        """A port that was closed a moment ago may still be held by a connection that ends."""
        deadline = time.monotonic() + BIND_SECONDS
        while True:
            try:
                made.bind((self.host, self.port))
                return
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise
            time.sleep(0.02)

    def close(self, *, reset: bool = False) -> None:
        """Refuses new connections and ends those there are; returns when their threads have."""
        made, self._socket = self._socket, None
        if made is not None:
            with contextlib.suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
            made.close()
        if self._accepting is not None:
            self._accepting.join()
            self._accepting = None
        self.drop_connections(reset=reset)

    def drop_connections(self, *, reset: bool = False) -> None:
        """Ends every connection; new ones are accepted."""
        with self._lock:
            found = list(self._open.items())
        for connection, _ in found:
            if isinstance(connection, Connection):
                connection.abort(reset=reset)
            else:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._wake()
        for _, thread in found:
            if thread is not threading.current_thread():
                thread.join(HANDSHAKE_SECONDS)

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                sock, _ = listening.accept()
            except OSError as error:
                if error.errno in (errno.ECONNABORTED, errno.EMFILE, errno.ENFILE, errno.ENOBUFS):
                    time.sleep(0.01)
                    continue
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._connection, args=(sock,), daemon=True)
            with self._lock:
                self._open[sock] = thread
                thread.start()  # whoever finds it joins it

    def _connection(self, sock: socket.socket) -> None:
        key: Connection | socket.socket = sock
        try:
            if self._context is not None:
                # Here, so that a client that says nothing keeps nobody else waiting.
                sock.settimeout(HANDSHAKE_SECONDS)
                secure = self._context.wrap_socket(sock, server_side=True)
                secure.settimeout(None)
                sock = secure
            connection = Connection(sock)
            with self._lock:
                self._open[connection] = self._open.pop(key)
            key = connection
            try:
                self._serve(connection)
            finally:
                connection.close()
        except (OSError, Closed, ValueError) as error:
            # Clients come and go. ValueError: the socket was closed while it was read.
            _log.debug("connection ended: %r", error)
        finally:
            with self._lock:
                self._open.pop(key, None)
            sock.close()
