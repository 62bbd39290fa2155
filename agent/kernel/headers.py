# SPDX-License-Identifier: Apache-2.0
"""The header tree that bcc compiles against, built from links: no kernel headers needed.

bcc takes the folder from ``BCC_KERNEL_SOURCE`` and looks below ``include`` in it. The programs use
UAPI types alone, so the tree is the host's UAPI headers (Debian package linux-libc-dev) and the
few small files of ``bpf/include``.
"""

import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import bpf

SOURCES: Final = Path(bpf.__file__).resolve().parent
"""The folder of the programs: ``<program>.c``, ``lib/``, ``include/``."""


class HeadersMissing(Exception):
    """The UAPI headers are not installed; the message says which package brings them."""


def build(folder: Path, *, uapi: Path = Path("/usr/include")) -> Path:
    """Make ``folder`` the header tree and return it. Does nothing where it stands already.

    Raises HeadersMissing where ``uapi`` has no Linux headers for this machine.
    """
    include = folder / "include"
    links = dict(_links(uapi))
    for parent in {include / name for name in links}:
        parent.parent.mkdir(parents=True, exist_ok=True)
    for name, target in links.items():
        _link(include / name, target)
    return folder


def check(uapi: Path = Path("/usr/include")) -> None:
    """Raises HeadersMissing where the tree could not be built."""
    for _ in _links(uapi):
        pass


def _links(uapi: Path) -> Iterator[tuple[str, Path]]:
    if not (uapi / "linux" / "bpf.h").exists():
        raise HeadersMissing(f"{uapi}/linux/bpf.h is missing: install the package linux-libc-dev")
    yield "uapi/linux", uapi / "linux"
    yield "uapi/asm", _asm(uapi)
    yield "uapi/asm-generic", uapi / "asm-generic"
    for name in ("linux", "asm", "sys"):
        yield name, SOURCES / "include" / name


def _asm(uapi: Path) -> Path:
    # Debian keeps the machine's headers in a folder named by the multiarch tuple, others do not.
    machine = {"aarch64": "aarch64-linux-gnu", "x86_64": "x86_64-linux-gnu"}
    names = [sysconfig.get_config_var("MULTIARCH"), machine.get(platform.machine())]
    candidates = [uapi / str(name) / "asm" for name in names if name] + [uapi / "asm"]
    for candidate in candidates:
        if (candidate / "types.h").exists():
            return candidate
    tried = ", ".join(str(candidate) for candidate in candidates)
    raise HeadersMissing(f"no asm/types.h in {tried}: install the package linux-libc-dev")


def _link(path: Path, target: Path) -> None:
    if path.is_symlink() and path.readlink() == target:
        return
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, path)
