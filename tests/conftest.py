# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures: what a test of the kernel may use, and when it is skipped.

A test marked ``kernel`` needs root and BPF. Without them it is skipped with the reason, and fails
where BRISTLE_REQUIRE_KERNEL=1. Everything these fixtures make ends with the test process, also
when that is killed: network namespaces are held by a descriptor and have no name, and mounts live
in a mount namespace that the process has for itself.
"""

import ctypes
import functools
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings

from bench.lab.kubeapi import NotOffered
from tests.needs import lacking

# A busy machine must not fail a test: nothing here asserts on time.
settings.register_profile("bristle", deadline=None)
settings.load_profile("bristle")

# Before anything imports bench.lab.agent.
os.environ.setdefault(
    "BRISTLE_LAB_KEPT", str(Path(__file__).resolve().parents[1] / ".cache" / "programs")
)

T = TypeVar("T")

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_libc = ctypes.CDLL(None, use_errno=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips kernel tests where they cannot run, or fails them where they must."""
    if item.get_closest_marker("kernel") is None:
        return
    reason = unusable_kernel()
    if reason is not None:
        lacking(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Skips what only the lab's own API server can do, where another takes its place."""
    try:
        return (yield)
    except NotOffered as missing:
        pytest.skip(str(missing))


@functools.cache
def unusable_kernel() -> str | None:
    """Why kernel tests cannot run here, None where they can."""
    if os.geteuid() != 0:
        return f"kernel tests need root (user id is {os.geteuid()})"
    from agent.kernel import bpf, probes
    from bpf.maps import MapType

    try:
        probes.map_type(MapType.ARRAY, 4, 4, 1)
        probes.program(bpf.ProgramType.SCHED_CLS)
        probes.in_private_namespace(lambda: None)
    except OSError as error:
        return f"kernel tests need BPF and network namespaces: {error}"
    return None


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


@pytest.fixture(scope="session")
def private_mounts() -> None:
    """Mounts made from here on are seen by this process and its children alone."""
    _checked(_libc.unshare(_CLONE_NEWNS), "new mount namespace")
    _checked(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "private mounts")


@pytest.fixture
def bpffs_dir(private_mounts: None, tmp_path: Path) -> Iterator[Path]:
    """An empty BPF file system of the test's own."""
    folder = tmp_path / "bristle-t-bpffs"
    folder.mkdir()
    _checked(_libc.mount(b"bpf", os.fsencode(folder), b"bpf", 0, b"mode=0700"), "mount bpffs")
    yield folder
    _checked(_libc.umount2(os.fsencode(folder), 2), f"unmount {folder}")  # MNT_DETACH


@dataclass(frozen=True)
class Netns:
    """A network namespace without a name; ``path`` works as CNI_NETNS while the test runs."""

    fd: int

    @property
    def path(self) -> str:
        """Where other processes find it."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def run(self, work: Callable[[], T]) -> T:
        """Call ``work`` in the namespace; processes that it starts are in it too."""
        from agent.kernel.netns import run_in

        return run_in(self.fd, work)

    def ip(self, *arguments: str) -> str:
        """Output of ip(8) in the namespace. Raises CalledProcessError with its complaint."""
        return self.command("ip", *arguments)

    def command(self, *arguments: str) -> str:
        """Output of a command in the namespace."""

        def work() -> str:
            run = subprocess.run(arguments, capture_output=True, text=True, check=False)
            assert run.returncode == 0, f"{' '.join(arguments)}: {run.stderr}"
            return run.stdout

        return self.run(work)


@pytest.fixture
def make_netns() -> Iterator[Callable[[], Netns]]:
    """Makes network namespaces, with ``lo`` up; they end with the test."""
    made: list[Netns] = []

    def make() -> Netns:
        result: list[int | BaseException] = []

        def work() -> None:
            try:
                _checked(_libc.unshare(_CLONE_NEWNET), "new network namespace")
                result.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
            except BaseException as error:
                result.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        (fd,) = result
        if isinstance(fd, BaseException):
            raise fd
        made.append(Netns(fd))
        made[-1].ip("link", "set", "lo", "up")
        return made[-1]

    yield make
    for namespace in made:
        os.close(namespace.fd)


@pytest.fixture
def netns(make_netns: Callable[[], Netns]) -> Netns:
    """One network namespace."""
    return make_netns()
