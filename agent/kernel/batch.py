# SPDX-License-Identifier: Apache-2.0
"""Many map entries in one system call, and one by one where the kernel cannot.

Keys and values are packed back to back. A batch stops at the first entry that fails and says how
many it did before; these functions go on from there. Kernel: generic_map_update_batch and its
neighbours in kernel/bpf/syscall.c, __htab_map_lookup_and_delete_batch in kernel/bpf/hashtab.c.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from typing import Final

from agent.kernel import bpf
from agent.kernel.syscall import BpfError, Command, call, pointer

CHUNK: Final = 8192
"""Entries in one call: bounds how long the kernel is busy without looking at signals."""

_ENOTSUPP: Final = 524  # the kernel's own number, not in errno
_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, _ENOTSUPP})
_PATIENCE: Final = 100  # tries while the kernel's allocator for map elements refills
_ATTRIBUTES: Final = struct.Struct("=QQQQIIQQ")
_COUNT_AT: Final = 32


class EntryError(Exception):
    """A batch stopped: ``done`` entries were processed, the next one failed with ``cause``."""

    def __init__(self, done: int, cause: BpfError) -> None:
        self.done = done
        self.cause = cause
        super().__init__(f"after {done} entries: {cause}")


def update(
    fd: int, keys: bytes, values: bytes, key_size: int, value_size: int, flags: int, what: str
) -> None:
    """Write all entries. Raises EntryError; entries before the failed one are written."""
    total = len(keys) // key_size
    done = stalls = 0
    while done < total:
        count = min(CHUNK, total - done)
        part, error = _change(
            Command.MAP_UPDATE_BATCH, fd,
            pointer(keys) + done * key_size, pointer(values) + done * value_size,
            count, flags, what,
        )  # fmt: skip
        if error is None:
            done += count
            continue
        if error.errno in _UNSUPPORTED:
            _update_singly(fd, keys, values, key_size, value_size, flags, done, what)
            return
        done += part
        # Elements without preallocation come from per-CPU lists that an interrupt refills.
        stalls = 0 if part else stalls + 1
        if error.errno != errno.ENOMEM or stalls > _PATIENCE:
            raise EntryError(done, error)
        os.sched_yield()


def delete(fd: int, keys: bytes, key_size: int, what: str) -> int:
    """Delete all entries; absent ones are no error. Returns how many there were."""
    total = len(keys) // key_size
    done = deleted = 0
    while done < total:
        count = min(CHUNK, total - done)
        part, error = _change(
            Command.MAP_DELETE_BATCH, fd, pointer(keys) + done * key_size, 0, count, 0, what
        )
        if error is None:
            done += count
            deleted += count
        elif error.errno == errno.ENOENT:
            done += part + 1
            deleted += part
        elif error.errno in _UNSUPPORTED:
            singles = (keys[n * key_size : (n + 1) * key_size] for n in range(done, total))
            return deleted + sum(bpf.map_delete(fd, key, what) for key in singles)
        else:
            raise EntryError(done + part, error)
    return deleted


def lookup_all(
    fd: int, key_size: int, value_size: int, max_entries: int, what: str
) -> Iterator[tuple[bytes, bytes]]:
    """All entries, as (keys, values) of many at a time.

    An entry that is there all the while comes at least once. One that is written or deleted
    meanwhile may come or not, or twice; a walk that deletions send back to the start is ended
    after it has seen twice as many entries as the map can hold.
    """
    cursor = ctypes.create_string_buffer(max(4, key_size))  # hash maps: a bucket number
    chunk = min(CHUNK, max_entries)
    started, seen = False, 0
    while seen <= 2 * max_entries:
        keys = ctypes.create_string_buffer(chunk * key_size)
        values = ctypes.create_string_buffer(chunk * value_size)
        attributes = ctypes.create_string_buffer(
            _ATTRIBUTES.pack(
                pointer(cursor) if started else 0, pointer(cursor),
                pointer(keys), pointer(values), chunk, fd, 0, 0,
            ),
            _ATTRIBUTES.size,
        )  # fmt: skip
        at_end = False
        try:
            call(Command.MAP_LOOKUP_BATCH, attributes, what)
        except BpfError as error:
            if error.errno == errno.ENOSPC:
                chunk *= 2  # one bucket holds more than fits
                continue
            if error.errno in _UNSUPPORTED and not started:
                yield from _lookup_singly(fd, key_size, value_size, max_entries, what)
                return
            if error.errno == errno.EINTR:
                continue  # entries vanished under the walk: the same place again
            if error.errno != errno.ENOENT:
                raise
            at_end = True
        count = struct.unpack_from("=I", attributes, _COUNT_AT)[0]
        if count:
            yield keys.raw[: count * key_size], values.raw[: count * value_size]
        if at_end:
            return
        started = True
        seen += count


def supported(fd: int, keys: bytes, values: bytes) -> bool:
    """Whether this map takes one such entry as a batch. Raises BpfError for other failures."""
    _, error = _change(
        Command.MAP_UPDATE_BATCH, fd, pointer(keys), pointer(values), 1, 0, "a batch of one"
    )
    if error is not None and error.errno not in _UNSUPPORTED:
        raise error
    return error is None


def _change(
    command: Command, fd: int, keys: int, values: int, count: int, flags: int, what: str
) -> tuple[int, BpfError | None]:
    attributes = ctypes.create_string_buffer(
        _ATTRIBUTES.pack(0, 0, keys, values, count, fd, flags, 0), _ATTRIBUTES.size
    )
    try:
        call(command, attributes, what)
    except BpfError as error:
        done = struct.unpack_from("=I", attributes, _COUNT_AT)[0]
        # The count stays as given where the call was refused before the first entry.
        return (0 if done >= count else done), error
    return count, None


def _update_singly(
    fd: int, keys: bytes, values: bytes, key_size: int, value_size: int, flags: int, first: int,
    what: str,
) -> None:  # fmt: skip
    for n in range(first, len(keys) // key_size):
        key = keys[n * key_size : (n + 1) * key_size]
        value = values[n * value_size : (n + 1) * value_size]
        try:
            bpf.map_update(fd, key, value, flags, f"{what}, key {key.hex()}")
        except BpfError as error:
            raise EntryError(n, error) from error


def _lookup_singly(
    fd: int, key_size: int, value_size: int, max_entries: int, what: str
) -> Iterator[tuple[bytes, bytes]]:
    key = bpf.map_next_key(fd, None, key_size, what)
    seen = 0
    while key is not None and seen <= 2 * max_entries:
        value = bpf.map_lookup(fd, key, value_size, what)
        if value is not None:
            yield key, value
        key = bpf.map_next_key(fd, key, key_size, what)
        seen += 1
