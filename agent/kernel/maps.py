# SPDX-License-Identifier: Apache-2.0
"""Maps of ``bpf.maps`` in the kernel: created, checked, pinned, read and written.

A pin is only ever reused when its type, sizes and flags are exactly the specified ones. Writing is
idempotent: an update replaces, a delete of what is absent succeeds. The only module that turns
typed keys and values into bytes for the kernel.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from agent.kernel import batch, bpf
from agent.kernel.batch import EntryError
from agent.kernel.bpf import MapInfo
from agent.kernel.small_btf import KEY_TYPE, VALUE_TYPE, octets_btf
from agent.kernel.syscall import BpfError
from bpf.maps import MapSpec, MapType

K = TypeVar("K")
V = TypeVar("V")


class Packed(Protocol):
    """Records back to back that can give their bytes: a numpy array, a memoryview."""

    def tobytes(self) -> bytes: ...


Records = bytes | bytearray | Packed


class MapError(Exception):
    """A map cannot be used; the message names it and says what to do."""


class MapMissing(MapError):
    """Nothing is pinned under the map's name."""


class MapMismatch(MapError):
    """Another object, or a map of another shape, is pinned under the map's name."""

    def __init__(self, path: Path, differences: Iterable[str]) -> None:
        self.path = path
        self.differences = tuple(differences)
        super().__init__(
            f"{path} is not the map it should be: {'; '.join(self.differences)}. It was left as it"
            " is: set the size back, or remove everything with: bristle cleanup"
        )


class MapFull(MapError):
    """A write found no room. ``wanted`` entries were to be written, ``written`` were."""

    def __init__(self, name: str, capacity: int, wanted: int, written: int) -> None:
        self.name = name
        self.capacity = capacity
        self.wanted = wanted
        self.written = written
        super().__init__(
            f"map {name} is full: it holds {capacity} entries, and {wanted - written} of {wanted}"
            f" found no room: raise the size of map {name} in the configuration"
        )


