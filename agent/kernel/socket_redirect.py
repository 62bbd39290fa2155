# SPDX-License-Identifier: Apache-2.0
"""Socket redirect in the kernel: its maps and programs, where they are attached, what they say.

    maps/<name>_v<version>   programs/<name>-<digest>   redirect/<program>   (links)

A socket keeps the program, and so the maps, that were attached when it was entered. So the maps
are one set: where one cannot be taken as it is, all are given up, the old set is switched off (its
sockets go back to the stack, whatever program they have), and a new set is made.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.kernel import bpf, kernel_types
from agent.kernel.loader import Loader, ProgramSpec
from agent.kernel.maps import MapMismatch, PinnedMap
from agent.kernel.syscall import AttachType, BpfError, ProgramType
from bpf import maps
from bpf.layouts import RedirectConfig, SocketState, SocketTraffic, SocketTrafficKey

SOCK_OPS: Final = "sock_ops"
SK_MSG: Final = "sk_msg"
RCV_SPACE_ADJUST: Final = "rcv_space_adjust"
LIST_SOCKETS: Final = "list_sockets"

TRACEPOINT: Final = "btf_trace_tcp_rcv_space_adjust"
_ITERATOR: Final = "bpf_iter_bpf_sk_storage_map"
_CAST: Final = "bpf_rdonly_cast"
_CAST_TO: Final = "tcp_sock"
_MEMBERS: Final[Mapping[str, str]] = {
    "SOCK_SK_SOCKET": "sock.sk_socket",
    "SOCK_SK_RCVBUF": "sock.sk_rcvbuf",
    "SOCK_SK_FLAGS": "sock.__sk_common.skc_flags",
    "SOCK_RMEM_ALLOC": "sock.sk_backlog.rmem_alloc",
    "SOCK_RECEIVE_QUEUE_LENGTH": "sock.sk_receive_queue.qlen",
    "SOCKET_FILE": "socket.file",
    "FILE_F_FLAGS": "file.f_flags",
    "TCP_SOCK_WRITE_SEQ": "tcp_sock.write_seq",
    "TCP_SOCK_SND_UNA": "tcp_sock.snd_una",
    "TCP_SOCK_COPIED_SEQ": "tcp_sock.copied_seq",
}
_ZEROCOPY: Final = "sock_flags.SOCK_ZEROCOPY"
_LISTED: Final = struct.Struct(
    "=II"
)  # after each state: bytes that wait, packets of the stack that hold some
_RECORD_BYTES: Final = SocketState.SIZE + _LISTED.size
_READ_BYTES: Final = 1 << 16


class RedirectUnavailable(Exception):
    """This kernel cannot do it; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class ListedSocket:
    """One end of a connection, how many bytes wait in it to be read, and how many packets of the
    stack hold some of them: without any, all of them were redirected."""

    state: SocketState
    unread: int
    queued: int = 0


@dataclass(frozen=True, slots=True)
class _Kernel:
    macros: Mapping[str, int]
    tracepoint: int
    iterator: int

    @classmethod
    def read(cls) -> _Kernel:
        try:
            found = kernel_types.read(
                functions=[_ITERATOR, _CAST],
                typedefs=[TRACEPOINT],
                structures=[_CAST_TO],
                members=_MEMBERS.values(),
                enumerators=[_ZEROCOPY],
            )
        except kernel_types.KernelTypesError as error:
            raise RedirectUnavailable(str(error)) from error
        missing = sorted(
            [one for one in _MEMBERS.values() if one not in found.offsets]
            + [one for one in (_ITERATOR,) if one not in found.functions]
            + [one for one in (TRACEPOINT,) if one not in found.typedefs]
            + [one for one in (_ZEROCOPY,) if one not in found.values]
        )
        if missing:
            raise RedirectUnavailable(f"this kernel has no {', '.join(missing)}")
        macros = {name: found.offsets[member] for name, member in _MEMBERS.items()}
        macros["SOCK_ZEROCOPY"] = found.values[_ZEROCOPY]
        # A kernel without it (before 6.2) reads by a helper, which takes longer.
        macros["RDONLY_CAST"] = found.functions.get(_CAST, 0)
        macros["TYPE_TCP_SOCK"] = found.structures.get(_CAST_TO, 0)
        return cls(macros, found.typedefs[TRACEPOINT], found.functions[_ITERATOR])

    def programs(self) -> list[ProgramSpec]:
        return [
            ProgramSpec(SOCK_OPS, ProgramType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS),
            ProgramSpec(SK_MSG, ProgramType.SK_MSG, AttachType.SK_MSG_VERDICT),
            ProgramSpec(
                RCV_SPACE_ADJUST, ProgramType.TRACING, AttachType.TRACE_RAW_TP, self.tracepoint
            ),
            ProgramSpec(LIST_SOCKETS, ProgramType.TRACING, AttachType.TRACE_ITER, self.iterator),
        ]


