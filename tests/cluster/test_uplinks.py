# SPDX-License-Identifier: Apache-2.0
"""Uplinks that nobody named: found by default routes and by what the cluster knows the node by."""

from __future__ import annotations

import contextlib

import grpc
import pytest

from bench.lab import api_source
from bench.lab.node import POD_CIDRS, Lab
from bench.lab.station import UPLINK

pytestmark = pytest.mark.kernel

PRIVATE = "198.51.100.5"


def devices(lab: Lab) -> tuple[str, ...]:
    with contextlib.suppress(grpc.RpcError):  # it is just starting
        return tuple(lab.agent.status().devices)
    return ()


def test_the_nodes_own_address_is_on_a_second_device() -> None:
    with Lab(api=True, start=False, uplink_hook=False) as lab:
        lab.node_namespace.ip(
            "link add priv0 type bridge",
            "link set priv0 up",
            f"address add {PRIVATE}/24 dev priv0",
        )
        lab.api.load([api_source.node("node-1", [PRIVATE], POD_CIDRS)])
        lab.agent.start()
        assert devices(lab) == (UPLINK, "priv0")
        # Without the cluster's word, those of the last time.
        lab.agent.kill()
        lab.api.stop()
        lab.agent.launch()
        assert lab.agent.wait(lambda: devices(lab), "status", 60) == (UPLINK, "priv0")