class PinnedMap(Generic[K, V]):
    """One map, held by its descriptor. Close it, or use it in a ``with`` statement.

    ``path`` is its pin, None for a map that lives only as long as its descriptors and programs.
    ``created`` says that this call made it, so that it is empty.
    """

    __slots__ = ("_cpus", "created", "fd", "path", "spec", "value_stride")

    def __init__(self, spec: MapSpec[K, V], fd: int, path: Path | None, created: bool) -> None:
        self.spec = spec
        self.fd = fd
        self.path = path
        self.created = created
        self._cpus = possible_cpus() if spec.type.per_cpu else 1
        size = spec.value.SIZE
        #: Bytes of one entry's value as the kernel copies it: per CPU, each rounded up to 8.
        self.value_stride = (size + 7) // 8 * 8 * self._cpus if spec.type.per_cpu else size

    @classmethod
    def create(cls, spec: MapSpec[K, V]) -> "PinnedMap[K, V]":
        """A new map without a pin. Raises BpfError."""
        with contextlib.ExitStack() as stack:
            described = None
            if spec.type is MapType.SK_STORAGE:
                btf = bpf.btf_load(octets_btf(spec.value.SIZE), f"types of map {spec.name}")
                stack.callback(os.close, btf)
                described = (btf, KEY_TYPE, VALUE_TYPE)
            fd = bpf.map_create(
                spec.type, spec.key.SIZE, spec.value.SIZE, spec.max_entries, spec.flags,
                f"bri_{spec.name}", btf=described,
            )  # fmt: skip
        return cls(spec, fd, None, True)

    @classmethod
    def open(
        cls, spec: MapSpec[K, V], folder: Path, *, any_size: bool = False
    ) -> "PinnedMap[K, V]":
        """The map that is pinned in ``folder``. Raises MapMissing, MapMismatch, BpfError.

        With ``any_size`` its number of entries may differ from the specified one: for readers,
        and for taking over the entries of a map whose configured size has changed.
        """
        path = folder / spec.pin_name
        try:
            fd = bpf.object_get(path)
        except BpfError as error:
            if error.errno == errno.ENOENT:
                raise MapMissing(f"map {spec.name}: nothing is pinned at {path}") from error
            raise
        try:
            differences = list(_differences(spec, fd, any_size))
            if differences:
                raise MapMismatch(path, differences)
            if any_size:
                spec = spec.resized(bpf.map_info(fd).max_entries)
        except BaseException:
            os.close(fd)
            raise
        return cls(spec, fd, path, False)

    @classmethod
    def open_or_create(cls, spec: MapSpec[K, V], folder: Path) -> "PinnedMap[K, V]":
        """The map pinned in ``folder`` (on a bpffs), made and pinned where it is missing.

        Raises MapMismatch where the pin is anything but this map, which then stays untouched.
        """
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return cls.open(spec, folder)
        except MapMissing:
            made = cls.create(spec)
        try:
            bpf.object_pin(made.fd, folder / spec.pin_name)
        except BpfError as error:
            made.close()
            if error.errno == errno.EEXIST:  # another process was faster
                return cls.open(spec, folder)
            raise
        made.path = folder / spec.pin_name
        return made

    def close(self) -> None:
        """Give the descriptor back; a pin keeps the map."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def unpin(self) -> None:
        """Remove the pin; an absent one is fine."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
            self.path = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The map's name in ``bpf.maps.SPECS``."""
        return self.spec.name

    @property
    def capacity(self) -> int:
        """How many entries fit (bytes for a ring buffer)."""
        return self.spec.max_entries

    def info(self) -> MapInfo:
        """What the kernel says about the map."""
        return bpf.map_info(self.fd)

    # ---- one entry ------------------------------------------------------------------------------

    def lookup(self, key: K) -> V | None:
        """The value of ``key``, None where it is absent. Not for per-CPU maps."""
        raw = self._raw(key)
        return None if raw is None else self.spec.value.unpack(raw)

    def lookup_cpus(self, key: K) -> list[V]:
        """Each possible CPU's value of ``key``; empty where it is absent."""
        raw = self._raw(key)
        return [] if raw is None else list(self._split(raw))

    def update(self, key: K, value: V, flags: int = bpf.UPDATE_ANY) -> None:
        """Write one entry. Raises MapFull, BpfError (EEXIST, ENOENT as ``flags`` ask)."""
        self.update_many([(key, value)], flags)

    def delete(self, key: K) -> bool:
        """Delete one entry; False where it was absent."""
        return bpf.map_delete(self.fd, self.spec.key.pack(key), self._what)

    # ---- many entries ---------------------------------------------------------------------------

    def items(self) -> Iterator[tuple[K, V]]:
        """All entries. What changes meanwhile may be missing, old or new; nothing comes twice."""
        unpack_key, unpack_value = self.spec.key.unpack, self.spec.value.unpack
        for key, value in self.raw_items().items():
            yield unpack_key(key), unpack_value(value)

    def items_cpus(self) -> Iterator[tuple[K, list[V]]]:
        """All entries of a per-CPU map, with each possible CPU's value."""
        for key, value in self.raw_items().items():
            yield self.spec.key.unpack(key), list(self._split(value))

    def raw_items(self) -> dict[bytes, bytes]:
        """All entries as {key: value} in bytes; values of ``value_stride`` bytes."""
        width, stride = self.spec.key.SIZE, self.value_stride
        found: dict[bytes, bytes] = {}
        for keys, values in self.chunks():
            found.update(
                (keys[n * width : (n + 1) * width], values[n * stride : (n + 1) * stride])
                for n in range(len(keys) // width)
            )
        return found

    def chunks(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries as packed (keys, values), thousands at a time: for ``numpy.frombuffer``.

        An entry may come twice when others are deleted meanwhile.
        """
        return batch.lookup_all(
            self.fd, self.spec.key.SIZE, self.value_stride, self.capacity, self._what
        )

    def update_many(self, items: Iterable[tuple[K, V]], flags: int = bpf.UPDATE_ANY) -> int:
        """Write entries; returns how many. Raises as ``update``; those before a failure stay."""
        pack_key, pack_value = self.spec.key.pack, self.spec.value.pack
        pairs = [(pack_key(key), pack_value(value)) for key, value in items]
        keys = b"".join(key for key, _ in pairs)
        return self.update_packed(keys, b"".join(value for _, value in pairs), flags)

    def update_packed(self, keys: Records, values: Records, flags: int = bpf.UPDATE_ANY) -> int:
        """Write entries that are packed already: bytes, or numpy arrays of the DTYPEs.

        Raises ValueError where lengths do not fit, and otherwise as ``update_many``.
        """
        packed_keys, packed_values = _bytes(keys), _bytes(values)
        count = self._count(packed_keys)
        if len(packed_values) != count * self.value_stride:
            raise ValueError(f"map {self.name}: {count} keys, {len(packed_values)} bytes of values")
        try:
            batch.update(
                self.fd, packed_keys, packed_values, self.spec.key.SIZE, self.value_stride, flags,
                self._what,
            )  # fmt: skip
        except EntryError as error:
            if error.cause.errno in (errno.E2BIG, errno.ENOSPC):
                raise MapFull(self.name, self.capacity, count, error.done) from error.cause
            raise error.cause from error
        return count

    def delete_many(self, keys: Iterable[K]) -> int:
        """Delete entries; returns how many there were. Absent ones are fine."""
        pack = self.spec.key.pack
        return self.delete_packed(b"".join(pack(key) for key in keys))

    def delete_packed(self, keys: Records) -> int:
        """As ``delete_many``, with packed keys. Raises ValueError where the length does not fit."""
        packed = _bytes(keys)
        self._count(packed)
        try:
            return batch.delete(self.fd, packed, self.spec.key.SIZE, self._what)
        except EntryError as error:
            raise error.cause from error

    def copy_from(
        self,
        source: "PinnedMap[Any, Any]",
        convert: Callable[[bytes, bytes], tuple[bytes, bytes] | None] = lambda k, v: (k, v),
    ) -> int:
        """Take over the entries of an older or smaller map; returns how many.

        ``convert`` gets packed key and value and gives the new ones, or None to leave one out.
        Raises MapFull where they do not fit.
        """
        pairs = [pair for k, v in source.raw_items().items() if (pair := convert(k, v))]
        return self.update_packed(b"".join(k for k, _ in pairs), b"".join(v for _, v in pairs))

    # ---- inside ---------------------------------------------------------------------------------

    @property
    def _what(self) -> str:
        return f"map {self.spec.name}"

    def _raw(self, key: K) -> bytes | None:
        return bpf.map_lookup(self.fd, self.spec.key.pack(key), self.value_stride, self._what)

    def _split(self, raw: bytes) -> Iterator[V]:
        size, step = self.spec.value.SIZE, len(raw) // self._cpus
        for cpu in range(self._cpus):
            yield self.spec.value.unpack(raw[cpu * step : cpu * step + size])

    def _count(self, keys: bytes) -> int:
        count, rest = divmod(len(keys), self.spec.key.SIZE)
        if rest:
            raise ValueError(f"map {self.name}: {len(keys)} bytes are no whole number of keys")
        return count


def possible_cpus(path: Path = Path("/sys/devices/system/cpu/possible")) -> int:
    """How many CPUs the kernel holds per-CPU values for, as in the list ``0-3,6``."""
    ranges = (part.partition("-") for part in path.read_text().strip().split(","))
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)


def _bytes(records: Records) -> bytes:
    if isinstance(records, bytes):
        return records
    return bytes(records) if isinstance(records, bytearray) else records.tobytes()


def _differences(spec: MapSpec[Any, Any], fd: int, any_size: bool) -> Iterator[str]:
    kind = bpf.object_kind(fd)
    if kind != "map":
        yield f"a {kind} and no map"
        return
    info = bpf.map_info(fd)
    wanted = {
        "type": (info.type, spec.type),
        "key size": (info.key_size, spec.key.SIZE),
        "value size": (info.value_size, spec.value.SIZE),
        "flags": (info.flags, spec.flags),
    }
    if not any_size:
        wanted["entries"] = (info.max_entries, spec.max_entries)
    for what, (found, expected) in wanted.items():
        if found != expected:
            yield f"{what} {found} instead of {int(expected)}"
