# SPDX-License-Identifier: Apache-2.0
"""Nodes: which addresses and networks are theirs, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from agent.core.events import Node
from agent.kube.fields import TranslateError
from agent.kube.translate import translate


def node(spec: Any = None, addresses: Any = None, **more: Any) -> Any:
    made = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "ip-10-0-0-1.ec2.internal"}}
    if spec is not None:
        made["spec"] = spec
    if addresses is not None:
        made["status"] = {"addresses": addresses}
    return {**made, **more}


def address(kind: str, text: str) -> dict[str, str]:
    return {"type": kind, "address": text}


def test_internal_addresses_come_first() -> None:
    found = translate(
        node(
            {"podCIDRs": ["10.244.1.0/24", "fd00:0:0:1::/64"], "podCIDR": "10.244.1.0/24"},
            [
                address("ExternalIP", "203.0.113.7"),
                address("Hostname", "one"),
                address("InternalIP", "192.0.2.1"),
                address("InternalIP", "2001:DB8::1"),
                address("InternalIP", "192.0.2.1"),
            ],
        )
    )
    assert found == Node(
        "ip-10-0-0-1.ec2.internal",
        "",
        ("192.0.2.1", "2001:db8::1", "203.0.113.7"),
        ("10.244.1.0/24", "fd00:0:0:1::/64"),
        frozenset({"203.0.113.7"}),
    )


def test_what_is_not_there_yet() -> None:
    """No status while the kubelet has not said anything, no network while none was given."""
    assert translate(node()) == Node("ip-10-0-0-1.ec2.internal")
    assert translate(node({"podCIDR": "10.1.0.0/24"})) == Node(
        "ip-10-0-0-1.ec2.internal", pod_cidrs=("10.1.0.0/24",)
    )


def test_bits_beyond_the_prefix_count_for_nothing() -> None:
    """The API server takes such a network (its validation parses, and masks)."""
    assert translate(node({"podCIDRs": ["10.1.0.1/24", "fd00::1:2/112"]})) == Node(
        "ip-10-0-0-1.ec2.internal", pod_cidrs=("10.1.0.0/24", "fd00::1:0/112")
    )


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (node({"podCIDRs": ["10.1.0.0/24", "10.2.0.0/24"]}), "spec.podCIDRs[1]"),
        (node({"podCIDRs": ["10.1.0.0"]}), "spec.podCIDRs[0]"),
        (node({"podCIDRs": [7]}), "spec.podCIDRs[0]"),
        (node({"podCIDRs": "10.1.0.0/24"}), "spec.podCIDRs"),
        (node({}, [address("InternalIP", "one")]), "status.addresses[0].address"),
        (node({}, [address("InternalIP", "127.0.0.1")]), "status.addresses[0].address"),
        (node({}, [address("InternalIP", "::ffff:10.0.0.1")]), "status.addresses[0].address"),
        (node({}, ["192.0.2.1"]), "status.addresses[0]"),
        (node({}, [{"type": "InternalIP"}]), "status.addresses[0].address"),
        (node(metadata={"name": "Node_1"}), "metadata.name"),
    ],
)
def test_what_is_refused(bad: Any, field: str) -> None:
    with pytest.raises(TranslateError) as error:
        translate(bad)
    assert error.value.field == field
