# SPDX-License-Identifier: Apache-2.0
"""The CNI server on <run_dir>/cni.sock: one connection, one frame, one answer.

A fixed number of threads accept connections and call the handler, so as many requests run at
once; further ones wait in the backlog. Two orders are kept:

* Requests for one attachment (network, container, interface) run one after the other, as they
  came. A runtime that gave up on a slow ADD sends DEL; it must not overtake.
* The spool is empty before any ADD is handled, not only at the start: a relay that found no agent
  may write its file while the next agent starts. Looking costs some ten microseconds.

A request whose relay has gone before its turn is dropped: nobody would learn of its result.
"""

from __future__ import annotations

import array
import fcntl
import logging
import os
import select
import socket
import stat
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cni import protocol
from cni.config import Command
from cni.errors import CniError, ErrorCode
from cni.protocol import Frame, FrameError, Reply, Request
from cni.spool import Replayed, Spool, replay

SOCKET_NAME: Final = "cni.sock"

Handler = Callable[[Request, int | None], Reply]
"""Serves a request; called from several threads at once. Gets a descriptor of the pod's network
namespace (ADD and CHECK always, DEL if it still exists), valid during the call. May raise CniError.
VERSION is never passed to it."""

Key = tuple[str, str, str]
_NS_GET_NSTYPE: Final = 0xB703  # linux/nsfs.h
_CLONE_NEWNET: Final = 0x40000000

logger = logging.getLogger(__name__)


class SocketBusy(Exception):
    """The socket's path is in use: another agent runs with this run_dir, or it is no socket."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Bounds; times in seconds."""

    workers: int = 32
    backlog: int = 256
    receive_timeout: float = 10.0
    """For a whole frame. A relay sends it at once."""
    send_timeout: float = 10.0
    spool_interval: float = 10.0
    """Between two looks into the spool while no ADD comes."""
    allowed_uids: frozenset[int] = frozenset({0})
    refuse_own_netns: bool = True
    """Never treat the namespace that the agent itself is in as a pod's."""


