# SPDX-License-Identifier: Apache-2.0
"""Whether the network between the nodes carries full-sized packets: asked with datagrams that must
not be fragmented, in a thread of its own. It warns; nothing waits for it.

A datagram to a port where nobody listens is answered by an ICMP error (RFC 1122, 4.1.3.1), which
needs no privilege to hear. An answer says that the packet arrived. A router's refusal names the
size that it can carry (RFC 1191, RFC 8201). Where not even a small datagram is answered, a
firewall may be in between: nothing is said then.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

log = logging.getLogger(__name__)

PORT: Final = 33434  # as traceroute: nobody listens there
ATTEMPTS: Final = 3
WAIT_SECONDS: Final = 1.0
HEADERS: Final = {4: 28, 6: 48}  # IP and UDP
_SMALL: Final = 64

_IP_MTU_DISCOVER, _IP_MTU, _IP_RECVERR = 10, 14, 11
_IPV6_MTU_DISCOVER, _IPV6_MTU, _IPV6_RECVERR = 23, 24, 25
_PMTUDISC_DO = 2


@dataclass(frozen=True, slots=True)
class Path:
    """The way to a node's address, and the size in bytes of an IP packet that it must carry.

    overhead: how much of that is not the pods' own packet.
    """

    node: str
    local: str
    remote: str
    size: int
    overhead: int


class PathProbe:
    """Probes what it is told to, each path once."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        """Paths that are too small, by node. Replaced, never changed."""
        self._wanted: dict[str, Path] = {}
        self._probed: dict[str, Path] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="path-probe", daemon=True)

    def start(self) -> None:
        """Begin with what `want` said, and go on with what it says later."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; it may be waiting for an answer."""
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def want(self, paths: Mapping[str, Path]) -> None:
        """All paths that there are now, by node. Returns at once."""
        self._wanted = dict(paths)
        self._wake.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            wanted = self._wanted
            self.problems = {name: text for name, text in self.problems.items() if name in wanted}
            for name, path in wanted.items():
                if self._stop.is_set():
                    return
                if self._probed.get(name) != path:
                    self._note(path, probe(path, self._stop))
            self._probed = wanted

    def _note(self, path: Path, carried: int | None) -> None:
        others = {name: text for name, text in self.problems.items() if name != path.node}
        if carried is None or carried >= path.size:
            self.problems = others
            return
        text = (
            f"the network to node {path.node} ({path.remote}) "
            + (f"carries packets of {carried} bytes" if carried else "loses full-sized packets")
            + f", and pods of this node send up to {path.size} bytes: "
            + (f"set mtu to {carried - path.overhead}, or raise" if carried else "raise")
            + " the MTU of the network"
        )
        log.warning("%s", text)
        self.problems = {**others, path.node: text}


def probe(path: Path, stop: threading.Event | None = None) -> int | None:
    """How large a packet gets through: at least `size`, or what a router named; 0 where large ones
    get lost without a word, None where nobody answers."""
    for _ in range(ATTEMPTS):
        carried = _ask(path, path.size)
        if carried is not None:
            return carried
        if stop is not None and stop.is_set():
            return None
    return None if _ask(path, _SMALL) is None else 0


def _ask(path: Path, size: int) -> int | None:
    v6 = ":" in path.remote
    with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM) as asking:
        level = socket.IPPROTO_IPV6 if v6 else socket.IPPROTO_IP
        asking.setsockopt(level, _IPV6_MTU_DISCOVER if v6 else _IP_MTU_DISCOVER, _PMTUDISC_DO)
        asking.setsockopt(level, _IPV6_RECVERR if v6 else _IP_RECVERR, 1)
        asking.settimeout(WAIT_SECONDS)
        try:
            if path.local:
                asking.bind((path.local, 0))
            asking.connect((path.remote, PORT))
            asking.send(bytes(size - HEADERS[6 if v6 else 4]))
            asking.recv(1)
            return size  # somebody listens there after all
        except ConnectionRefusedError:
            return size
        except TimeoutError:
            return None
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                with contextlib.suppress(OSError):
                    return asking.getsockopt(level, _IPV6_MTU if v6 else _IP_MTU)
            return None
