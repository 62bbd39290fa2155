# SPDX-License-Identifier: Apache-2.0
"""Which connection-tracking entries have ended: ages, and endpoints that are gone.

The programs make and touch entries; only the agent removes them. Lifetimes are those of common
practice: RFC 5382 (TCP), RFC 4787 (UDP), RFC 5508 (ICMP), longer where a shorter one would cut
connections that keep-alives hold.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bpf.layouts import CtFlag, CtTold

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

TCP, UDP, ICMP, ICMP6, SCTP = 6, 17, 1, 58, 132
TOLD_SECONDS = 1 << CtTold.CT_TOLD_BITS
_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Seconds without a packet after which an entry ends."""

    tcp_established: float = 21600.0
    tcp_opening: float = 60.0
    sctp: float = 900.0
    closing: float = 10.0  # TCP and SCTP
    answered: float = 180.0
    unanswered: float = 60.0
    icmp: float = 60.0


def expired(
    keys: NDArray[numpy.void],
    values: NDArray[numpy.void],
    now: int,
    endpoints: Collection[int],
    lifetimes: Lifetimes,
) -> NDArray[Any]:
    """A mask over entries (CtKey.DTYPE, CtEntry.DTYPE): True where the entry has ended.

    ``now`` is CLOCK_MONOTONIC in ns; ``endpoints`` are the ids of those that live.
    """
    import numpy as np

    flags = values["flags"]
    limit = limits(keys["protocol"], flags, lifetimes)
    # Its far end's entry may have seen packets that this one was not told of yet.
    limit = limit + np.where((flags & CtFlag.CT_LOCAL) != 0, TOLD_SECONDS, 0)
    # An entry may be touched on another CPU just after `now` was read.
    idle = np.maximum(np.int64(now // _SECOND) - values["seen"].astype(np.int64), 0)
    gone = ~np.isin(keys["endpoint"], np.fromiter(endpoints, dtype=np.uint32, count=len(endpoints)))
    result: NDArray[Any] = (idle > limit) | gone
    return result


def records(found: NDArray[numpy.void], mask: NDArray[Any]) -> bytes:
    """Those that are marked, packed back to back as they came from the kernel.

    Taking them out of a structured array would leave what lies between its fields to chance, and
    the kernel compares whole keys.
    """
    import numpy as np

    return bytes(found.view(np.dtype((np.void, found.itemsize)))[mask].tobytes())


def limits(
    protocol: NDArray[Any], flags: NDArray[Any], lifetimes: Lifetimes
) -> NDArray[numpy.float64]:
    """Seconds without a packet after which each entry ends; ``flags`` are those of enum ct_flag."""
    import numpy as np

    answered = (flags & CtFlag.CT_SEEN_REPLY) != 0
    both = CtFlag.CT_FIN_ORIGINAL | CtFlag.CT_FIN_REPLY
    closing = ((flags & both) == both) | ((flags & CtFlag.CT_RST) != 0)
    limit = np.where(answered, lifetimes.answered, lifetimes.unanswered)
    tcp = protocol == TCP
    limit = np.where(
        tcp, np.where(answered, lifetimes.tcp_established, lifetimes.tcp_opening), limit
    )
    sctp = protocol == SCTP
    limit = np.where(sctp, lifetimes.sctp, limit)
    # RST of TCP; ABORT and SHUTDOWN COMPLETE of SCTP (RFC 9260, 3.3.7 and 3.3.13) set the same.
    limit = np.where((tcp | sctp) & closing, lifetimes.closing, limit)
    return np.where((protocol == ICMP) | (protocol == ICMP6), lifetimes.icmp, limit)
