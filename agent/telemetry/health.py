# SPDX-License-Identifier: Apache-2.0
"""/healthz and /readyz for a kubelet's probes, on a port of their own.

/healthz: the process works (its loop answers, or it is on the way to have one). /readyz: the
datapath is in force, and CNI requests are answered. Both give one line of text, and 200 or 503.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

from agent.telemetry.progress import Check
from agent.telemetry.web import Answer, Page, WebServer

log = logging.getLogger(__name__)


def health_server(host: str, port: int, checks: Mapping[str, Check]) -> WebServer:
    """Serves checks by their paths. Raises OSError when the address is taken."""
    return WebServer("health", host, port, {path: check_page(one) for path, one in checks.items()})


def check_page(check: Check) -> Page:
    """A check that cannot be made has not been passed."""

    def page(accepted: str) -> Answer:
        try:
            good, text = check()
        except Exception as error:
            log.exception("a check failed")
            good, text = False, str(error)
        status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        return Answer(status, f"{text}\n".encode())

    return page