class CniServer:
    """Serves the relay. `start` and `stop` once each, from one thread."""

    def __init__(
        self,
        socket_path: Path,
        spool: Spool,
        handler: Handler,
        options: ServerOptions = ServerOptions(),
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = socket_path
        self._spool = spool
        self._handler = handler
        self._options = options
        self._clock = clock
        self._wall_clock = wall_clock
        own = os.stat("/proc/self/ns/net")
        self._own_netns = (own.st_dev, own.st_ino) if options.refuse_own_netns else None
        self._turns = _Turns()
        self._replaying = threading.Lock()
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None
        self._inode = 0
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self) -> Replayed:
        """Replays the spool through the handler, then listens. Returns what was replayed.

        Raises SocketBusy, or OSError if the folder or the spool cannot be used.
        """
        replayed = self._replay(held=None)
        self._spool.sweep(self._wall_clock())
        self._listener = self._listen()
        targets = [(self._accept_loop, f"cni-{i}") for i in range(self._options.workers)]
        for target, name in [*targets, (self._spool_loop, "cni-spool")]:
            thread = threading.Thread(target=target, name=name, daemon=True)
            thread.start()
            self._threads.append(thread)
        return replayed

    def stop(self, grace: float = 10.0) -> None:
        """Stops listening, lets running requests end for `grace` seconds, cuts off the rest: their
        relays answer "try again later", or spool. Removes the socket if it is still ours."""
        self._stopping.set()
        with suppress(FileNotFoundError):
            if self._path.lstat().st_ino == self._inode:
                self._path.unlink()
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes all who accept
        deadline = self._clock() + grace
        for thread in self._threads:
            thread.join(max(0.0, deadline - self._clock()))
        with self._open_lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        if self._listener is not None:
            self._listener.close()

    # ---- threads -----------------------------------------------------------------------------

    def _listen(self) -> socket.socket:
        path = os.fspath(self._path)
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise SocketBusy(f"{path} is no socket; remove it")
            if _somebody_listens(path):
                raise SocketBusy(f"another agent serves {path}; give this one another run_dir")
            os.unlink(path)  # left by an agent that was killed
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(listener.fileno(), 0o600)  # before bind: never open to others
            listener.bind(path)
            self._inode = os.lstat(path).st_ino
            listener.listen(self._options.backlog)
        except BaseException:
            listener.close()
            raise
        return listener

    def _accept_loop(self) -> None:
        assert self._listener is not None
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError as error:
                if not self._stopping.wait(0.1):  # out of descriptors: it may get better
                    logger.error("cni: cannot accept: %s", error)
                continue
            with self._open_lock:
                self._open.add(connection)
            try:
                self._serve(connection)
            except Exception:
                logger.exception("cni: request failed")
            finally:
                with self._open_lock:
                    self._open.discard(connection)
                connection.close()

    def _spool_loop(self) -> None:
        while not self._stopping.wait(self._options.spool_interval):
            try:
                self._replay(held=None)
                self._spool.sweep(self._wall_clock())
            except Exception:
                logger.exception("cni: spool %s", self._spool.folder)

    # ---- one connection ----------------------------------------------------------------------

    def _serve(self, connection: socket.socket) -> None:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = struct.unpack("3i", credentials)
        if uid not in self._options.allowed_uids:
            logger.warning("cni: refused process %d of user %d", pid, uid)
            return
        deadline = self._clock() + self._options.receive_timeout
        try:
            received = _receive_frame(connection, lambda: deadline - self._clock())
        except (FrameError, TimeoutError) as error:
            logger.warning("cni: bad frame from process %d: %s", pid, error)
            fault = CniError(ErrorCode.DECODING_FAILURE, f"the agent cannot read this: {error}")
            self._send(connection, protocol.failure(fault))
            return
        if received is None:
            return
        frame, netns = received
        try:
            reply = self._answer(connection, frame, netns)
        finally:
            if netns is not None:
                os.close(netns)
        if reply is not None and not self._send(connection, reply):
            logger.warning("cni: the relay has gone without its answer (process %d)", pid)

    def _send(self, connection: socket.socket, reply: Reply) -> bool:
        try:
            connection.settimeout(self._options.send_timeout)
            connection.sendall(protocol.encode_answer(reply))
        except OSError:
            return False
        return True

    def _answer(self, connection: socket.socket, frame: Frame, netns: int | None) -> Reply | None:
        """None if nobody waits for it any more."""
        try:
            request = protocol.parse_request(frame)
            if request.command is Command.VERSION:
                return protocol.versions(request)
            netns = self._checked_netns(request, netns)
            if request.command not in (Command.ADD, Command.CHECK, Command.DEL):
                return self._call(request, netns)
            with self._turns.turn(_key(request)):
                if _peer_is_gone(connection):
                    return None
                if request.command is Command.ADD:
                    self._require_empty_spool(request)
                return self._call(request, netns)
        except CniError as error:
            return protocol.failure_of(frame, error)

    def _call(self, request: Request, netns: int | None) -> Reply:
        try:
            return self._handler(request, netns)
        except CniError as error:
            return protocol.failure(error, request.config.version)
        except Exception:
            logger.exception("cni: %s %s", request.command, request.container_id)
            internal = CniError(ErrorCode.INTERNAL, "the bristle agent failed; its log says why")
            return protocol.failure(internal, request.config.version)

    def _checked_netns(self, request: Request, netns: int | None) -> int | None:
        """The descriptor if it is a pod's namespace. CniError if it is none and must be one."""
        if request.command in (Command.GC, Command.STATUS):
            return None
        problem = "could not be opened"
        if netns is not None:
            problem = _netns_problem(netns, self._own_netns)
        if not problem:
            return netns
        if request.command is Command.DEL:
            return None
        message = f"CNI_NETNS {request.netns!a} {problem}"
        raise CniError(ErrorCode.INVALID_ENVIRONMENT, message)

    # ---- the spool ---------------------------------------------------------------------------

    def _require_empty_spool(self, request: Request) -> None:
        folder = self._spool.folder
        try:
            waiting = self._replay(held=_key(request)).waiting
        except OSError as error:
            raise CniError(ErrorCode.TRY_AGAIN_LATER, f"cannot read {folder}: {error}") from error
        if waiting:
            raise CniError(
                ErrorCode.TRY_AGAIN_LATER,
                f"{len(waiting)} earlier removals in {folder} are not done yet",
            )

    def _replay(self, held: Key | None) -> Replayed:
        """Replays the spool. Never waits for a turn while it holds the lock, so whoever has a turn
        (`held`) may wait for the lock."""

        def perform(request: Request) -> Reply | None:
            key = _key(request)
            if request.command is Command.GC or key == held:
                return self._call(request, None)
            if not self._turns.try_enter(key):
                return None
            try:
                return self._call(request, None)
            finally:
                self._turns.leave(key)

        with self._replaying:
            replayed = replay(self._spool, perform)
        for name in replayed.bad:
            logger.error("cni: set aside the removal %s", self._spool.bad_folder / name)
        if replayed.done:
            logger.info("cni: did %d removals from %s", len(replayed.done), self._spool.folder)
        return replayed


