# SPDX-License-Identifier: Apache-2.0
"""What the agent put on the host beside the entries of maps, and others may take away: programs at
devices, pins, the node's routes and neighbours for pods. Compared as a whole, and put back.

A pod's device that is gone is no difference: its namespace took it along, and CNI DEL will come.
Called in the loop's thread.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agent.core.store import Store
from agent.kernel import hostside
from agent.kernel.datapath import FROM_POD, TO_POD, Datapath
from agent.kernel.endpoint_store import EndpointRecord
from agent.kernel.links import Hook, LinkError
from agent.kernel.pins import pin_again, pin_state
from agent.kernel.rtnl import DumpInterrupted, Request, RtnlError, RtnlSocket

log = logging.getLogger(__name__)

_AT_ONCE: Final = 64  # messages whose acknowledgements wait in a socket's receive buffer
_NAMED: Final = 3
PROGRAMS: Final = "programs"

Repair = Callable[[], object] | tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Deviation:
    """One thing that is not as the agent left it. `where`: programs, pins, routes, neighbours, ...;
    `name`: the device and direction, the file, the address."""

    where: str
    name: str
    expected: str
    actual: str
    repair: Repair

    def __str__(self) -> str:
        return f"{self.name}: expected {self.expected}, found {self.actual}"


class Surroundings:
    """Of one agent. `records` are all wired pods; those that the store does not have any more are
    being taken down. `further` gives the deviations of what others look after."""

    def __init__(
        self,
        datapath: Datapath,
        store: Store,
        records: Iterable[EndpointRecord],
        uplinks: Sequence[str],
        index_of: Callable[[str], int] = socket.if_nametoindex,
        further: Callable[[], list[Deviation]] = list,
    ) -> None:
        self._datapath = datapath
        self._store = store
        self._records = records
        self._uplinks = uplinks
        self._index_of = index_of
        self._further = further
        self.gone: frozenset[int] = frozenset()
        """Endpoints whose devices are gone."""
        self.problems: dict[str, str] = {}
        """What is not as it should be and could not be put back, by `where`."""
        self.mended: Counter[str] = Counter()

    def check(self) -> list[Deviation]:
        """All that differs. Raises OSError, RtnlError."""
        from_pod, to_pod = self._datapath.program_ids()
        records = [one for one in self._records if one.endpoint in self._store.endpoints]
        attached = self._datapath.endpoint_programs([one.host_ifindex for one in records])
        found: list[Deviation] = []
        present = []
        for record in records:
            ids = attached[record.host_ifindex]
            if ids is not None:
                present.append(record)
                if ids != (from_pod, to_pod):
                    found += self._endpoint(record, ids, (from_pod, to_pod))
        self.gone = frozenset(one.endpoint for one in records) - {one.endpoint for one in present}
        for device in self._uplinks:
            for hook, (name, number) in self._datapath.uplink_programs().items():
                found += self._uplink(device, hook, name, number)
        for path, fd in self._datapath.pins():
            state = pin_state(fd, path)
            if state:
                found.append(Deviation("pins", str(path), "our object", state, _again(fd, path)))
        return found + _host(present) + self._further()

    def mend(self, found: Sequence[Deviation]) -> None:
        """Put back what `check` found. What cannot be is in `problems` and in the log; nothing is
        raised."""
        self.problems = {}
        for where in dict.fromkeys(one.where for one in found):
            names = [str(one) for one in found if one.where == where]
            log.warning("%s are not as they should be: %s", where, _shortened(names))
        failures: dict[Repair, Exception] = {}
        batch: list[tuple[Repair, Request]] = []
        for repair in dict.fromkeys(one.repair for one in found):
            if isinstance(repair, tuple):
                batch += [(repair, request) for request in repair]
                continue
            try:
                repair()
            except (LinkError, OSError) as error:
                failures[repair] = error
        failures |= _send(batch)
        for where in dict.fromkeys(one.where for one in found):
            concerned = [one for one in found if one.where == where]
            bad = [f"{one}: {failures[one.repair]}" for one in concerned if one.repair in failures]
            if bad:
                self.problems[where] = _shortened(bad)
                log.error("%s could not be put back: %s", where, self.problems[where])
            self.mended[where] += len(concerned) - len(bad)
        if any(one.where == PROGRAMS for one in found):
            # Packets passed unseen: no verdict from before is one to go by.
            self._datapath.bump_epoch()

    def attend(self) -> None:
        """Compare, and put back. Raises OSError, RtnlError."""
        found = self.check()
        if found:
            self.mend(found)
        else:
            self.problems = {}

    # ---- parts -----------------------------------------------------------------------------------

    def _endpoint(
        self, record: EndpointRecord, ids: tuple[int, int], wanted: tuple[int, int]
    ) -> list[Deviation]:
        def repair() -> None:
            try:
                self._datapath.attach_endpoint_anew(record.host_ifindex)
            except RtnlError as error:
                if not _no_device(error):
                    raise

        sides = zip(("ingress", "egress"), (FROM_POD, TO_POD), ids, wanted, strict=True)
        return [
            Deviation(
                PROGRAMS, f"{record.host_name} {hook}", _program(right, name), _program(there),
                repair,
            )
            for hook, name, there, right in sides
            if there != right
        ]  # fmt: skip

    def _uplink(self, device: str, hook: Hook, program: str, wanted: int) -> list[Deviation]:
        where = f"{device} {hook.value[0]}"

        def repair() -> None:
            try:
                index = self._index_of(device)
            except OSError as error:
                raise LinkError(f"there is no device {device}") from error
            self._datapath.attach_uplink_anew(device, index)

        expected = _program(wanted, program)
        try:
            there = self._datapath.uplinks.program_id(device, self._index_of(device), hook)
        except RtnlError:
            raise
        except OSError:
            return [Deviation(PROGRAMS, where, expected, "no such device", repair)]
        if there == wanted:
            return []
        return [Deviation(PROGRAMS, where, expected, _program(there), repair)]


def _host(present: Sequence[EndpointRecord]) -> list[Deviation]:
    if not present:
        return []
    try:
        with RtnlSocket() as netlink:
            lacking = hostside.missing(netlink, present)
    except DumpInterrupted as error:
        log.debug("%s", error)  # the next round tells
        return []
    return [Deviation(one.what, one.name, one.expected, one.found, one.restore) for one in lacking]


def _send(batch: Sequence[tuple[Repair, Request]]) -> dict[Repair, Exception]:
    """What could not be done. A device that is gone by now is no failure."""
    failures: dict[Repair, Exception] = {}
    if not batch:
        return failures
    with RtnlSocket() as netlink:
        for at in range(0, len(batch), _AT_ONCE):
            some = batch[at : at + _AT_ONCE]
            outcomes = netlink.attempt([request for _, request in some])
            for (repair, _), error in zip(some, outcomes, strict=True):
                if error is not None and not _no_device(error):
                    failures[repair] = error
    return failures


def _again(fd: int, path: Path) -> Repair:
    return lambda: pin_again(fd, path)


def _no_device(error: RtnlError) -> bool:
    return error.errno == errno.ENODEV


def _program(number: int, name: str = "") -> str:
    return f"program {name} {number}".replace("  ", " ") if number else "no program"


def _shortened(texts: Sequence[str]) -> str:
    more = len(texts) - _NAMED
    return "; ".join(texts[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
