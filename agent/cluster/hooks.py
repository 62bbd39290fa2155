# SPDX-License-Identifier: Apache-2.0
"""What daemon and membership say to each other; imports nothing of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


class NoPodCidrs(Exception):
    """The agent was told to stop before the cluster had given this node any."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """What the rest of the agent does for the member.

    set_blocks: the node's pod CIDRs are these now; called in the loop's thread.
    ready: whether pods can be served, and why not.
    """

    set_blocks: Callable[[Sequence[str]], None]
    ready: Callable[[], tuple[bool, str]]
