# SPDX-License-Identifier: Apache-2.0
"""Times as the API writes them (RFC 3339, UTC). Pure: the time is passed in."""

from datetime import UTC, datetime


def timestamp(seconds: float) -> str:
    """metav1.Time of seconds since 1970: whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_timestamp(seconds: float) -> str:
    """metav1.MicroTime of seconds since 1970: microseconds, always six digits."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
