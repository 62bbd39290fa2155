# SPDX-License-Identifier: Apache-2.0
"""Removals that the relay kept while no agent answered: <state_dir>/spool.

Each file is one frame of DEL or GC, named <20 digits: nanoseconds>-<pid>-<command>.frame. The relay
makes it visible only when it is whole and on disk, and only then tells the runtime "done", so
nothing here may get lost: a file goes when its removal has been done, a file that cannot be
understood goes to the folder `bad` beside it, with the reason in <name>.reason.

Order is by name, that is by time. A clock that was set back does no harm: removals are idempotent
and commute, and the runtime starts no ADD that depends on one before it has returned.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cni.config import Command
from cni.errors import CniError, ErrorCode
from cni.protocol import (
    HEADER_SIZE,
    MAX_CONFIG,
    MAX_ENVIRONMENT,
    FrameError,
    Reply,
    Request,
    parse_frame,
    parse_request,
)

FOLDER: Final = "spool"
_NAME: Final = re.compile(r"[0-9]{20}-[0-9]+-(DEL|GC)\.frame", re.ASCII)
_MAX_SIZE: Final = HEADER_SIZE + MAX_ENVIRONMENT + MAX_CONFIG
_ABANDONED_AFTER: Final = 3600.0
"""Seconds; a relay needs milliseconds for the file that it is writing."""


class BadEntry(Exception):
    """A spool file that is no removal. The text says why."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of the spool: names of files."""

    done: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    """The agent could not do these yet. No address may be given out before they are done."""
    busy: tuple[str, ...] = ()
    """Their attachment has another request under way, so its address is not free either."""
    bad: tuple[str, ...] = ()


class Spool:
    """The files of one spool folder. The folder need not exist. Methods raise OSError only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bad_folder = folder / "bad"

    def names(self) -> list[str]:
        """The names of all waiting files, oldest first. Costs one read of the folder."""
        try:
            with os.scandir(self.folder) as entries:
                return sorted(e.name for e in entries if _NAME.fullmatch(e.name))
        except FileNotFoundError:
            return []

    def load(self, name: str) -> Request:
        """Reads one file. BadEntry if it is no valid DEL or GC."""
        # Nothing but a regular file is waited for or followed.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            file = os.fdopen(os.open(self.folder / name, flags), "rb")
        except FileNotFoundError:
            raise
        except OSError as error:
            raise BadEntry(f"cannot be opened: {error.strerror}") from error
        with closing(file):
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BadEntry("is no regular file")
            data = file.read(_MAX_SIZE + 1)
        try:
            request = parse_request(parse_frame(data))
        except FrameError as error:
            raise BadEntry(str(error)) from error
        except CniError as error:
            raise BadEntry(f"error {error.code:d}: {error.message}") from error
        if request.command not in (Command.DEL, Command.GC):
            raise BadEntry(f"is a {request.command}, which is never kept")
        return request

    def remove(self, name: str) -> None:
        """Durably removes one file; removing what is gone succeeds."""
        with suppress(FileNotFoundError):
            os.unlink(self.folder / name)
        _sync(self.folder)

    def set_aside(self, name: str, reason: str) -> None:
        """Durably moves one file to the folder `bad`, with the reason beside it."""
        self.bad_folder.mkdir(mode=0o700, exist_ok=True)
        os.replace(self.folder / name, self.bad_folder / name)
        (self.bad_folder / f"{name}.reason").write_text(reason + "\n")
        _sync(self.bad_folder)
        _sync(self.folder)

    def sweep(self, now: float) -> None:
        """Removes what killed relays left half-written. `now`: seconds since 1970."""
        with suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            for entry in entries:
                hidden = entry.name.startswith(".") and _NAME.fullmatch(entry.name[1:])
                with suppress(FileNotFoundError):
                    age = now - entry.stat(follow_symlinks=False).st_mtime
                    if hidden and age > _ABANDONED_AFTER:
                        os.unlink(entry.path)


def replay(spool: Spool, perform: Callable[[Request], Reply | None]) -> Replayed:
    """Does what the spool asks for, oldest first.

    `perform` answers None if the request must wait for another one of the same attachment. A
    reply "try again later" (or "unavailable") ends the replay: the agent is not ready, and all
    that is left waits. Any other error will not get better by itself: the file is set aside.
    """
    done: list[str] = []
    busy: list[str] = []
    bad: list[str] = []
    names = spool.names()
    for index, name in enumerate(names):
        try:
            reply = perform(spool.load(name))
        except FileNotFoundError:
            continue
        except BadEntry as error:
            spool.set_aside(name, str(error))
            bad.append(name)
            continue
        if reply is None:
            busy.append(name)
        elif not reply.error:
            spool.remove(name)
            done.append(name)
        elif reply.error in _NOT_READY:
            return Replayed(tuple(done), tuple(names[index:]), tuple(busy), tuple(bad))
        else:
            spool.set_aside(name, reply.body.decode(errors="replace").strip())
            bad.append(name)
    return Replayed(tuple(done), (), tuple(busy), tuple(bad))


_NOT_READY: Final = (ErrorCode.TRY_AGAIN_LATER, ErrorCode.UNAVAILABLE, ErrorCode.LIMITED)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