class _Turns:
    """Whoever enters with the same key goes one after the other, in the order of entering."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queues: dict[Key, deque[threading.Event]] = {}

    @contextmanager
    def turn(self, key: Key) -> Iterator[None]:
        with self._lock:
            mine = threading.Event()
            queue = self._queues.setdefault(key, deque())
            queue.append(mine)
            if len(queue) == 1:
                mine.set()
        mine.wait()
        try:
            yield
        finally:
            self.leave(key)

    def try_enter(self, key: Key) -> bool:
        with self._lock:
            if key in self._queues:
                return False
            self._queues[key] = deque([threading.Event()])
            return True

    def leave(self, key: Key) -> None:
        with self._lock:
            queue = self._queues[key]
            queue.popleft()
            if queue:
                queue[0].set()
            else:
                del self._queues[key]


def _key(request: Request) -> Key:
    return (request.config.name, request.container_id, request.ifname)


def _netns_problem(fd: int, own: tuple[int, int] | None) -> str:
    """Why a descriptor is no pod's network namespace, or nothing."""
    try:
        if fcntl.ioctl(fd, _NS_GET_NSTYPE) != _CLONE_NEWNET:
            return "is a namespace of another kind"
    except OSError:
        return "is no network namespace"
    status = os.fstat(fd)
    return "is the agent's own network" if (status.st_dev, status.st_ino) == own else ""


def _somebody_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:  # its backlog is full
            return True
        except ConnectionRefusedError:
            return False
    return True


def _peer_is_gone(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(0))


def _receive_frame(
    connection: socket.socket, left: Callable[[], float]
) -> tuple[Frame, int | None] | None:
    """Reads a frame and the descriptor with it. None if nothing came at all."""
    fds: list[int] = []
    try:
        first = _receive(connection, protocol.HEADER_SIZE, fds, left)
        if not first and not fds:
            return None
        header = protocol.parse_header(first)
        body = _receive(connection, header.body_size, fds, left)
        frame = protocol.parse_body(header, body)
        if len(fds) != frame.with_netns:
            raise FrameError(f"{len(fds)} descriptors came, not {frame.with_netns:d}")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return frame, fds[0] if fds else None


def _receive(
    connection: socket.socket, size: int, fds: list[int], left: Callable[[], float]
) -> bytes:
    """Reads `size` bytes, fewer at the end of the stream; adds descriptors that come to `fds`."""
    data = bytearray()
    while len(data) < size:
        remaining = left()
        if remaining <= 0:
            raise TimeoutError(f"{len(data)} of {size} bytes came in time")
        connection.settimeout(remaining)
        try:
            chunk, ancillary, flags, _ = connection.recvmsg(
                min(size - len(data), 1 << 16), socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return bytes(data)
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.extend(array.array("i", content[: len(content) & ~3]))
        if flags & socket.MSG_CTRUNC:
            raise FrameError("more than one descriptor came")
        if not chunk:
            break
        data += chunk
    return bytes(data)
