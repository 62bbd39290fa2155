# SPDX-License-Identifier: Apache-2.0
"""One program at one hook of any device, as a direct-action filter of its clsact qdisc.

For kernels without TCX, uplinks included: filters have a priority and a handle of our own, so that
those of others stay untouched and ours are found again. Replacing a filter is one message, atomic
for the packets that pass. Messages: linux/rtnetlink.h (struct tcmsg), linux/pkt_cls.h (TCA_BPF_*).
"""

import errno
import socket
import struct
from typing import Final

from agent.kernel.rtnl import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Request,
    RtnlSocket,
    attributes,
    nested,
    number,
    string,
    text,
    u32,
)

PRIORITY: Final = 178
HANDLE: Final = 0x62726973  # "bris"

_RTM_NEWQDISC: Final = 36
_RTM_NEWTFILTER, _RTM_DELTFILTER, _RTM_GETTFILTER = 44, 45, 46
_TC_H_CLSACT: Final = 0xFFFFFFF1
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS, _TCA_BPF_ID = 6, 7, 8, 11
_DIRECT_ACTION: Final = 1
_INFO: Final = PRIORITY << 16 | socket.htons(3)  # ETH_P_ALL
_TCMSG: Final = struct.Struct("=BxxxiIII")  # family, ifindex, handle, parent, info

# No device, no qdisc (EINVAL), no filter: there is nothing of ours.
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENODEV, errno.EINVAL})


def attach(ifindex: int, minor: int, program_fd: int, name: str) -> None:
    """Put a program at a hook of a device, in place of ours that is there.

    ``minor`` is TC_H_MIN_INGRESS (0xfff2) or TC_H_MIN_EGRESS (0xfff3). Raises RtnlError.
    """
    options = nested(
        _TCA_OPTIONS,
        u32(_TCA_BPF_FD, program_fd),
        text(_TCA_BPF_NAME, name),
        u32(_TCA_BPF_FLAGS, _DIRECT_ACTION),
    )
    qdisc = _TCMSG.pack(0, ifindex, _TC_H_CLSACT & 0xFFFF0000, _TC_H_CLSACT, 0)
    requests = [
        Request(
            _RTM_NEWQDISC,
            NLM_F_CREATE | NLM_F_EXCL,
            qdisc + text(_TCA_KIND, "clsact"),
            f"add clsact to device {ifindex}",
            frozenset({errno.EEXIST}),
        ),
        Request(
            _RTM_NEWTFILTER,
            NLM_F_CREATE | NLM_F_REPLACE,
            _ours(ifindex, minor) + options,
            f"attach {name} to device {ifindex}",
        ),
    ]
    with RtnlSocket() as netlink:
        netlink.run(requests)


def attached(ifindex: int, minor: int) -> int | None:
    """Id of the program that our filter runs, None where there is none or no such device."""
    payload = _TCMSG.pack(0, ifindex, 0, _parent(minor), 0)
    with RtnlSocket() as netlink:
        found = netlink.dump(
            Request(_RTM_GETTFILTER, 0, payload, f"filters of device {ifindex}", _ABSENT)
        )
    for message in found:
        _, index, handle, _, info = _TCMSG.unpack_from(message.payload)
        fields = attributes(message.payload[_TCMSG.size :])
        if (index, handle, info) == (ifindex, HANDLE, _INFO) and string(fields, _TCA_KIND) == "bpf":
            return number(attributes(fields.get(_TCA_OPTIONS, b"")), _TCA_BPF_ID)
    return None


def detach(ifindex: int, minor: int) -> None:
    """Remove our filter; an absent one is fine. The qdisc stays: others may use it."""
    request = Request(
        _RTM_DELTFILTER, 0, _ours(ifindex, minor), f"detach from device {ifindex}", _ABSENT
    )
    with RtnlSocket() as netlink:
        netlink.run([request])


def _ours(ifindex: int, minor: int) -> bytes:
    return _TCMSG.pack(0, ifindex, HANDLE, _parent(minor), _INFO) + text(_TCA_KIND, "bpf")


def _parent(minor: int) -> int:
    return _TC_H_CLSACT & 0xFFFF0000 | minor
