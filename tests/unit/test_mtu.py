# SPDX-License-Identifier: Apache-2.0
"""Which pods do not fit the network any more."""

from __future__ import annotations

from dataclasses import replace

from agent.kernel.endpoint_store import EndpointRecord
from agent.mtu import oversized

WEB = EndpointRecord(
    endpoint=1, container_id="c1", ifname="eth0", netns="/run/netns/a", netns_cookie=0,
    host_name="bri1", host_ifindex=7, host_mac="", pod_mac="", mtu=1500, ipv4=None, ipv6=None,
    namespace="shop", pod="web",
)  # fmt: skip


def test_pods_that_fit_are_not_named() -> None:
    assert oversized([], 1500) == {}
    assert oversized([WEB, replace(WEB, mtu=1400)], 1500) == {}


def test_the_others_are_each_with_its_own() -> None:
    small, bare = replace(WEB, pod="small", mtu=1400), replace(WEB, pod="", mtu=9000)
    (text,) = oversized([WEB, small, bare], 1450).values()
    assert "c1/eth0 (9000), shop/web (1500) were made with more than the 1450 bytes" in text
    assert "small" not in text


def test_of_many_it_names_some_and_counts_the_rest() -> None:
    many = [replace(WEB, pod=f"web-{number:02}") for number in range(110)]
    (text,) = oversized(many, 1450).values()
    assert "web-09 (1500) and 100 more were made" in text and "web-10" not in text
