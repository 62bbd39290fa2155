# SPDX-License-Identifier: Apache-2.0
"""Identity numbers that are fixed, and the ranges of those that are not.

The numbers are Cilium's, and those of `enum reserved_identity` in bpf/lib/layout.h.
"""

from __future__ import annotations

from enum import IntEnum
from types import MappingProxyType
from typing import Final

from identity.labels import RESERVED_SOURCE, LabelSet

CLUSTER_FIRST: Final = 256
CLUSTER_LAST: Final = 65535
"""Pods: the range every node of a cluster agrees on; both ends included."""

LOCAL_FIRST: Final = 1 << 24
LOCAL_LAST: Final = (1 << 25) - 1
"""CIDR identities, which mean something on this node only; both ends included."""


class Reserved(IntEnum):
    """Identities that exist without anybody allocating them."""

    HOST = 1
    WORLD = 2
    UNMANAGED = 3
    HEALTH = 4
    INIT = 5
    REMOTE_NODE = 6
    KUBE_APISERVER = 7
    INGRESS = 8
    WORLD_IPV4 = 9
    WORLD_IPV6 = 10

    @property
    def label(self) -> str:
        """Label key of this identity, such as `reserved:remote-node`."""
        return RESERVED_SOURCE + self.name.lower().replace("_", "-")

    @property
    def labels(self) -> LabelSet:
        """The whole label set of this identity: its one label, without a value."""
        return _LABELS[self]


_LABELS: Final = MappingProxyType({one: LabelSet({one.label: ""}) for one in Reserved})
_BY_LABELS: Final = MappingProxyType({labels: one for one, labels in _LABELS.items()})


def reserved_for(labels: LabelSet) -> Reserved | None:
    """The reserved identity that has exactly these labels, if there is one."""
    return _BY_LABELS.get(labels)


def is_local(number: int) -> bool:
    """Whether a number is one of the node's own CIDR identities."""
    return LOCAL_FIRST <= number <= LOCAL_LAST
