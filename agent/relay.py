# SPDX-License-Identifier: Apache-2.0
"""The CNI relay's place among a host's CNI plugins: put there, and taken away."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

NAME: Final = "bristle-cni"
_MODE: Final = 0o755


class RelayError(Exception):
    """The relay could not be installed or removed; the message names the file."""


def install(source: Path, bin_dir: Path) -> bool:
    """Put the executable `source` into `bin_dir`; False if it was there already.

    Copied, synced and renamed: a runtime never starts half a file, and a node that loses power
    has the old one or the new one. Raises RelayError.
    """
    target = bin_dir / NAME
    hidden = bin_dir / f".{NAME}.new"
    try:
        content = source.read_bytes()
        if _is(target, content):
            return False
        bin_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        # What a killed installation left is written over. An executable that runs cannot be
        # opened for writing, but this one never ran under its hidden name.
        with contextlib.suppress(FileNotFoundError):
            hidden.unlink()
        fd = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, _MODE)
        with open(fd, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fchmod(fd, _MODE)  # whatever the umask
            os.fsync(fd)
        os.replace(hidden, target)
        _sync(bin_dir)
    except OSError as error:
        raise RelayError(f"install {target}: {error.strerror}") from error
    return True


def remove(bin_dir: Path) -> bool:
    """Take the relay away; False if it was not there. Raises RelayError."""
    target = bin_dir / NAME
    try:
        target.unlink()
        _sync(bin_dir)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise RelayError(f"remove {target}: {error.strerror}") from error
    return True


def _is(path: Path, content: bytes) -> bool:
    try:
        return path.stat().st_mode & 0o777 == _MODE and path.read_bytes() == content
    except FileNotFoundError:
        return False


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