class SocketRedirect:
    """`open`, `load`, then `attach`; `close` leaves it in force.

    bpffs_dir: None for maps and programs without pins, which go with this process (the self-test).
    """

    def __init__(self, bpffs_dir: Path | None, loader: Loader, max_sockets: int) -> None:
        self._root = bpffs_dir
        self._loader = loader
        self._specs = dict(maps.SOCKET_SPECS)
        self._specs["sockets"] = maps.SOCKETS.resized(max_sockets)
        self._maps: dict[str, PinnedMap[Any, Any]] = {}
        self._programs: dict[str, int] = {}
        self._links: list[int] = []

    def open(self) -> None:
        """Take over the maps that are there, or make them. Raises BpfError, MapError."""
        if self._root is None:
            self._maps = {name: PinnedMap.create(spec) for name, spec in self._specs.items()}
            return
        folder = self._root / "maps"
        try:
            if not self._others(folder):
                self._open_all(folder)
                return
        except MapMismatch:
            self.close()
        give_up(self._root)
        self._open_all(folder)

    def _others(self, folder: Path) -> bool:
        """Whether an agent of another version has maps there."""
        return any(
            pin.name != spec.pin_name
            for name, spec in self._specs.items()
            for pin in folder.glob(f"{name}_v*")
        )

    def _open_all(self, folder: Path) -> None:
        for name, spec in self._specs.items():
            self._maps[name] = PinnedMap.open_or_create(spec, folder)

    def load(self, shared: Mapping[str, int]) -> None:
        """Compile where needed, and load; attaches nothing.

        shared: descriptors of the maps that the packets' programs have. Raises
        RedirectUnavailable, LoadError.
        """
        kernel = _Kernel.read()
        own = {name: one.fd for name, one in self._maps.items()}
        pins = self._root / "programs" if self._root is not None else None
        self._programs = self._loader.load(
            kernel.programs(), kernel.macros, {**shared, **own}, pins
        )

    def attach(self, cgroup: Path) -> None:
        """Make these programs the ones in force for the sockets of this cgroup and those below.

        Each replaces a former agent's in one step, and pins that are gone are made again. Raises
        BpfError, OSError.
        """
        self._pin_again()
        bpf.program_attach(
            self._programs[SK_MSG], self._maps["sockets"].fd, AttachType.SK_MSG_VERDICT
        )
        self._attach_tracepoint()
        target = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._attach_cgroup(target)
        finally:
            os.close(target)

    def _pin_again(self) -> None:
        held = [(one.path, one.fd) for one in self._maps.values() if one.path is not None]
        held += [(pin, self._programs[name]) for name, pin in self._loader.pins.items()]
        for path, fd in held:
            if not path.exists():
                bpf.object_pin(fd, path)

    def _attach_tracepoint(self) -> None:
        program = self._programs[RCV_SPACE_ADJUST]
        pin = self._pin(RCV_SPACE_ADJUST)
        present = _open_link(pin)
        if present is not None:
            kept = bpf.link_info(present).program_id == bpf.program_info(program).id
            os.close(present)
            if kept:
                return
        # Both run for a moment, which comes to the same.
        self._keep(bpf.tracepoint_attach(program), pin)

    def _attach_cgroup(self, target: int) -> None:
        program = self._programs[SOCK_OPS]
        pin = self._pin(SOCK_OPS)
        present = _open_link(pin)
        if present is not None:
            try:
                info = bpf.link_info(present)
                if info.cgroup == os.fstat(target).st_ino:
                    if info.program_id != bpf.program_info(program).id:
                        bpf.link_update(present, program)
                    return
            finally:
                os.close(present)
        self._keep(bpf.link_create(program, target, AttachType.CGROUP_SOCK_OPS), pin)

    def _pin(self, name: str) -> Path | None:
        return self._root / "redirect" / name if self._root is not None else None

    def _keep(self, link: int, pin: Path | None) -> None:
        if pin is None:
            self._links.append(link)
            return
        try:
            pin.parent.mkdir(exist_ok=True)
            # A pin cannot be replaced in one step; what it held ends with it.
            pin.unlink(missing_ok=True)
            bpf.object_pin(link, pin)
        finally:
            os.close(link)

    def attached(self, cgroup: Path) -> bool:
        """Whether these programs are the ones in force there, and every pin is what it was."""
        for one in self._maps.values():
            if one.path is not None and not one.path.exists():
                return False
        for pin in self._loader.pins.values():
            if not pin.exists():
                return False
        if not self._judges_messages():
            return False
        for name in (SOCK_OPS, RCV_SPACE_ADJUST):
            link = _open_link(self._pin(name))
            if link is None:
                return False
            info = bpf.link_info(link)
            os.close(link)
            if info.program_id != bpf.program_info(self._programs[name]).id:
                return False
            if name == SOCK_OPS and info.cgroup != cgroup.stat().st_ino:
                return False
        return True

    def _judges_messages(self) -> bool:
        try:
            found = bpf.program_query(self._maps["sockets"].fd, AttachType.SK_MSG_VERDICT)
        except BpfError as error:
            if error.errno == errno.EINVAL:
                return True  # kernels before 5.18 do not tell
            raise
        return [number for number, _ in found] == [bpf.program_info(self._programs[SK_MSG]).id]

    def tag(self) -> str:
        """What the programs are, as the kernel sees them."""
        return " ".join(bpf.program_info(fd).tag for _, fd in sorted(self._programs.items()))

    def configure(self, enabled: bool, unread_max: int) -> None:
        """Switch it on or off; off: every message goes by the stack from now on.

        unread_max: bytes that may wait in a receiver before the stack is taken.
        """
        wanted = RedirectConfig(int(enabled), unread_max)
        if self._maps["redirect"].lookup(0) != wanted:
            self._maps["redirect"].update(0, wanted)

    def close(self) -> None:
        """Give descriptors back; what is pinned stays in force, what is not ends."""
        for fd in (*self._programs.values(), *self._links):
            os.close(fd)
        self._programs, self._links = {}, []
        for one in self._maps.values():
            one.close()
        self._maps = {}

    # ---- reading, from any thread ----------------------------------------------------------------

    def sockets(self) -> list[ListedSocket]:
        """Every socket that is in the table or looked at. Raises BpfError."""
        return list(_listed(self._programs[LIST_SOCKETS], self._maps["socket_states"].fd))

    def counters(self) -> list[int]:
        """Summed over CPUs, by enum socket_counter."""
        found = [0] * self._maps["socket_counters"].capacity
        for index, per_cpu in self._maps["socket_counters"].items_cpus():
            found[index] = sum(per_cpu)
        return found

    def traffic(self) -> dict[SocketTrafficKey, SocketTraffic]:
        """What ends that have closed sent past the stack, by identities."""
        return dict(self._maps["socket_traffic"].items())

    def living_traffic(self) -> dict[SocketTrafficKey, SocketTraffic]:
        """The same of ends that have not, as far as `traffic` does not hold it already."""
        import numpy as np

        listed = np.dtype([("state", SocketState.DTYPE), ("unread", "u4"), ("queued", "u4")])
        output = _listing(self._programs[LIST_SOCKETS], self._maps["socket_states"].fd)
        states = np.frombuffer(output, dtype=listed)["state"]
        pairs, of = np.unique(states[["identity", "far_identity"]], return_inverse=True)
        sums = np.zeros((2, len(pairs)), dtype=np.uint64)
        np.add.at(sums[0], of, states["bytes"] - states["told_bytes"])
        np.add.at(sums[1], of, states["messages"] - states["told_messages"])
        return {
            SocketTrafficKey(*pair): SocketTraffic(size, messages, 0)
            for pair, size, messages in zip(pairs.tolist(), *sums.tolist(), strict=True)
        }


