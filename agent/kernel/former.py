# SPDX-License-Identifier: Apache-2.0
"""Maps of a former agent whose layout or size is not ours: set aside, drawn from, forgotten.

What the agent computes from facts (policy, peers, endpoints) is made anew in our own maps. What
only the kernel knows is carried over: the epoch, counters, fragments and connections. Values only
ever grow at their end (bpf/maps.py), so both an older and a newer layout can be read, and bytes that
the other side does not have are zero. A map whose keys differ is not drawn from.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from agent.kernel import bpf
from agent.kernel.maps import MapError, MapMismatch, MapMissing, PinnedMap
from agent.kernel.syscall import BpfError
from bpf.maps import MapFlag, MapSpec, MapType, Octets, Writer

log = logging.getLogger(__name__)

_ASIDE: Final = "-former"
_NOEXIST: Final = 1
CONNECTIONS: Final = ("ct", "ct_overflow")
_CARRIED: Final = ("epoch", "metrics", "counters")


class Former:
    """The maps set aside, by name. Pins of theirs end in ``-former`` or have another version."""

    def __init__(self, maps: Mapping[str, PinnedMap[Any, Any]]) -> None:
        self._maps = dict(maps)

    @classmethod
    def set_aside(cls, folder: Path, specs: Mapping[str, MapSpec[Any, Any]]) -> Former:
        """Find pins of other versions; rename those of our own version that are not as ours."""
        found: dict[str, PinnedMap[Any, Any]] = {}
        for name, spec in specs.items():
            try:
                PinnedMap.open(spec, folder).close()
            except MapMissing:
                pass
            except MapMismatch as error:
                aside = folder / f"{spec.pin_name}{_ASIDE}"
                with contextlib.suppress(FileNotFoundError):
                    aside.unlink()
                os.rename(folder / spec.pin_name, aside)
                log.info("map %s is made anew: %s", name, "; ".join(error.differences))
        for pin in sorted(folder.iterdir()) if folder.is_dir() else ():
            base, _, rest = pin.name.rpartition("_v")
            if base in specs and pin.name != specs[base].pin_name and rest:
                opened = _open(base, pin)
                if opened is not None:
                    found[base] = opened
        return cls(found)

    def connections(self) -> PinnedMap[Any, Any] | None:
        """The former connection table, if there is one that can be drawn from."""
        return self._maps.get("ct")

    def carry_over(self, ours: Mapping[str, PinnedMap[Any, Any]]) -> None:
        """Take over what must not begin at zero. Once: maps that exist already are left alone."""
        for name in _CARRIED:
            former = self._maps.get(name)
            if former is not None and ours[name].created:
                _copy(former, ours[name], 0)

    def copy_connections(self, ours: Mapping[str, PinnedMap[Any, Any]]) -> int:
        """Take over connections and fragments that ours do not have yet; gives how many."""
        copied = 0
        for name in (*CONNECTIONS, "fragments"):
            former = self._maps.get(name)
            if former is not None:
                copied += _copy(former, ours[name], _NOEXIST)
        return copied

    def forget(self) -> None:
        """Remove the pins: nothing uses these maps any more."""
        for one in self._maps.values():
            one.unpin()
        self.close()

    def close(self) -> None:
        """Give the descriptors back."""
        for one in self._maps.values():
            one.close()
        self._maps = {}


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


def _copy(former: PinnedMap[Any, Any], ours: PinnedMap[Any, Any], flags: int) -> int:
    if former.spec.key.SIZE != ours.spec.key.SIZE:
        log.warning("map %s has other keys: its entries are not carried over", former.name)
        return 0
    per_cpu = former.spec.type.per_cpu
    if per_cpu and former.value_stride != ours.value_stride:
        return 0
    stride = ours.value_stride
    copied = 0
    for key, value in former.raw_items().items():
        try:
            ours.update_packed(key, value[:stride].ljust(stride, b"\0"), flags)
            copied += 1
        except BpfError as error:
            if error.errno != errno.EEXIST:
                raise
        except MapError as error:
            log.warning("not all connections could be carried over: %s", error)
            break
    return copied
