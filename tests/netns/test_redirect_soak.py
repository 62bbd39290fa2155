# SPDX-License-Identifier: Apache-2.0
"""A minute of real programs on redirected sockets: `make soak` is the long form.

NGINX, HAProxy, redis, wrk, iperf3 and curl are used as far as they are there
(tools/bench_tools.sh); our own clients, which check every byte, always are.
"""

import os

import pytest

from bench.areas import redirect_soak

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

SECONDS = float(os.environ.get("BRISTLE_SOAK_SECONDS", "60"))


def test_every_byte_comes_whatever_happens(private_mounts: None) -> None:
    claims = {one.claim.strip(): one for one in redirect_soak.run(SECONDS)}
    wrong = claims["clients that met a wrong byte or an error"]
    assert wrong.measured == 0, wrong.raw
    assert claims["stalls that the agent saw"].measured == 0
    # It was about redirected sockets, and they were disturbed.
    assert claims["messages redirected"].measured > 100
    assert claims["exchanges, each byte checked"].measured > 100
    assert claims["policies changed"].measured > 0