def pinned_sockets(bpffs_dir: Path) -> list[ListedSocket]:
    """Every socket, by what an agent has pinned. Raises RedirectUnavailable, BpfError."""
    programs = sorted((bpffs_dir / "programs").glob(f"{LIST_SOCKETS}-*"))
    states = bpffs_dir / "maps" / maps.SOCKET_STATES.pin_name
    if not programs or not states.exists():
        raise RedirectUnavailable(f"socket redirect is not on: there is no {states}")
    with contextlib.ExitStack() as stack:
        program, table = bpf.object_get(programs[-1]), bpf.object_get(states)
        stack.callback(os.close, program)
        stack.callback(os.close, table)
        return list(_listed(program, table))


def _listed(program: int, states: int) -> Iterator[ListedSocket]:
    output = _listing(program, states)
    for at in range(0, len(output), _RECORD_BYTES):
        state = SocketState.unpack(output[at : at + SocketState.SIZE])
        yield ListedSocket(state, *_LISTED.unpack_from(output, at + SocketState.SIZE))


def _listing(program: int, states: int) -> bytes:
    """Whole records of struct listed_socket (bpf/list_sockets.c), back to back."""
    link = bpf.link_create_iterator(program, states)
    try:
        reader = bpf.iterator_create(link)
    finally:
        os.close(link)
    try:
        output = b"".join(iter(lambda: os.read(reader, _READ_BYTES), b""))
    finally:
        os.close(reader)
    return output[: len(output) // _RECORD_BYTES * _RECORD_BYTES]


def give_up(bpffs_dir: Path) -> list[str]:
    """Switch redirect off and remove its pins, whichever agent made them; gives what was removed.

    Sockets that are in the table go on by the stack. Absent ones are fine.
    """
    removed = []
    for pin in sorted((bpffs_dir / "maps").glob(f"{maps.REDIRECT.name}_v*")):
        with contextlib.suppress(BpfError):
            fd = bpf.object_get(pin)
            try:
                size = bpf.map_info(fd).value_size
                # Its first word is the switch, in every version.
                bpf.map_update(fd, bytes(4), bytes(size), bpf.UPDATE_ANY, f"map {pin.name}")
            finally:
                os.close(fd)
    pins = [bpffs_dir / "redirect" / name for name in (SOCK_OPS, RCV_SPACE_ADJUST)]
    for pin in pins:
        link = _open_link(pin)
        if link is not None:
            # Here and now: without its last pin a link ends some time later.
            with contextlib.suppress(BpfError):
                bpf.link_detach(link)
            os.close(link)
    for name in maps.SOCKET_SPECS:
        pins += sorted((bpffs_dir / "maps").glob(f"{name}_v*"))
    for name in (SOCK_OPS, SK_MSG, RCV_SPACE_ADJUST, LIST_SOCKETS):
        pins += sorted((bpffs_dir / "programs").glob(f"{name}-*"))
    for pin in pins:
        if pin.exists():
            pin.unlink(missing_ok=True)
            removed.append(str(pin))
    with contextlib.suppress(OSError):
        (bpffs_dir / "redirect").rmdir()
    return removed


def _open_link(pin: Path | None) -> int | None:
    if pin is None:
        return None
    try:
        return bpf.object_get(pin)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
