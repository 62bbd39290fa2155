# SPDX-License-Identifier: Apache-2.0
"""`bristle bpf ... list` on maps in the kernel, without an agent."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from agent.cli.root import cli
from agent.kernel.maps import PinnedMap
from bpf import layouts, maps

pytestmark = pytest.mark.kernel

V4 = bytes(10) + b"\xff\xff"
POD = V4 + bytes([10, 0, 0, 5])
CLIENT = V4 + bytes([10, 0, 0, 6])


def _listing(bpffs_dir: Path, what: str) -> Any:
    arguments = ["bpf", what, "list", "--bpffs-dir", str(bpffs_dir), "--run-dir", "/nonexistent"]
    table = CliRunner().invoke(cli, arguments)
    assert table.exit_code == 0, table.output
    result = CliRunner().invoke(cli, [*arguments, "-o", "json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _put(bpffs_dir: Path, spec: Any, *items: tuple[Any, Any]) -> None:
    # Another size than the default: what an agent is configured to, the command must not need.
    small = spec.resized(64)
    with PinnedMap.open_or_create(small, bpffs_dir / "maps") as made:
        made.update_many(items)


def test_policy(bpffs_dir: Path) -> None:
    key, allow = layouts.PolicyKey, layouts.PolicyVerdict(rule=300, action=1)
    _put(
        bpffs_dir,
        maps.POLICY,
        (key(table=5, peer_class=9, port=80, protocol=6, level=16), allow),
        (key(table=5, peer_class=9, port=1024, protocol=6, level=6), allow),
        (key(table=5, peer_class=9, port=0, protocol=0, level=17), layouts.PolicyVerdict(0, 0)),
    )
    rows = _listing(bpffs_dir, "policy")
    found = {(r["protocol"], r["first_port"], r["last_port"], r["action"], r["rule_name"])
             for r in rows}  # fmt: skip
    assert found == {
        ("TCP", 80, 80, "allow", "rule 300"),
        ("TCP", 1024, 2047, "allow", "rule 300"),
        ("any", 0, 65535, "deny", "default deny"),
    }


def test_ipcache(bpffs_dir: Path) -> None:
    _put(
        bpffs_dir,
        maps.PEERS,
        (layouts.PeerKey(128, POD), layouts.Peer(300, 1234)),
        (layouts.PeerKey(96, V4 + bytes(4)), layouts.Peer(301, 9)),
        (layouts.PeerKey(0, bytes(16)), layouts.Peer(302, 10)),
    )
    rows = {row["prefix"]: row for row in _listing(bpffs_dir, "ipcache")}
    assert set(rows) == {"10.0.0.5/32", "0.0.0.0/0", "::/0"}
    assert rows["10.0.0.5/32"]["identity"] == 1234
    assert rows["::/0"]["identity_name"] == "world-ipv6"


def test_ct(bpffs_dir: Path) -> None:
    key = layouts.CtKey(CLIENT, 7, socket.htons(80), socket.htons(40000), 6)
    values = {name: 0 for name in layouts.CtEntry.__slots__}
    flags = layouts.CtFlag.CT_INGRESS | layouts.CtFlag.CT_SEEN_REPLY
    entry = layouts.CtEntry(**{**values, "packets": (3, 2), "bytes": (300, 200), "flags": flags})  # type: ignore[arg-type]
    _put(bpffs_dir, maps.CT, (key, entry))
    _put(bpffs_dir, maps.CT_OVERFLOW)
    local = layouts.LocalAddress.unpack(bytes(layouts.LocalAddress.SIZE))
    _put(bpffs_dir, maps.ADDRESSES, (POD, replace(local, endpoint=7)))
    (row,) = _listing(bpffs_dir, "ct")
    assert (row["local"], row["local_port"], row["remote_port"]) == ("10.0.0.5", 80, 40000)
    assert (row["direction"], row["packets"], row["bytes_reply"]) == ("ingress", 3, 200)
    assert row["flags"] == ["ingress", "seen_reply"]
    assert row["overflow"] is False


def test_a_connection_within_the_node_is_counted_once_and_shown_whole(bpffs_dir: Path) -> None:
    client, server, port = 6, 7, socket.htons(40000)
    out = layouts.CtKey(POD, client, port, socket.htons(80), 6)
    into = layouts.CtKey(CLIENT, server, socket.htons(80), port, 6)
    values = dict.fromkeys(layouts.CtEntry.__slots__, 0)
    denied = 9 | 1 << layouts.CtVerdictBit.CT_DENIED_BIT
    counted = {"packets": (3, 0), "bytes": (300, 0), "verdict": denied}
    sent = layouts.CtEntry(**{**values, **counted})  # type: ignore[arg-type]
    counted = {"packets": (0, 2), "bytes": (0, 200), "verdict": 9}
    answered = layouts.CtEntry(**{**values, **counted})  # type: ignore[arg-type]
    _put(bpffs_dir, maps.CT, (out, sent))
    _put(bpffs_dir, maps.CT_OVERFLOW, (into, answered))
    local = layouts.LocalAddress.unpack(bytes(layouts.LocalAddress.SIZE))
    holders = ((POD, server), (CLIENT, client))
    _put(bpffs_dir, maps.ADDRESSES, *((a, replace(local, endpoint=n)) for a, n in holders))
    rows = _listing(bpffs_dir, "ct")
    assert [(r["endpoint"], r["packets"], r["packets_reply"], r["bytes"], r["bytes_reply"])
            for r in rows] == [(server, 3, 2, 300, 200), (client, 3, 2, 300, 200)]  # fmt: skip
    assert [(r["overflow"], r["flags"]) for r in rows] == [(True, []), (False, ["denied"])]


def test_endpoints(bpffs_dir: Path) -> None:
    local = layouts.LocalAddress.unpack(bytes(layouts.LocalAddress.SIZE))
    policy = layouts.EndpointPolicy.unpack(bytes(layouts.EndpointPolicy.SIZE))
    _put(bpffs_dir, maps.ADDRESSES, (POD, replace(local, endpoint=7, ifindex=12)))
    _put(
        bpffs_dir,
        maps.ENDPOINTS,
        (7, replace(policy, endpoint=7, identity=1234, ingress_table=5, flags=1)),
    )
    (row,) = _listing(bpffs_dir, "endpoint")
    assert (row["endpoint"], row["addresses"], row["ifindex"]) == (7, ["10.0.0.5"], 12)
    assert (row["ingress_enforced"], row["egress_enforced"]) == (True, False)


def test_metrics(bpffs_dir: Path) -> None:
    specs: tuple[maps.MapSpec[Any, Any], ...] = (maps.METRICS, maps.COUNTERS)
    for spec in specs:
        with PinnedMap.open_or_create(spec, bpffs_dir / "maps") as made:
            stride = made.value_stride
            if spec is maps.METRICS:
                cpus = stride // 16
                made.update_packed((256 + 133).to_bytes(4, "little"),
                                   layouts.Traffic(2, 120).pack() * cpus)  # fmt: skip
    rows = _listing(bpffs_dir, "metrics")
    (drop,) = (row for row in rows if row.get("reason") == 133)
    assert drop["direction"] == "ingress"
    assert drop["packets"] * 60 == drop["bytes"]
    assert drop["packets"] == 2 * cpus
    assert {"counter": "ct_overflow", "value": 0} in rows


def test_missing_map_says_what_to_do(bpffs_dir: Path) -> None:
    result = CliRunner().invoke(cli, ["bpf", "policy", "list", "--bpffs-dir", str(bpffs_dir)])
    assert result.exit_code == 1
    assert f"cannot read map {bpffs_dir}/maps/policy_v" in result.stderr
    assert "--bpffs-dir" in result.stderr
