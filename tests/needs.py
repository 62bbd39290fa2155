# SPDX-License-Identifier: Apache-2.0
"""What a test cannot do without."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacking(reason: str) -> NoReturn:
    """Ends a kernel test that cannot run here: as skipped, and where kernel tests must run
    (BRISTLE_REQUIRE_KERNEL=1, as in CI) as failed."""
    if os.environ.get("BRISTLE_REQUIRE_KERNEL") == "1":
        pytest.fail(f"BRISTLE_REQUIRE_KERNEL=1, but {reason}", pytrace=False)
    pytest.skip(reason)
