# SPDX-License-Identifier: Apache-2.0
"""Frames as they are, out of and into one device: for what no socket would send."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

from bench.lab.netns import Namespace
from bench.lab.station import Pod

ETH_P_ALL = 0x0003
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23


class Wire:
    """A context manager: a packet socket on a device of a namespace. Frames are whole Ethernet
    frames; only what arrives is received, not what the namespace itself sends."""

    def __init__(self, namespace: Namespace, device: str = "eth0") -> None:
        def bind() -> tuple[socket.socket, str]:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            made.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            made.bind((device, ETH_P_ALL))
            made.setblocking(False)
            return made, _mac_of(made)

        self._socket, self.mac = namespace.run(bind)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *frames: bytes) -> None:
        """Puts frames on the wire, one after the other."""
        for frame in frames:
            self._socket.send(frame)

    def pending(self) -> list[bytes]:
        """Everything that has arrived by now."""
        found = []
        try:
            while True:
                found.append(self._socket.recv(65536))
        except BlockingIOError:
            return found

    def receive(self, wanted: Callable[[bytes], bool], seconds: float = 1.0) -> bytes | None:
        """The first frame that is wanted; None if none comes in time. Others are lost."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([self._socket], [], [], left)[0]:
                break
            for frame in self.pending():
                if wanted(frame):
                    return frame
        return None


def host_mac(pod: Pod) -> str:
    """The host's end of a pod's pair: its gateway. From the result of ADD."""
    return next(str(i["mac"]) for i in pod.result["interfaces"] if not i.get("sandbox"))


def pod_mac(pod: Pod) -> str:
    """The pod's own end."""
    return next(str(i["mac"]) for i in pod.result["interfaces"] if i.get("sandbox"))


def counter(namespace: Namespace, name: str) -> int:
    """A counter of the namespace's own stack (/proc/net/snmp and snmp6), such as IpFragCreates."""

    def read() -> int:
        for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines():
            key, value = line.split()
            if key == name:
                return int(value)
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
        for keys, values in zip(lines[::2], lines[1::2], strict=True):
            prefix = keys.partition(":")[0]
            table = dict(zip(keys.split()[1:], values.split()[1:], strict=True))
            if name.startswith(prefix) and name[len(prefix) :] in table:
                return int(table[name[len(prefix) :]])
        raise KeyError(name)

    return namespace.run(read)


def _mac_of(bound: socket.socket) -> str:
    raw: bytes = bound.getsockname()[4]
    return raw.hex(":")
