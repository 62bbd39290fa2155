# SPDX-License-Identifier: Apache-2.0
"""Times in the two forms of the API: whole seconds, and exactly six digits after them (pure)."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:[.,](\d+))?(?:(Z)|([-+])(\d\d):(\d\d))\Z",
    re.ASCII,
)


def parse(text: str, *, micro: bool = False) -> datetime:
    """An RFC 3339 time. micro: six digits of a fraction are a must. Raises ValueError."""
    found = _TIME.match(text)
    if not found:
        raise ValueError(f"{text!r} is no RFC 3339 time")
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    fraction = found[7] or ""
    if micro and len(fraction) != 6:
        raise ValueError(f"{text!r} has no fraction of six digits")
    zone = UTC
    if found[9]:
        offset = timedelta(hours=int(found[10]), minutes=int(found[11]))
        zone = timezone(offset if found[9] == "+" else -offset)
    micros = int(f"{fraction:0<6}"[:6])
    return datetime(year, month, day, hour, minute, second, micros, zone)


def seconds(moment: datetime) -> str:
    """In the form of `creationTimestamp`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micros(moment: datetime) -> str:
    """In the form of a lease's `renewTime`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def from_epoch(moment: float) -> str:
    """Seconds since 1970 in the form of `creationTimestamp`."""
    return seconds(datetime.fromtimestamp(moment, UTC))
