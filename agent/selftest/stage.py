# SPDX-License-Identifier: Apache-2.0
"""Where checks play: a network namespace and a cgroup of this process's own, with the programs
attached to them over maps that nobody else has.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from agent.kernel import netns
from agent.kernel.features import cgroup2_mounts
from agent.kernel.loader import Loader
from agent.kernel.maps import PinnedMap
from agent.kernel.socket_redirect import SocketRedirect
from bpf import maps
from bpf.layouts import RedirectMode, SocketEndpoint, SocketSide, SocketState

ENDPOINT: Final = 1
UNREAD_MAX: Final = 1 << 20
SMALL: Final = 64
"""Entries of the maps here."""
PATIENCE: Final = 3.0
"""Seconds within which something has to come that takes microseconds."""


class CheckFailed(Exception):
    """What a check found wrong."""


class Stage:
    """A context manager; the process stays in the namespace, but leaves the cgroup."""

    def __init__(self, work_dir: Path, cgroup: Path) -> None:
        self._cgroup = cgroup
        self._shared: dict[str, PinnedMap[object, object]] = {}
        self._cookie = 0
        self.redirect = SocketRedirect(None, Loader(work_dir), 4 * SMALL)

    def __enter__(self) -> Self:
        try:
            self._set_up()
        except BaseException:
            self._leave()
            raise
        return self

    def _set_up(self) -> None:
        netns.make_own()
        target = self._enter_cgroup()
        self._cookie = netns.own_cookie()
        for name, spec in maps.SPECS.items():
            if name != "numbers":
                array = spec.type.array or spec.type is maps.MapType.RINGBUF
                self._shared[name] = PinnedMap.create(spec if array else spec.resized(SMALL))
        self.redirect.open()
        self.redirect.load({name: one.fd for name, one in self._shared.items()})
        self.redirect.attach(target)
        self.redirect.configure(True, UNREAD_MAX)
        self._shared["namespaces"].update(self._cookie, ENDPOINT)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        self.redirect.close()
        for one in self._shared.values():
            one.close()
        if self._cgroup.exists():
            _move_to(self._cgroup.parent)
            self._cgroup.rmdir()

    def _enter_cgroup(self) -> Path:
        """A cgroup for this process alone; where none can be made (a container may see the host's
        only to read them), the one that it is in. The programs are for its namespace only.
        """
        try:
            self._cgroup.mkdir()
            _move_to(self._cgroup)
        except OSError:
            with contextlib.suppress(OSError):
                self._cgroup.rmdir()
            return own_cgroup()
        return self._cgroup

    # ---- what checks use -------------------------------------------------------------------------

    def set_mode(self, mode: RedirectMode) -> None:
        """Of all sockets made from now on."""
        self._shared["socket_endpoints"].update(ENDPOINT, SocketEndpoint(self._cookie, mode))

    def switch(self, on: bool) -> None:
        """Redirect as a whole, as the agent does it."""
        self.redirect.configure(on, UNREAD_MAX)

    @contextlib.contextmanager
    def listener(self) -> Iterator[socket.socket]:
        """A listening socket whose accepted ones are known to be used without blocking, where that
        is looked at."""
        with socket.create_server(("127.0.0.1", 0)) as one:
            one.setblocking(False)
            yield one

    @contextlib.contextmanager
    def connection(
        self, listener: socket.socket, blocking: bool = False
    ) -> Iterator[tuple[socket.socket, socket.socket]]:
        """(client, server): both ends."""
        client = socket.socket()
        client.setblocking(blocking)
        with contextlib.suppress(BlockingIOError):
            client.connect(listener.getsockname())
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                server, _ = listener.accept()
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise CheckFailed("a connection did not come about") from None
        server.setblocking(blocking)
        with client, server:
            yield client, server

    def state(self, one: socket.socket, side: SocketSide) -> tuple[SocketState, int]:
        """What the programs know of a socket, and how many bytes wait in it."""
        port = (one.getsockname() if side == SocketSide.SIDE_OPENED else one.getpeername())[1]
        for listed in self.redirect.sockets():
            if listed.state.side == side and socket.ntohs(listed.state.source_port) == port:
                return listed.state, listed.unread
        raise CheckFailed("a socket did not enter the table")


def _move_to(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))


def own_cgroup() -> Path:
    """The cgroup (v2) that this process is in, as a folder. Raises OSError."""
    path = next(
        line[3:]
        for line in Path("/proc/self/cgroup").read_text().splitlines()
        if line.startswith("0::")
    )
    for mount in cgroup2_mounts():
        folder = mount / path.lstrip("/")
        if (folder / "cgroup.controllers").exists():
            return folder
    raise FileNotFoundError("no folder of this process's own cgroup is mounted")


def in_thread(work: Callable[[], object]) -> threading.Thread:
    """Started already."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread
