# SPDX-License-Identifier: Apache-2.0
"""The checks, each about one thing that applications rely on (tcp(7), recv(2), epoll(7))."""

from __future__ import annotations

from typing import Final

from agent.selftest import checks_blocking, checks_on

CHECKS: Final = (*checks_on.CHECKS, *checks_blocking.CHECKS)
