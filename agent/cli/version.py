# SPDX-License-Identifier: Apache-2.0
"""The installed version."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed


def version() -> str:
    """From the installed package; `unknown` when run from a tree that is not installed."""
    try:
        return installed("bristle")
    except PackageNotFoundError:
        return "unknown"
