# SPDX-License-Identifier: Apache-2.0
"""Makes sure that a folder for pins is on a BPF file system, and mounts one if it has to.

systemd mounts one at /sys/fs/bpf; minimal systems and containers have none. A folder with
anything in it, or of another user, is never covered by a mount.
"""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

BPF_FS_MAGIC: Final = 0xCAFE4A11
STANDARD: Final = Path("/sys/fs/bpf")

_libc = ctypes.CDLL(None, use_errno=True)
_NO_SUID_EXEC_DEV: Final = 2 | 8 | 4  # MS_NOSUID, MS_NOEXEC, MS_NODEV
_STATFS_BYTES: Final = 256  # more than any machine's struct statfs


class BpffsError(Exception):
    """There is no BPF file system at the folder and none can be mounted; says what to do."""


@dataclass(frozen=True, slots=True)
class Bpffs:
    """The folder stands. ``mounted`` is the mount point that ``ensure`` made, None for none."""

    folder: Path
    mounted: Path | None


def is_bpffs(path: Path) -> bool:
    """Whether ``path`` exists and is on a BPF file system."""
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.statfs(os.fsencode(path), buffer) != 0:
        return False
    # f_type is the first member, a long.
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF == BPF_FS_MAGIC


def ensure(folder: Path, *, standard: Path = STANDARD) -> Bpffs:
    """Make ``folder`` a folder for root alone on a BPF file system; idempotent.

    Where there is none, one is mounted at ``standard`` if ``folder`` is below it, else at
    ``folder``. Raises BpffsError where that would hide files or the right to mount is missing.
    """
    mounted = None
    if not is_bpffs(_existing(folder)):
        mounted = standard if folder.is_relative_to(standard) else folder
        _mount(mounted)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BpffsError(f"make {folder}: {error.strerror}") from error
    return Bpffs(folder, mounted)


def unmount(point: Path) -> None:
    """Undo the mount that ``ensure`` reported. What is pinned there goes. Idempotent."""
    if point.is_mount() and is_bpffs(point) and _libc.umount2(os.fsencode(point), 0) != 0:
        raise BpffsError(f"unmount {point}: {os.strerror(ctypes.get_errno())}")


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _mount(point: Path) -> None:
    way_out = f"mount one yourself: mount -t bpf bpf {point}"
    try:
        point.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(point.iterdir()):
            raise BpffsError(f"{point} is on no BPF file system and is not empty: {way_out}")
        if point.stat().st_uid != os.geteuid():
            raise BpffsError(f"{point} belongs to another user: {way_out}")
    except OSError as error:
        raise BpffsError(f"{point}: {error.strerror}: {way_out}") from error
    source = kind = b"bpf"
    target = os.fsencode(point)
    if _libc.mount(source, target, kind, _NO_SUID_EXEC_DEV, b"mode=0700") != 0:
        reason = os.strerror(ctypes.get_errno())
        raise BpffsError(f"mount a BPF file system at {point}: {reason}")
