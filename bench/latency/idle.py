# SPDX-License-Identifier: Apache-2.0
"""Keeps idle cores awake for as long as a file is open (PM QoS, /dev/cpu_dma_latency).

Between two cores most of a short round trip is the time in which the other core wakes up: from a
deep state of the processor, or from the hypervisor. That is worth tens of microseconds, is equal
for all ways, varies from minute to minute, and hides what they differ in. The request ends with the
file descriptor, also when its process is killed.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

DEVICE = Path("/dev/cpu_dma_latency")


@contextlib.contextmanager
def awake(device: Path = DEVICE) -> Iterator[bool]:
    """Meanwhile idle cores poll. Gives whether the kernel takes such a request."""
    try:
        fd = os.open(device, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        os.write(fd, struct.pack("=i", 0))  # µs of latency that is put up with
        yield True
    finally:
        os.close(fd)


def description(sysfs: Path = Path("/sys/devices/system/cpu/cpuidle")) -> str:
    """What puts idle cores to sleep here: driver and governor, and whether it can be held off."""
    names = []
    for file in ("current_driver", "current_governor"):
        with contextlib.suppress(OSError):
            names.append((sysfs / file).read_text().strip())
    what = "/".join(names) or "no cpuidle"
    return f"{what}, {'held off between two cores' if DEVICE.exists() else 'cannot be held off'}"
