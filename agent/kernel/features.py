# SPDX-License-Identifier: Apache-2.0
"""What this kernel offers and what bristle uses it for: the table of ``make doctor``.

Nothing is read off the release number: each ability is tried (``agent.kernel.probes``), since
distributions switch things off and move things back.
"""

import errno
import importlib.util
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.kernel import bpffs, headers, probes
from agent.kernel.syscall import AttachType, ProgramType
from bpf.maps import MapFlag, MapType

_BTF: Final = Path("/sys/kernel/btf/vmlinux")
_MOUNTS: Final = Path("/proc/mounts")
_REDIRECT_PEER: Final = 155  # enum bpf_func_id

_NOT_PERMITTED: Final = frozenset({errno.EPERM, errno.EACCES})


@dataclass(frozen=True, slots=True)
class Feature:
    """One ability. ``detail`` says what was found or why it is missing.

    ``needed`` marks those without which the agent does not start.
    """

    name: str
    available: bool
    detail: str
    used_for: str
    needed: bool = False


def probe(
    bpffs_dir: Path = bpffs.STANDARD, *, mounts: Path = _MOUNTS, btf: Path = _BTF
) -> list[Feature]:
    """Try everything. Changes nothing that outlives the call; takes some 0.1 s."""
    return [*_host(bpffs_dir, mounts, btf), *_maps(), *_programs(), *_hooks(), *_tools()]


def missing(features: Iterable[Feature]) -> list[Feature]:
    """The needed ones that are not there: with any of these the agent cannot work."""
    return [feature for feature in features if feature.needed and not feature.available]


def cgroup2_mounts(mounts: Path = _MOUNTS) -> list[Path]:
    """Where cgroup v2 is mounted: /sys/fs/cgroup, or /sys/fs/cgroup/unified beside version 1."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return []
    fields = (line.split() for line in lines)
    # The kernel writes blanks in paths as octal escapes.
    return [Path(f[1].replace("\\040", " ")) for f in fields if len(f) > 2 and f[2] == "cgroup2"]


def _host(bpffs_dir: Path, mounts: Path, btf: Path) -> Iterator[Feature]:
    root = os.geteuid() == 0
    detail = "yes" if root else f"user id {os.geteuid()}: run with sudo"
    yield Feature("root", root, detail, "everything in the kernel", needed=True)
    release = platform.release()
    machine = platform.machine()
    known = machine in ("x86_64", "aarch64")
    yield Feature("machine", known, f"Linux {release} on {machine}", "bpf(2)", needed=True)
    size = btf.stat().st_size if btf.exists() else 0
    detail = f"{btf}, {size} bytes" if size else f"no {btf}"
    yield Feature("BTF", bool(size), detail, "nothing yet; reading kernel structures")
    yield _bpffs(bpffs_dir)
    found = cgroup2_mounts(mounts)
    hybrid = any(path.name == "unified" for path in found)
    detail = ", ".join(map(str, found)) + (" (beside version 1)" if hybrid else "")
    yield Feature(
        "cgroup2", bool(found), detail or "not mounted: mount -t cgroup2 none DIR", "socket hooks"
    )


def _bpffs(folder: Path) -> Feature:
    present = bpffs.is_bpffs(folder)
    known = "\tbpf" in _text(Path("/proc/filesystems"))
    if present:
        detail = str(folder)
    elif known:
        detail = f"none at {folder}; the agent mounts one"
    else:
        detail = "the kernel has none (CONFIG_BPF_SYSCALL)"
    return Feature(
        "bpffs", present or known, detail, "pins: the datapath outlives the agent", needed=True
    )


def _maps() -> Iterator[Feature]:
    no_prealloc = MapFlag.NO_PREALLOC
    yield _try(
        "hash maps",
        "policy, endpoints, connections",
        lambda: probes.map_type(MapType.HASH, 4, 4, 4),
        needed=True,
    )
    yield _try(
        "LRU hash maps",
        "fragments, connection overflow",
        lambda: probes.map_type(MapType.LRU_HASH, 4, 4, 64),
        needed=True,
    )
    yield _try(
        "LPM maps",
        "peers by address",
        lambda: probes.map_type(MapType.LPM_TRIE, 20, 8, 4, no_prealloc),
        needed=True,
    )
    yield _try(
        "ring buffer",
        "events",
        lambda: probes.map_type(MapType.RINGBUF, 0, 0, 4096 * 16),
        needed=True,
    )
    yield _try(
        "batches",
        "map writes 8 times as fast",
        lambda: probes.batches(MapType.HASH, 4, no_prealloc),
    )
    yield _try(
        "LPM batches",
        "peer writes in bulk",
        lambda: probes.batches(MapType.LPM_TRIE, 20, no_prealloc),
    )
    yield _try("sockmap", "socket redirect",
               lambda: probes.map_type(MapType.SOCKHASH, 4, 4, 4))  # fmt: skip


def _programs() -> Iterator[Feature]:
    yield _try(
        "tc programs", "the datapath", lambda: probes.program(ProgramType.SCHED_CLS), needed=True
    )
    yield _try(
        "redirect_peer",
        "delivery between pods of this node",
        lambda: probes.helper(_REDIRECT_PEER),
        needed=True,
    )
    yield _jit()
    yield _try("test run", "policy explain, tests", probes.test_run)
    yield _try(
        "socket programs",
        "socket redirect",
        lambda: probes.program(ProgramType.SK_MSG, AttachType.SK_MSG_VERDICT),
    )
    yield _try("cgroup hooks", "services at connect time",
               lambda: probes.program(ProgramType.CGROUP_SOCK_ADDR,
                                      AttachType.CGROUP_INET4_CONNECT))  # fmt: skip


def _jit() -> Feature:
    name, used = "JIT", "speed: without it programs are interpreted"
    try:
        works = probes.just_in_time()
    except OSError as error:
        return Feature(name, False, _reason(error), used)
    setting = _text(Path("/proc/sys/net/core/bpf_jit_enable")).strip()
    return Feature(name, works, f"net.core.bpf_jit_enable = {setting or '?'}", used)


def _hooks() -> Iterator[Feature]:
    tcx = _try("TCX", "attaching at uplinks, atomic replacement", probes.tcx)
    yield tcx
    used = "attaching at pods" if tcx.available else "attaching at pods, and at uplinks without TCX"
    yield _try("clsact", used, probes.clsact_filter, needed=True)
    yield _try("veth", "pod devices", lambda: probes.device("veth"), needed=True)
    yield _try("netkit", "nothing yet", lambda: probes.device("netkit"))


def _tools() -> Iterator[Feature]:
    used = "compiling programs (kept ones need no compiler)"
    try:
        tree = "/usr/include/linux"
        headers.check()
        yield Feature("UAPI headers", True, tree, used)
    except headers.HeadersMissing as error:
        yield Feature("UAPI headers", False, str(error), used)
    # Only looked for: importing it would bring LLVM in here.
    spec = importlib.util.find_spec("bcc")
    detail = str(spec.origin) if spec else "install python3-bpfcc; venv with system site packages"
    yield Feature("bcc", spec is not None, detail, used)


def _try(name: str, used_for: str, work: Callable[[], None], needed: bool = False) -> Feature:
    try:
        work()
    except OSError as error:
        return Feature(name, False, _reason(error), used_for, needed)
    return Feature(name, True, "tried: works", used_for, needed)


def _reason(error: OSError) -> str:
    if error.errno in _NOT_PERMITTED and os.geteuid() != 0:
        return "not tried: needs root"
    return str(error)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
