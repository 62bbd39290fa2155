# SPDX-License-Identifier: Apache-2.0
"""Maps of a former agent whose layout or size is not ours: set aside, drawn from, forgotten.

What the agent computes from facts (policy, peers, endpoints) is made anew in maps of our own: the
former agent's programs go on with theirs, which they hold without a pin, until they are replaced.
What only the kernel knows is carried over: the epoch, counters, fragments and connections. Values
only ever grow at their end (bpf/maps.py), so both an older and a newer layout can be read, and
bytes that the other side does not have are zero. A map whose keys differ is not drawn from.

An agent may be killed at any moment of a take-over, and the next one may have yet another layout;
so there can be several former connection tables. One invariant keeps that simple: the oldest table
that is pinned is one that every attached program knows. While devices change over, new programs
write to the oldest as well as to ours; before the first program is attached that does not, all
former pins are removed.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.kernel import bpf
from agent.kernel.maps import MapFull, MapMismatch, MapMissing, PinnedMap
from agent.kernel.syscall import BpfError
from bpf.maps import MapFlag, MapSpec, MapType, Octets, Writer

log = logging.getLogger(__name__)

CONNECTIONS: Final = ("ct", "ct_overflow")
MAPPINGS: Final = ("nat", "nat_reverse")
_ASIDE: Final = "-former-"
_COUNTED: Final = ("metrics", "counters")
_DRAWN_FROM: Final = frozenset({*CONNECTIONS, *MAPPINGS, "fragments", "epoch", *_COUNTED})
# Peer classes, tables and what endpoints have of them refer to each other by numbers. Programs
# that know only some of the new ones would find nothing for them, and deny.
_TOGETHER: Final = ("policy", "peers", "endpoints")
_NUMBERS: Final = "numbers"


@dataclass(frozen=True, slots=True)
class Known:
    """A connection table and its overflow table, as descriptors, with values of ``size`` bytes."""

    table: int
    overflow: int
    size: int


@dataclass(frozen=True, slots=True)
class KnownMappings:
    """Tables of masqueraded connections, as descriptors, and the sizes of their values."""

    out: int
    back: int
    out_size: int
    back_size: int


class Former:
    """The maps set aside: by name, oldest first. Their pins have another version or end in
    ``-former-<map id>``."""

    def __init__(self, maps: Mapping[str, Sequence[PinnedMap[Any, Any]]]) -> None:
        self._maps = {name: sorted(some, key=_id) for name, some in maps.items() if some}

    @classmethod
    def set_aside(cls, folder: Path, specs: Mapping[str, MapSpec[Any, Any]]) -> Former:
        """Find pins of other versions; rename those of our own version that are not as ours.

        Pins of maps that nothing is drawn from are removed.
        """
        others = _others(folder, specs)
        anew = {name for name, pins in others.items() if pins}
        if _NUMBERS in anew or not anew.isdisjoint(_TOGETHER):
            anew.update(_TOGETHER)
        found: dict[str, list[PinnedMap[Any, Any]]] = {}
        for name in sorted(anew):
            pins = others[name]
            if name not in _DRAWN_FROM:
                for pin in {*pins, folder / specs[name].pin_name}:
                    pin.unlink(missing_ok=True)
                continue
            for pin in pins:
                opened = _open(name, pin)
                if opened is None:
                    continue
                if pin.name == specs[name].pin_name:
                    opened.path = folder / f"{pin.name}{_ASIDE}{_id(opened)}"
                    os.rename(pin, opened.path)
                found.setdefault(name, []).append(opened)
        return cls(found)

    def connections(self, ours: Mapping[str, PinnedMap[Any, Any]]) -> Known | None:
        """What all attached programs know of connections; None where that is our own table, or
        where nothing can be drawn from it."""
        tables = self._maps.get("ct")
        if not tables or _id(tables[0]) > _id(ours["ct"]):
            return None
        if tables[0].spec.key.SIZE != ours["ct"].spec.key.SIZE:
            return None
        size = tables[0].spec.value.SIZE
        # A table of another size only has the same overflow table as ours.
        overflows = [*self._maps.get("ct_overflow", ()), ours["ct_overflow"]]
        alike = [one for one in overflows if size == one.spec.value.SIZE]
        return Known(tables[0].fd, alike[0].fd if alike else tables[0].fd, size)

    def mappings(self, ours: Mapping[str, PinnedMap[Any, Any]]) -> KnownMappings | None:
        """As `connections`, for masqueraded ones."""
        known = []
        for name in MAPPINGS:
            one = next(iter(self._maps.get(name, ())), ours[name])
            if _id(one) > _id(ours[name]) or one.spec.key.SIZE != ours[name].spec.key.SIZE:
                return None
            known.append(one)
        out, back = known
        if out is ours["nat"] and back is ours["nat_reverse"]:
            return None
        return KnownMappings(out.fd, back.fd, out.spec.value.SIZE, back.spec.value.SIZE)

    def carry_over(self, ours: Mapping[str, PinnedMap[Any, Any]]) -> None:
        """Take over what must not begin at zero; may be repeated.

        The epoch never goes back. Counters are taken over only into maps that are new.
        """
        for former in self._maps.get("epoch", ()):
            _advance(former, ours["epoch"])
        for name in _COUNTED:
            for former in self._maps.get(name, ())[-1:]:
                if ours[name].created:
                    _copy_counted(former, ours[name])

    def copy_connections(self, ours: Mapping[str, PinnedMap[Any, Any]]) -> int:
        """Take over connections and fragments that ours do not have yet; gives how many.

        What finds no room in a table that is smaller now goes where new connections go then.
        """
        copied = 0
        # The way back first, as the programs make them.
        for name in (*CONNECTIONS, "fragments", *reversed(MAPPINGS)):
            overflow = ours["ct_overflow"] if name == "ct" else None
            for former in self._maps.get(name, ()):
                copied += _copy(former, ours[name], overflow)
        return copied

    def unpin(self) -> None:
        """Remove the pins: no agent is to draw on these maps again. They can be until `close`."""
        for some in self._maps.values():
            for one in some:
                one.unpin()

    def close(self) -> None:
        """Give the descriptors back."""
        for some in self._maps.values():
            for one in some:
                one.close()
        self._maps = {}


def _others(folder: Path, specs: Mapping[str, MapSpec[Any, Any]]) -> dict[str, list[Path]]:
    """For each map, the pins of its name that are not the map we use."""
    others: dict[str, list[Path]] = {name: [] for name in specs}
    for pin in sorted(folder.iterdir()) if folder.is_dir() else ():
        name, _, version = pin.name.rpartition("_v")
        if name in specs and version and pin.name != specs[name].pin_name:
            others[name].append(pin)
    for name, spec in specs.items():
        try:
            PinnedMap.open(spec, folder).close()
        except MapMissing:
            pass
        except MapMismatch as error:
            log.info("map %s is made anew: %s", name, "; ".join(error.differences))
            others[name].append(folder / spec.pin_name)
    return others


def _open(name: str, pin: Path) -> PinnedMap[Any, Any] | None:
    """A map of whatever shape; None where the pin is none."""
    try:
        fd = bpf.object_get(pin)
        if bpf.object_kind(fd) != "map":
            os.close(fd)
            return None
        info = bpf.map_info(fd)
        kind = MapType(info.type)
    except (BpfError, ValueError) as error:
        log.warning("%s is left alone: %s", pin, error)
        return None
    spec = MapSpec(
        name, kind, Octets(info.key_size), Octets(info.value_size), info.max_entries,
        Writer.PROGRAMS, MapFlag(info.flags & MapFlag.NO_PREALLOC),
    )  # fmt: skip
    return PinnedMap(spec, fd, pin, False)


def _id(one: PinnedMap[Any, Any]) -> int:
    """Numbers of maps rise until the next boot, which ends all pins."""
    return one.info().id


def _advance(former: PinnedMap[Any, Any], ours: PinnedMap[Any, Any]) -> None:
    raw = former.raw_items().get(b"\0\0\0\0", b"")
    if len(raw) == ours.value_stride:
        epoch = ours.spec.value.unpack(raw)
        if epoch > (ours.lookup(0) or 0):
            ours.update(0, epoch)


def _copy_counted(former: PinnedMap[Any, Any], ours: PinnedMap[Any, Any]) -> None:
    if (former.spec.key.SIZE, former.value_stride) != (ours.spec.key.SIZE, ours.value_stride):
        log.warning("map %s has other values: counting begins at zero", former.name)
        return
    for key, value in former.raw_items().items():
        if int.from_bytes(key, "little") < ours.capacity:
            ours.update_packed(key, value)


def _copy(
    former: PinnedMap[Any, Any],
    ours: PinnedMap[Any, Any],
    overflow: PinnedMap[Any, Any] | None,
) -> int:
    width = former.spec.key.SIZE
    if width != ours.spec.key.SIZE:
        log.warning("map %s has other keys: its entries are not carried over", former.name)
        return 0
    present = _keys(ours)
    if overflow is not None:
        present |= _keys(overflow)
    size, stride = former.value_stride, ours.value_stride
    target, copied = ours, 0
    for keys, values in former.chunks():
        for n in range(len(keys) // width):
            key = keys[n * width : (n + 1) * width]
            if key in present:
                continue
            value = values[n * size : (n + 1) * size][:stride].ljust(stride, b"\0")
            try:
                copied += _add(target, key, value)
            except MapFull:
                if ours.name in MAPPINGS:
                    log.warning(
                        "map %s is full (%d entries): further masqueraded connections are not"
                        " carried over",
                        ours.name, ours.capacity,
                    )  # fmt: skip
                    return copied
                if overflow is None or target is overflow:
                    raise
                log.warning(
                    "map %s is full (%d entries): further connections are carried over to %s,"
                    " where the oldest give way",
                    ours.name, ours.capacity, overflow.name,
                )  # fmt: skip
                target = overflow
                copied += _add(target, key, value)
    return copied


def _add(target: PinnedMap[Any, Any], key: bytes, value: bytes) -> int:
    try:
        return target.update_packed(key, value, bpf.UPDATE_NOEXIST)
    except BpfError as error:
        if error.errno != errno.EEXIST:
            raise
        return 0  # a program was faster, and knows better


def _keys(one: PinnedMap[Any, Any]) -> set[bytes]:
    width = one.spec.key.SIZE
    return {
        keys[n * width : (n + 1) * width]
        for keys, _ in one.chunks()
        for n in range(len(keys) // width)
    }


__all__ = ["CONNECTIONS", "Former"]
