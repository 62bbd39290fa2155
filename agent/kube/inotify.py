# SPDX-License-Identifier: Apache-2.0
"""A watch on a tree of directories by inotify(7), through ctypes.

Only closed and renamed files are reported as complete, never those still being written: half a
policy must not be read. Everything that is not simply one file (directories, links, a ConfigMap's
`..data`, a lost event) asks for a rescan instead.
"""

import contextlib
import ctypes
import errno
import os
import select
import struct
from dataclasses import dataclass, field

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x1000000
IN_ISDIR = 0x40000000

_COMPLETE = IN_CLOSE_WRITE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE
_WRITING = IN_MODIFY | IN_CREATE
_MASK = _COMPLETE | _WRITING | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF
_HEADER = struct.Struct("iIII")  # wd, mask, cookie, length of the name


class WatchUnavailable(Exception):
    """inotify is missing or at its limit; the caller polls instead. The message says which."""


@dataclass(slots=True)
class Changes:
    """What happened since the last call.

    files: path of each file touched -> True when its content is complete (closed, renamed,
        removed), False when it is in a writer's hands, None when only its attributes changed.
    rescan: only a look at the whole tree tells.
    """

    files: dict[str, bool | None] = field(default_factory=dict)
    rescan: bool = False

    def __bool__(self) -> bool:
        return self.rescan or bool(self.files)

    def add(self, later: "Changes") -> None:
        """Takes in what happened after this."""
        for path, complete in later.files.items():
            if complete is not None or path not in self.files:
                self.files[path] = complete
        self.rescan = self.rescan or later.rescan


class Inotify:
    """Directories under watch. Not thread-safe, but for `wake`."""

    def __init__(self) -> None:
        """Raises WatchUnavailable."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        try:
            self._fd: int = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        except AttributeError:
            raise WatchUnavailable("the C library has no inotify") from None
        if self._fd < 0:
            raise WatchUnavailable(_reason("inotify_init1"))
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._poll.register(self._wake_fd, select.POLLIN)
        self._paths: dict[int, str] = {}  # watch descriptor -> directory
        self._watches: dict[str, int] = {}

    def add(self, path: str) -> None:
        """Watches a directory; raises WatchUnavailable at a limit.

        Harmless when repeated, and needed: behind a known path there may be another directory now.
        A directory that is gone or closed to us is passed over: its parent's watch tells of it.
        """
        watch = self._libc.inotify_add_watch(self._fd, os.fsencode(path), _MASK | IN_ONLYDIR)
        if watch < 0:
            if ctypes.get_errno() in (errno.ENOSPC, errno.ENOMEM):
                raise WatchUnavailable(_reason("inotify_add_watch"))
            return
        if self._watches.get(path, watch) != watch:
            self._remove(path)
        self._watches[path] = watch
        self._paths[watch] = path

    def retain(self, wanted: set[str]) -> None:
        """Ends the watches on all other directories."""
        for path in self._watches.keys() - wanted:
            self._remove(path)

    def _remove(self, path: str) -> None:
        watch = self._watches.pop(path)
        if self._paths.get(watch) == path:
            del self._paths[watch]
            self._libc.inotify_rm_watch(self._fd, watch)

    def wait(self, timeout: float | None) -> None:
        """Returns when something is to be read, after `wake`, or after `timeout` seconds."""
        self._poll.poll(None if timeout is None else max(0.0, timeout) * 1000)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)

    def wake(self) -> None:
        """Ends `wait`; may be called from any thread."""
        os.eventfd_write(self._wake_fd, 1)

    def read(self) -> Changes:
        """Everything that is known to have changed, without waiting."""
        changes = Changes()
        while True:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                return changes
            self._decode(data, changes)

    def _decode(self, data: bytes, changes: Changes) -> None:
        position = 0
        while position < len(data):
            watch, mask, _, length = _HEADER.unpack_from(data, position)
            position += _HEADER.size
            name = os.fsdecode(data[position : position + length].rstrip(b"\0"))
            position += length
            if mask & IN_IGNORED:
                ended = self._paths.pop(watch, None)
                if ended is not None:  # not ended by ourselves: the directory is gone
                    if self._watches.get(ended) == watch:
                        del self._watches[ended]
                    changes.rescan = True
            elif not name or mask & (IN_Q_OVERFLOW | IN_ISDIR) or name.startswith(".."):
                changes.rescan = True
            elif (directory := self._paths.get(watch)) is not None:
                path = os.path.join(directory, name)
                if mask & (_COMPLETE | _WRITING):
                    changes.files[path] = bool(mask & _COMPLETE)
                else:
                    changes.files.setdefault(path, None)

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._wake_fd)


def _reason(call: str) -> str:
    code = ctypes.get_errno()
    limits = {
        errno.EMFILE: "; raise fs.inotify.max_user_instances",
        errno.ENOSPC: "; raise fs.inotify.max_user_watches",
    }
    return f"{call}: {os.strerror(code)}{limits.get(code, '')}"
