# SPDX-License-Identifier: Apache-2.0
"""Unreachable routes for the node's pod CIDRs, so that packets to no pod do not wander.

A CIDR within a network that the node is connected to has none: the route would be more specific
than the connected one, and would cut off whoever has an address in it there, a gateway for example.
Nothing wanders there either, for whom the packet is for is asked on the link.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from agent.cleanup import NETWORKS, recorded_networks
from agent.kernel.netlink import IPNetwork
from agent.kernel.node_addresses import connected_networks
from agent.kernel.podnet import protect_blocks
from agent.state_file import write_durably

log = logging.getLogger(__name__)


class Protection:
    """One thread at a time. All raise OSError."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._blocks: tuple[IPNetwork, ...] = ()
        self._installed: set[IPNetwork] | None = None
        self.problems: Mapping[str, str] = {}
        """By what they concern, for status. Others may read it."""

    def set_blocks(self, cidrs: Sequence[str]) -> None:
        """Protect these; routes of CIDRs no longer in use go. They are written down, so that
        `cleanup` knows them without a configuration."""
        former = recorded_networks(self._state_dir)
        self._blocks = tuple(ip_network(one) for one in cidrs)
        text = json.dumps(list(map(str, self._blocks)))
        write_durably(self._state_dir / NETWORKS, text.encode())
        protect_blocks([one for one in former if one not in self._blocks], install=False)
        self._installed = None
        self.follow()

    def follow(self) -> None:
        """The node's addresses may have changed."""
        networks = connected_networks()
        around = {one: _around(one, networks) for one in self._blocks}
        wanted = {one for one, network in around.items() if network is None}
        if wanted == self._installed:
            return
        protect_blocks(wanted, install=True)
        protect_blocks(around.keys() - wanted, install=False)
        self._installed = wanted
        problems = {
            f"pod network {one}": f"it lies within {network}, a network that this node is connected"
            " to: packets to addresses without a pod go there"
            for one, network in around.items()
            if network is not None
        }
        for name, text in problems.items():
            if name not in self.problems:
                log.warning("%s: %s", name, text)
        self.problems = problems


def _around(block: IPNetwork, networks: Iterable[IPNetwork]) -> IPNetwork | None:
    """The connected network that a block lies within."""
    found: list[Any] = [one for one in networks if one.version == block.version]
    return next((one for one in found if one.supernet_of(block)), None)
